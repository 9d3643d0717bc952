"""The linear recurrent unit: one step of a diagonal, complex, linear recurrence.

    λ   = exp(-exp(ν) + i exp(θ))
    s_t = λ ⊙ s_{t-1} + exp(γ) ⊙ (B x_t)                  complex: s_t = h_t + i k_t

A. Orvieto, S. L. Smith, A. Gu, A. Fernando, C. Gulcehre, R. Pascanu and S. De, "Resurrecting
recurrent neural networks for long sequences", arXiv:2303.06349 (2023). |λ| < 1 for any ν. The state
is (h, k), the real and the imaginary part; ``weight_ih`` has the rows of Re B and Im B, and
``weight_units`` those of ν, θ and γ, which the paper calls the logarithms of ν, θ and γ.
``weight_hh`` has no rows. The bias is added to B x_t and is not the paper's: ``bias=False``.

The output of the layer in the paper, Re(C s_t) + D x_t, mixes units, so that it is none of the
cell's: :class:`bptt.LRU` has it. The cell's own output is h_t = Re s_t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State, Weights


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t and k_t; as :attr:`bptt.Cell.equations`, blocks in the order Re B x, Im B x."""
    nu, theta, gamma = units
    size, angle, scale = torch.exp(-torch.exp(nu)), torch.exp(theta), torch.exp(gamma)
    re, im = size * torch.cos(angle), size * torch.sin(angle)
    (h_t, k_t) = state
    return re * h_t - im * k_t + scale * x[0], im * h_t + re * k_t + scale * x[1]


def on_a_ring(
    w: Weights,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    generator: torch.Generator | None = None,
) -> None:
    """Draw the initial weights of a layer, those of the paper, in place.

    λ is uniform on the ring r_min ≤ |λ| ≤ r_max, within the angle from 0 to ``max_phase``; γ is
    √(1 - |λ|²), so that white noise drives each unit to the same variance; and B has the standard
    deviation 1/√(2 I) in each part.
    """
    assert w.units is not None
    hidden = w.units.shape[1]

    def uniform() -> Tensor:
        # In float64, since λ may be close to 1; 1 - u is never 0.
        return 1 - torch.rand(hidden, generator=generator, dtype=torch.float64, device="cpu")

    squared = r_min**2 + uniform() * (r_max**2 - r_min**2)
    squared = squared.clamp(1e-12, 1 - 1e-12)  # a logarithm follows
    nu = (-0.5 * squared.log()).log()
    theta = (max_phase * uniform()).log()
    gamma = 0.5 * (1 - squared).log()
    with torch.no_grad():
        w.units.copy_(torch.stack([nu, theta, gamma]))
        w.ih.normal_(0, 1 / math.sqrt(2 * w.ih.shape[1]), generator=generator)
        if w.b_ih is not None:
            w.b_ih.zero_()


LRU = Cell("LRU", 2, 0, equations, states=2, units=3, draw=on_a_ring, tied=(0, 1))
