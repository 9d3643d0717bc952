"""Layers of random shapes, to find those at which torch.nn is faster."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bptt._src.bench.layers import agreeing, contenders_of
from bptt._src.bench.result import IN_BF16, OURS, TORCH, Row, split_by_dtype
from bptt._src.bench.shapes import GATES, Shape
from bptt._src.bench.timing import Effort, Pace, take_turns
from bptt.kernels import backend

RANGES = ((1, 1000), (1, 256), (1, 1024), (6, 1024))
"""Of T, B, I and H, the upper ends excluded; their logarithms are drawn uniformly."""
MOST_FLOP = 2e9
"""Of a case, so that a step takes some hundredths of a second at most."""
CLOSE = 1.1
"""Cases whose ratio is below it are measured again, for longer; the second time counts."""
LOOK, AGAIN = 0.05, 0.3
"""Parts of the usual turn that the first and the second time take."""


@dataclass(frozen=True)
class Case:
    """A layer to be measured."""

    cell: str
    shape: Shape
    trains: bool
    """Whether it is a training step; if not, a forward pass without gradients."""

    def __str__(self) -> str:
        """Name the cell, and what it does."""
        return f"{self.cell.upper()} {'training' if self.trains else 'forward'}"

    @property
    def flop(self) -> int:
        """The operations; a forward pass makes a third of a training step's products."""
        whole = self.shape.flop(self.cell)
        return whole if self.trains else whole // 3


def draw_cases(count: int, cells: Sequence[str], seed: int) -> list[Case]:
    """Draw cases: shapes log-uniformly, the cell and whether it trains uniformly.

    Args:
        count: how many, of :data:`MOST_FLOP` operations at most.
        cells: of ``"rnn"``, ``"gru"``, ``"lstm"``; all if there are none.
        seed: the same one gives the same cases, the first ones whatever the count.
    """
    random = np.random.default_rng(seed)
    low, high = (np.log(np.array(bound)) for bound in zip(*RANGES, strict=True))
    found: list[Case] = []
    while len(found) < count:
        shape = Shape(*map(int, np.exp(random.uniform(low, high))))  # rounded down
        cell = str(random.choice(list(cells or GATES)))
        case = Case(cell, shape, bool(random.integers(2)))
        if case.flop <= MOST_FLOP:
            found.append(case)
    return found


def measure_search(cells: Sequence[str], effort: Effort, pace: Pace) -> list[Row]:
    """Time ours beside all that torch.nn has, on random shapes.

    Args:
        cells: as for :func:`draw_cases`.
        effort: how many cases, drawn by which seed, and how much of each.
        pace: how to stop; the cases that are finished by then are given.

    Returns:
        For each case a row in float32 and, where the kernels have products of it, one in bfloat16.
    """
    rows: list[Row] = []
    for number, case in enumerate(draw_cases(effort.search, cells, effort.seed)):
        if number and pace.stopped():
            break
        rows += _measure_case(case, effort, pace)
        pace.done((number + 1) / effort.search)
    return rows


class _Quietly(Pace):
    """Stops where another one does; a part of a case is not told."""

    def __init__(self, pace: Pace) -> None:
        self.stopped = pace.stopped  # type: ignore[method-assign]


def _measure_case(case: Case, effort: Effort, pace: Pace) -> list[Row]:
    contenders, notes = agreeing(
        contenders_of(case.cell, case.shape, trains=case.trains, bf16=backend().bf16, steps=1),
        reference=TORCH,
    )
    about = [f"{case} {case.shape}: {note}" for note in notes]
    rows: list[Row] = []
    for part in (LOOK, AGAIN):
        times = take_turns(contenders, replace(effort, turn=part * effort.turn), _Quietly(pace))
        rows = split_by_dtype(Row("search", str(case), str(case.shape), case.flop, times, about))
        if not any(against_fastest(row) < CLOSE for row in compared(rows)) or pace.stopped():
            break
    return rows


def compared(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that have ours and someone beside it, the worst first."""
    both = [row for row in rows if row.base in row.seconds and len(row.seconds) > 1]
    return sorted(both, key=against_fastest)


def fastest_peer(row: Row) -> str:
    """Return who beside ours takes the least time."""
    peers = {name: row.milliseconds(name) or 0.0 for name in row.seconds if name != row.base}
    return min(peers, key=peers.__getitem__)


def against_fastest(row: Row) -> float:
    """Return the time of the fastest peer by ours."""
    ratio = row.ratio(fastest_peer(row))
    assert ratio is not None
    return ratio


@dataclass(frozen=True)
class Summary:
    """What became of the cases of a kind."""

    name: str
    cases: int
    median: float
    """Of the ratios."""
    below: int
    """How many ratios are below 1."""


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Sum up training and forward passes, in float32 and in bfloat16."""
    found = []
    for base, dtype in ((OURS, "float32"), (IN_BF16[OURS], "bfloat16")):
        for kind in ("training", "forward"):
            ratios = [
                against_fastest(row)
                for row in compared(rows)
                if row.base == base and kind in row.name
            ]
            if ratios:
                below = sum(ratio < 1 for ratio in ratios)
                median = statistics.median(ratios)
                found.append(Summary(f"{kind}, {dtype}", len(ratios), median, below))
    return found
