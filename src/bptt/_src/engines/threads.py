"""How many threads a native call may take: torch's number, or fewer where the system gives less.

The system limits a process in two ways, both of which may change while it runs: by the processors
that it may run on (``taskset``, cpusets), and by a quota of processor time (``docker run --cpus``,
Kubernetes' limits, systemd's ``CPUQuota``). Torch and OpenMP look at the first when they are loaded
and never at the second.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from time import monotonic

import torch

LIFETIME = 0.5
"""Seconds after which the system is asked again."""

NEARLY_WHOLE = 0.25
"""A quota that is no further below a whole number of processors is rounded up, others down.

Another thread brings less than it takes when all of them are stopped for much of each period.
"""


class _Known(threading.local):
    """What the system said last; threads may have affinity masks of their own."""

    said = (float("-inf"), 1)
    """Until when it counts, and the number of processors."""


_known = _Known()


class _Pool:
    """The threads that calls run on."""

    owner: int | None = None
    """The process that has them; its forked children run on one thread."""


def shared() -> None:
    """Take note that the native library has been given the threads of torch's OpenMP."""
    _Pool.owner = os.getpid()


def allowed() -> int:
    """Return how many threads a call from this thread may take now."""
    asked = torch.get_num_threads()
    if asked == 1:
        return 1
    until, number = _known.said
    if monotonic() >= until:
        number = refresh()
    return asked if asked < number else number


def refresh() -> int:
    """Ask the system now rather than when :data:`LIFETIME` is over; return :func:`processors`."""
    number = processors()
    _known.said = monotonic() + LIFETIME, number
    return number


def explained() -> tuple[int, str | None]:
    """Return how many threads a call may take now, and why fewer than torch, where that is so."""
    asked = torch.get_num_threads()
    number = min(asked, refresh())
    if asked > 1 and _Pool.owner != os.getpid():
        where = "torch has no GNU OpenMP here" if _Pool.owner is None else "this is a forked child"
        return 1, f"{asked} asked for, {where}"
    if number == asked:
        return number, None
    s = "s" if number != 1 else ""
    return number, f"{asked} asked for, {number} processor{s} may be used"


def processors() -> int:
    """Count the processors that this thread may use, by affinity and by quota."""
    number = _by_affinity()
    quota = cpu_quota()
    return number if quota is None else min(number, max(1, int(quota + NEARLY_WHOLE)))


def _by_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the processors' worth of time that this process's cgroups give it.

    Args:
        root: where ``proc`` and the cgroups' file systems are mounted.

    Returns:
        The least of the quotas of its cgroup and of all above it that are visible from here, of
        version 1 and 2 alike; None if there is none.
    """
    try:
        memberships, mounts = (
            (root / "proc/self" / name).read_text(errors="surrogateescape")
            for name in ("cgroup", "mountinfo")
        )
    except OSError:  # another system than Linux, or proc is not mounted
        return None
    found = (
        quota
        for place in _cgroups(memberships, mounts)
        if (quota := _quota_of(root / place.lstrip("/"))) is not None
    )
    return min(found, default=None)


def _cgroups(memberships: str, mounts: str) -> Iterator[str]:
    """Yield the directories of the process's cgroups that may limit it."""
    paths: dict[str, PurePosixPath] = {}  # by version
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        seen, mounted = map(_unescaped, before.split()[3:5])
        version, _, options = after.split()[:3]
        if version not in paths or (version == "cgroup" and "cpu" not in options.split(",")):
            continue
        # A container may have its own cgroup mounted, under the path that it has on the host, or
        # be in one that lies outside of what it sees.
        own = paths[version]
        inside = own.relative_to(seen) if own.is_relative_to(seen) else PurePosixPath()
        for part in (inside, *inside.parents) if ".." not in inside.parts else ("",):
            yield f"{mounted}/{part}"


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _quota_of(place: Path) -> float | None:
    """Return the quota of a cgroup of either version; None if it has none."""
    try:
        if (place / "cpu.max").exists():
            quota, period = (place / "cpu.max").read_text().split()
        else:
            quota = (place / "cpu.cfs_quota_us").read_text().strip()
            period = (place / "cpu.cfs_period_us").read_text().strip()
    except OSError:  # the topmost has no such files, nor has one whose controller is off
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
