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
    """Compute i_t, f_t and o_t."""
    blocks = {"input": 0, "forget": 1, "output": 3}
    return {name: torch.sigmoid(x[k] + h[k]) for name, k in blocks.items()}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t, or o_t ⊙ tanh(c_t) for the projection, and c_t.

    As :attr:`bptt.Cell.equations`, blocks in the order i, f, g, o.
    """
    i, f, o = gates(x, h, state, units).values()
    g = torch.tanh(x[2] + h[2])
    c = f * state[1] + i * g
    return o * torch.tanh(c), c


class _ByHand:
    """i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh(c_t), or W_hr times that."""

    sums_biases = True
    projects = True
    keeps_blocks = False

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """The gates take A's place; c_t is kept."""
        w, steps, boundary = of
        H, P = A.shape[1] // 4, w.hh.shape[1]
        W = w.hh.t()
        Y, C = A.new_empty(len(A), P), A.new_empty(len(A), H)
        M = A.new_empty(steps.batch if w.hr is None else len(A), H)  # tanh(c_t), m_t
        for a, y, c_t, m, reset in steps.forth(
            A, Y, C, None if w.hr is None else M, boundary.resets
        ):
            m = M[: len(a)] if m is None else m
            h, c = rows_before(state, len(a), reset)
            a.addmm_(h, W)
            i, f, g, o = a.split(H, dim=1)
            a[:, : 2 * H].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c, out=c_t).addcmul_(i, g)
            torch.tanh(c_t, out=m)
            torch.mul(m, o, out=y if w.hr is None else m)
            if w.hr is not None:
                torch.mm(m, w.hr.t(), out=y)
            state = rows_after(state, (y, c_t))
        return Kept((Y, C), (A,) if w.hr is None else (A, M)), state

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """dc_t += dm_t ∂m/∂c; δ_i, δ_f, δ_g follow dc_t, δ_o follows dm_t; dc_{t-1} = f dc_t."""
        (D, d_state, norms, _), (w, steps, boundary) = given, of
        (D_c,) = given.of_others(2)
        (Y, C), gates = kept.states, kept.own[0]
        F = gates.chunk(4, dim=1)[1]
        local, local_c = self._local(gates.chunk(4, dim=1), before[1], C)
        Delta = torch.stack(local, dim=1)  # [N, 4, H]
        D_out = None if w.hr is None else torch.empty_like(Y)
        for delta, dm_dc, f, d, d_c, d_out, carry, cut, norm in steps.back(
            Delta, local_c, F, D, D_c, D_out, boundary.carry, boundary.cuts, norms
        ):
            dh, dc = d_state[0][: len(delta)], d_state[1][: len(delta)]
            report(norm, dh, dc)
            if d is not None:
                dh += d
            if d_c is not None:
                dc += d_c
            dm = dh
            if w.hr is not None:
                d_out.copy_(dh)
                dm = torch.mm(dh, w.hr)
            dc.addcmul_(dm, dm_dc)
            delta[:, :3].mul_(dc.unsqueeze(1))
            delta[:, 3].mul_(dm)
            dc *= f
            torch.mm(delta.flatten(1), w.hh, out=dh)
            cross(carry, cut, dh, dc)
        return Deltas(Delta.flatten(1), Delta.flatten(1), D_out)

    def local_derivatives(
        self, values: tuple[Tensor, ...], before: State, after: State
    ) -> LocalDerivatives:
        """Of c_t with respect to the gates i, f, g and to c; of m_t with respect to o and c_t."""
        (i, f, g, o), of_c = self._local(values[:4], before[1], after[1])
        of_c_t = {(1, k): d for k, d in enumerate((i, f, g))}
        of_h = {(1, k + 4): d for (_, k), d in of_c_t.items()}
        each = {**of_c_t, **of_h, (1, 9): values[1], (0, 3): o, (0, 7): o}
        return LocalDerivatives({1: of_c}, each)

    def _local(self, gates: State, before: Tensor, C: Tensor) -> tuple[State, Tensor]:
        """∂c/∂a_i, ∂c/∂a_f, ∂c/∂a_g and ∂m/∂a_o; ∂m/∂c."""
        I, F, G, O = gates  # noqa: E741
        m = torch.tanh(C)
        of_gates = G * I * (1 - I), before * F * (1 - F), I * (1 - G * G), m * O * (1 - O)
        return of_gates, O * (1 - m * m)


LSTM = Cell(
    "LSTM",
    4,
    4,
    equations,
    states=2,
    by_hand=_ByHand(),
    is_native=True,
    gates=gates,
    keeping=Keeping("forget", block=1, admits=0),
)
