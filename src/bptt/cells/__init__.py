"""One step of each recurrent network: the equations, in plain torch.

Everything else in the package is checked against these: they are differentiable by autograd,
forwards and backwards, any number of times, and say nothing about how fast it can be done.
"""

import copyreg
from dataclasses import fields
from typing import Any

from bptt.cells import elman, gru, lru, lstm, mgu, min_gru, min_lstm, peephole
from bptt.cells.cell import Cell, Keeping, Nonlinearity
from bptt.cells.weights import WEIGHT_NAMES, Blocks, State, Weights

CELLS = (
    *(elman.TANH, elman.RELU, elman.SIGMOID, gru.GRU, lstm.LSTM),
    *(mgu.MGU, peephole.PEEPHOLE_LSTM, min_gru.MIN_GRU),
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

__all__ = [
    "BY_NAME",
    "CELLS",
    "LRU",
    "MGU",
    "MIN_GRU",
    "MIN_LSTM",
    "PEEPHOLE_LSTM",
    "WEIGHT_NAMES",
    "Blocks",
    "Cell",
    "Keeping",
    "Nonlinearity",
    "State",
    "Weights",
]
