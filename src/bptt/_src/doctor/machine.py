"""The machine, as far as it can be seen without loading anything: memory, compiler, processor."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from bptt._src.doctor.diagnosis import Diagnosis
from bptt._src.doctor.trial import load_of_others

COMPILERS = ("c++", "g++", "clang++")
"""Any of them compiles the kernels; ``$CXX`` goes before them."""


def look_at_processor() -> Diagnosis:
    """Name the processor, and what else has kept it busy in the last minute."""
    text = _read(Path("/proc/cpuinfo"))
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    says = f"{name}, {platform.machine()}, {platform.system()}"
    figures = {"name": name, "system": platform.platform(), "load": load_of_others()}
    return Diagnosis("processor", "ok", says, figures=figures)


def look_at_memory() -> Diagnosis:
    """Report how much memory there is, and how much of it is free."""
    known = dict(re.findall(r"^(\w+): +(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE))
    total = 1024 * int(known["MemTotal"]) if "MemTotal" in known else _of_system()
    free = 1024 * int(known["MemAvailable"]) if "MemAvailable" in known else None
    if total is None:
        return Diagnosis("memory", "note", "this system does not say how much there is")
    limit = memory_limit()
    if limit is not None and limit >= total:
        limit = None
    says = f"{_gib(total)}" + ("" if free is None else f", {_gib(free)} available")
    if limit is not None:
        says += f"; this process's control group may have {_gib(limit)}"
    figures = {"total": total, "available": free, "limit": limit}
    return Diagnosis("memory", "ok", says, figures=figures)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process's control group may have; None if no limit is seen.

    Args:
        root: where ``proc`` and the file systems of control groups are mounted.
    """
    own = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    groups = root / "sys/fs/cgroup"
    found = []
    for base, path, name in (
        (groups, own.get("", ""), "memory.max"),
        (groups / "memory", own.get("memory", ""), "memory.limit_in_bytes"),
    ):
        inside = base / path
        for place in (inside, *inside.parents):
            if text := _read(place / name).strip():
                found.append(text)
            if place == base:
                break
    return min((int(text) for text in found if text.isdecimal()), default=None)


def look_at_compiler() -> Diagnosis:
    """Look for a compiler of C++, which an install from source compiles the kernels with."""
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        if (path := shutil.which(name)) is None:
            continue
        if (said := _version_of(path)) is not None:
            return Diagnosis("compiler", "ok", f"{path}: {said}", figures={"path": path})
    return Diagnosis(
        "compiler",
        "note",
        "no C++ compiler was found (c++, g++, clang++, $CXX)",
        "A wheel brings its kernels along. Without a compiler, an install from source has none, "
        "and torch.compile has none for processors.",
        "install gcc or clang, if you need one of these",
    )


def _version_of(path: str) -> str | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, timeout=10, check=False, text=True,
            errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0] if lines and done.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or not to be seen from here
        return ""


def _of_system() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # this system does not say
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
