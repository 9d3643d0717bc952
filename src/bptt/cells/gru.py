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
from torch import Tensor

from bptt.cells.cell import Cell, Keeping
from bptt.cells.recursion import (
    Deltas,
    FromAfter,
    Kept,
    LocalDerivatives,
    Setting,
    cross,
    report,
    rows_after,
    rows_before,
)
from bptt.cells.weights import Blocks, State


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute r_t and z_t."""
    return {"reset": torch.sigmoid(x[0] + h[0]), "update": torch.sigmoid(x[1] + h[1])}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, blocks in the order r, z, n."""
    r, z = gates(x, h, state, units).values()
    n = torch.tanh(x[2] + r * h[2])
    return ((1 - z) * n + z * state[0],)


class _ByHand:
    """r, z, n; q = W_hn h_{t-1} + b_hn; h_t = (1 - z) n + z h_{t-1}."""

    sums_biases = False  # b_hn stays inside the reset gate
    projects = False
    keeps_blocks = False

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """The gates take A's place; q is kept, because ∂n/∂r needs it."""
        w, steps, boundary = of
        H = w.hh.shape[1]
        W = w.hh.t()
        Y, Q = A.new_empty(len(A), H), A.new_empty(len(A), H)
        for a, y, q, reset in steps.forth(A, Y, Q, boundary.resets):
            (h,) = rows_before(state, len(a), reset)
            b = torch.mm(h, W) if w.b_hh is None else torch.addmm(w.b_hh, h, W)
            rz, n = a[:, : 2 * H], a[:, 2 * H :]
            rz.add_(b[:, : 2 * H]).sigmoid_()
            r, z = rz[:, :H], rz[:, H:]
            q.copy_(b[:, 2 * H :])
            n.addcmul_(r, q).tanh_()
            torch.lerp(n, h, z, out=y)  # n + z (h - n)
            state = rows_after(state, (y,))
        return Kept((Y,), (A, Q)), state

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """Each delta is a local derivative times dh_t; dh_{t-1} = z dh_t + W_hhᵀ δ_t."""
        (D, d_state, norms, _), (w, steps, boundary) = given, of
        gates, Q = kept.own
        H = Q.shape[1]
        R, Z, N = gates.chunk(3, dim=1)
        local_r, local_z, local_n, local_q = self._local(R, Z, N, Q, before[0])
        Delta = torch.stack([local_r, local_z, local_q], dim=1)  # [N, 3, H]
        for delta, delta_n, z, d, carry, cut, norm in steps.back(
            Delta, local_n, Z, D, boundary.carry, boundary.cuts, norms
        ):
            dh = d_state[0][: len(delta)]
            report(norm, dh)
            if d is not None:
                dh += d
            delta *= dh.unsqueeze(1)
            delta_n *= dh  # in local_n's place: what n's input part needs after the loop
            dh.mul_(z).addmm_(delta.flatten(1), w.hh)
            cross(carry, cut, dh)
        of_hidden = Delta.flatten(1)
        return Deltas(torch.cat([of_hidden[:, : 2 * H], local_n], dim=1), of_hidden)

    def local_derivatives(
        self, values: tuple[Tensor, ...], before: State, after: State
    ) -> LocalDerivatives:
        """Of h_t, with respect to a_r, a_z, a_n, the same three of h, the last being q, and h."""
        R, Z, N, Q = values
        r, z, n, q = self._local(R, Z, N, Q, before[0])
        return LocalDerivatives({}, {(0, k): d for k, d in enumerate((r, z, n, r, z, q, Z))})

    def _local(self, R: Tensor, Z: Tensor, N: Tensor, Q: Tensor, before: Tensor) -> State:
        """∂h/∂a_r, through n; ∂h/∂a_z; ∂h/∂a_n; ∂h/∂q."""
        of_n = (1 - Z) * (1 - N * N)
        return of_n * Q * R * (1 - R), (before - N) * Z * (1 - Z), of_n, of_n * R


GRU = Cell(
    "GRU",
    3,
    3,
    equations,
    by_hand=_ByHand(),
    is_native=True,
    gates=gates,
    keeping=Keeping("update", block=1),
)
