"""The gated recurrent unit: one step, in the form that torch.nn and cuDNN use.

    r_t = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)        reset gate
    z_t = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)        update gate
    q_t =                     W_hn h_{t-1} + b_hn
    n_t = tanh(W_in x_t + b_in + r_t ⊙ q_t)               candidate
    h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}

K. Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014. There
the reset gate multiplies h_{t-1} before the product with W_hn; here, as in torch.nn, after it.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn.functional import linear

from bptt.cells.cell import Cell, Weights


def step(
    x: Inexact[Tensor, "batch input"],
    state: tuple[Inexact[Tensor, "batch hidden"]],
    w: Weights,
) -> tuple[Inexact[Tensor, "batch hidden"]]:
    """Take one step of the GRU.

    Args:
        x: the input x_t, [B, I].
        state: ``(h_{t-1},)``, [B, H].
        w: the layer's weights; rows in the order r, z, n.

    Returns:
        ``(h_t,)``, [B, H].

    >>> import torch
    >>> from bptt.cells import Weights, gru
    >>> w = Weights(ih=torch.zeros(3, 1), hh=torch.zeros(3, 1))
    >>> gru.step(torch.ones(1, 1), (torch.ones(1, 1),), w)  # z = 1/2, n = 0
    (tensor([[0.5000]]),)
    """
    (h,) = state
    a_r, a_z, a_n = linear(x, w.ih, w.b_ih).chunk(3, dim=-1)
    p_r, p_z, q = linear(h, w.hh, w.b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(a_r + p_r)
    z = torch.sigmoid(a_z + p_z)
    n = torch.tanh(a_n + r * q)
    return ((1 - z) * n + z * h,)


GRU = Cell("GRU", gates=3, states=1, step=step)  # type: ignore[arg-type]
