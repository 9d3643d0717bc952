"""A layer's training step with the usual memory, and with memory that the process keeps.

The C library gives large blocks back to the system when they are freed. The next step gets new
pages, and each is a fault when it is first touched. With the second kind of memory there are none:
the difference is what they cost torch, and bptt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bptt._src.bench import fresh
from bptt._src.bench.result import Row
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace

CELLS = ("lstm",)
SHAPES = (Shape(35, 20, 650, 650), Shape(50, 256, 256, 256))
KEEPS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc's settings in which nothing goes back to the system."""


def measure_memory(
    cells: Sequence[str], shapes: Sequence[Shape], threads: int, effort: Effort, pace: Pace
) -> list[Row]:
    """Time ours and torch.nn's training steps with both kinds of memory.

    Args:
        cells: of ``"rnn"``, ``"gru"``, ``"lstm"``.
        shapes: T, B, I, H.
        threads: of the processor.
        effort: how much.
        pace: how to stop; each kind is measured in a process of its own, to its end.

    Returns:
        Two rows for each cell and shape.
    """
    jobs = [(cell, str(shape)) for cell in cells for shape in shapes]
    found = []
    for number, settings in enumerate(({}, KEEPS)):
        pace.check()
        found.append(fresh.run_fresh(fresh.memory, threads, jobs, asdict(effort), **settings))
        pace.done((number + 1) / 2)
    return [
        Row(
            "memory",
            cell.upper() + kind,
            shape,
            Shape.parse(shape).flop(cell),
            measured["seconds"],
            [f"{cell.upper()} {shape}: {note}" for note in measured["notes"]],
            faults=measured["faults"],
        )
        for (cell, shape), *both in zip(jobs, *found, strict=True)
        for kind, measured in zip(("", ", kept"), both, strict=True)
    ]
