"""The long short-term memory with peepholes: one step, whose gates see the cell state.

    i_t = σ(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi + u_i ⊙ c_{t-1})        input gate
    f_t = σ(W_if x_t + b_if + W_hf h_{t-1} + b_hf + u_f ⊙ c_{t-1})        forget gate
    g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)                     candidate
    c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
    o_t = σ(W_io x_t + b_io + W_ho h_{t-1} + b_ho + u_o ⊙ c_t)            output gate
    h_t = o_t ⊙ tanh(c_t)                                                 or W_hr times that

F. Gers, N. Schraudolph and J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
Journal of Machine Learning Research 3 (2002).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bptt.cells.cell import Cell, Keeping
from bptt.cells.weights import Blocks, State


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t, or o_t ⊙ tanh(c_t) for the projection, and c_t.

    As :attr:`bptt.Cell.equations`, blocks in the order i, f, g, o and units u_i, u_f, u_o.
    """
    *_, c, o = _values(x, h, state, units)
    return o * torch.tanh(c), c


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute i_t, f_t and o_t."""
    i, f, _, o = _values(x, h, state, units)
    return {"input": i, "forget": f, "output": o}


def _values(x: Blocks, h: Blocks, state: State, units: Blocks) -> tuple[Tensor, ...]:
    _, before = state
    i = torch.sigmoid(x[0] + h[0] + units[0] * before)
    f = torch.sigmoid(x[1] + h[1] + units[1] * before)
    c = f * before + i * torch.tanh(x[2] + h[2])
    return i, f, c, torch.sigmoid(x[3] + h[3] + units[2] * c)


PEEPHOLE_LSTM = Cell(
    "PEEPHOLE_LSTM",
    4,
    4,
    equations,
    states=2,
    units=3,
    is_native=True,
    gates=gates,
    keeping=Keeping("forget", block=1, admits=0),
)
