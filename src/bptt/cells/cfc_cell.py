"""The closed-form continuous-time network at irregular times, one step in plain PyTorch.

    z_t = tanh(W_zx x_t + W_zh h_{t-1} + b_z)                     shared first layer
    f_t = W_f z_t + b_f                                           inverse time constant
    g_t = tanh(W_g z_t + b_g)                                     state at the beginning
    k_t = tanh(W_k z_t + b_k)                                     state in the limit
    h_t = σ(-f_t Δ_t) ⊙ g_t + (1 - σ(-f_t Δ_t)) ⊙ k_t

where Δ_t is the time since the last observation. R. Hasani, M. Lechner, A. Amini, L. Liebenwein,
A. Ray, M. Tschaikowski, G. Teschl and D. Rus, "Closed-form continuous-time neural networks", Nature
Machine Intelligence 4 (2022), arXiv:2106.13898. Two products follow each other in a step, so that
the cell is no :class:`bptt.Cell`; :func:`bptt.fuse` runs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CfCCell(nn.Module):
    """One step of a closed-form continuous-time network, after any time since the last one.

    Args:
        input_size: the size of x_t, I.
        hidden_size: the number of units, H.
        first_layer_size: the size of z_t, which f, g and k share; H by default.
        device: of the parameters.
        dtype: of the parameters.

    >>> import torch, bptt
    >>> cell = bptt.cells.CfCCell(3, 8)
    >>> network = bptt.fuse(cell, (torch.zeros(1, 3), torch.ones(1)), torch.zeros(1, 8))
    >>> times = torch.rand(50, 4).cumsum(0)
    >>> elapsed = times.diff(dim=0, prepend=torch.zeros(1, 4))
    >>> y, h = network((torch.randn(50, 4, 3), elapsed))
    >>> y.shape, h.shape
    (torch.Size([50, 4, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        first_layer_size: int | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        first = hidden_size if first_layer_size is None else first_layer_size
        self.of_x = nn.Linear(input_size, first, **how)
        self.of_h = nn.Linear(hidden_size, first, bias=False, **how)
        self.of_z = nn.Linear(first, 3 * hidden_size, **how)

    def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: (x_t, Δ_t), [B, I] and [B].
            h: h_{t-1}, [B, H].

        Returns:
            h_t twice: as the output and as the state.
        """
        x_t, elapsed = x
        f, g, k = self.of_z(torch.tanh(self.of_x(x_t) + self.of_h(h))).chunk(3, -1)
        early = torch.sigmoid(-f * elapsed.unsqueeze(-1))
        h = early * torch.tanh(g) + (1 - early) * torch.tanh(k)
        return h, h
