"""Memory: what a segment's graph takes, and states that are stored in room that is used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt._src.pytree import leaves_of, map_tensors
from bptt._src.uncompiled import uncompiled
from bptt._src.unroll.buffers import Values


@dataclass
class Graph:
    """A segment run with its graph: the leaves of its inputs, its outputs and its states."""

    x: list[Any]
    before: list[Any]
    y: list[Any]
    after: list[Any]


class Stored(NamedTuple):
    """Everything needed to run a segment again."""

    state: Any
    random: list[Tensor]
    buffers: Values
    """Copies of the module's buffers."""
    slot: int | None


class Slots:
    """Preallocated room for stored states, one block for each of their tensors.

    A small tensor that outlives the large ones around it keeps an allocator from returning their
    memory, so states are copied out of there.
    """

    def __init__(self, like: Any, capacity: int) -> None:
        self.like = [s for s in leaves_of(like) if isinstance(s, Tensor)]
        self.room = [s.new_empty(capacity, *s.shape) for s in self.like]
        self.free = list(range(capacity))

    def store(self, state: Any, random: list[Tensor], buffers: Values) -> Stored:
        """Copy a state if it has the usual shapes and there is room; otherwise keep it as it is."""
        tensors = [s for s in leaves_of(state) if isinstance(s, Tensor)]
        alike = [(s.shape, s.dtype, s.device) for s in tensors] == [
            (s.shape, s.dtype, s.device) for s in self.like
        ]
        if not (alike and self.free):
            return Stored(state, random, buffers, None)
        slot = self.free.pop()
        copied = iter([room[slot].copy_(s) for room, s in zip(self.room, tensors, strict=True)])
        return Stored(map_tensors(lambda _: next(copied), state), random, buffers, slot)

    def drop(self, stored: Stored) -> None:
        """Free its room."""
        if stored.slot is not None:
            self.free.append(stored.slot)


@contextmanager
def measuring(known: list[Tensor]) -> Iterator[Callable[[], int]]:
    """Count the bytes that a graph keeps which is made within a ``with`` block.

    Args:
        known: tensors that are there anyway, and do not count.
    """
    size = 0
    seen = {t.untyped_storage()._cdata for t in known}

    @uncompiled
    def count(t: Tensor) -> tuple[Tensor, int]:
        nonlocal size
        storage = t.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            size += storage.nbytes()
        return t.detach(), t._version  # keeping t itself would be a reference cycle

    @uncompiled
    def unchanged(packed: tuple[Tensor, int]) -> Tensor:  # with hooks autograd does not check
        t, version = packed
        if t._version != version:
            raise RuntimeError(
                f"bptt.unroll: a tensor of shape {tuple(t.shape)} that the backward pass needs "
                "was modified by an inplace operation; change a clone of it"
            )
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, unchanged):
        yield lambda: size
