"""The credit matrix, put together from what arrived where in each backward pass.

A gradient that arrives at the outputs of step t is a loss of step t. Within a call it is credited
to all steps before, or as the call's own plan says; where it leaves the call by its initial state
it goes on, times a weight, to the step that the state came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit.by_hand import ByHand
from bptt._src.audit.carried import Carried, OneForEach, accumulate
from bptt._src.audit.record import OUTPUTS, RELAY, HeardCall, Links, Matrix, Pass, Place, Record

Flags = NDArray[np.bool_]
Gradient = NDArray[np.floating[Any]]
SAME = 1e-4


@dataclass
class Credits:
    """The credit of a run, by the order of calls."""

    by_row: dict[tuple[int, int], Matrix]
    """W[t, s], [N, N], by the sequence of the loss and that of the step."""
    losses: Matrix
    """In how many passes a loss arrived at each step, [N, B]."""
    old: list[tuple[int, HeardCall]] = field(default_factory=list)
    """Passes through calls that were made with older parameters: (loss, call)."""
    final_losses: list[Place] = field(default_factory=list)
    """Where a gradient arrived at the state that a call returned, and at no later call."""
    repeated: list[tuple[Place, Place]] = field(default_factory=list)
    """The same gradient in two passes: the loss's place, and where it was credited again."""
    unknown: list[HeardCall] = field(default_factory=list)
    """Calls whose initial state was made of an earlier one in a way that has no weight."""
    by_hand: list[HeardCall] = field(default_factory=list)
    """Calls whose state's gradient was carried on by hand."""
    by_hand_in_part: list[tuple[HeardCall, int]] = field(default_factory=list)
    """Those of which a part of the state's gradient was left behind, and the sequence."""


@dataclass
class _Arrived:
    """The gradients of losses that one pass brought to a call."""

    update: int
    at_outputs: Flags
    """[T, B]"""
    outputs: Gradient | None
    at_end: Flags
    """[B]"""
    end: Gradient | None


class _Ways(NamedTuple):
    """On which ways losses go on into an earlier call, [n] each, as in Links."""

    rows: NDArray[Any]
    to_rows: NDArray[Any]
    ts: NDArray[Any]
    weights: Matrix
    is_known: Flags


class Composer:
    """Puts the credit of a record together."""

    def __init__(self, record: Record) -> None:
        N, B = record.steps, record.batch
        self.record = record
        self.own = np.zeros((B, N, N))
        by_row = {(b, b): self.own[b] for b in range(B)}
        self.found = Credits(by_row, np.zeros((N, B)))
        self.by_hand = ByHand(record, self.found)
        self._arrived: dict[int, list[_Arrived]] = {}

    def compose(self) -> Credits:
        """Go through all passes."""
        passes = self.record.passes
        added = [p for p in passes if p.reaches_parameters and not p.is_returned]
        for number, one in enumerate(passes):
            later = [p for p in passes[number + 1 :] if p.is_cleared and p.update == one.update]
            if any(_is_same_pass(one, p) for p in (added if one.is_returned else later)):
                one.reaches_parameters = False  # to look at, as for a log
            _PassComposer(self, one).compose()
        return self.found

    def arrived(self, call: HeardCall, now: _Arrived) -> None:
        """Count the gradients of losses, and note those that have come before."""
        came = now.at_outputs.copy()
        came[_ends(call), np.arange(call.batch)] |= now.at_end
        self.found.losses[call.first : call.first + call.steps, : call.batch] += came
        for before in self._arrived.get(call.number, ()):
            # After an update the loss's own weights have changed, and the same loss's gradient too.
            is_old = call.update < now.update
            again = now.at_outputs & before.at_outputs
            if now.outputs is not None and before.outputs is not None and not is_old:
                again &= _same(now.outputs, before.outputs)
            at_end = now.at_end & before.at_end
            if now.end is not None and before.end is not None and not is_old:
                at_end &= _same(now.end, before.end)
            again[_ends(call), np.arange(call.batch)] |= at_end
            for t, row in np.argwhere(again).tolist():
                place = Place(call.number, row, t)
                self.found.repeated.append((place, place))
        self._arrived.setdefault(call.number, []).append(now)

    def credit(self, call: HeardCall, layer: OneForEach, weights: Matrix) -> None:
        """Add weights [B, T, N] of losses to the steps of a call."""
        steps, rows = slice(call.first, call.first + call.steps), np.arange(call.batch)
        own = layer.of == rows
        self.own[: call.batch, :, steps] += weights.swapaxes(1, 2) * own[:, None, None]
        for row in np.flatnonzero(~own & (layer.of >= 0)).tolist():
            key = int(layer.of[row]), row
            W = self.found.by_row.setdefault(key, np.zeros_like(self.own[0]))
            W[:, steps] += weights[row].T


class _PassComposer:
    """Goes back through the calls of one backward pass."""

    def __init__(self, whole: Composer, of: Pass) -> None:
        self.whole, self.of, self.found = whole, of, whole.found
        self.carried: dict[int, Carried] = {}
        self.expected: dict[tuple[int, int], Gradient] = {}
        self.between = self._between()
        """Where a loss arrives at a state on its way to another call, by call, [T, B]."""

    def compose(self) -> None:
        heard = {*self.of.outputs, *(n for n, _ in self.of.after)}
        for call in reversed(self.whole.record.calls):
            if call.number not in heard and call.number not in self.carried:
                continue
            if call.number in heard and call.update < self.of.update:
                loss = max(self.whole.record.calls[n].first for n in heard)
                self.found.old.append((loss, call))
            here = self.carried.pop(call.number, None) or Carried(call, self.whole.record.steps)
            self._losses(call, here)
            if here:
                self._back(call, here)

    # ------------------------------------------------------------------------ what arrives

    def _losses(self, call: HeardCall, here: Carried) -> None:
        """Find which of the gradients that arrive are of losses, and add these losses."""
        rows, ends = np.arange(call.batch), _ends(call)
        is_step = np.arange(call.steps)[:, None] < np.array(call.lengths)
        outputs = self.of.outputs.get(call.number)
        came = np.zeros((call.steps, call.batch), bool)
        if outputs is not None:
            outputs, came = self._unexplained(call, OUTPUTS, outputs)
            came &= is_step
        after = {}
        for part in sorted(i for n, i in self.of.after if n == call.number):
            rest, at = self._unexplained(call, part, self.of.after[call.number, part])
            if at.any():
                after[part] = rest, at
        at_end = np.zeros(call.batch, bool)
        end: Gradient | None = None
        if after:
            at_end = np.any([at for _, at in after.values()], 0)
            end = next(iter(after.values()))[0]
            for row in self.whole.by_hand.arrived(call, after, here):
                at_end[row] = False
            if not call.returns_state_only:
                alone = at_end & ~came[ends, rows]
                self.found.final_losses += [
                    Place(call.number, row, call.lengths[row] - 1)
                    for row in np.flatnonzero(alone).tolist()
                ]
        if self.of.reaches_parameters and (came.any() or at_end.any()):
            self.whole.arrived(call, _Arrived(self.of.update, came, outputs, at_end, end))
        came = came.copy()
        came[ends, rows] |= at_end
        more = self.between.get(call.number, came) & ~came
        self.found.losses[call.first : call.first + call.steps, : call.batch] += more
        came |= more
        ts, of = np.nonzero(came)
        here.add_own(of, call.first + ts, ts)

    def _unexplained(
        self, call: HeardCall, part: int, gradient: Gradient
    ) -> tuple[Gradient, Flags]:
        """Return what of a gradient comes from no later call, and where that is anything."""
        key = call.number, part
        measured = self.of.measured.get(key, np.zeros_like(gradient))
        rest = gradient - self.expected.pop(key, 0) - measured
        size = np.sqrt((rest.astype(float) ** 2).sum(-1))
        whole = np.linalg.norm(gradient, axis=-1) + np.linalg.norm(measured, axis=-1)
        return rest, size > self.whole.record.near * whole

    def _between(self) -> dict[int, Flags]:
        """Find losses of states that were transformed: each is one of the step it came from."""
        found: dict[int, Flags] = {}
        for (number, part), whole in self.of.initial.items():
            call = self.whole.record.calls[number]
            given = [(number, part), *((n, i) for of, n, i in call.also_given if of == part)]
            parts = [self.of.before.get(key) for key in given]
            parts.append(self.of.measured.get((number, RELAY - part)))
            rest, most = whole, np.linalg.norm(whole, axis=1)
            for each in (v for v in parts if v is not None):
                rest, most = rest - each, most + np.linalg.norm(each, axis=1)
            has_loss = np.linalg.norm(rest, axis=1) > self.whole.record.near * most
            for row in np.flatnonzero(has_loss).tolist():
                place = _latest_source(call, part, row)
                if place is not None:
                    earlier = self.whole.record.calls[place.call]
                    none = np.zeros((earlier.steps, earlier.batch), bool)
                    found.setdefault(place.call, none)[place.t, place.row] = True
        return found

    # ------------------------------------------------------------------------ what goes on

    def _back(self, call: HeardCall, here: Carried) -> None:
        """Credit losses to the steps of a call, and hand them on to where its state came from."""
        if call.is_online:
            self._by_sensitivities(call, here)
        before = {i: g for (n, i), g in self.of.before.items() if n == call.number}
        sent = np.zeros(call.batch, bool)
        for gradient in before.values():
            sent |= (gradient != 0).any(1)
        for layer in here.layers:
            if self.of.reaches_parameters:
                self.whole.credit(call, layer, _within(layer.weights, call))
        if not sent.any():
            return
        handed = [(layer.of, _to_initial(layer.weights, call)) for layer in here.layers]
        linked = np.zeros(call.batch, bool)
        for links in call.links:
            linked[links.rows] = True
            if links.source in before and not links.is_measured:
                self._expect(links, before[links.source])
        self.whole.by_hand.left(call, sent & ~linked, handed, before)
        for to, (rows, to_rows, ts, weights, known) in self._ways(call, before).items():
            target = self.whole.record.calls[to]
            there = self.carried.setdefault(to, Carried(target, self.whole.record.steps))
            for of, vectors in handed:
                there.add_ways(to_rows, ts, of[rows], weights[:, None] * vectors[rows], known)

    def _by_sensitivities(self, call: HeardCall, here: Carried) -> None:
        """Hand losses on to the calls that sensitivities are of, to which no gradient goes."""
        for layer in here.layers:
            vectors = _to_initial(layer.weights, call)
            for row, places in enumerate(call.sources):
                for place in places:
                    target = self.whole.record.calls[place.call]
                    there = self.carried.setdefault(
                        place.call, Carried(target, self.whole.record.steps)
                    )
                    at = np.array([place.row]), np.array([place.t])
                    there.add(*at, layer.of[row, None], vectors[row, None])

    def _expect(self, links: Links, before: Gradient) -> None:
        """Note what a state's gradient will bring to an earlier call."""
        key = links.call, links.part
        of_state = self.of.after.get(key)
        gradient = self.of.outputs.get(links.call) if links.part == OUTPUTS else of_state
        if gradient is None:
            return
        at: Any = (links.ts, links.to_rows) if links.part == OUTPUTS else (links.to_rows,)
        known = links.is_known
        if known.any():
            expected = self.expected.setdefault(key, np.zeros_like(gradient))
            values = links.weights[known, None] * before[links.rows[known]]
            values = values.reshape(-1, gradient.shape[-1])
            accumulate(expected, tuple(v[known] for v in at), values)

    def _ways(self, call: HeardCall, before: dict[int, Gradient]) -> dict[int, _Ways]:
        """Return by which ways losses go on, for each earlier call, each way once.

        Several tensors of a state, h and c, tell of the same losses.
        """
        used = [links for links in call.links if links.source in before]
        if used and all(_are_alike(links, used[0]) for links in used):
            moved = np.any([(before[v.source][v.rows] != 0).any(1) for v in used], 0)
            one = used[0]
            ways = _Ways(one.rows, one.to_rows, one.ts, one.weights, one.is_known)
            ways = _Ways._make(v[moved] for v in ways)
            return {one.call: ways} if moved.any() else {}
        return self._each_way(call, before)

    def _each_way(self, call: HeardCall, before: dict[int, Gradient]) -> dict[int, _Ways]:
        """Return the same where the tensors go different ways."""
        found: dict[int, dict[tuple[int, int, int], list[tuple[float, bool]]]] = {}
        for links in call.links:
            if links.source not in before:
                continue
            moved = (before[links.source][links.rows] != 0).any(1)
            ways = found.setdefault(links.call, {})
            values = (links.rows, links.to_rows, links.ts, links.weights, links.is_known)
            for row, to, t, w, known in zip(*(v[moved].tolist() for v in values), strict=True):
                ways.setdefault((row, to, t), []).append((w, known))
        together = {}
        for to, ways in found.items():
            if not ways:
                continue
            weights = [max((w for w, _ in each), key=abs) for each in ways.values()]
            if any(len({w for w, _ in e}) > 1 or not all(k for _, k in e) for e in ways.values()):
                self.found.unknown.append(call)
            rows, to_rows, ts = (np.array(v) for v in zip(*ways, strict=True))
            is_known = np.array([all(known for _, known in each) for each in ways.values()])
            together[to] = _Ways(rows, to_rows, ts, np.array(weights), is_known)
        return together


def _latest_source(call: HeardCall, part: int, row: int) -> Place | None:
    """Return the latest step that a sequence's initial state was made of; None: of none."""
    found = [
        Place(links.call, int(links.to_rows[i]), int(links.ts[i]))
        for links in call.links
        if links.source == part
        for i in np.flatnonzero(links.rows == row)
    ]
    return max(found, key=lambda place: (place.call, place.t), default=None)


def _are_alike(a: Links, b: Links) -> bool:
    """Whether two tensors of a state go the same ways, with known weights."""
    pairs: Any = zip(a[3:], b[3:], strict=True)
    same = a.call == b.call and all(np.array_equal(v, w) for v, w in pairs)
    return same and bool(a.is_known.all())


def _ends(call: HeardCall) -> NDArray[np.int64]:
    """The last step of each sequence."""
    return np.maximum(np.array(call.lengths, np.int64) - 1, 0)


def _is_same_pass(one: Pass, other: Pass) -> bool:
    """Whether the same gradients arrived in two passes."""
    shared = [(one.outputs[n], g) for n, g in other.outputs.items() if n in one.outputs]
    shared += [(one.after[n], g) for n, g in other.after.items() if n in one.after]
    return bool(shared) and all(bool(_same(a, b).all()) for a, b in shared)


def _same(a: Gradient, b: Gradient) -> Flags:
    if a.shape != b.shape:
        return np.zeros(a.shape[:-1], bool)
    return np.asarray((np.abs(a - b) <= SAME * np.abs(b)).all(-1))


def _within(weights: Matrix, call: HeardCall) -> Matrix:
    """Credit losses [B, T, N] at the steps of a call to its steps."""
    if call.is_bidirectional:
        is_step = np.arange(call.steps) < np.array(call.lengths)[:, None]
        return np.asarray(weights.sum(1, keepdims=True) * is_step[:, :, None])
    if call.weights is None:
        return np.asarray(np.cumsum(weights[:, ::-1], 1)[:, ::-1])
    return np.asarray(call.weights.swapaxes(-1, -2) @ weights)


def _to_initial(weights: Matrix, call: HeardCall) -> Matrix:
    """Return the weights of losses [B, T, N] at a call's initial state, [B, N]."""
    if call.of_initial is None:
        return np.asarray(weights.sum(1))
    of = np.broadcast_to(call.of_initial, (call.batch, call.steps))
    return np.asarray((of[:, None] @ weights)[:, 0])
