"""Losses on their way back through a call: of which sequence, at which step, with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit.record import HeardCall, Matrix

Numbers = NDArray[Any]


@dataclass
class OneForEach:
    """For each sequence of a call the losses of one sequence."""

    of: Numbers
    """Whose losses they are, [B]; -1: nobody's."""
    weights: Matrix
    """By the step of the call where they are, and by the loss's step, [B, T, N]."""


def accumulate(into: NDArray[Any], at: tuple[Numbers, ...], values: NDArray[Any]) -> None:
    """Add rows of values at places, of which some may be the same."""
    places = np.ravel_multi_index(at, into.shape[: len(at)])
    if len(np.unique(places)) == len(places):  # as a rule, and much faster
        into[at] += values
    else:
        np.add.at(into, at, values)


class Carried:
    """All losses at the steps of a call: as a rule one layer, each sequence with its own."""

    def __init__(self, call: HeardCall, steps: int) -> None:
        self._shape = call.batch, call.steps, steps
        self.layers: list[OneForEach] = []
        self._is_vague = np.zeros(self._shape[:2], bool)
        """Where losses have come by ways of unknown weight, [B, T]."""

    def __bool__(self) -> bool:
        return any(layer.weights.any() for layer in self.layers)

    def add_own(self, rows: Numbers, losses: Numbers, ts: Numbers) -> None:
        """Add losses of the call itself, with weight 1, at the steps where they arise."""
        if len(rows):
            vectors = np.zeros((len(rows), self._shape[2]))
            vectors[np.arange(len(rows)), losses] = 1
            self.add(rows, ts, rows, vectors)

    def add_ways(
        self, rows: Numbers, ts: Numbers, of: Numbers, vectors: Matrix, is_known: Numbers
    ) -> None:
        """Add losses that come by some way; where some is not known, by all no more than by one.

        A unit that is kept by a mask comes by one way, and the next unit by another; their sum
        would count both, and double with every step.
        """
        self._is_vague[rows[~is_known], ts[~is_known]] = True
        vague = self._is_vague[rows, ts]
        self.add(rows[~vague], ts[~vague], of[~vague], vectors[~vague])
        for i in np.flatnonzero(vague).tolist():
            more = vectors[i]
            for layer in self.layers:
                if layer.of[rows[i]] == of[i]:
                    there = layer.weights[rows[i], ts[i]]
                    more = np.where(np.abs(more) > np.abs(there), more - there, 0)
            self.add(rows[i, None], ts[i, None], of[i, None], more[None])

    def add(self, rows: Numbers, ts: Numbers, of: Numbers, vectors: Matrix) -> None:
        """Add losses, [n, N], of the sequences ``of``, at the given steps of the given rows."""
        left = np.flatnonzero((of >= 0) & vectors.any(1))
        number = 0
        while len(left):
            if number == len(self.layers):
                empty = np.full(self._shape[0], -1)
                self.layers.append(OneForEach(empty, np.zeros(self._shape)))
            layer = self.layers[number]
            free = left[layer.of[rows[left]] == -1]
            layer.of[rows[free]] = of[free]  # where there are several, the last one stays
            mine = layer.of[rows[left]] == of[left]
            now = left[mine]
            accumulate(layer.weights, (rows[now], ts[now]), vectors[now])
            left, number = left[~mine], number + 1
