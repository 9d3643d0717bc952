"""A layer in one direction, run as a whole or written down as one operation of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from bptt._src.dropout import dropout
from bptt._src.engines import operators
from bptt._src.engines.call import Call
from bptt._src.engines.plan_operator import Crossing, by_windows, own_rows
from bptt._src.engines.sequence import sequence
from bptt._src.engines.windows import Windows
from bptt._src.rows import boundary_of
from bptt._src.steps import Steps
from bptt.cells import Cell, State, Weights

Draw = Callable[[Tensor, tuple[int, ...]], Tensor]
"""``(like, rows) -> [*rows, any]`` draws something of like's dtype for rows, (T, B) or (N,)."""


@runtime_checkable
class LayerRun(Protocol):
    """How the layers of a stack are run, one after the other."""

    all_states: bool
    """Whether the states but h after each step are asked for."""

    def layer(
        self, cell: Cell, x: Tensor, state: State, w: Weights, reverse: bool, number: int
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """Run one layer in one direction; the lowest has number 0.

        Returns:
            The outputs, the final state and, where they are asked for, the states but h after each
            step, laid out like the outputs.
        """

    def drop_out(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Drop outputs of a layer on their way to the next one."""

    def drawn(self, draw: Draw, x: Tensor, number: int) -> Tensor:
        """Draw something for each step and sequence, and lay it out as x, what layer ``number`` is
        given; the copies of a step in several windows have the same.
        """

    def result(self, x: Tensor, last: bool = True) -> Tensor:
        """Lay out what a layer gave, by windows perhaps, as rows or [T, B, ...]."""


class Directly:
    """By the engine that serves."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        carry: Tensor | None,
        resets: Tensor | None,
        windows: Windows | None,
        directions: tuple[bool, ...],
        all_states: bool,
        bf16: bool,
    ) -> None:
        self.sizes, self.windows, self.all_states, self.bf16 = sizes, windows, all_states, bf16
        self.boundaries = [boundary_of(sizes, carry, resets, reverse) for reverse in directions]

    def layer(
        self, cell: Cell, x: Tensor, state: State, w: Weights, reverse: bool, number: int
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        x = x if self.windows is None or number else x.flatten(0, -2)
        steps, boundary = Steps(self.sizes, reverse), self.boundaries[reverse]
        rest = self.windows, number > 0, self.all_states, self.bf16
        return sequence(Call(cell, x, state, w, steps, boundary, *rest))

    def drop_out(self, x: Tensor, p: float, training: bool) -> Tensor:
        if self.windows is None:
            return dropout(x, p, training)
        return x * self.drawn(lambda like, rows: _kept(like, rows, p, training), x, 1)

    def drawn(self, draw: Draw, x: Tensor, number: int) -> Tensor:
        windows = self.windows
        if windows is None or number == 0:
            return draw(x, tuple(x.shape[:-1]))
        return draw(x, (len(windows.own),)).index_select(0, windows.rows)

    def result(self, x: Tensor, last: bool = True) -> Tensor:
        return x if self.windows is None else x.index_select(0, self.windows.own)


class Recorded:
    """As one operation each, for whoever records them."""

    def __init__(
        self,
        crossing: Crossing,
        sizes: Tensor | None,
        rows: tuple[int, ...],
        layers: int,
        all_states: bool,
        bf16: bool,
    ) -> None:
        """``sizes`` are the ``batch_sizes`` of a PackedSequence; ``rows`` [T, B], or [N] of it."""
        self.crossing, self.sizes, self.rows, self.layers = crossing, sizes, rows, layers
        self.all_states, self.bf16 = all_states, bf16

    def layer(
        self, cell: Cell, x: Tensor, state: State, w: Weights, reverse: bool, number: int
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        windows = self.crossing.blocks is not None
        return operators.sequence(
            *(cell, x, state, w, self.crossing),
            sizes=self.sizes,
            reverse=reverse,
            by_windows=windows and number > 0,
            to_windows=windows and number < self.layers - 1,
            all_states=self.all_states,
            bf16=self.bf16,
        )

    def drop_out(self, x: Tensor, p: float, training: bool) -> Tensor:
        if self.crossing.blocks is None:
            return dropout(x, p, training)
        return x * self.drawn(lambda like, rows: _kept(like, rows, p, training), x, 1)

    def drawn(self, draw: Draw, x: Tensor, number: int) -> Tensor:
        if self.crossing.blocks is None or number == 0:
            return draw(x, tuple(x.shape[:-1]))
        found = draw(x, self.rows)
        like = x.new_empty(x.shape[0], found.shape[-1])
        return by_windows(found, like, self.crossing, self.sizes)

    def result(self, x: Tensor, last: bool = True) -> Tensor:
        if self.crossing.blocks is None or last:
            return x
        return own_rows(x, self.crossing, self.sizes, self.rows)


def _kept(like: Tensor, rows: tuple[int, ...], p: float, training: bool) -> Tensor:
    """Draw what the outputs of so many rows are multiplied by."""
    return dropout(like.new_ones(*rows, like.shape[-1]), p, training)
