"""Truncated credit: losses reach back a fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bptt._src.credit.credit import Credit, note_spelling
from bptt._src.credit.plan import Plan
from bptt.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Truncated(Credit):
    """Credits losses to the steps of a window, and to nothing before it. Biased.

    ``Truncated(k)`` cuts the sequence into pieces of k steps, each a window of its own: this is
    usually called truncated backpropagation through time. The first loss of a piece reaches one
    step, the last one k.

    ``Truncated(every=k1, reach=k2)`` is BPTT(k2; k1) of R. J. Williams and J. Peng, "An efficient
    gradient-based algorithm for on-line training of recurrent network trajectories", Neural
    Computation 2 (1990): the losses of each block of k1 steps reach back k2 steps from the
    block's end, so each reaches at least k2 - k1 + 1 steps, its own included. It costs k2/k1
    times as much. ``every=1, reach=k+1`` lets every loss reach k steps back
    (``bptt_truncate = k`` in some texts).

    Args:
        k: the pieces' length, instead of ``every`` and ``reach``.
        every: k1, the length of a block of losses.
        reach: k2 ≥ k1.

    Raises:
        ConfigError: a length is not a positive integer, or ``reach`` is shorter than ``every``.

    >>> print(Truncated(2).plan(5))
    1
    1 1
    . . 1
    . . 1 1
    . . . . 1
    >>> print(Truncated(every=2, reach=3).plan(5))
    1
    1 1
    . 1 1
    . 1 1 1
    . . . 1 1
    """

    k: int | None = None
    every: int | None = None
    reach: int | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        given = (self.k is not None, self.every is not None, self.reach is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise ConfigError(
                "Truncated takes a length, Truncated(35), or every and reach, "
                f"Truncated(every=10, reach=35); got {self!r}"
            )
        for name in ("k", "every", "reach"):
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < 1):
                raise ConfigError(f"Truncated: {name} must be a positive integer, got {value!r}")
        every, reach = self.lengths
        if reach < every:
            raise ConfigError(
                f"reach={reach} is shorter than every={every}: {every - reach} of {every} losses "
                f"would be credited to nothing; use reach >= {every}"
            )
        note_spelling(self)

    @property
    def lengths(self) -> tuple[int, int]:
        """``(every, reach)``."""
        if self.k is not None:
            return self.k, self.k
        assert self.every is not None
        assert self.reach is not None
        return self.every, self.reach

    @property
    def window(self) -> int:  # type: ignore[override]
        """The number of steps between updates, ``every``."""
        return self.lengths[0]

    @property
    def history(self) -> int:  # type: ignore[override]
        """The ``reach - every`` steps before the block."""
        every, reach = self.lengths
        return reach - every

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Plan for T steps; the arguments are those of :meth:`Credit.plan`."""
        every, reach = self.lengths
        return Plan.windows(steps, every=every, reach=reach)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
