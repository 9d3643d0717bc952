"""The closed-form continuous-time network: one step, with an elapsed time of 1.

    f_t = W_if x_t + b_if + W_hf h_{t-1} + b_hf           inverse time constant
    g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)     state at the beginning
    k_t = tanh(W_ik x_t + b_ik + W_hk h_{t-1} + b_hk)     state in the limit
    h_t = σ(-f_t) ⊙ g_t + (1 - σ(-f_t)) ⊙ k_t

R. Hasani, M. Lechner, A. Amini, L. Liebenwein, A. Ray, M. Tschaikowski, G. Teschl and D. Rus,
"Closed-form continuous-time neural networks", Nature Machine Intelligence 4 (2022),
arXiv:2106.13898. There f, g and k share a first layer, and f_t is multiplied by the time since the
step before; here they are linear in x_t and h_{t-1}, and the steps are regular. At irregular times,
use :class:`bptt.cells.CfCCell`, which has both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute σ(-f_t), the share of g_t."""
    return {"time": torch.sigmoid(-(x[0] + h[0]))}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, blocks in the order f, g, k."""
    (early,) = gates(x, h, state, units).values()
    return (early * torch.tanh(x[1] + h[1]) + (1 - early) * torch.tanh(x[2] + h[2]),)


CFC = Cell("CFC", 3, 3, equations, gates=gates)
