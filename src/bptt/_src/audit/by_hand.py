"""Gradients of the state that the code itself hands from one backward pass to another.

They leave a call by a state without a graph, and arrive at the state it came from in a later pass:
recognised by their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit.carried import Carried
from bptt._src.audit.record import HeardCall, Matrix, Place, Record

if TYPE_CHECKING:
    from bptt._src.audit.compose import Credits

Gradient = NDArray[np.floating[Any]]
COARSE = 1e-3
"""From which rounding on, as of bfloat16, weights have but two digits."""


@dataclass
class Sent:
    """What a sequence of a call passed on to its initial state."""

    losses: list[tuple[int, Matrix]]
    """Of which sequence, and by their steps [N]."""
    gradients: dict[int, Gradient]
    is_used: bool = False
    """Whether it has arrived in an earlier call."""


class ByHand:
    """What was sent in earlier passes."""

    def __init__(self, record: Record, found: Credits) -> None:
        self.record, self.found = record, found
        self._sent: dict[tuple[int, int], list[Sent]] = {}
        self._goes_to: dict[Place, list[tuple[int, int]]] | None = None

    def left(
        self,
        call: HeardCall,
        rows: NDArray[np.bool_],
        handed: list[tuple[NDArray[Any], Matrix]],
        before: dict[int, Gradient],
    ) -> None:
        """Keep what left a call by a state without a graph, for each of these rows."""
        for row in np.flatnonzero(rows).tolist():
            losses = [(int(of[row]), v[row]) for of, v in handed if v[row].any()]
            gradients = {i: g[row] for i, g in before.items() if g[row].any()}
            self._sent.setdefault((call.number, row), []).append(Sent(losses, gradients))

    def arrived(
        self, call: HeardCall, after: dict[int, tuple[Gradient, NDArray[np.bool_]]], here: Carried
    ) -> list[int]:
        """Find what was sent in gradients that arrive at a state now, and add those losses.

        Returns:
            The rows where something was found.
        """
        rows = []
        for row in range(call.batch) if self._sent else ():
            gradients = {i: rest[row] for i, (rest, at) in after.items() if at[row]}
            place = Place(call.number, row, call.lengths[row] - 1)
            hand = self._find(place, gradients) if gradients else None
            if hand is None:
                continue
            rows.append(row)
            for of, vector in hand:
                at = np.array([row]), np.array([place.t])
                here.add(*at, np.array([of]), vector[None])
        return rows

    def _find(
        self, place: Place, gradients: dict[int, Gradient]
    ) -> list[tuple[int, Matrix]] | None:
        for number, row in self._places().get(place, ()):
            sent = self._sent.get((number, row), [])
            for some in (sent[-1:], sent):  # the last gradient, or what .grad has added up
                weight = _all_multiples(gradients, some, self.record.near) if some else None
                if weight is None:
                    continue
                self._note(self.record.calls[number], row, place, some, set(gradients))
                return [(of, weight * v) for s in some for of, v in s.losses]
        return None

    def _note(
        self, call: HeardCall, row: int, place: Place, some: list[Sent], parts: set[int]
    ) -> None:
        self.found.by_hand.append(call)
        if set(some[-1].gradients) - parts:
            self.found.by_hand_in_part.append((call, row))
        for of, vector in some[0].losses if some[0].is_used else ():  # what was in the sum before
            t = int(np.flatnonzero(vector)[0])
            loss = self.record.call_of(t)
            self.found.repeated.append((Place(loss.number, of, t - loss.first), place))
        for s in some:
            s.is_used = True

    def _places(self) -> dict[Place, list[tuple[int, int]]]:
        if self._goes_to is None:
            self._goes_to = {}
            for call in self.record.calls:
                for row, origins in enumerate(call.origins):
                    for place in {o for o in origins if isinstance(o, Place)}:
                        self._goes_to.setdefault(place, []).append((call.number, row))
        return self._goes_to


def _all_multiples(gradients: dict[int, Gradient], sent: list[Sent], near: float) -> float | None:
    """Return by what gradients are a multiple of what was sent, summed up; None: they are none."""
    weights = set()
    for part, gradient in gradients.items():
        of = [s.gradients[part] for s in sent if part in s.gradients]
        weight = _multiple(gradient, np.sum(of, 0), near) if of else None
        if weight is None:
            return None
        weights.add(weight)
    return max(weights, key=abs)


def _multiple(gradient: Gradient, of: Gradient, near: float) -> float | None:
    """Return by what a gradient is a multiple of another; None: it is none."""
    size = float(of @ of)
    if gradient.shape != of.shape or not size > 0:
        return None
    weight = float(gradient @ of) / size
    if np.linalg.norm(gradient - weight * of) > near * np.linalg.norm(gradient):
        return None
    return round(weight, 6 if near < COARSE else 2)
