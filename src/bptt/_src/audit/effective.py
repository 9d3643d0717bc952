"""How far the gradient really reaches, with the inputs and the weights of the run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.audit.reading import CallRead
from bptt._src.audit.record import EffectiveReach, HeardCall
from bptt._src.cell_of import cell_of
from bptt._src.flow.gradient_flow import gradient_flow
from bptt._src.layout import declared

STEPS, SEQUENCES, LOSSES = 128, 4, 8
"""How many are measured."""
SEVERAL = 16
"""Steps that tell something."""
THRESHOLD = 0.01


class RunInputs:
    """Inputs of consecutive calls, and the state before them, of bptt's and torch.nn's networks."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.is_measured = cell_of(module) is not None and not declared(
            module, "bidirectional", False
        )
        self._inputs: list[Tensor] = []
        self._state: list[Tensor] = []

    def keep(self, call: HeardCall, read: CallRead) -> None:
        """Keep the inputs of a training call if it goes on where the last one ended."""
        steps = sum(len(x) for x in self._inputs)
        if not self.is_measured or not call.with_graph or read.packing is not None:
            return
        if steps >= STEPS or (self._inputs and not all(call.sources)):
            self.is_measured = steps == 0  # another sequence begins
            return
        x = read.inputs_by_step()
        if not isinstance(x, Tensor) or not x.is_floating_point() or read.is_unbatched:
            return
        if not self._inputs:
            rows = slice(0, SEQUENCES)
            self._state = [
                (s[rows] if read.time is None else s[:, rows]).detach().clone() for s in read.given
            ]
        self._inputs.append(x[: STEPS - steps, :SEQUENCES].detach().clone())

    def reach(self) -> EffectiveReach | None:
        """Measure within how many steps 99 % of the gradient lies, with the weights as they are.

        Returns:
            None where nothing was kept, or the module is not one of bptt's or torch.nn's.
        """
        if not self._inputs or len({x.shape[1] for x in self._inputs}) > 1:
            return None
        x = torch.cat(self._inputs)
        steps = len(x)
        if steps < SEVERAL:
            return None
        module: Any = self.module
        state: Any = tuple(self._state) if self._state else None
        if isinstance(module, nn.RNNCellBase):
            module = _as_layer(module)
            state = state and tuple(s.unsqueeze(0) for s in state)
        elif declared(module, "batch_first", False):
            x = x.transpose(0, 1)
        state = state[0] if state and len(state) == 1 else state
        with torch.enable_grad():
            flow = gradient_flow(
                module,
                x,
                state=state,
                times=range(max(0, steps - LOSSES), steps),
                attribution=False,
                dynamics=False,
                check=False,
            )
        lag = flow.horizon(THRESHOLD)
        return None if lag is None else EffectiveReach(lag + 1, steps, flow.settles(THRESHOLD))


def _as_layer(cell: nn.RNNCellBase) -> nn.RNNBase:
    """Make the layer that takes the same steps as one of torch.nn's cells."""
    kinds = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}
    kind: Any = next(layer for of, layer in kinds.items() if isinstance(cell, of))
    options = {"nonlinearity": cell.nonlinearity} if isinstance(cell, nn.RNNCell) else {}
    with torch.random.fork_rng(devices=[]):  # not the user's random numbers
        layer: nn.RNNBase = kind(cell.input_size, cell.hidden_size, bias=cell.bias, **options)
    for name, weight in cell.named_parameters():
        setattr(layer, f"{name}_l0", nn.Parameter(weight.detach()))
    return layer.train(cell.training)
