"""The minimal LSTM without a recurrent matrix: one step, whose gates and candidate see x_t alone.

    f_t = σ(W_if x_t + b_if)                              forget gate
    i_t = σ(W_ii x_t + b_ii)                              input gate
    g_t =   W_ig x_t + b_ig                               candidate
    h_t = f_t / (f_t + i_t) ⊙ h_{t-1} + i_t / (f_t + i_t) ⊙ g_t

L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, "Were RNNs all we needed?",
arXiv:2410.01201 (2024), with the normalised gates. ``weight_hh`` has no rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bptt.cells.cell import Cell, Keeping
from bptt.cells.weights import Blocks, State


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute the normalised gates, f / (f + i) and i / (f + i), which add up to 1.

    f / (f + i) = σ(ln f - ln i), which stays right where both gates are closed.
    """
    f = torch.sigmoid(logsigmoid(x[0]) - logsigmoid(x[1]))
    return {"forget": f, "input": 1 - f}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, blocks in the order f, i, g."""
    f, i = gates(x, h, state, units).values()
    return (f * state[0] + i * x[2],)


KEEPING = Keeping("forget", block=0, admits=1, is_normalised=True)

MIN_LSTM = Cell("MIN_LSTM", 3, 0, equations, gates=gates, keeping=KEEPING)
