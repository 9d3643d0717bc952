"""The long short-term memory with a forget gate: one step.

    i_t = σ(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)        input gate
    f_t = σ(W_if x_t + b_if + W_hf h_{t-1} + b_hf)        forget gate
    g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)     candidate
    o_t = σ(W_io x_t + b_io + W_ho h_{t-1} + b_ho)        output gate
    c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
    h_t = o_t ⊙ tanh(c_t)                                 or W_hr (o_t ⊙ tanh(c_t))

S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997); the
forget gate: F. Gers, J. Schmidhuber and F. Cummins, Neural Computation 12 (2000); the
projection W_hr: H. Sak, A. Senior and F. Beaufays, arXiv:1402.1128 (2014).
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn.functional import linear

from bptt.cells.cell import Cell, Weights


def step(
    x: Inexact[Tensor, "batch input"],
    state: tuple[Inexact[Tensor, "batch output"], Inexact[Tensor, "batch hidden"]],
    w: Weights,
) -> tuple[Inexact[Tensor, "batch output"], Inexact[Tensor, "batch hidden"]]:
    """Take one step of the LSTM.

    Args:
        x: the input x_t, [B, I].
        state: ``(h_{t-1}, c_{t-1})``, [B, P] and [B, H]; P = H without a projection.
        w: the layer's weights; rows in the order i, f, g, o.

    Returns:
        ``(h_t, c_t)``, [B, P] and [B, H].

    >>> import torch
    >>> from bptt.cells import Weights, lstm
    >>> w = Weights(ih=torch.zeros(4, 1), hh=torch.zeros(4, 1))
    >>> h, c = lstm.step(torch.ones(1, 1), (torch.zeros(1, 1), torch.ones(1, 1)), w)
    >>> c  # f = 1/2, g = 0
    tensor([[0.5000]])
    """
    h, c = state
    a = linear(x, w.ih, w.b_ih) + linear(h, w.hh, w.b_hh)
    a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)
    i, f, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o)
    g = torch.tanh(a_g)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h if w.hr is None else linear(h, w.hr), c)


LSTM = Cell("LSTM", gates=4, states=2, step=step)  # type: ignore[arg-type]
