"""The independently recurrent network: one step, in which a unit sees no state but its own.

    h_t = ReLU(W x_t + b + u ⊙ h_{t-1})

S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, "Independently recurrent neural network (IndRNN):
building a longer and deeper RNN", CVPR 2018, arXiv:1803.04831. ``weight_units`` is u;
``weight_hh`` has no rows. While a unit is on, what it hands back over n steps is u^n times.
"""

from __future__ import annotations

import torch

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, with u as the units' weights."""
    return (torch.relu(x[0] + units[0] * state[0]),)


INDRNN = Cell("INDRNN", 1, 0, equations, units=1)
