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
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

from bptt._src.unroll.schedule import Action, Schedule, schedule
from bptt.errors import ConfigError

__all__ = [
    "UNITS",
    "Action",
    "Memory",
    "Recompute",
    "Schedule",
    "Store",
    "parse",
    "schedule",
]

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
"""The units of a budget, in bytes."""

_UNITS = {unit.lower(): size for unit, size in UNITS.items()}
_BYTES = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmg]i?b)", re.ASCII | re.IGNORECASE)
_SPELLING = re.compile(
    r"(?:store|recompute:(?P<budget>[^,]+))(?:,\s*segment=(?P<segment>\d{1,18}))?", re.ASCII
)


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
