"""The credit matrix, put together from what arrived where in each backward pass.

A gradient that arrives at the outputs of step t is a loss of step t. Within a call it is credited
to all steps before, or as the call's own plan says; where it leaves the call by its initial state
it goes on, times a weight, to the step that the state came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bptt._src.audit.links import OUTPUTS
from bptt._src.audit.record import Call, Link, Matrix, Pass, Place, Record

Losses = dict[int, Matrix]
"""Weights of the losses of each sequence, by their steps, [N]."""
SAME = 1e-4


@dataclass
class Sent:
    """What a call passed on to an initial state without a graph."""

    losses: Losses
    gradients: dict[int, Tensor]
    is_used: bool = False
    """Whether it has arrived in an earlier call, by hand."""


@dataclass
class Credits:
    """The credit of a run, by the order of calls."""

    by_row: dict[tuple[int, int], Matrix] = field(default_factory=dict)
    """W[t, s], [N, N], by the sequence of the loss and that of the step."""
    losses: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    """In how many passes a loss arrived at each step, [N, B]."""
    old: list[tuple[int, Call]] = field(default_factory=list)
    """Passes through calls that were made with older parameters: (loss, call)."""
    final_losses: list[Place] = field(default_factory=list)
    """Where a gradient arrived at the state that a call returned, and at no later call."""
    repeated: list[tuple[Place, Place]] = field(default_factory=list)
    """The same gradient in two passes: the loss's place, and where it was credited again."""
    unknown: list[Call] = field(default_factory=list)
    """Calls whose initial state was made of an earlier one in a way that has no weight."""
    by_hand: list[Call] = field(default_factory=list)
    """Calls whose state's gradient was carried on by hand."""
    by_hand_in_part: list[tuple[Call, int]] = field(default_factory=list)
    """Those of which a part of the state's gradient was left behind, and the sequence."""


class Composer:
    """Puts the credit of a record together."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.found = Credits(losses=np.zeros((record.steps, record.batch)))
        self._sent: dict[tuple[int, int], list[Sent]] = {}
        self._goes_to: dict[Place, list[tuple[int, int]]] = {}
        for call in record.calls:
            for row, origins in enumerate(call.origins):
                for place in {o for o in origins if isinstance(o, Place)}:
                    self._goes_to.setdefault(place, []).append((call.number, row))
        self._direct: dict[Place, list[Tensor]] = {}

    def compose(self) -> Credits:
        """Go through all passes."""
        for number in self.record.passes:
            _PassComposer(self, number).compose()
        return self.found

    # ------------------------------------------------------------------- called by each pass

    def arrived(self, place: Place, call: Call, gradient: Tensor, update: int) -> None:
        """Note that a gradient of a loss arrived, after that many updates."""
        self.found.losses[call.first + place.t, place.row] += 1
        before = self._direct.setdefault(place, [])
        # After an update the loss's own weights have changed, and the same loss's gradient too.
        again = bool(before) and call.update < update
        if again or any(torch.allclose(gradient, g, rtol=SAME, atol=0) for g in before):
            self.found.repeated.append((place, place))
        before.append(gradient)

    def credit(self, losses: Losses, row: int, first: int, weights: dict[int, Matrix]) -> None:
        """Add the weights [N, T] of losses to the steps of a call."""
        N = self.record.steps
        for of in losses:
            W = self.found.by_row.setdefault((of, row), np.zeros((N, N)))
            W[:, first : first + weights[of].shape[1]] += weights[of]

    def send(self, call: Call, row: int, sent: Sent) -> None:
        """Keep what left a call by a state without links."""
        self._sent.setdefault((call.number, row), []).append(sent)

    def by_hand(self, place: Place, gradients: dict[int, Tensor]) -> tuple[Losses, float] | None:
        """Find what was sent in an earlier pass in gradients that arrive at a state now."""
        for number, row in self._goes_to.get(place, ()):
            sent = self._sent.get((number, row), [])
            for some in (sent[-1:], sent):  # the last gradient, or what .grad has added up
                weight = _all_multiples(gradients, some) if some else None
                if weight is None:
                    continue
                self.found.by_hand.append(self.record.calls[number])
                if some[0].is_used:
                    self._repeat(some, place)
                if set(some[-1].gradients) - set(gradients):
                    self.found.by_hand_in_part.append((self.record.calls[number], row))
                for s in some:
                    s.is_used = True
                return _sum([s.losses for s in some]), weight
        return None

    def _repeat(self, some: list[Sent], place: Place) -> None:
        """Note losses that were sent before and are in the sum again."""
        for of, vector in some[0].losses.items():
            t = int(np.flatnonzero(vector)[0])
            call = self.record.call_of(t)
            self.found.repeated.append((Place(call.number, of, t - call.first), place))


class _PassComposer:
    """Goes back through the calls of one backward pass."""

    def __init__(self, whole: Composer, of: Pass) -> None:
        self.whole, self.of = whole, of
        self.carried: dict[tuple[int, int], dict[int, Losses]] = {}
        self.expected: dict[tuple[Place, int], list[Tensor | None]] = {}

    def compose(self) -> None:
        for call in reversed(self.whole.record.calls):
            outputs = self.of.outputs.get(call.number)
            after = {i: g for (n, i), g in self.of.after.items() if n == call.number}
            if outputs is None and not after:
                continue
            if call.update < self.of.update:
                loss = max(c.first for c in self.whole.record.calls if self._touches(c))
                self.whole.found.old.append((loss, call))
            for row in range(call.batch):
                self._row(call, row, outputs, after)

    def _touches(self, call: Call) -> bool:
        return call.number in self.of.outputs or any(n == call.number for n, _ in self.of.after)

    def _row(self, call: Call, row: int, outputs: Tensor | None, after: dict[int, Tensor]) -> None:
        length = call.lengths[row]
        here = self.carried.pop((call.number, row), {})
        for t in range(length):
            place = Place(call.number, row, t)
            rest = None
            if outputs is not None:
                rest = self._unexplained(place, OUTPUTS, outputs[t, row].reshape(-1))
            if t == length - 1:
                rest = self._at_the_end(call, place, after, rest, here)
            if rest is not None:
                if self.of.reaches_parameters:
                    self.whole.arrived(place, call, rest, self.of.update)
                at = here.setdefault(t, {})
                one = at.setdefault(row, np.zeros(self.whole.record.steps))
                one[call.first + t] += 1
        if here:
            self._back(call, row, here)

    def _at_the_end(
        self,
        call: Call,
        place: Place,
        after: dict[int, Tensor],
        rest: Tensor | None,
        here: dict[int, Losses],
    ) -> Tensor | None:
        """Look at what arrived at the state after a call: from later calls, by hand, a loss."""
        found = {i: self._unexplained(place, i, g[place.row]) for i, g in after.items()}
        left = {i: g for i, g in found.items() if g is not None}
        if not left:
            return rest
        hand = self.whole.by_hand(place, left)
        if hand is not None:
            at = here.setdefault(place.t, {})
            for of, vector in hand[0].items():
                at[of] = at.get(of, 0) + hand[1] * vector
            return rest
        if not call.returns_state_only and rest is None:
            self.whole.found.final_losses.append(place)
        return next(iter(left.values())) if rest is None else rest

    def _unexplained(self, place: Place, part: int, gradient: Tensor) -> Tensor | None:
        """Return what of a gradient comes from no later call; None if that is nothing."""
        if not bool((gradient != 0).any()):
            return None
        known = self.expected.get((place, part), [])
        if any(g is None for g in known):
            return None
        rest = gradient
        for g in known:
            rest = rest - g.reshape(-1)  # type: ignore[union-attr]
        near = max(1e-5, 100 * torch.finfo(gradient.dtype).eps)
        return None if bool(rest.norm() <= near * gradient.norm()) else rest

    def _back(self, call: Call, row: int, here: dict[int, Losses]) -> None:
        """Credit losses to the steps of a call, and hand them on to where its state came from."""
        length, N = call.lengths[row], self.whole.record.steps
        at_steps = {}
        for of in {of for losses in here.values() for of in losses}:
            M = np.zeros((N, length))
            for t, losses in here.items():
                if of in losses:
                    M[:, t] = losses[of]
            at_steps[of] = M
        losses = {of: _to_initial(M, call, row) for of, M in at_steps.items()}
        if self.of.reaches_parameters:
            credited = {of: _within(M, call, row) for of, M in at_steps.items()}
            self.whole.credit(losses, row, call.first, credited)
        before = {
            i: g[row]
            for (n, i), g in self.of.before.items()
            if n == call.number and bool((g[row] != 0).any())
        }
        if not before or not any(v.any() for v in losses.values()):
            return
        if not call.links[row]:
            self.whole.send(call, row, Sent(losses, before))
        self._hand_on(call, row, losses, before)

    def _hand_on(self, call: Call, row: int, losses: Losses, before: dict[int, Tensor]) -> None:
        to: dict[Place, list[Link]] = {}
        for link in call.links[row]:
            if link.source in before:
                to.setdefault(link.to, []).append(link)
                sent = link.weight * before[link.source] if link.is_known else None
                self.expected.setdefault((link.to, link.part), []).append(sent)
        for place, links in to.items():
            weights = {link.weight for link in links}
            if len(weights) > 1 or not all(link.is_known for link in links):
                self.whole.found.unknown.append(call)
            weight = max(weights, key=abs)
            at = self.carried.setdefault((place.call, place.row), {}).setdefault(place.t, {})
            for of, vector in losses.items():
                at[of] = at.get(of, 0) + weight * vector


def _within(M: Matrix, call: Call, row: int) -> Matrix:
    """Credit losses [N, T] at the steps of a call to its steps."""
    if call.is_bidirectional:
        both: Matrix = np.repeat(M.sum(1, keepdims=True), M.shape[1], 1)
        return both
    if call.weights is None:
        return np.cumsum(M[:, ::-1], 1)[:, ::-1]
    W = call.weights if call.weights.ndim == 2 else call.weights[min(row, len(call.weights) - 1)]
    return M @ W[: M.shape[1], : M.shape[1]]


def _to_initial(M: Matrix, call: Call, row: int) -> Matrix:
    """Return the weights of losses [N, T] at a call's initial state, [N]."""
    if call.of_initial is None:
        return np.asarray(M.sum(1))
    w = call.of_initial
    w = w if w.ndim == 1 else w[min(row, len(w) - 1)]
    found: Matrix = M @ w[: M.shape[1]]
    return found


def _all_multiples(gradients: dict[int, Tensor], sent: list[Sent]) -> float | None:
    """Return by what gradients are a multiple of what was sent, summed up; None: they are none."""
    weights = set()
    for part, gradient in gradients.items():
        of = [s.gradients[part] for s in sent if part in s.gradients]
        weight = _multiple(gradient, torch.stack(of).sum(0)) if of else None
        if weight is None:
            return None
        weights.add(weight)
    return max(weights, key=abs)


def _multiple(gradient: Tensor, of: Tensor) -> float | None:
    """Return by what a gradient is a multiple of another; None: it is none."""
    size = (of * of).sum()
    if not bool(size > 0):
        return None
    weight = (gradient * of).sum() / size
    near = max(1e-5, 100 * torch.finfo(of.dtype).eps)
    if bool((gradient - weight * of).norm() > near * gradient.norm()):
        return None
    return round(float(weight), 6)


def _sum(all_losses: list[Losses]) -> Losses:
    total: Losses = {}
    for losses in all_losses:
        for of, vector in losses.items():
            total[of] = total.get(of, 0) + vector
    return total
