"""A module over sequences, made from a cell that takes single steps."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.layout import unwrapped
from bptt._src.pytree import leaves_of, map_tensors, tensors_of
from bptt._src.unroll.buffers import Buffers, modules_in
from bptt._src.unroll.calls import is_detached, pair, refuse_detached

RETURNS_OF_CELL = (
    "(output, state); a cell whose output is its state: "
    "lambda x, s: (h := cell(x, s), h), with s None at first"
)


class Stepwise(nn.Module):
    """Turns a cell that takes single steps into a module that runs over sequences.

    Args:
        cell: a callable ``(x_t [B, ...], state) -> (output, state)``, or one of torch.nn's
            cells, ``(x_t, state) -> state``, whose output is h; it may be compiled.
        state_batch_dim: the batch dimension of each of the state's tensors.

    >>> import torch, bptt
    >>> network = bptt.Stepwise(torch.nn.LSTMCell(4, 8))
    >>> y, (h, c) = bptt.unroll(network, torch.randn(30, 3, 4), credit=bptt.Truncated(10))
    >>> y.shape, c.shape
    (torch.Size([30, 3, 8]), torch.Size([3, 8]))
    """

    batch_first = False

    def __init__(self, cell: Callable[..., Any], state_batch_dim: int = 0) -> None:
        super().__init__()
        self.cell, self.state_batch_dim = cell, state_batch_dim

    def forward(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Run over the steps.

        Args:
            inputs: [T, B, ...], or a pytree of such.
            state: the cell's initial state; None if the cell makes its own.

        Returns:
            The outputs of all steps, [T, B, ...] or a pytree of such, and the final state.

        Raises:
            TypeError: the cell does not return ``(output, state)``.
            ValueError: it returns a state without a graph, so that no loss is credited beyond it.
        """
        T = len(tensors_of(inputs)[0])
        is_torch_cell = isinstance(unwrapped(self.cell), nn.RNNCellBase)

        def step(x: Any, state: Any) -> tuple[Any, Any]:
            found = self.cell(x, state)
            if is_torch_cell:
                return (found[0] if isinstance(found, tuple) else found), found
            return pair(found, "bptt.Stepwise: the cell", RETURNS_OF_CELL)

        outputs, has_graph = [], False
        for t in range(T):
            x, before = map_tensors(itemgetter(t), inputs), state
            output, state = step(x, before)
            if t + 1 < T and not has_graph and is_detached(output, state):
                refuse_detached(step, Buffers(modules_in(self.cell)), x, before, "one step")
                has_graph = True  # a reservoir, which needs no graph: checked only once
            outputs.append(output)
        pieces = [[v for v in leaves_of(y) if isinstance(v, Tensor)] for y in outputs]
        stacked = iter([torch.stack(p) for p in zip(*pieces, strict=True)])
        return map_tensors(lambda _: next(stacked), outputs[0]), state
