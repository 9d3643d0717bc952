"""The order in which segments are run, stored and reversed: plans on integers.

Griewank's binomial checkpointing, also known as treeverse and revolve; :mod:`bptt.memory` has the
sources.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from bptt.errors import ConfigError


class Action(NamedTuple):
    """One step of a schedule.

    - ``keep``: store the current state, which is the one before the segment.
    - ``advance``: run the segments up to, but not including, ``to``, without building a graph.
    - ``restore``: make the stored state before the segment the current one.
    - ``drop``: discard the stored state before the segment; the current state does not change.
    - ``record``: run the segment and keep its graph; the current state is then the one after it.
    - ``reverse``: backpropagate through the recorded segment and free its graph.
    """

    kind: Literal["keep", "advance", "restore", "drop", "record", "reverse"]
    segment: int
    to: int = -1
    """The end of an ``advance``; -1 for all other actions."""

    def __str__(self) -> str:
        """Describe the action in a few words."""
        return f"{self.kind} {self.segment}" + (f" to {self.to}" if self.kind == "advance" else "")


@dataclass(frozen=True)
class Schedule:
    """The order in which the segments of a sequence are run, stored and reversed.

    The forward pass ends with the first ``record`` of the last segment; everything after it is the
    backward pass.

    >>> print(*Schedule(3, states=1).actions(), sep=", ")  # doctest: +NORMALIZE_WHITESPACE
    keep 0, advance 0 to 2, record 2, reverse 2,
    restore 0, advance 0 to 1, record 1, reverse 1,
    restore 0, drop 0, record 0, reverse 0
    """

    segments: int
    """The number of segments."""
    states: int | None = None
    """The most states stored at once, including the initial one; None: keep every graph."""
    kept: int = 0
    """The number of segments, at the end, whose graphs are kept, so that they are run once."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.kept < max(self.segments, 1):
            raise ConfigError(
                f"of {self.segments} segments 0 to {self.segments - 1} can keep their graphs "
                f"besides, got {self.kept}"
            )
        if self.segments < 1:
            raise ConfigError(
                f"a sequence to plan must have at least 1 segment, got {self.segments}: "
                "leave an empty sequence out"
            )
        if self.states is not None and self.states < 1:
            raise ConfigError(
                f"at least 1 state must be stored, the initial one, got {self.states}: "
                "give 1 or more"
            )

    def actions(self) -> Iterator[Action]:
        """Yield the actions one by one; no list of them is built.

        >>> next(Schedule(10**9, states=20).actions())
        Action(kind='keep', segment=0, to=-1)
        """
        if self.states is None:
            yield from self._store()
            return
        first = self.segments - self.kept  # the first segment whose graph is kept
        for action in self._recompute(self.states, first):
            yield action
            if action == Action("record", first - 1):  # the forward pass reaches the kept segments
                yield from (Action("record", i) for i in range(first, self.segments))
                yield from (Action("reverse", i) for i in reversed(range(first, self.segments)))

    @property
    def advances(self) -> int:
        """The number of runs of segments without a graph, from the closed form.

        It is t(l, s) = r·l - C(s+r, s+1) for l segments and s states, with r sweeps; segments
        whose graphs are kept do not count.
        """
        if self.states is None:
            return 0
        again = self.segments - self.kept
        sweeps = _sweeps(again, self.states)
        return sweeps * again - comb(self.states + sweeps, self.states + 1)

    @property
    def recomputed(self) -> int:
        """The number of runs beyond the first of each segment.

        The last run of a segment has a graph and the others have none, so this equals `advances`.
        """
        return self.advances

    @property
    def runs(self) -> Int64[np.ndarray, " segments"]:
        """How often each segment is run, with or without a graph, counted from the actions.

        >>> Schedule(5, states=2).runs.tolist()
        [3, 3, 2, 2, 1]
        >>> Schedule(5).runs.tolist()
        [1, 1, 1, 1, 1]
        """
        change = np.zeros(self.segments + 1, dtype=np.int64)  # differences between neighbours
        for kind, segment, to in self.actions():
            if kind in ("advance", "record"):
                change[segment] += 1
                change[to if kind == "advance" else segment + 1] -= 1
        return change.cumsum()[:-1]

    def __str__(self) -> str:
        """Summarise in one line what is stored and how often segments are run."""
        segments = _counted(self.segments, "segment")
        if self.states is None:
            return f"{segments}, every graph kept: each is run once"
        # A schedule with the fewest advances runs no segment more often than it has sweeps, and
        # one segment exactly that often; then each is recorded.
        most = _counted(_sweeps(self.segments - self.kept, self.states) + 1, "time")
        average = (self.segments + self.advances) / self.segments
        kept = f", {_counted(self.kept, 'graph')} kept" if self.kept else ""
        return (
            f"{segments}, {_counted(self.states, 'stored state')}{kept}: "
            f"each is run at most {most}, {average:.2f} on average"
        )

    def _store(self) -> Iterator[Action]:
        for segment in range(self.segments):
            yield Action("record", segment)
        for segment in reversed(range(self.segments)):
            yield Action("reverse", segment)

    def _recompute(self, states: int, segments: int) -> Iterator[Action]:
        yield Action("keep", 0)
        # The stored states, each with the end of the stretch that is reversed from it. The
        # stretches join; the last one comes next.
        stored = [(0, segments)]
        current = 0
        while stored:
            start, end = stored.pop()
            if current != start:
                yield Action("restore", start)
            if end - start == 1:
                yield Action("drop", start)
                last = start
            else:
                last = start + _split(end - start, states - len(stored))
                yield Action("advance", start, last)
                stored.append((start, last))
                if end - last > 1:
                    yield Action("keep", last)
                    stored.append((last, end))
                    current = last
                    continue
            yield Action("record", last)
            yield Action("reverse", last)
            current = end


def schedule(steps: int, states: int) -> Schedule:
    """Plan the backward pass over a number of steps with a limited number of stored states.

    No schedule with as many states runs fewer steps again.

    Args:
        steps: the number of steps, or of segments, each of which is run as a whole.
        states: the number of states that may be stored at once, including the initial one.

    Raises:
        ConfigError: ``steps`` or ``states`` is below 1.

    >>> found = schedule(6, states=2)
    >>> found.advances
    8
    >>> print(*found.actions(), sep=", ")  # doctest: +NORMALIZE_WHITESPACE
    keep 0, advance 0 to 3, keep 3, advance 3 to 5, record 5, reverse 5,
    restore 3, advance 3 to 4, record 4, reverse 4, restore 3, drop 3, record 3, reverse 3,
    restore 0, advance 0 to 1, keep 1, advance 1 to 2, record 2, reverse 2,
    restore 1, drop 1, record 1, reverse 1, restore 0, drop 0, record 0, reverse 0
    """
    return Schedule(steps, states)


def _sweeps(steps: int, states: int) -> int:
    """The least r such that steps <= C(states+r, states)."""
    enough = 1
    while comb(states + enough, states) < steps:
        enough *= 2
    return bisect_left(range(enough), steps, key=lambda r: comb(states + r, states))


def _split(steps: int, states: int) -> int:
    """The number of segments, two or more, to advance before the next state is stored.

    As far as r - 1 sweeps reach with all states; but for r sweeps to be the least, the rest must
    need at least r - 1 of them with one state fewer.
    """
    r = _sweeps(steps, states)
    return min(comb(states + r - 1, states), steps - comb(states + r - 2, states - 1))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
