"""What the backward pass keeps, and what it recomputes.

A backward pass needs the results of the forward pass. Keeping all of them takes memory in
proportion to the number of steps. But they can be recomputed from a state, and states are small. So
the sequence is cut into segments, a few of the states between them are stored, and the segments are
run again from there, the last one first, each with its graph when its turn comes.

The choice of states is Griewank's binomial checkpointing, also known as treeverse and revolve.
With s stored states, including the initial one, and r sweeps it reaches C(s+r, s) segments; no
schedule reaches more. Ten states and six sweeps are enough for 8008 segments.

- A. Griewank, "Achieving logarithmic growth of temporal and spatial complexity in reverse
  automatic differentiation", Optimization Methods and Software 1 (1992).
- A. Griewank and A. Walther, "Algorithm 799: revolve", ACM Transactions on Mathematical
  Software 26 (2000).

Memory never changes the gradient: a recomputation is the same computation and costs only time.
Everything here is planned with integers; no tensor is involved.

>>> print(schedule(1000, states=10))
1000 segments, 10 stored states: each is run at most 5 times, 4.64 on average
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from bptt.errors import ConfigError

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
"""The units of a budget, in bytes."""

_UNITS = {unit.lower(): size for unit, size in UNITS.items()}
_BYTES = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmg]i?b)", re.ASCII | re.IGNORECASE)
_SPELLING = re.compile(
    r"(?:store|recompute:(?P<budget>[^,]+))(?:,\s*segment=(?P<segment>\d{1,18}))?", re.ASCII
)


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


@runtime_checkable
class Memory(Protocol):
    """Decides how much of a sequence is kept: `Store`, `Recompute`, or your own class.

    >>> from math import isqrt
    >>> @dataclass(frozen=True)
    ... class Roots:
    ...     segment: int | None = 1
    ...     def schedule(self, segments, *, state_bytes, segment_bytes):
    ...         return schedule(segments, states=isqrt(segments))
    >>> isinstance(Roots(), Memory)
    True
    >>> print(Roots().schedule(100, state_bytes=800, segment_bytes=4000))
    100 segments, 10 stored states: each is run at most 4 times, 3.22 on average
    """

    @property
    def segment(self) -> int | None:
        """The number of steps in a segment; None: the caller chooses."""

    def schedule(self, segments: int, *, state_bytes: int, segment_bytes: int) -> Schedule:
        """Plan a sequence.

        Args:
            segments: the number of segments.
            state_bytes: the size of one stored state.
            segment_bytes: the size of the graph of one segment.
        """


@dataclass(frozen=True)
class Store:
    """Keep the graph of the whole sequence, as autograd does, and run everything once.

    This is the fastest way as long as there is enough memory, which grows with the number of
    steps. Otherwise, use `Recompute`.

    Args:
        segment: the number of steps in a segment; None: the caller chooses.

    >>> Store()
    Store()
    >>> print(Store().schedule(35, state_bytes=800, segment_bytes=4000))
    35 segments, every graph kept: each is run once
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        """Check the segment length."""
        _check_segment(self.segment)

    @property
    def spelling(self) -> str:
        """Its spelling on the command line, as `parse` reads it."""
        return "store" + _spelled_segment(self.segment)

    def schedule(self, segments: int, *, state_bytes: int, segment_bytes: int) -> Schedule:
        """Plan a sequence: record every segment, then reverse every one."""
        return Schedule(segments)

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return "Store()" if self.segment is None else f"Store(segment={self.segment})"


@dataclass(frozen=True)
class Recompute:
    """Stay within a memory budget: store a few states, and recompute the rest.

    For sequences whose graph does not fit in memory. The gradient is the same. The time grows
    slowly: with ten states, 1000 segments are run 4.64 times each on average.

    Args:
        budget: the memory for the stored states, the current segment and, if there is room, the
            graphs of the last segments, such as ``"64MB"``, ``"1.5 GiB"`` or ``"200kB"``; or a
            number of states.
        segment: the number of steps in a segment; None: the caller chooses.

    Raises:
        ConfigError: the budget is neither.

    >>> Recompute("64MB")
    Recompute('64MB')
    >>> print(Recompute("1MB").schedule(1000, state_bytes=80_000, segment_bytes=100_000))
    1000 segments, 10 stored states: each is run at most 5 times, 4.64 on average
    >>> print(Recompute(8, segment=16).schedule(100, state_bytes=800, segment_bytes=4000))
    100 segments, 8 stored states: each is run at most 4 times, 3.45 on average
    """

    budget: str | int
    segment: int | None = None

    def __post_init__(self) -> None:
        """Check the budget and the segment length."""
        if isinstance(self.budget, str):
            usable = _bytes(self.budget) > 0
        else:
            usable = _is_positive(self.budget)
        if not usable:
            raise ConfigError(
                "a budget must be a number of states, at least 1, such as 8, or of bytes, such as "
                f"'64MB' (units: {', '.join(UNITS)}), got {self.budget!r}"
            )
        _check_segment(self.segment)

    @property
    def spelling(self) -> str:
        """Its spelling on the command line, as `parse` reads it.

        >>> Recompute(8).spelling
        'recompute:8'
        """
        return f"recompute:{self.budget}" + _spelled_segment(self.segment)

    def schedule(self, segments: int, *, state_bytes: int, segment_bytes: int) -> Schedule:
        """Plan a sequence with as many states as fit into the budget.

        Args:
            segments: the number of segments.
            state_bytes: the size of one stored state.
            segment_bytes: the size of the graph of one segment. The backward pass through it needs
                about as much again, so it counts twice.

        Raises:
            ConfigError: the budget is too small for one segment and one state.
        """
        if not isinstance(self.budget, str):
            return schedule(segments, min(self.budget, segments))
        state_bytes = max(state_bytes, 1)  # the states of an empty batch take no bytes
        least = 2 * segment_bytes + state_bytes
        if _bytes(self.budget) < least:
            raise ConfigError(
                f"a budget of {self.budget} is too small: one state and one segment take "
                f"{_spelled_bytes(least)}; use at least that, or a smaller segment"
            )
        room = _bytes(self.budget) - 2 * segment_bytes
        states = min(room // state_bytes, segments)
        # The rest keeps graphs, which saves recomputation; allocators take more than asked for.
        kept = (room - states * state_bytes) * 7 // (8 * max(1, segment_bytes))
        return Schedule(segments, states, min(kept, segments - 1))

    def __repr__(self) -> str:
        """Return the call that makes it."""
        segment = "" if self.segment is None else f", segment={self.segment}"
        return f"Recompute({self.budget!r}{segment})"


def parse(spelling: str) -> Memory:
    """Parse the spelling of a memory on the command line.

    Args:
        spelling: ``store``, ``recompute:64MB``, ``recompute:8``; each may end in ``,segment=16``.

    Raises:
        ConfigError: it has another form.

    >>> parse("recompute:64MB,segment=16")
    Recompute('64MB', segment=16)
    >>> parse("recompute:8")
    Recompute(8)
    """
    match = _SPELLING.fullmatch(spelling)
    if match is None:
        raise ConfigError(
            "memory must be store, recompute:64MB (a budget) or recompute:8 (states), optionally "
            f"followed by ,segment=16 (steps), got {spelling!r}"
        )
    budget = match["budget"]
    segment = None if match["segment"] is None else int(match["segment"])
    if budget is None:
        return Store(segment)
    return Recompute(int(budget) if re.fullmatch(r"-?[0-9]{1,18}", budget) else budget, segment)


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


def _bytes(budget: str) -> int:
    """Parse a budget in bytes; 0 if it is not one."""
    match = _BYTES.fullmatch(budget)
    return 0 if match is None else int(Fraction(match[1]) * _UNITS[match[2].lower()])


def _spelled_bytes(size: int) -> str:
    """Write a size as a budget, rounded up to a tenth of its unit."""
    unit = next((unit for unit in ("GB", "MB") if size >= UNITS[unit]), "kB")
    tenths = -(-10 * size // UNITS[unit])
    return f"{tenths // 10}.{tenths % 10}{unit}"


def _is_positive(number: object) -> bool:
    """Whether it is a positive integer; True is not."""
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _check_segment(segment: object) -> None:
    if segment is not None and not _is_positive(segment):
        raise ConfigError(
            f"a segment must have a whole number of steps from 1, such as 16, got {segment!r}: "
            "change it, or leave it out"
        )


def _spelled_segment(segment: int | None) -> str:
    return "" if segment is None else f",segment={segment}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
