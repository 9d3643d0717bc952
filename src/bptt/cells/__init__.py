"""One step of each recurrent network: the equations, in plain torch.

Everything else in the package is checked against these: they are differentiable by autograd,
forwards and backwards, any number of times, and say nothing about how fast it can be done.
"""

from bptt.cells import elman, gru, lstm
from bptt.cells.cell import WEIGHT_NAMES, Cell, State, Weights

BY_MODE = {cell.mode: cell for cell in (elman.TANH, elman.RELU, elman.SIGMOID, gru.GRU, lstm.LSTM)}
"""The cells by torch.nn's name of the mode."""

__all__ = ["BY_MODE", "WEIGHT_NAMES", "Cell", "State", "Weights", "elman", "gru", "lstm"]
