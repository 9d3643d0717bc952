"""Steps with the usual memory and with memory that is kept, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from bptt._src.bench import fresh, jobs, memory
from bptt._src.bench.memory import measure_memory
from bptt._src.bench.result import OURS, TORCH, Peaks
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, Stopped
from bptt.bench import bench

LITTLE = Effort(rounds=2, turn=0.0)
is_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")


@is_glibc
def test_both_kinds_are_measured():
    usual, kept = measure_memory(["lstm"], [Shape(2, 3, 4, 6)], 1, LITTLE, Pace())
    assert (usual.name, kept.name) == ("LSTM", "LSTM, kept")
    for row in (usual, kept):
        assert {name: len(times) for name, times in row.seconds.items()} == {OURS: 2, TORCH: 2}
        assert list(row.faults) == [OURS, TORCH]
        assert not row.notes
    assert usual.to_dict(Peaks())["contenders"][TORCH]["page_faults"] == usual.faults[TORCH]


COUNTED = """
import torch
from bptt._src.bench import faults

class Fills:
    def found(self):
        torch.ones(2**24)  # 64 MB, more than glibc ever keeps of itself

for _ in range(6):  # as the timing has, before faults are counted
    Fills().found()
print(faults._faults(Fills()))
"""


@is_glibc
@pytest.mark.parametrize("settings", [{}, memory.KEEPS])
def test_the_faults_of_a_large_block_are_counted_unless_it_is_kept(settings):
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    faults = int(done.stdout)
    assert faults < 10 if settings else faults >= 2**26 / 2**21  # even of the largest pages


def test_each_kind_has_a_process(monkeypatch):
    asked = []

    def run_fresh(function, threads, given, effort, **settings):
        asked.append((function, threads, settings))
        return [{"seconds": {OURS: [1.0]}, "faults": {OURS: 2}, "notes": ["no"]} for _ in given]

    monkeypatch.setattr(fresh, "run_fresh", run_fresh)
    rows = measure_memory(["rnn", "gru"], [Shape(1, 2, 3, 6)], 4, LITTLE, Pace())
    assert asked == [(fresh.memory, 4, {}), (fresh.memory, 4, memory.KEEPS)]
    assert [row.name for row in rows] == ["RNN", "RNN, kept", "GRU", "GRU, kept"]
    assert rows[2].notes == ["GRU 1/2/3/6: no"]


def test_it_can_be_stopped_before():
    class Ended(Pace):
        def stopped(self):
            return True

    with pytest.raises(Stopped):
        measure_memory(["rnn"], [Shape(1, 2, 3, 6)], 1, LITTLE, Ended())


def test_elsewhere_a_line_says_so(monkeypatch):
    monkeypatch.setattr(jobs, "measure_limits", lambda seconds: [])
    monkeypatch.setattr(jobs.platform, "libc_ver", lambda: ("", ""))
    found = bench(only=["memory"], effort=LITTLE)
    assert not found.rows
    assert found.notes[-1].startswith("memory: not measured, its settings are those of glibc")
