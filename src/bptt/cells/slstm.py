"""The sLSTM: one step of an LSTM with an exponential input gate and a normaliser.

    i_t = W_ii x_t + b_ii + W_hi h_{t-1} + b_hi           logarithm of the input gate
    f_t = log σ(W_if x_t + b_if + W_hf h_{t-1} + b_hf)    logarithm of the forget gate
    z_t = tanh(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)     candidate
    o_t = σ(W_io x_t + b_io + W_ho h_{t-1} + b_ho)        output gate
    m_t = max(f_t + m_{t-1}, i_t)                         stabiliser
    c_t = exp(f_t + m_{t-1} - m_t) ⊙ c_{t-1} + exp(i_t - m_t) ⊙ z_t
    n_t = exp(f_t + m_{t-1} - m_t) ⊙ n_{t-1} + exp(i_t - m_t)
    h_t = o_t ⊙ c_t / n_t                                 or W_hr times that

M. Beck, K. Pöppel, M. Spanring, A. Auer, O. Prudnikova, M. Kopp, G. Klambauer, J. Brandstetter and
S. Hochreiter, "xLSTM: extended long short-term memory", NeurIPS 2024, arXiv:2405.04517: its cell
of one head, with a sigmoid forget gate, without the block around it. c_t and n_t are divided by
exp(m_t), so that no gate overflows and h_t stays the same. The states are h, c, n and m.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bptt.cells.cell import Cell, Keeping
from bptt.cells.weights import Blocks, State

_LEAST = 1e-30
"""Below this the normaliser has underflowed, as where all gates were shut: h_t is 0, not 0/0."""


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute exp(f_t) and o_t, which are between 0 and 1."""
    blocks = {"forget": 1, "output": 3}
    return {name: torch.sigmoid(x[k] + h[k]) for name, k in blocks.items()}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t, or o_t ⊙ c_t / n_t for the projection, c_t, n_t and m_t.

    As :attr:`bptt.Cell.equations`, blocks in the order i, f, z, o.
    """
    _, c, n, m = state
    i, f = x[0] + h[0], logsigmoid(x[1] + h[1]) + m
    z, o = torch.tanh(x[2] + h[2]), torch.sigmoid(x[3] + h[3])
    m = torch.maximum(f, i)
    i, f = torch.exp(i - m), torch.exp(f - m)
    c, n = f * c + i * z, f * n + i
    divisor = torch.where(n.abs() > _LEAST, n, 1.0)
    return o * c / divisor, c, n, m


def mean(before: State, after: State, p: float) -> State:
    """Return the mean of what c and n represent, exp(m) times each; as :attr:`bptt.Cell.mean`."""
    m = torch.maximum(before[2], after[2])
    shares = p * torch.exp(before[2] - m), (1 - p) * torch.exp(after[2] - m)
    c, n = (shares[0] * b + shares[1] * a for b, a in zip(before[:2], after[:2], strict=True))
    return c, n, m


SLSTM = Cell(
    "SLSTM",
    4,
    4,
    equations,
    states=4,
    gates=gates,
    keeping=Keeping("forget", block=1, admits=0),
    tied=(1, 2, 3),
    mean=mean,
)
