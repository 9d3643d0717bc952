"""Language models in one process and in two that share each batch, ours and torch.nn's with DDP."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, replace

from bptt._src.bench import fresh
from bptt._src.bench.models import AGREES
from bptt._src.bench.result import IN_PROCESSES, OURS, TORCH, Row
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace

PROCESSES = 2
ONE, THREADS, SEVERAL, APART = IN_PROCESSES


def how(who: str, trained: str) -> str:
    """Name a contender: who it is, and how it is trained."""
    return f"{who}, {trained}"


def share_of_sum(row: Row, who: str) -> float:
    """Return the part of an update in two processes that the sum of the gradients takes.

    It is what the update takes longer than without the sum, the time included in which the faster
    process waits for the slower one. Each round has its own share; the median counts.
    """
    pairs = zip(row.seconds[how(who, SEVERAL)], row.seconds[how(who, APART)], strict=True)
    return float(statistics.median(1 - apart / summed for summed, apart in pairs))


def measure_ranks(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time updates in one process of one thread and of two, and in two processes of one each.

    Args:
        shape: of the model and its windows. One sequence cannot be shared: there are two at least.
        effort: how much.
        pace: how to stop; a model is measured in processes of its own, to its end.
    """
    pace.check()
    shape = replace(shape, batch=max(PROCESSES, shape.batch))
    found = fresh.run_fresh(fresh.ranks, PROCESSES, asdict(shape), asdict(effort))
    losses: dict[str, float] = found["losses"]
    note = f"{shape.name} {shape}: after {effort.steps} updates the loss is " + ", ".join(
        f"{loss:.5f} ({name})" for name, loss in losses.items()
    )
    reference = losses[how(TORCH, ONE)]
    agree = all(math.isclose(loss, reference, rel_tol=AGREES) for loss in losses.values())
    return Row(
        "ranks",
        shape.name,
        str(shape),
        shape.flop(),
        found["seconds"],
        [f"{note}: they {'agree' if agree else 'DO NOT AGREE'}"],
        shape.steps * shape.batch,
        losses,
        base=how(OURS, ONE),
    )


def updates_per_second(row: Row, contender: str) -> float | None:
    """Return the number of updates in a second; None for a contender that is not in the row."""
    ms = row.milliseconds(contender)
    return None if ms is None else 1e3 / ms
