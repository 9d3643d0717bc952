"""Steps where threads share processors: in a process that may run on some of them only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bptt._src.bench import crowded, fresh, sharing
from bptt._src.bench.crowded import Situation
from bptt._src.bench.result import ALONE, OURS, TORCH
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, Stopped

LITTLE = Effort(rounds=2, turn=0.0)
SMALL = Shape(3, 2, 4, 5)
has_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen"
)


@has_affinity
def test_rows_come_from_a_process_of_its_own():
    mine = os.sched_getaffinity(0)
    shapes = [SMALL, Shape(2, 1, 3, 9)]
    rows = crowded.measure_crowded(Situation(2, 1), ["rnn", "lstm"], shapes, LITTLE, Pace())
    assert [f"{row.name} {row.shape}" for row in rows] == [
        f"{cell}, 2 threads on 1 {shape}" for cell in ("RNN", "LSTM") for shape in shapes
    ]
    for row in rows:
        assert row.section == "threads"
        assert {name: len(times) for name, times in row.seconds.items()} == {
            ALONE: 2,
            OURS: 2,
            TORCH: 2,
        }
        assert row.ratio(ALONE) == 1
        assert row.notes == []
    assert os.sched_getaffinity(0) == mine


@has_affinity
def test_that_process_is_in_the_situation(monkeypatch):
    """On the processors that are said, with threads that are said, before torch is loaded."""
    told = []
    monkeypatch.setattr(
        crowded.fresh,
        "run_fresh",
        lambda function, threads, *given: told.append((function, threads, *given)) or [],
    )
    monkeypatch.setattr(crowded, "processors_to_choose", lambda: [3, 5, 8])
    with pytest.raises(ValueError, match="zip"):
        crowded.measure_crowded(Situation(4, 2), ["gru"], [SMALL], LITTLE, Pace())
    function, threads, jobs, chosen, *_ = told[0]
    assert (function, threads, chosen) == (fresh.crowded, 4, [3, 5])
    assert jobs == [("gru", "3/2/4/5")]


def test_turns_on_one_thread_and_on_several(monkeypatch):
    numbers = []

    def contenders(cell, shape):
        step = lambda: numbers.append(torch.get_num_threads()) or 1.0  # noqa: E731
        return {OURS: step, TORCH: step}

    monkeypatch.setattr(sharing, "torch_and_ours", contenders)
    monkeypatch.setattr(sharing, "agreeing", lambda steps, reference: (steps, []))
    before = torch.get_num_threads()
    try:
        [(seconds, _)] = sharing.in_turns([("rnn", "1/1/1/1")], Situation(3, 1), LITTLE)
    finally:
        torch.set_num_threads(before)
    assert list(seconds) == [ALONE, OURS, TORCH]
    assert numbers[-3:] == [1, 3, 3]


def test_it_can_be_stopped_before():
    class Ended(Pace):
        def stopped(self):
            return True

    with pytest.raises(Stopped):
        crowded.measure_crowded(Situation(2, 1), ["rnn"], [SMALL], LITTLE, Ended())


@has_affinity
def test_a_processor_is_busy_within_the_block_alone():
    seen = []

    def fails():
        with sharing.kept_busy(sharing.processors_to_choose()[-1:]) as started:
            seen.extend(started)
            assert [process.poll() for process in started] == [None]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen[0].poll() is not None


@has_affinity
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing tells of processes")
def test_a_busy_process_ends_with_the_one_that_started_it():
    script = """
import os, signal
from bptt._src.bench import sharing
with sharing.kept_busy(sharing.processors_to_choose()[-1:]) as started:
    print(started[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(300):
        if not stat.exists() or ") Z " in stat.read_text():
            return
        time.sleep(0.1)
    pytest.fail("it is still there")
