"""Where a state comes from, found by its values: they pass through NumPy and buffers unchanged."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bptt._src.audit.reading import CallRead
from bptt._src.audit.record import ELSEWHERE, START, UNKNOWN, ZERO, Origin, Place

MANY = 2**20
LIKE = 0.98
"""The cosine from which on two states resemble each other."""


class Remembered:
    """The states that calls have returned, by their values."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, bytes | None], tuple[int, ...]] = {}
        """As numbers, of which there are many: call, row and step."""
        self._initial: set[tuple[int, bytes]] = set()
        self._last: list[Tensor] = []
        """The state after the last call, each tensor [B, n]."""
        self._zeros: list[list[Place]] = []
        """Of each tensor of the state, after the last call, where it was zero."""

    def keep(self, call: int, read: CallRead) -> list[list[bool]]:
        """Remember the states after a call; return where they are zero, for each sequence."""
        self._keep_outputs(call, read)
        digests = [_digests(read.by_sequence(v)) for v in read.returned]
        for part, rows in enumerate(digests):
            for row, digest in enumerate(rows):
                if digest is not None:
                    self._add(part, digest, call, row, read.lengths[row] - 1)
        self._last = [read.by_sequence(v.detach()).float().clone() for v in read.returned]
        self._zeros = [
            [Place(call, row, read.lengths[row] - 1) for row, d in enumerate(rows) if d is None]
            for rows in digests
        ]
        return [[rows[b] is None for rows in digests] for b in range(read.batch)]

    def _keep_outputs(self, call: int, read: CallRead) -> None:
        """Remember the outputs of each step as states, where they are of the state's size."""
        if not isinstance(read.y, Tensor) or read.time is None or read.steps < 2:
            return
        y, state = read.by_step(read.y.detach()), read.returned[0]
        if y[0, 0].numel() != read.by_sequence(state)[0].numel():
            return
        for t in range(read.steps - 1):
            for row, digest in enumerate(_digests(y[t].reshape(read.batch, -1))):
                if digest is not None:
                    self._add(0, digest, call, row, t)

    def _add(self, part: int, digest: bytes, call: int, row: int, t: int) -> None:
        key = part, digest
        self._places[key] = (*self._places.get(key, ()), (call * MANY + row) * MANY + t)

    def origins(self, given: list[Tensor], read: CallRead) -> list[list[Origin]]:
        """Find where the initial state of each sequence comes from, for each of its tensors."""
        all_digests = [_digests(read.by_sequence(v.detach())) for v in given]
        shared = [len(set(d)) == 1 and len(d) > 1 for d in all_digests]
        found: list[list[Origin]] = []
        for row, digests in enumerate(zip(*all_digests, strict=True)):
            places = [self._places.get(key, ()) for key in enumerate(digests)]
            # Values may come again, as spikes do: rather after the same step for all tensors.
            known = [set(p) for p in places if p]
            common = set.intersection(*known) if known else set()
            origins = [
                self._origin(part, digest, shared[part], _latest(places[part], row, common))
                for part, digest in enumerate(digests)
            ]
            for part, v in enumerate(given) if UNKNOWN in origins else ():
                if origins[part] == UNKNOWN and not self._is_like(part, row, read.by_sequence(v)):
                    origins[part] = ELSEWHERE
            was_zero = [next((p for p in v if p.row == row), None) for v in self._zeros]
            found.append(_still_zero(origins, was_zero))
        return found or [[] for _ in range(read.batch)]

    def _is_like(self, part: int, row: int, rows: Tensor) -> bool:
        """Whether a state resembles the one of its sequence after the last call."""
        if part >= len(self._last) or self._last[part].shape != rows.shape:
            return False
        last, now = self._last[part][row], rows[row].detach().float()
        return bool(last @ now > LIKE * last.norm() * now.norm())

    def _origin(self, part: int, digest: bytes | None, shared: bool, place: Place | None) -> Origin:
        if digest is None:
            return ZERO
        if place is not None:
            return place
        if shared or (part, digest) in self._initial:
            self._initial.add((part, digest))
            return START
        return UNKNOWN


def _still_zero(origins: list[Origin], was_zero: list[Place | None]) -> list[Origin]:
    """Take zeros for what they were after the last call, unless another tensor says otherwise."""
    if not any(was_zero) or any(o != ZERO and o not in was_zero for o in origins):
        known = {o.call for o in origins if isinstance(o, Place)}
    else:
        known = {p.call for p in was_zero if p is not None} if all(was_zero) else set()
    return [
        z if o == ZERO and z is not None and z.call in known else o
        for o, z in zip(origins, [*was_zero, *[None] * len(origins)], strict=False)
    ]


def _latest(places: tuple[int, ...], row: int, common: set[int]) -> Place | None:
    """Choose among places with the same values: common ones, then the same row's, the latest."""
    if not places:
        return None
    some = [p for p in places if p in common] or places
    code = ([p for p in some if p // MANY % MANY == row] or some)[-1]
    return Place(code // MANY // MANY, code // MANY % MANY, code % MANY)


_random = np.random.default_rng(20261)
_multipliers = np.zeros((2, 0), np.uint64)


def _digests(rows: Tensor) -> list[bytes | None]:
    """Return a digest of each row of a matrix, or None where all of it is zero.

    Two sums of its 32-bit words times random numbers, modulo 2^64: equal rows have equal ones, and
    different rows hardly ever.
    """
    global _multipliers
    values = rows.detach().cpu().contiguous()
    if values.shape[1] == 0:
        return [None] * len(values)
    zero = (values == 0).all(1).tolist()
    wide = values.double() if values.element_size() % 4 else values
    words = wide.numpy().view(np.uint32).astype(np.uint64)
    missing = words.shape[1] - _multipliers.shape[1]
    if missing > 0:
        more = _random.integers(0, 2**64, (2, missing), np.uint64)
        _multipliers = np.concatenate([_multipliers, more], 1)
    digests = words @ _multipliers[:, : words.shape[1]].T
    return [None if z else d.tobytes() for d, z in zip(digests, zero, strict=True)]
