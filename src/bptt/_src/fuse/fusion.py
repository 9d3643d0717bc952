"""How a fused cell is run over sequences, for one dtype and one mode of the cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from bptt._src.fuse.forms import Form
from bptt._src.fuse.independence import check_independence, has_rows
from bptt._src.fuse.products import is_ours, product
from bptt._src.fuse.recurrence import Recurrence
from bptt._src.fuse.splitting import SplitStep, split
from bptt._src.fuse.step import CellStep, Tree
from bptt._src.fuse.tracing import Example, StepGraph, trace_step
from bptt.errors import FuseError


class ResultShapes(NamedTuple):
    """The shapes of what a run gives, and of what it takes down: none but T, B and N = T B vary."""

    form: Form | None
    """Of the outputs' pytree."""
    outputs: tuple[tuple[bool, tuple[int, ...], torch.dtype], ...]
    """Whether there is one for each sequence, of which shape and dtype."""
    states: tuple[int, ...]
    taken: tuple[tuple[int | str, int], ...]
    """Rows, "N", "B + N" or so many, and columns."""

    def of_results(self, T: Any, B: Any) -> list[tuple[Any, ...]]:
        """Return the shapes of outputs and final states."""
        found: list[tuple[Any, ...]] = [
            (T, B, *shape) if has_rows else (T, *shape) for has_rows, shape, _ in self.outputs
        ]
        return [*found, *((B, width) for width in self.states)]

    def of_taken(self, T: Any, B: Any) -> list[tuple[Any, ...]]:
        """Return the shapes of what is taken down."""
        many: dict[int | str, Any] = {"N": T * B, "B + N": B + T * B}
        return [(many.get(rows, rows), columns) for rows, columns in self.taken]


@dataclass(frozen=True, eq=False)
class Fusion:
    """A step that was traced, split and made a program."""

    graph: StepGraph
    parts: SplitStep
    recurrence: Recurrence
    output: Tree

    @classmethod
    def of(cls, step: CellStep, example: Example, like: Fusion | None = None) -> Fusion:
        """Make it.

        Args:
            step: the step of the cell.
            example: of the step's arguments, in the dtype of the computation.
            like: the fusion of this step in another dtype, which has been checked.

        Raises:
            bptt.errors.FuseError: something in the step cannot be fused, or it does something else
                than in that dtype.
        """
        graph, dtype = trace_step(step, example), example.state[0].dtype
        if like is None:
            check_independence(graph, example)
        elif graph.operations() != like.graph.operations():
            raise FuseError(
                f"bptt.fuse: the step does something else in {dtype} than in {like.dtype}"
            )
        parts = split(graph, dtype)
        widths = tuple(s.shape[1] for s in example.state)
        assert step.output is not None
        return cls(graph, parts, Recurrence.of(parts, widths, dtype), step.output)

    @property
    def dtype(self) -> torch.dtype:
        return self.recurrence.loop.dtype

    @cached_property
    def layout(self) -> ResultShapes:
        outputs, loop = [], self.recurrence.loop
        for n in self.graph.outputs:
            val, rows = n.meta["val"], has_rows(self.graph, n)
            outputs.append((rows, tuple(val.shape[1:] if rows else val.shape), val.dtype))
        taken = [
            *self._products(self.parts.before),
            *(("B + N", width) for width in loop.sizes.states),
            *(("N", width) for width in (*loop.outputs, loop.kept)),
            *self._products(self.parts.after),
        ]
        return ResultShapes(
            self.output.form, tuple(outputs), tuple(loop.sizes.states), tuple(taken)
        )

    def _products(self, part: fx.GraphModule) -> list[tuple[int | str, int]]:
        """Return rows and columns of the products that are taken down."""
        found = []
        for n in part.graph.nodes:
            if n.target is product:
                *bias, left, right = (a.meta["val"] for a in n.meta["of"].args)
                if is_ours(left, right.shape[1], *(bias or [None])):
                    rows = "N" if has_rows(self.graph, n.meta["of"]) else len(left)
                    found.append((rows, right.shape[1]))
        return found

    def run(
        self,
        T: int,
        B: int,
        xs: Sequence[Tensor],
        states: Sequence[Tensor],
        own: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run over T steps of B sequences.

        Args:
            T: the number of steps.
            B: the number of sequences.
            xs: the inputs, [T, B, ...].
            states: the initial states, [B, units].
            own: what the cell owns.

        Returns:
            The outputs, [T, B, ...], and the final states.
        """
        parts, N = self.parts, T * B
        rows_of_x = [x.flatten(0, 1) for x in xs]
        rows, vectors, weights, passed = parts.before.forward(N, *rows_of_x, *own)
        after, outs, finals = self.recurrence(T, [*rows, *states, *vectors, *weights])
        before: list[Any] = [None] * len(states)
        for i in parts.uses_before:
            before[i] = torch.cat([states[i], after[i][: N - B]])
        found = parts.after.forward(N, *rows_of_x, *own, *passed, *before, *after, *outs)
        return [
            # What has no rows is the same at each step.
            y.view(T, B, *shape) if has_rows else y.expand(T, *y.shape)
            for (has_rows, shape, _), y in zip(self.layout.outputs, found, strict=True)
        ], finals
