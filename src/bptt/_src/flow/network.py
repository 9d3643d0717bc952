"""A network of bptt and its inputs, as rows: what every way of following it starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bptt._src.layers import Layers
from bptt._src.recurrent import GRU, LSTM, RNN
from bptt._src.steps import Steps
from bptt.cells import Cell, State, Weights

_OURS: dict[Any, Any] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}


def as_ours(module: Any) -> Layers | None:
    """Return a network of torch.nn as one of bptt, with the same weights; one of bptt as it is.

    Returns:
        None for any other module, and where a subclass computes something of its own.
    """
    if isinstance(module, Layers):
        return module if type(module).forward is Layers.forward else None
    for theirs, ours in _OURS.items():
        if isinstance(module, theirs) and type(module).forward is theirs.forward:
            copy = object.__new__(ours)
            copy.__dict__ = module.__dict__  # the parameters themselves
            return cast(Layers, copy)
    return None


@dataclass
class Layer:
    """A layer, what goes into it, and what is found of it."""

    cell: Cell
    w: Weights
    x: Tensor
    """[N, I], with masks beside it as :attr:`engines.call.Call.x`."""
    initial: State
    mask: Tensor | None = None
    """What its outputs are multiplied by on their way up, [N, P]: dropout."""
    norms: list[Float[Tensor, "batch losses time"]] = field(default_factory=list)
    """Of each tensor of the state."""


class Network:
    """A network of bptt in one direction, and what it is given.

    Args:
        module: the network.
        inputs: as it takes them.
        state: likewise, or None.
        resets: [T] or [T, B] bool, time first.
    """

    def __init__(self, module: Layers, inputs: Tensor, state: Any, resets: Tensor | None) -> None:
        self.module = module
        self.layers: list[Layer] = []
        self.rows = module._rows(inputs)
        self.states = module._initial_state(self.rows, state)
        self.resets = None if resets is None else self._rows_of(resets)
        self.steps = Steps(self.rows.sizes)
        self.x = self.rows.x.flatten(0, -2).to(module._dtype)
        self.batched_first = bool(module.batch_first) and inputs.dim() == 3

    def _rows_of(self, resets: Tensor) -> Tensor:
        at = resets.unsqueeze(1) if resets.dim() == 1 else resets
        at = at.expand(len(self.rows.sizes), self.rows.batch)
        return at.to(self.rows.x.device).reshape(-1, 1)

    def forward(self, run: Callable[[Layer], Tensor], drops: bool = True) -> Tensor:
        """Run the layers, the lowest first.

        Args:
            run: gives a layer's outputs, [N, P].
            drops: whether units are dropped on the way up, as the module does.

        Returns:
            The top layer's outputs, [N, P].
        """
        module, x = self.module, self.x
        for n in range(module.num_layers):
            with torch.enable_grad():  # of those that a parametrization computes, too
                w = module._weights(n, False)
            cell = module._stepped(draws=drops)
            given = x
            if cell.masks:
                given = torch.cat([x, module._masks(x, tuple(x.shape[:-1]))], dim=-1)
            layer = Layer(cell, w, given, tuple(s[n] for s in self.states))
            self.layers.append(layer)
            x = run(layer)
            if drops and module.dropout and n < module.num_layers - 1:
                layer.mask = nn.functional.dropout(
                    torch.ones_like(x), module.dropout, module.training
                )
                x = x * layer.mask
        return x

    def outputs(self, y: Tensor) -> Tensor:
        """Lay out outputs [N, P] as the module does."""
        return cast(Tensor, self.rows.output(y, self.module.batch_first))

    def of_rows(self, d_y: Tensor) -> Tensor:
        """Lay out what is like the module's outputs as rows, [N, P]."""
        d_y = d_y.transpose(0, 1) if self.batched_first else d_y
        return d_y.reshape(-1, d_y.shape[-1])
