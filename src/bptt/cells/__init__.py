"""One step of each recurrent network: the equations, in plain torch.

Everything else in the package is checked against these: they are differentiable by autograd,
forwards and backwards, any number of times, and say nothing about how fast it can be done.
"""

import copyreg
from dataclasses import fields
from typing import Any

from bptt.cells import (
    cfc,
    elman,
    gru,
    ind_rnn,
    lif,
    lru,
    lstm,
    mgu,
    min_gru,
    min_lstm,
    peephole,
    rate,
    slstm,
)
from bptt.cells.cell import Cell, Keeping, Leak, Nonlinearity
from bptt.cells.cfc_cell import CfCCell
from bptt.cells.dale import dales_law
from bptt.cells.layer_norm_lstm import LayerNormLSTMCell
from bptt.cells.lif import make_lif
from bptt.cells.rate import make_rate
from bptt.cells.weights import WEIGHT_NAMES, Blocks, State, Weights

CELLS = (
    *(elman.TANH, elman.RELU, elman.SIGMOID, gru.GRU, lstm.LSTM),
    *(mgu.MGU, peephole.PEEPHOLE_LSTM, min_gru.MIN_GRU),
    *(ind_rnn.INDRNN, slstm.SLSTM, cfc.CFC, rate.RATE, lif.LIF),
    *(min_lstm.MIN_LSTM, lru.LRU),
)
"""Those that bptt has; to add one, add it here (CONTRIBUTING.md says what else)."""

BY_NAME = {cell.name: cell for cell in CELLS}
"""The same by name."""


def named(name: str) -> Cell:
    """Return the cell of bptt with this name; pickles refer to this function."""
    return BY_NAME[name]


def _reduced(cell: Cell) -> Any:
    """Pickle a cell of bptt by its name; one of the user's by what it is made of."""
    if BY_NAME.get(cell.name) is cell:
        return named, (cell.name,)
    return Cell, tuple(getattr(cell, field.name) for field in fields(cell))


copyreg.pickle(Cell, _reduced)

CFC = cfc.CFC
"""The closed-form continuous-time network."""

INDRNN = ind_rnn.INDRNN
"""The independently recurrent network: each unit sees no state but its own."""

LIF = lif.LIF
"""The leaky integrate-and-fire neuron, with a surrogate gradient."""

MGU = mgu.MGU
"""The minimal gated unit."""

MIN_GRU = min_gru.MIN_GRU
"""The minimal GRU without a recurrent matrix."""

MIN_LSTM = min_lstm.MIN_LSTM
"""The minimal LSTM without a recurrent matrix."""

LRU = lru.LRU
"""The linear recurrent unit, diagonal and complex."""

PEEPHOLE_LSTM = peephole.PEEPHOLE_LSTM
"""The LSTM with peepholes."""

RATE = rate.RATE
"""The rate network of leaky units."""

SLSTM = slstm.SLSTM
"""The LSTM with an exponential input gate and a normaliser, of xLSTM."""

__all__ = [
    "BY_NAME",
    "CELLS",
    "CFC",
    "INDRNN",
    "LIF",
    "LRU",
    "MGU",
    "MIN_GRU",
    "MIN_LSTM",
    "PEEPHOLE_LSTM",
    "RATE",
    "SLSTM",
    "WEIGHT_NAMES",
    "Blocks",
    "Cell",
    "CfCCell",
    "Keeping",
    "LayerNormLSTMCell",
    "Leak",
    "Nonlinearity",
    "State",
    "Weights",
    "dales_law",
    "make_lif",
    "make_rate",
]
