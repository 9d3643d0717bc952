"""Layers' training steps, and the page faults of each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bptt._src.bench.layers import Contender, agreeing, torch_and_ours
from bptt._src.bench.result import TORCH
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, take_turns


def in_turns(jobs: Sequence[Sequence[str]], effort: Effort) -> list[dict[str, Any]]:
    """Time the steps in this process, and count their page faults.

    Returns:
        For each job the seconds and faults of each contender, and notes.
    """
    found = []
    for cell, shape in jobs:
        steps, notes = agreeing(torch_and_ours(cell, Shape.parse(shape)), reference=TORCH)
        seconds = take_turns(steps, effort, Pace())
        faults = {name: _faults(step) for name, step in steps.items()}
        found.append({"seconds": seconds, "faults": faults, "notes": notes})
    return found


def _faults(step: Contender) -> int:
    """Return the page faults of a step, what surrounds it not counted."""
    import resource  # which not every system has, nor glibc

    counts = []
    for _ in range(3):
        step.found()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step.found()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return int(statistics.median(counts))
