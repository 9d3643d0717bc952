"""Layers timed in a process that shares its processors: what runs in that process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bptt._src.bench.layers import agreeing, torch_and_ours
from bptt._src.bench.result import ALONE, OURS, TORCH
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, take_turns


@dataclass(frozen=True)
class Situation:
    """More threads than processors for them."""

    threads: int
    processors: int
    busy: int = 0
    """Of the processors, those that another process keeps busy."""

    def __str__(self) -> str:
        """Describe the situation in a few words."""
        busy = f", {self.busy} busy" if self.busy else ""
        return f"{self.threads} threads on {self.processors}{busy}"


def processors_to_choose() -> list[int]:
    """Return the processors to choose from; none where the system lets no process choose."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def in_turns(
    jobs: Sequence[tuple[str, str]], situation: Situation, effort: Effort
) -> list[tuple[dict[str, list[float]], list[str]]]:
    """Time the steps in this process, which may run on the situation's processors only.

    Args:
        jobs: cells and shapes.
        situation: where this process is.
        effort: how much.

    Returns:
        For each job the seconds of each contender, and notes.
    """
    busy = processors_to_choose()[-situation.busy :] if situation.busy else []
    found = []
    with kept_busy(busy):
        for cell, shape in jobs:
            steps, notes = agreeing(torch_and_ours(cell, Shape.parse(shape)), reference=TORCH)
            several = {n: partial(_on, situation.threads, step) for n, step in steps.items()}
            alone = {ALONE: partial(_on, 1, steps[OURS])} if OURS in steps else {}
            found.append((take_turns(alone | several, effort, Pace()), notes))
    return found


def _on(threads: int, step: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    return step()


_BUSY = """
import os, sys
os.sched_setaffinity(0, [int(sys.argv[1])])
while os.getppid() == int(sys.argv[2]):  # so that it ends even where nobody can end it
    for _ in range(100_000):
        pass
"""


@contextmanager
def kept_busy(chosen: Sequence[int]) -> Iterator[list[Any]]:
    """Keep processors busy, by a process for each of them, within a ``with`` block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in chosen:
            command = [sys.executable, "-S", "-c", _BUSY, str(number), str(os.getpid())]
            started.append(subprocess.Popen(command))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
