"""A network of bptt and its inputs, as rows: what both ways of following losses start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bptt._src.flow.pairs import Pairs
from bptt._src.recurrent import GRU, LSTM, RNN
from bptt._src.steps import Steps
from bptt.cells import BY_NAME, Cell, State, Weights

_OURS: dict[Any, Any] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}


def as_ours(module: Any) -> Any:
    """Return a network of torch.nn as one of bptt, with the same weights; one of bptt as it is.

    Returns:
        None for any other module, and where a subclass computes something of its own.
    """
    for theirs, ours in _OURS.items():
        if isinstance(module, ours) and type(module).forward is ours.forward:
            return module
        if isinstance(module, theirs) and type(module).forward is theirs.forward:
            copy = object.__new__(ours)
            copy.__dict__ = module.__dict__  # the parameters themselves
            return copy
    return None


@dataclass
class Layer:
    """A layer, what goes into it, and what is found of it."""

    cell: Cell
    w: Weights
    x: Tensor
    """[N, I]."""
    initial: State
    mask: Tensor | None
    """What its outputs are multiplied by on their way up, [N, P]: dropout."""
    norms: list[Float[Tensor, "batch losses time"]]
    """Of each tensor of the state."""


class Network:
    """A :class:`bptt.RNN`, GRU or LSTM in one direction, and what it is given.

    Args:
        module: the network.
        inputs: as it takes them.
        state: likewise, or None.
        resets: [T] or [T, B] bool, time first.
        pairs: which are followed.
    """

    def __init__(
        self, module: Any, inputs: Tensor, state: Any, resets: Tensor | None, pairs: Pairs
    ) -> None:
        self.module, self.pairs = module, pairs
        self.layers: list[Layer] = []
        self.rows = module._rows(inputs)
        self.states = module._initial_state(self.rows, state)
        self.resets = None if resets is None else self._rows_of(resets)
        self.steps = Steps(self.rows.sizes)
        self.x = self.rows.x.flatten(0, -2).to(module._dtype)
        self.batched_first = bool(module.batch_first) and inputs.dim() == 3

    def _rows_of(self, resets: Tensor) -> Bool[Tensor, "rows 1"]:
        at = resets.unsqueeze(1) if resets.dim() == 1 else resets
        at = at.expand(self.pairs.steps, self.pairs.batch)
        return at.to(self.rows.x.device).reshape(-1, 1)

    def forward(self, run: Callable[[Layer], Tensor]) -> Tensor:
        """Run the layers, the lowest first, by a function that gives a layer's outputs, [N, P].

        Returns:
            The top layer's outputs, [N, P].
        """
        module, x = self.module, self.x
        for n in range(module.num_layers):
            initial, above = tuple(s[n] for s in self.states), n < module.num_layers - 1
            norms = [self.pairs.empty(x.device) for _ in initial]
            w = module._weights(n, False)
            layer = Layer(BY_NAME[module.mode], w, x, initial, None, norms)
            self.layers.append(layer)
            x = run(layer)
            if module.dropout and above:
                layer.mask = nn.functional.dropout(
                    torch.ones_like(x), module.dropout, module.training
                )
                x = x * layer.mask
        return cast(Tensor, x)

    def outputs(self, y: Tensor) -> Tensor:
        """Lay out outputs [N, P] as the module does."""
        found: Tensor = self.module._output(self.rows, y)
        return found

    def of_rows(self, d_y: Tensor) -> Tensor:
        """Lay out what is like the module's outputs as rows, [N, P]."""
        d_y = d_y.transpose(0, 1) if self.batched_first else d_y
        return d_y.reshape(-1, d_y.shape[-1])
