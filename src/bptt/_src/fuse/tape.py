"""Results that are taken down as they are computed, and handed out again instead of computed anew.

So an operator's way back can go through a step once more, for its graph, without its products and
its loop.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


class _Tape(threading.local):
    taken: list[Tensor] | None = None
    given: list[Tensor] | None = None


_tape = _Tape()


@contextmanager
def taken_down() -> Iterator[list[Tensor]]:
    """Take down what is computed, in order, into the list that this gives."""
    found: list[Tensor] = []
    _tape.taken = found
    try:
        yield found
    finally:
        _tape.taken = None


@contextmanager
def given_again(results: Sequence[Tensor]) -> Iterator[None]:
    """Hand out results that were taken down, in the same order."""
    _tape.given = list(reversed(results))
    try:
        yield
        assert not _tape.given, "results are left over"
    finally:
        _tape.given = None


def is_taken_down() -> bool:
    return _tape.taken is not None


def again(n: int) -> list[Tensor] | None:
    """Return the next n results, where they are handed out again; None: compute them."""
    given = _tape.given
    return None if given is None else [given.pop().detach() for _ in range(n)]


def note(*results: Tensor) -> None:
    """Take them down, where that is asked for."""
    if _tape.taken is not None:
        _tape.taken += results
