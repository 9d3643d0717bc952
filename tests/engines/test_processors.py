"""How many threads a call may take: affinity, and the quotas of cgroups, from trees of files."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

import bptt
from bptt._src.engines import threads
from bptt._src.engines.backend import Backend

V1 = "12:cpu,cpuacct:{}\n3:cpuset:/elsewhere\n0::/\n"
V2 = "0::{}\n"
MOUNT_1 = "33 31 0:30 {} {} rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
MOUNT_2 = "41 31 0:38 {} {} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "23 1 8:1 / / rw - ext4 /dev/root rw\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
ON_1, ON_2 = "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"

CASES = {
    "none": (V2.format("/"), MOUNT_2.format("/", ON_2), {}, None),
    "version 2": (V2.format("/a"), MOUNT_2.format("/", ON_2), {f"{ON_2}/a": "150000 100000"}, 1.5),
    "version 2, no limit": (
        V2.format("/a"),
        MOUNT_2.format("/", ON_2),
        {f"{ON_2}/a": "max 100000"},
        None,
    ),
    "of a cgroup above": (
        V2.format("/a/b/c"),
        MOUNT_2.format("/", ON_2),
        {f"{ON_2}/a/b/c": "max 100000", f"{ON_2}/a": "50000 20000", f"{ON_2}/a/b": "300000 100000"},
        2.5,
    ),
    "of another cgroup": (
        V2.format("/a"),
        MOUNT_2.format("/", ON_2),
        {f"{ON_2}/b": "50000 100000", f"{ON_2}/a/b": "50000 100000"},
        None,
    ),
    "a namespace: the cgroup is the root that is seen": (
        V2.format("/"),
        MOUNT_2.format("/", ON_2),
        {ON_2: "200000 100000"},
        2,
    ),
    "a container that has the path of the host": (
        V2.format("/docker/0a1b"),
        MOUNT_2.format("/docker/0a1b", ON_2),
        {ON_2: "200000 100000"},
        2,
    ),
    "in a cgroup outside of its namespace": (
        V2.format("/../other"),
        MOUNT_2.format("/", ON_2),
        {ON_2: "400000 100000", "/sys/fs/other": "100000 100000"},
        4,
    ),
    "version 1": (V1.format("/a"), MOUNT_1.format("/", ON_1), {f"{ON_1}/a": (25000, 50000)}, 0.5),
    "version 1, no limit": (
        V1.format("/a"),
        MOUNT_1.format("/", ON_1),
        {f"{ON_1}/a": (-1, 100000), ON_1: (-1, 100000)},
        None,
    ),
    "version 1, of a container": (
        V1.format("/docker/0a1b/sub"),
        MOUNT_1.format("/docker/0a1b", ON_1),
        {ON_1: (300000, 100000), f"{ON_1}/sub": (-1, 100000)},
        3,
    ),
    "both versions": (
        V1.format("/a"),
        MOUNT_2.format("/", "/sys/fs/cgroup/unified") + MOUNT_1.format("/", ON_1),
        {f"{ON_1}/a": (100000, 100000), "/sys/fs/cgroup/unified": "max 100000"},
        1,
    ),
    "mounted elsewhere": (
        V2.format("/a"),
        MOUNT_2.format("/", "/my\\040own/cgroup"),
        {"/my own/cgroup/a": "100000 100000"},
        1,
    ),
}


@pytest.mark.parametrize(("cgroup", "mounts", "limits", "expected"), CASES.values(), ids=CASES)
def test_the_quota_of_a_process(cgroup, mounts, limits, expected, tmp_path):
    files = {"/proc/self/cgroup": cgroup, "/proc/self/mountinfo": OTHERS + mounts}
    for place, limit in limits.items():
        if isinstance(limit, str):
            files[f"{place}/cpu.max"] = f"{limit}\n"
        else:
            for name, value in zip(("quota", "period"), limit, strict=True):
                files[f"{place}/cpu.cfs_{name}_us"] = f"{value}\n"
    for name, text in files.items():
        file = tmp_path / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert threads.cpu_quota(tmp_path) == expected


def test_where_there_are_no_such_files(tmp_path):
    assert threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(None, 8), (0.1, 1), (1.0, 1), (1.5, 1), (1.74, 1), (1.75, 2), (4.2, 4), (7.8, 8), (64.0, 8)],
)
def test_a_quota_counts_as_whole_processors(quota, expected, monkeypatch):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads, "_by_affinity", lambda: 8)
    assert threads.processors() == expected


def test_where_nothing_tells_the_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert threads.processors() == os.cpu_count()


def test_the_system_is_asked_again_after_some_time(monkeypatch):
    answers, now = itertools.count(1), [100.0]
    monkeypatch.setattr(threads, "_known", threads._Known())
    monkeypatch.setattr(threads, "monotonic", lambda: now[0])
    monkeypatch.setattr(threads, "processors", lambda: next(answers))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    assert [threads.allowed(), threads.allowed()] == [1, 1]
    now[0] += 0.9 * threads.LIFETIME
    assert threads.allowed() == 1
    now[0] += 0.2 * threads.LIFETIME
    assert [threads.allowed(), threads.allowed()] == [2, 2]


def test_one_thread_needs_no_answer(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(threads, "processors", None)
    assert threads.allowed() == 1


def test_a_backend_says_what_was_asked_for():
    backend = Backend("native", "avx2", 1, None, "2 asked for, 1 processor may be used")
    assert str(backend) == ("native kernels, avx2, 1 thread (2 asked for, 1 processor may be used)")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
@pytest.mark.skipif(bptt.kernels.backend().name != "native", reason="there are no native kernels")
def test_a_process_on_one_processor():
    script = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import torch, bptt
torch.set_num_threads(4)
print(bptt.kernels.backend())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.endswith("1 thread (4 asked for, 1 processor may be used)\n")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
@pytest.mark.skipif(bptt.kernels.backend().name != "native", reason="there are no native kernels")
def test_more_threads_than_processors_come_to_an_end():
    """Should the cap not see what there is: hundreds of barriers, four threads, one processor."""
    script = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import torch, bptt
from bptt._src.engines import threads
threads.processors = lambda: 4
torch.set_num_threads(4)
assert bptt.kernels.backend().threads == 4
lstm, x = bptt.LSTM(9, 90), torch.randn(400, 9, 9)
lstm(x)[0].sum().backward()
"""
    subprocess.run([sys.executable, "-c", script], timeout=300, check=True)
