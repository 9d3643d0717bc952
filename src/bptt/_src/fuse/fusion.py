"""How a fused cell is run over sequences, for one dtype and one mode of the cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt._src.fuse.independence import check_independence, has_rows
from bptt._src.fuse.recurrence import Recurrence
from bptt._src.fuse.splitting import SplitStep, split
from bptt._src.fuse.step import CellStep, Tree
from bptt._src.fuse.tracing import Example, StepGraph, name_of, trace_step


@dataclass(frozen=True)
class Fusion:
    """A step that was traced, split and made a program."""

    graph: StepGraph
    parts: SplitStep
    recurrence: Recurrence
    output: Tree

    @classmethod
    def of(cls, step: CellStep, example: Example) -> Fusion:
        """Make it.

        Raises:
            bptt.errors.FuseError: something in the step cannot be fused.
        """
        graph = trace_step(step, example)
        check_independence(graph, step, example)
        dtype = example.state[0].dtype
        parts = split(graph, dtype)
        widths = tuple(s.shape[1] for s in example.state)
        assert step.output is not None
        return cls(graph, parts, Recurrence.of(parts, widths, dtype), step.output)

    def operations(self) -> list[str]:
        """Return the names of what the step does."""
        return [name_of(n) for n in self.graph.graph.nodes if n.op == "call_function"]

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
        rows, vectors, weights, passed = parts.before(N, *rows_of_x, *own)
        after, outs, finals = self.recurrence(T, [*rows, *states, *vectors, *weights])
        before: list[Any] = [None] * len(states)
        for i in parts.uses_before:
            before[i] = torch.cat([states[i], after[i][: N - B]])
        found = parts.after(N, *rows_of_x, *own, *passed, *before, *after, *outs)
        return [
            # What has no rows is the same at each step.
            y.unflatten(0, (T, B)) if has_rows(self.graph, n) else y.expand(T, *y.shape)
            for n, y in zip(self.graph.outputs, found, strict=True)
        ], finals
