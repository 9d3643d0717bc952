"""The independently recurrent network: one step, in which a unit sees no state but its own.

    h_t = ReLU(W x_t + b + u ⊙ h_{t-1})

S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, "Independently recurrent neural network (IndRNN):
building a longer and deeper RNN", CVPR 2018, arXiv:1803.04831. ``weight_units`` is u;
``weight_hh`` has no rows. While a unit is on, what it hands back over n steps is u^n times. The
paper bounds |u| by γ^(1/T) for T steps. As T is not known here, u begins uniformly between 0 and 1,
and b at 0.
"""

from __future__ import annotations

import torch

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State, Weights


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, with u as the units' weights."""
    return (torch.relu(x[0] + units[0] * state[0]),)


def forgetting_at_all_rates(w: Weights) -> None:
    """Draw u uniformly between 0 and 1, and set b to 0, in place."""
    assert w.units is not None
    with torch.no_grad():
        w.units.uniform_(0, 1)
        if w.b_ih is not None:
            w.b_ih.zero_()


INDRNN = Cell("INDRNN", 1, 0, equations, units=1, draw=forgetting_at_all_rates)
