"""The LSTM with layer normalisation, one step in plain PyTorch, to be run by :func:`bptt.fuse`.

    f, i, o, g = LN(W_h h_{t-1}; α₁, β₁) + LN(W_x x_t; α₂, β₂) + b
    c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g)
    h_t = σ(o) ⊙ tanh(LN(c_t; α₃, β₃))

J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450 (2016), equations 20
to 22. LN(z; α, β) is (z - mean) / deviation ⊙ α + β over all numbers of z, so that a step is not
elementwise, and the cell no :class:`bptt.Cell`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LayerNormLSTMCell(nn.Module):
    """One step of an LSTM with layer normalisation.

    Its gates are in the order of torch.nn's LSTM: i, f, g, o.

    Args:
        input_size: the size of x_t, I.
        hidden_size: the number of units, H.
        eps: what is added to the variance.
        device: of the parameters.
        dtype: of the parameters.

    >>> import torch, bptt
    >>> cell = bptt.cells.LayerNormLSTMCell(3, 8)
    >>> lstm = bptt.fuse(cell, torch.zeros(1, 3), (torch.zeros(1, 8), torch.zeros(1, 8)))
    >>> y, (h, c) = lstm(torch.randn(50, 4, 3))
    >>> y.shape, c.shape
    (torch.Size([50, 4, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        eps: float = 1e-5,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        self.of_x = nn.Linear(input_size, 4 * hidden_size, bias=False, **how)
        self.of_h = nn.Linear(hidden_size, 4 * hidden_size, bias=False, **how)
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size, **how))
        self.norm_x = nn.LayerNorm(4 * hidden_size, eps=eps, **how)
        self.norm_h = nn.LayerNorm(4 * hidden_size, eps=eps, **how)
        self.norm_c = nn.LayerNorm(hidden_size, eps=eps, **how)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take one step.

        Args:
            x: the input x_t, [B, I].
            state: (h_{t-1}, c_{t-1}), each [B, H].

        Returns:
            h_t, and (h_t, c_t).
        """
        h, c = state
        a = self.norm_h(self.of_h(h)) + self.norm_x(self.of_x(x)) + self.bias
        i, f, g, o = a.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.norm_c(c))
        return h, (h, c)
