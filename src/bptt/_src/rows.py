"""Inputs as rows, step after step: padded, packed or without a batch, they are one layout."""

from __future__ import annotations

import operator
import reprlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.steps import Boundary
from bptt.cells import State


class Rows(NamedTuple):
    """An input laid out step after step, and how to lay out the output like it."""

    x: Inexact[Tensor, "*rows input"]
    """[T, B, I], or, packed, [N, I]."""
    sizes: tuple[int, ...]
    """How many sequences are running at each step; empty where operations are recorded."""
    like: Tensor | PackedSequence
    steps: int
    batch: int
    is_unbatched: bool
    """Whether the input is [T, I]."""

    def output(self, y: Tensor, batch_first: bool) -> Tensor | PackedSequence:
        """Lay out [T, B, H] or [N, H] like the input."""
        if isinstance(self.like, PackedSequence):
            return self.like._replace(data=y)
        if y.dim() == 2:
            y = y.view(self.steps, self.batch, y.shape[1])
        if self.is_unbatched:
            return y.squeeze(1)
        return y.transpose(0, 1) if batch_first else y

    def final_state(self, finals: list[State]) -> Any:
        """Stack the final states of all layers and directions, in the order of the input's batch.

        Returns:
            One tensor, or a tuple of those of the state.
        """
        order = order_of(self.like, "unsorted_indices")
        stacked = [s[0] if len(s) == 1 else torch.cat(s) for s in zip(*finals, strict=True)]
        if order is not None:
            stacked = [s.index_select(1, order) for s in stacked]
        if self.is_unbatched:
            stacked = [s.squeeze(1) for s in stacked]
        # No views, which could not be detached in place; those that are compiled are none.
        if self.is_unbatched or not torch.compiler.is_compiling():
            stacked = [s.clone() if self.is_unbatched or s._is_view() else s for s in stacked]
        return stacked[0] if len(stacked) == 1 else tuple(stacked)


def sizes_of(packed: PackedSequence, name: str) -> tuple[int, ...]:
    """How many sequences of a PackedSequence are still running at each step.

    Raises:
        RuntimeError: they do not fit its rows.
    """
    given, rows = packed.batch_sizes, len(packed.data)
    sizes: tuple[int, ...] = ()
    if given.device.type == "cpu" and given.dtype == torch.int64 and given.dim() == 1:
        sizes = tuple(given.tolist())
    falls = all(map(operator.ge, sizes, sizes[1:])) and bool(sizes) and sizes[-1] > 0
    if not falls or sum(sizes) != rows:
        raise RuntimeError(
            f"{name}: expected batch_sizes of a PackedSequence to be int64 on the cpu, "
            f"positive, never to grow, and to add up to its {rows} rows, got "
            f"{reprlib.repr(list(sizes)) if sizes else given}"
        )
    return sizes


def order_of(like: Tensor | PackedSequence, name: str) -> Tensor | None:
    return getattr(like, name) if isinstance(like, PackedSequence) else None


def boundary_of(
    sizes: tuple[int, ...],
    carry: Float[Tensor, "time batch"] | None,
    resets: Bool[Tensor, "time batch"] | None,
    reverse: bool,
) -> Boundary:
    """Lay out by rows what happens at the boundary over which each row's state comes.

    ``carry[t]`` and ``resets[t]`` belong to the boundary between the steps t-1 and t. Forwards
    the state comes to step t over that one; in the reverse direction over the next one, t+1,
    and to the last step from outside, where nothing happens.
    """
    if carry is None and resets is None:
        return Boundary()
    B = sizes[0]
    if sizes[-1] == B and not reverse:  # all sequences run to the end
        return Boundary(*(None if at is None else at.reshape(-1, 1) for at in (carry, resets)))
    running = torch.arange(B, device="cpu") < torch.tensor(sizes, device="cpu").unsqueeze(
        1
    )  # [T, B]

    def rows(at: Tensor | None, nothing: float) -> Tensor | None:
        if at is None:
            return None
        here = running.to(at.device)
        if reverse:
            at = at.masked_fill(~here, nothing)  # past a sequence's end is outside too
            at = torch.cat([at[1:], at.new_full((1, B), nothing)])
        return at[here].unsqueeze(1)

    return Boundary(rows(carry, 1), rows(resets, 0))
