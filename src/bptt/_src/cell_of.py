"""Which cell a module runs."""

from __future__ import annotations

from torch import nn

from bptt._src.layers import Layers
from bptt.cells import BY_NAME, Cell

_SINGLE_STEPS = {nn.RNNCell: "RNN", nn.GRUCell: "GRU", nn.LSTMCell: "LSTM"}


def cell_of(module: nn.Module) -> Cell | None:
    """Return the cell of a recurrent module of bptt or torch.nn, or of one of torch.nn's cells."""
    if isinstance(module, Layers):
        return module.cell
    if isinstance(module, nn.RNNBase):
        return BY_NAME.get(module.mode)
    kind = next((kind for of, kind in _SINGLE_STEPS.items() if isinstance(module, of)), "")
    phi = f"_{module.nonlinearity.upper()}" if isinstance(module, nn.RNNCell) else ""
    return BY_NAME.get(kind + phi)
