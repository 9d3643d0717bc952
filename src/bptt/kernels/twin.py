"""A whole sequence of one layer, with hand-derived backpropagation through time, in plain torch.

This is the readable twin of a native kernel, and what runs where there is none. Compare each
function with the equations in ``bptt.cells``. All of them have the same shape:

    forward     the input's part of every gate, for all steps, as one product
                the recursion over t, in place
    backward    the local derivatives, for all steps at once
                the recursion of the deltas over t, last step first:
                    δ_t = local derivative ⊙ ∂L/∂h_t
                    ∂L/∂h_{t-1} += W_hhᵀ δ_t, times carry[t] where it crosses from t to t-1
                the weights' and the input's gradients, for all steps, as one product each

δ_t is ∂L/∂a_t, the gradient with respect to the gates before their nonlinearity. P. Werbos,
"Backpropagation through time: what it does and how to do it", Proc. IEEE 78 (1990).

Names: N rows (all steps of all sequences, ``kernels.steps``), B sequences, I inputs, H hidden
units, P outputs (H unless the LSTM has a projection), G gates. Capital letters hold all N rows,
small ones the rows of one step.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Inexact
from torch import Tensor

from bptt.cells import BY_MODE, Cell, State, Weights
from bptt.kernels.passes import Crossing, Gradients
from bptt.kernels.steps import Steps
from bptt.kernels.windows import Windows


def _rows_before(state: State, n: int, resets: Tensor | None) -> State:
    """The states of the first n sequences, which are still running; zero where they are reset."""
    rows = state if len(state[0]) == n else tuple(s[:n] for s in state)
    return rows if resets is None else tuple(s.masked_fill(resets, 0) for s in rows)


def _rows_after(state: State, rows: State) -> State:
    """The states after a step: new ones for those that are running, the others' as they were."""
    n = len(rows[0])
    if len(state[0]) == n:
        return rows
    return tuple(torch.cat([r, s[n:]]) for r, s in zip(rows, state, strict=True))


def _cross(carry: Tensor | None, cuts: Tensor | None, *gradients: Tensor) -> None:
    for d in gradients:
        if carry is not None:
            d.mul_(carry)
        if cuts is not None:
            d.masked_fill_(cuts, 0)


def _report(norms: Tensor | None, *gradients: Tensor) -> None:
    """Note the norms of each row of the state's gradients, [n, tensors of the state]."""
    if norms is not None:
        for norm, d in zip(norms.unbind(1), gradients, strict=True):
            torch.linalg.vector_norm(d, dim=1, dtype=norms.dtype, out=norm)


Kept = tuple[Tensor, ...]
"""What the forward pass keeps for the backward pass: the outputs [N, P], then the cell's own."""


class Deltas(NamedTuple):
    """What the recursion of the backward pass leaves for the large products."""

    of_input: Inexact[Tensor, "rows gates"]
    """∂L/∂(W_ih x_t + b_ih), [N, G·H]."""
    of_hidden: Inexact[Tensor, "rows gates"]
    """∂L/∂(W_hh h_{t-1} + b_hh), [N, G·H]: the same but for the GRU's reset gate."""
    of_output: Inexact[Tensor, "rows output"] | None = None
    """∂L/∂h_t, [N, P], where there is a projection."""


class Twin(Protocol):
    """The two recursions of a cell."""

    def forward(
        self, A: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
    ) -> tuple[Kept, State]:
        """Run the recursion; A [N, G·H] holds the input's part of the gates, with its bias.

        Returns:
            What the backward pass needs, and the final state, which may be views of that.
        """

    def backward(
        self,
        kept: Kept,
        before: State,
        D: Tensor | None,
        d_state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        norms: Tensor | None = None,
    ) -> Deltas:
        """Run the recursion of the deltas, in place on d_state.

        Args:
            kept: what :meth:`forward` gave.
            before: the state from which each row's step starts, each of its tensors [N, ...].
            D: ∂L/∂output, [N, P], or None where no output was used.
            d_state: ∂L/∂(final state), each of its tensors [B, ...]; becomes that of the initial.
            w: the layer's weights.
            steps: which rows belong to which step.
            at: what crosses between them.
            norms: to be filled with those of the state's gradient, [N, tensors of the state].
        """


# ------------------------------------------------------------------------------------ Elman


class Elman:
    """h_t = φ(a_t), with φ' written in terms of h_t."""

    def __init__(self, phi: str) -> None:
        self.phi = phi

    def forward(
        self, A: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
    ) -> tuple[Kept, State]:
        """a_t = A_t + W_hh h_{t-1}; h_t = φ(a_t), in A's place."""
        W = w.hh.t()
        activate = {"tanh": torch.tanh_, "relu": torch.relu_, "sigmoid": torch.sigmoid_}[self.phi]
        for a, reset in steps.forth(A, at.resets):
            (h,) = _rows_before(state, len(a), reset)
            activate(a.addmm_(h, W))
            state = _rows_after(state, (a,))
        return (A,), state

    def backward(
        self,
        kept: Kept,
        before: State,
        D: Tensor | None,
        d_state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        norms: Tensor | None = None,
    ) -> Deltas:
        """δ_t = φ'(a_t) ⊙ dh_t; dh_{t-1} = ∂L/∂output_{t-1} + W_hhᵀ δ_t."""
        (Y,) = kept
        Delta = self.derivative(Y)
        for delta, d, carry, cut, norm in steps.back(Delta, D, at.carry, at.cuts, norms):
            dh = d_state[0][: len(delta)]
            _report(norm, dh)
            if d is not None:
                dh += d
            delta *= dh
            torch.mm(delta, w.hh, out=dh)
            _cross(carry, cut, dh)
        return Deltas(Delta, Delta)

    def derivative(self, h: Tensor) -> Tensor:
        """φ' where φ has the value h."""
        if self.phi == "tanh":
            return 1 - h * h
        if self.phi == "relu":
            return (h <= 0).logical_not_().to(h.dtype)
        return h * (1 - h)


# -------------------------------------------------------------------------------------- GRU


class GRU:
    """r, z, n; q = W_hn h_{t-1} + b_hn; h_t = (1 - z) n + z h_{t-1}."""

    def forward(
        self, A: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
    ) -> tuple[Kept, State]:
        """The gates take A's place; q is kept, because ∂n/∂r needs it."""
        H = w.hh.shape[1]
        W = w.hh.t()
        Y, Q = A.new_empty(len(A), H), A.new_empty(len(A), H)
        for a, y, q, reset in steps.forth(A, Y, Q, at.resets):
            (h,) = _rows_before(state, len(a), reset)
            b = torch.mm(h, W) if w.b_hh is None else torch.addmm(w.b_hh, h, W)
            rz, n = a[:, : 2 * H], a[:, 2 * H :]
            rz.add_(b[:, : 2 * H]).sigmoid_()
            r, z = rz[:, :H], rz[:, H:]
            q.copy_(b[:, 2 * H :])
            n.addcmul_(r, q).tanh_()
            torch.lerp(n, h, z, out=y)  # n + z (h - n)
            state = _rows_after(state, (y,))
        return (Y, A, Q), state

    def backward(
        self,
        kept: Kept,
        before: State,
        D: Tensor | None,
        d_state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        norms: Tensor | None = None,
    ) -> Deltas:
        """Each delta is a local derivative times dh_t; dh_{t-1} = z dh_t + W_hhᵀ δ_t."""
        Y, gates, Q = kept
        H = Y.shape[1]
        R, Z, N = gates.chunk(3, dim=1)
        (H_prev,) = before

        local_n = (1 - Z) * (1 - N * N)  # ∂h/∂a_n
        local_r = local_n * Q * R * (1 - R)  # ∂h/∂a_r, through n
        local_z = (H_prev - N) * Z * (1 - Z)  # ∂h/∂a_z
        Delta = torch.stack([local_r, local_z, local_n * R], dim=1)  # [N, 3, H]; last ∂h/∂q
        for delta, delta_n, z, d, carry, cut, norm in steps.back(
            Delta, local_n, Z, D, at.carry, at.cuts, norms
        ):
            dh = d_state[0][: len(delta)]
            _report(norm, dh)
            if d is not None:
                dh += d
            delta *= dh.unsqueeze(1)
            delta_n *= dh  # in local_n's place: what n's input part needs after the loop
            dh.mul_(z).addmm_(delta.flatten(1), w.hh)
            _cross(carry, cut, dh)
        of_hidden = Delta.flatten(1)
        return Deltas(torch.cat([of_hidden[:, : 2 * H], local_n], dim=1), of_hidden)


# ------------------------------------------------------------------------------------- LSTM


class LSTM:
    """i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh(c_t), or W_hr times that."""

    def forward(
        self, A: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
    ) -> tuple[Kept, State]:
        """The gates take A's place; c_t is kept."""
        H, P = A.shape[1] // 4, w.hh.shape[1]
        W = w.hh.t()
        Y, C = A.new_empty(len(A), P), A.new_empty(len(A), H)
        M = A.new_empty(steps.batch, H)  # tanh(c_t), m_t
        for a, y, c_t, reset in steps.forth(A, Y, C, at.resets):
            m = M[: len(a)]
            h, c = _rows_before(state, len(a), reset)
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
            state = _rows_after(state, (y, c_t))
        return (Y, A, C), state

    def backward(
        self,
        kept: Kept,
        before: State,
        D: Tensor | None,
        d_state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        norms: Tensor | None = None,
    ) -> Deltas:
        """dc_t += dm_t ∂m/∂c; δ_i, δ_f, δ_g follow dc_t, δ_o follows dm_t; dc_{t-1} = f dc_t."""
        Y, gates, C = kept
        I, F, G, O = gates.chunk(4, dim=1)  # noqa: E741
        _, C_prev = before
        tanh_C = torch.tanh(C)

        Delta = torch.stack(  # [N, 4, H]: ∂c/∂a_i, ∂c/∂a_f, ∂c/∂a_g and ∂m/∂a_o
            [G * I * (1 - I), C_prev * F * (1 - F), I * (1 - G * G), tanh_C * O * (1 - O)], dim=1
        )
        local_c = O * (1 - tanh_C * tanh_C)  # ∂m/∂c
        D_out = None if w.hr is None else torch.empty_like(Y)
        for delta, dm_dc, f, d, d_out, carry, cut, norm in steps.back(
            Delta, local_c, F, D, D_out, at.carry, at.cuts, norms
        ):
            dh, dc = d_state[0][: len(delta)], d_state[1][: len(delta)]
            _report(norm, dh, dc)
            if d is not None:
                dh += d
            dm = dh
            if w.hr is not None:
                d_out.copy_(dh)
                dm = torch.mm(dh, w.hr)
            dc.addcmul_(dm, dm_dc)
            delta[:, :3].mul_(dc.unsqueeze(1))
            delta[:, 3].mul_(dm)
            dc *= f
            torch.mm(delta.flatten(1), w.hh, out=dh)
            _cross(carry, cut, dh, dc)
        return Deltas(Delta.flatten(1), Delta.flatten(1), D_out)


TWINS: dict[str, Twin] = {
    "RNN_TANH": Elman("tanh"),
    "RNN_RELU": Elman("relu"),
    "RNN_SIGMOID": Elman("sigmoid"),
    "GRU": GRU(),
    "LSTM": LSTM(),
}


# ------------------------------------------------------- before and after the two recursions


def _previous(steps: Steps, initial: Tensor, states: Tensor, resets: Tensor | None) -> Tensor:
    before = steps.previous(initial, states)
    return before if resets is None else before.masked_fill_(resets, 0)


def _project(cell: Cell, x: Tensor, w: Weights) -> Tensor:
    """Compute the input's part of every gate, for all steps, [N, G·H].

    b_hh joins it where that changes nothing; in the GRU it belongs inside the reset gate.
    """
    bias = w.b_ih
    if bias is not None and w.b_hh is not None and cell.mode != "GRU":
        bias = bias + w.b_hh
    return torch.mm(x, w.ih.t()) if bias is None else torch.addmm(bias, x, w.ih.t())


def forward(
    cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing, keep: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`bptt.kernels.passes.Engine` says."""
    rows, initial = x.flatten(0, -2), _rows_of(state)
    (y, *kept), final = TWINS[cell.mode].forward(_project(cell, rows, w), initial, w, steps, at)
    after = (s.clone().view(like.shape) for s, like in zip(final, state, strict=True))
    return y.view(*x.shape[:-1], y.shape[1]), tuple(after), tuple(kept)


def unpack(cell: Cell, kept: Kept, hidden: int) -> tuple[Tensor, ...]:
    """Give what a forward pass kept, as :class:`bptt.kernels.passes.Engine` says."""
    return (*kept[0].split(hidden, dim=1), kept[1]) if kept else ()


def backward(
    cell: Cell,
    x: Tensor,
    state: State,
    w: Weights,
    steps: Steps,
    at: Crossing,
    y: Tensor,
    kept: tuple[Tensor, ...],
    d_y: Tensor | None,
    d_state: State | None,
    needed: tuple[bool, ...],
    windows: Windows | None = None,
    by_windows: bool = False,
    row_norms: Tensor | None = None,
) -> Gradients:
    """Go back through it, as :class:`bptt.kernels.passes.Engine` says."""
    layout, x, y = x.shape[:-1], x.flatten(0, -2), y.flatten(0, -2)
    d_y = None if d_y is None else d_y.flatten(0, -2)
    if d_state is None:
        sequences = steps.batch if windows is None else windows.steps.batch
        d_state = tuple(s.new_zeros(sequences, s.shape[-1]) for s in state)
    all_kept = (y, *kept)
    before = _states_before(cell, _rows_of(state), all_kept, steps, at)
    run = TWINS[cell.mode].backward
    if windows is None:
        deltas = total = run(all_kept, before, d_y, _rows_of(d_state), w, steps, at, row_norms)
    else:
        # One recursion over all windows; their deltas of the same step are then summed.
        def windowed(rows: Tensor | None) -> Any:
            return None if rows is None else rows[windows.rows]

        deltas = run(
            tuple(map(windowed, all_kept)),
            tuple(map(windowed, before)),
            d_y,
            d_state,
            w,
            windows.steps,
            Crossing(windowed(at.carry), windowed(at.resets)),
            row_norms,
        )
        total = deltas
        if any(needed[1:]) or not by_windows:
            total = Deltas(*(_summed(d, windows, len(x)) for d in deltas))  # type: ignore[arg-type]
    d_w = _of_weights(cell, x, before[0], all_kept, total, needed[1:])
    d_x = (deltas if by_windows else total).of_input.mm(w.ih) if needed[0] else None
    if d_x is not None and windows is None:
        d_x = d_x.view(*layout, d_x.shape[1])
    return Gradients(d_x, d_state, d_w)


def _rows_of(state: State) -> State:
    """Views of it, each of its tensors [B, ...], whatever the layout."""
    return tuple(s.flatten(0, -2) for s in state)


def _summed(rows: Tensor | None, windows: Windows, n: int) -> Tensor | None:
    if rows is None:
        return None
    return rows.new_zeros(n, rows.shape[1]).index_add_(0, windows.rows, rows)


def _states_before(cell: Cell, initial: State, kept: Kept, steps: Steps, at: Crossing) -> State:
    """The state from which each row's step starts, each of its tensors [N, ...]."""
    after = (kept[0], *kept[2:])[: cell.states]  # h_t, and the LSTM's c_t
    return tuple(
        _previous(steps, first, states, at.resets)
        for first, states in zip(initial, after, strict=True)
    )


def _of_weights(
    cell: Cell, x: Tensor, h_before: Tensor, kept: Kept, deltas: Deltas, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The weights' gradients, over all steps at once; only those that are needed."""
    wanted = Weights(*needed)  # type: ignore[arg-type]
    hr = None
    if wanted.hr:
        assert deltas.of_output is not None
        _, gates, C = kept
        m = gates.chunk(4, dim=1)[3] * torch.tanh(C)
        hr = deltas.of_output.t().mm(m)
    return (
        deltas.of_input.t().mm(x) if wanted.ih else None,
        deltas.of_hidden.t().mm(h_before) if wanted.hh else None,
        deltas.of_input.sum(0) if wanted.b_ih else None,
        deltas.of_hidden.sum(0) if wanted.b_hh else None,
        hr,
    )


assert TWINS.keys() == BY_MODE.keys()
