"""How much a step stretches: the norms of the state's Jacobians, and what bounds them.

Over many steps the gradient is multiplied by one Jacobian after another, J_t = ∂h_t/∂h_{t-1}. For
the Elman network J_t = diag(φ'(a_t)) W_hh, so

    ‖J_t‖ ≤ β_W · β_h,      β_W = ‖W_hh‖, its largest singular value;  β_h = sup φ',

and ‖∂h_t/∂h_k‖ ≤ (β_W β_h)^{t-k}: R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of
training recurrent neural networks", ICML 2013, arXiv:1211.5063. Below 1 the gradient is certain to
vanish; above, it may do either. (The factors of the product do not commute: it is not W_hh to the
power t - k times a product of diagonals.) For cells with gates there is no such simple bound.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.flow.piece import Piece
from bptt._src.flow.trajectory import Trajectory
from bptt.cells import Weights

LANCZOS = 16
"""Steps of the bidiagonalization."""


def jacobian_norms(trajectory: Trajectory) -> Float[Tensor, "batch time"]:
    """Compute ‖J_t‖, the largest singular value of ∂state_t/∂state_{t-1}, of each step.

    The state is all that the step hands on: for an LSTM h and c together. See
    :func:`largest_singular_values` for how, and how exactly.

    Args:
        trajectory: a layer's way through a sequence.

    Returns:
        [B, T] float64; at t = 0 with respect to the initial state, NaN where that is not known.

    >>> import torch, bptt
    >>> from bptt._src.flow.trajectory import follow
    >>> rnn = bptt.RNN(3, 16, nonlinearity="sigmoid")
    >>> (trajectory,) = follow(rnn, torch.randn(10, 2, 3))
    >>> norms = jacobian_norms(trajectory)
    >>> norms.shape, bool((norms <= bound(trajectory)).all())
    (torch.Size([2, 10]), True)
    """
    B = trajectory.batch
    pieces = trajectory.pieces(LANCZOS * trajectory.size)
    found = torch.cat([largest_singular_values(piece) for piece in pieces])
    norms = found.new_full((trajectory.steps, B), float("nan"))
    norms[trajectory.first :] = found.view(-1, B)
    return norms.T


def largest_singular_values(piece: Piece, steps: int = LANCZOS) -> Float[Tensor, " rows"]:
    """Find the largest singular value of each row's Jacobian from products with it.

    G. Golub and W. Kahan's bidiagonalization, SIAM J. Numer. Anal. 2 (1965), from a random vector:
    after m steps J is known on the m directions that it stretches the most. Exact, up to rounding,
    for states of up to m numbers; beyond, a lower bound, mostly right to two or three digits.

    Args:
        piece: some steps of a layer, N rows.
        steps: m.

    Returns:
        [N] float64; NaN where the Jacobian is not finite.
    """
    N, n = piece.before.shape
    steps = min(steps, n)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, generator=generator, dtype=torch.float64).to(piece.before)
    v = (v / v.norm()).expand(N, n)
    right, left = v.new_zeros(N, steps, n), v.new_zeros(N, steps, n)
    B = torch.zeros(N, steps, steps, dtype=torch.float64, device=v.device)
    for j in range(steps):
        right[:, j] = v
        u = _off(left[:, :j], piece.push(v.unsqueeze(2)).squeeze(2))
        u, B[:, j, j] = _unit(u, B)
        left[:, j] = u
        if j + 1 < steps:
            v, B[:, j, j + 1] = _unit(_off(right[:, : j + 1], piece.pull(u)), B)
    finite = B.isfinite().all(dim=2).all(dim=1)
    largest: Tensor = torch.linalg.svdvals(B.masked_fill(~finite[:, None, None], 0.0))[:, 0]
    return largest.masked_fill(~finite, float("nan"))


def _off(basis: Float[Tensor, "rows k state"], v: Float[Tensor, "rows state"]) -> Tensor:
    """Take away what lies along a basis; twice, which is enough up to rounding."""
    for _ in range(2):
        v = v - ((basis @ v.unsqueeze(2)).mT @ basis).squeeze(1)
    return v


def _unit(v: Float[Tensor, "rows state"], B: Float[Tensor, "rows k k"]) -> tuple[Tensor, Tensor]:
    """Return the direction and the length, [N]; both 0 where nothing but rounding is left."""
    length = v.norm(dim=1)
    rounding = 100 * torch.finfo(v.dtype).eps * B.flatten(1).amax(1)
    length = length.masked_fill(length <= rounding, 0.0)
    return v / torch.where(length == 0, torch.inf, length).unsqueeze(1), length.double()


def weight_norm(w: Weights) -> float:
    """β_W: the largest singular value of ``weight_hh``, of all gates' rows together.

    NaN where the weights are not finite.
    """
    if not bool(w.hh.isfinite().all()):
        return float("nan")
    return float(torch.linalg.matrix_norm(w.hh.detach().double(), 2))


def spectral_radius(w: Weights) -> float | None:
    """Return the largest absolute eigenvalue of ``weight_hh``, or NaN; None if it is not square."""
    if w.hh.shape[0] != w.hh.shape[1]:
        return None
    if not bool(w.hh.isfinite().all()):
        return float("nan")
    return float(torch.linalg.eigvals(w.hh.detach().double()).abs().max())


def bound(trajectory: Trajectory) -> float | None:
    """β_W · β_h, which no ‖J_t‖ exceeds; None where there are gates, or nothing is known.

    Where h is a projection of φ(a), the largest singular value of that is a factor, too.
    """
    cell, w = trajectory.cell, trajectory.weights
    if cell is None or w is None or cell.phi is None:
        return None
    projection = 1.0 if w.hr is None else weight_norm(Weights(w.ih, w.hr))
    return weight_norm(w) * cell.phi.slope * projection
