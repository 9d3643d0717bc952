"""The Elman network: one step.

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
    h_t = φ(a_t)                                          φ = tanh, ReLU or sigmoid

J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn.functional import linear

from bptt.cells.cell import Cell, Weights


def step(
    x: Inexact[Tensor, "batch input"],
    state: tuple[Inexact[Tensor, "batch hidden"]],
    w: Weights,
    phi: Callable[[Tensor], Tensor] = torch.tanh,
) -> tuple[Inexact[Tensor, "batch hidden"]]:
    """Take one step of the Elman network.

    Args:
        x: the input x_t, [B, I].
        state: ``(h_{t-1},)``, [B, H].
        w: the layer's weights.
        phi: the nonlinearity φ, applied to each element.

    Returns:
        ``(h_t,)``, [B, H].

    >>> import torch
    >>> from bptt.cells import Weights, elman
    >>> w = Weights(ih=torch.eye(2), hh=torch.zeros(2, 2))
    >>> (h,) = elman.step(torch.tensor([[0.0, 1.0]]), (torch.zeros(1, 2),), w)
    >>> h
    tensor([[0.0000, 0.7616]])
    """
    (h,) = state
    return (phi(linear(x, w.ih, w.b_ih) + linear(h, w.hh, w.b_hh)),)


TANH = Cell("RNN_TANH", gates=1, states=1, step=partial(step, phi=torch.tanh))
RELU = Cell("RNN_RELU", gates=1, states=1, step=partial(step, phi=torch.relu))
SIGMOID = Cell("RNN_SIGMOID", gates=1, states=1, step=partial(step, phi=torch.sigmoid))
