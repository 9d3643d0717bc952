"""Full credit: backpropagation through time itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bptt._src.credit.credit import Credit, note_spelling
from bptt._src.credit.plan import Plan


@dataclass(frozen=True, repr=False)
class Full(Credit):
    """Every loss is credited to every step before it: W[t, s] = 1. Exact.

    P. Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78
    (1990).

    >>> print(Full().plan(3))
    1
    1 1
    1 1 1
    """

    def __post_init__(self) -> None:
        note_spelling(self)

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Plan for T steps; the arguments are those of :meth:`Credit.plan`."""
        return Plan(steps)
