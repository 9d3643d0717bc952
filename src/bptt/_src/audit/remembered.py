"""Where a state comes from, found by its values: they pass through NumPy and buffers unchanged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.audit.reading import CallRead
from bptt._src.audit.record import ELSEWHERE, START, UNKNOWN, ZERO, Origin, Place

MANY = 2**20
LIKE = 0.98
"""The cosine from which on two states resemble each other."""


class Digests(NamedTuple):
    """What tells the rows of a tensor from others."""

    values: NDArray[np.uint64]
    """[B, 2]"""
    is_zero: NDArray[np.bool_]
    """[B]"""

    def key(self, row: int) -> bytes:
        """What a row is looked up by."""
        return bytes(self.values[row].data)


class _Returned(NamedTuple):
    """A tensor of the state that a call returned, or of its outputs at one step."""

    part: int
    digests: Digests
    call: int
    ts: list[int]
    """The step of each row."""


class Remembered:
    """The states that calls have returned, by their values."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, bytes], tuple[int, ...]] = {}
        """As numbers, of which there are many: call, row and step."""
        self._waiting: list[_Returned] = []
        """What is not yet among them: it is, once a state is not the last one."""
        self._initial: set[tuple[int, bytes]] = set()
        self._last: list[_Returned] = []
        """The state after the last call."""
        self._last_values: list[Tensor] = []

    def keep(self, call: int, read: CallRead) -> list[list[bool]]:
        """Remember the states after a call; return where they are zero, for each sequence."""
        self._keep_outputs(call, read)
        ends = [n - 1 for n in read.lengths]
        rows = [read.by_sequence(v.detach()) for v in read.returned]
        self._last = [_Returned(i, _digests(v), call, ends) for i, v in enumerate(rows)]
        self._last_values = [v.float().clone() for v in rows]
        self._waiting += self._last
        zero: list[list[bool]] = np.stack([v.digests.is_zero for v in self._last], 1).tolist()
        return zero

    def _keep_outputs(self, call: int, read: CallRead) -> None:
        """Remember the outputs of each step as states, where they are of the state's size."""
        if not isinstance(read.y, Tensor) or read.time is None or read.steps < 2:
            return
        y, state = read.by_step(read.y.detach()), read.returned[0]
        if y[0, 0].numel() != read.by_sequence(state)[0].numel():
            return
        whole = _digests(y.reshape(read.steps * read.batch, -1))
        for t in range(read.steps - 1):
            rows = slice(t * read.batch, (t + 1) * read.batch)
            digests = Digests(whole.values[rows], whole.is_zero[rows])
            self._waiting.append(_Returned(0, digests, call, [t] * read.batch))

    def origins(self, given: list[Tensor], read: CallRead) -> list[list[Origin]]:
        """Find where the initial state of each sequence comes from, for each of its tensors."""
        digests = [_digests(read.by_sequence(v.detach())) for v in given]
        is_last = self._is_last(digests, read.batch)
        found: list[list[Origin]] = []
        for row in range(read.batch):
            if is_last[row]:
                last = self._last[0]
                found.append([Place(last.call, row, last.ts[row])] * len(given))
            else:
                found.append(self._look_up(given, digests, row, read))
        return found

    def _is_last(self, digests: list[Digests], batch: int) -> NDArray[np.bool_]:
        """Where the initial state is the one after the last call."""
        same = np.full(batch, bool(digests) and len(digests) == len(self._last))
        for now, last in zip(digests, self._last, strict=False):
            if last.digests.values.shape != now.values.shape:
                return np.zeros(batch, bool)
            same &= (now.values == last.digests.values).all(1)
        return same

    def _look_up(
        self, given: list[Tensor], digests: list[Digests], row: int, read: CallRead
    ) -> list[Origin]:
        self._take_in()
        keys = [None if d.is_zero[row] else d.key(row) for d in digests]
        places = [() if k is None else self._places.get((i, k), ()) for i, k in enumerate(keys)]
        # Values may come again, as spikes do: rather after the same step for all tensors.
        known = [set(p) for p in places if p]
        common = set.intersection(*known) if known else set()
        origins: list[Origin] = []
        for part, key in enumerate(keys):
            place = _latest(places[part], row, common)
            if place is not None:
                origins.append(place)
            elif key is None:
                origins.append(ZERO)
            elif _is_shared(digests[part]) or (part, key) in self._initial:
                self._initial.add((part, key))
                origins.append(START)
            else:
                is_like = self._is_like(part, row, read.by_sequence(given[part]))
                origins.append(UNKNOWN if is_like else ELSEWHERE)
        return self._still_zero(origins, row)

    def _take_in(self) -> None:
        """Sort in what is waiting."""
        for part, digests, call, ts in self._waiting:
            for row in np.flatnonzero(~digests.is_zero).tolist():
                key = part, digests.key(row)
                code = (call * MANY + row) * MANY + ts[row]
                self._places[key] = (*self._places.get(key, ()), code)
        self._waiting.clear()

    def _is_like(self, part: int, row: int, rows: Tensor) -> bool:
        """Whether a state resembles the one of its sequence after the last call."""
        if part >= len(self._last_values) or self._last_values[part].shape != rows.shape:
            return False
        last, now = self._last_values[part][row], rows[row].detach().float()
        return bool(last @ now > LIKE * last.norm() * now.norm())

    def _still_zero(self, origins: list[Origin], row: int) -> list[Origin]:
        """Take a zero for what it was after the last call, if another tensor comes from there."""
        places = {o.call for o in origins if isinstance(o, Place)}
        return [
            Place(last.call, row, last.ts[row])
            if origin == ZERO and last.call in places and _was_zero(last, row)
            else origin
            for origin, last in zip(origins, self._last, strict=False)
        ] + origins[len(self._last) :]


def _was_zero(last: _Returned, row: int) -> bool:
    return row < len(last.ts) and bool(last.digests.is_zero[row])


def _is_shared(digests: Digests) -> bool:
    """Whether all sequences have the same."""
    return len(digests.values) > 1 and bool((digests.values == digests.values[0]).all())


def _latest(places: tuple[int, ...], row: int, common: set[int]) -> Place | None:
    """Choose among places with the same values: common ones, then the same row's, the latest."""
    if not places:
        return None
    some = [p for p in places if p in common] or places
    code = ([p for p in some if p // MANY % MANY == row] or some)[-1]
    return Place(code // MANY // MANY, code // MANY % MANY, code % MANY)


_random = np.random.default_rng(20261)
_multipliers = np.zeros((2, 0), np.uint64)


def _digests(rows: Tensor) -> Digests:
    """Digest each row of a matrix.

    Two sums of its 32-bit words times random numbers, modulo 2^64: equal rows have equal ones, and
    different rows hardly ever. As float32, so that a state is found again in another type.
    """
    global _multipliers
    values = rows.detach().cpu().contiguous()
    if values.shape[1] == 0:
        return Digests(np.zeros((len(values), 2), np.uint64), np.ones(len(values), bool))
    is_zero = (values == 0).all(1).numpy()
    words = (values.float() + 0).numpy().view(np.uint32).astype(np.uint64)  # -0 is 0
    missing = words.shape[1] - _multipliers.shape[1]
    if missing > 0:
        more = _random.integers(0, 2**64, (2, missing), np.uint64)
        _multipliers = np.concatenate([_multipliers, more], 1)
    digests = words @ _multipliers[:, : words.shape[1]].T
    return Digests(digests, is_zero)
