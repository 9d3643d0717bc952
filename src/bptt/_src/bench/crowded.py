"""A layer's training step where its threads have to share processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bptt._src.bench import fresh
from bptt._src.bench.result import ALONE, Row
from bptt._src.bench.shapes import Shape
from bptt._src.bench.sharing import Situation, processors_to_choose
from bptt._src.bench.timing import Effort, Pace

CELLS = ("lstm",)
SHAPES = (Shape(200, 64, 64, 64), Shape(20, 1, 100, 100))
"""Those whose steps are short, so that threads wait for each other most often."""

SITUATIONS = (Situation(2, 1), Situation(4, 2), Situation(2, 2, busy=1))


def measure_crowded(
    situation: Situation, cells: Sequence[str], shapes: Sequence[Shape], effort: Effort, pace: Pace
) -> list[Row]:
    """Time ours and torch.nn's steps in a situation, and ours on one thread beside them.

    Args:
        situation: how many threads and processors.
        cells: of ``"rnn"``, ``"gru"``, ``"lstm"``.
        shapes: T, B, I, H.
        effort: how much.
        pace: how to stop; a situation is measured in a process of its own, to its end.

    Returns:
        A row for each cell and shape.
    """
    pace.check()
    chosen = processors_to_choose()[: situation.processors]
    jobs = [(cell, str(shape)) for cell in cells for shape in shapes]
    found = fresh.run_fresh(
        fresh.crowded, situation.threads, jobs, chosen, asdict(situation), asdict(effort)
    )
    return [
        Row(
            "threads",
            f"{cell.upper()}, {situation}",
            shape,
            Shape.parse(shape).flop(cell),
            seconds,
            [f"{cell.upper()} {shape}: {note}" for note in notes],
            base=ALONE,
        )
        for (cell, shape), (seconds, notes) in zip(jobs, found, strict=True)
    ]
