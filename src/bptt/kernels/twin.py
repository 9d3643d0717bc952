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

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from bptt.cells import BY_MODE, Cell, State, Weights
from bptt.kernels import loop
from bptt.kernels.steps import Steps
from bptt.kernels.windows import Windows


class Crossing(NamedTuple):
    """What happens to the state and its gradient between a step and the one before it."""

    carry: Float[Tensor, "rows 1"] | None
    """Factors of the gradient, [N, 1]."""
    resets: Bool[Tensor, "rows 1"] | None
    """Where the state is set to zero before the step, [N, 1]."""

    @property
    def cuts(self) -> Bool[Tensor, "rows 1"] | None:
        """Where no gradient passes, not even an infinite one, [N, 1]."""
        if self.carry is None:
            return self.resets
        return self.carry == 0 if self.resets is None else self.resets | (self.carry == 0)


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
    ) -> Deltas:
        """δ_t = φ'(a_t) ⊙ dh_t; dh_{t-1} = ∂L/∂output_{t-1} + W_hhᵀ δ_t."""
        (Y,) = kept
        Delta = self.derivative(Y)
        for delta, d, carry, cut in steps.back(Delta, D, at.carry, at.cuts):
            dh = d_state[0][: len(delta)]
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
        for delta, delta_n, z, d, carry, cut in steps.back(Delta, local_n, Z, D, at.carry, at.cuts):
            dh = d_state[0][: len(delta)]
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
        for delta, dm_dc, f, d, d_out, carry, cut in steps.back(
            Delta, local_c, F, D, D_out, at.carry, at.cuts
        ):
            dh, dc = d_state[0][: len(delta)], d_state[1][: len(delta)]
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


class _Sequence(torch.autograd.Function):
    """The whole sequence as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, steps: Steps, at: Crossing, x: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        initial, w = _unflatten(cell, tensors)
        kept, final = TWINS[cell.mode].forward(_project(cell, x, w), initial, w, steps, at)
        ctx.cell, ctx.steps, ctx.at = cell, steps, at
        ctx.save_for_backward(x, *tensors, *kept)
        ctx.set_materialize_grads(False)
        return (kept[0], *(s.clone() for s in final))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        given = ctx.cell.states + len(Weights._fields)
        tensors, kept = rest[:given], tuple(rest[given:])
        needed = ctx.needs_input_grad[3:]
        with without_autocast(x.device):
            if torch.is_grad_enabled() or needs_the_cells(*grads):
                found = _differentiable_backward(ctx, x, tensors, grads, needed)
            else:
                found = _backward(ctx, x, tensors, kept, grads, needed)
        return (None, None, None, *found)


def _backward(
    ctx: Any,
    x: Tensor,
    tensors: list[Tensor | None],
    kept: Kept,
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """The hand-derived gradients of x, the initial state and the weights, in that order."""
    initial, w = _unflatten(ctx.cell, tensors)
    d_state = tuple(
        torch.zeros_like(s, memory_format=torch.contiguous_format)
        if d is None
        else d.clone(memory_format=torch.contiguous_format)
        for s, d in zip(initial, grads[1:], strict=True)
    )
    before = _states_before(ctx, initial, kept)
    deltas = TWINS[ctx.cell.mode].backward(kept, before, grads[0], d_state, w, ctx.steps, ctx.at)
    # What is left needs no recursion: d_state is now the initial state's gradient.
    found = _of_weights(ctx.cell, x, before[0], kept, deltas, needed)
    if needed[0]:
        found["x"] = deltas.of_input.mm(w.ih)
    return [found.get("x"), *d_state, *(found.get(name) for name in Weights._fields)]


def _states_before(ctx: Any, initial: State, kept: Kept) -> State:
    """The state from which each row's step starts, each of its tensors [N, ...]."""
    after = (kept[0], *kept[2:])[: ctx.cell.states]  # h_t, and the LSTM's c_t
    return tuple(
        _previous(ctx.steps, first, states, ctx.at.resets)
        for first, states in zip(initial, after, strict=True)
    )


def _of_weights(
    cell: Cell, x: Tensor, h_before: Tensor, kept: Kept, deltas: Deltas, needed: tuple[bool, ...]
) -> dict[str, Tensor]:
    """The weights' gradients, over all steps at once, by name; only those that are needed."""
    wanted = dict(zip(Weights._fields, needed[1 + cell.states :], strict=True))
    found: dict[str, Tensor] = {}
    if wanted["ih"]:
        found["ih"] = deltas.of_input.t().mm(x)
    if wanted["hh"]:
        found["hh"] = deltas.of_hidden.t().mm(h_before)
    if wanted["b_ih"]:
        found["b_ih"] = deltas.of_input.sum(0)
    if wanted["b_hh"]:
        found["b_hh"] = deltas.of_hidden.sum(0)
    if wanted["hr"]:
        assert deltas.of_output is not None
        _, gates, C = kept
        m = gates.chunk(4, dim=1)[3] * torch.tanh(C)
        found["hr"] = deltas.of_output.t().mm(m)
    return found


class _Windowed(torch.autograd.Function):
    """The whole sequence as one node, whose outputs are those of windows that overlap.

    Input and outputs are laid out by windows (:mod:`bptt.kernels.windows`): rows of the same step
    are copies of each other and differ in nothing but the gradient that comes back through them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        steps: Steps,
        windows: Windows,
        at: Crossing,
        x_windowed: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        initial, w = _unflatten(cell, tensors)
        x = x_windowed[windows.own]
        kept, final = TWINS[cell.mode].forward(_project(cell, x, w), initial, w, steps, at)
        ctx.cell, ctx.steps, ctx.windows, ctx.at = cell, steps, windows, at
        ctx.save_for_backward(x, *tensors, *kept)
        ctx.set_materialize_grads(False)
        return (kept[0][windows.rows], *(s.clone() for s in final))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled() or needs_the_cells(*grads):
            raise NotImplementedError(
                "the gradient of windows that overlap (every < reach) cannot be differentiated "
                "again: use a credit without such windows, as bptt.Full() or bptt.Truncated(k)"
            )
        x, *rest = ctx.saved_tensors
        given = ctx.cell.states + len(Weights._fields)
        with without_autocast(x.device):
            found = _windowed_backward(
                ctx, x, rest[:given], tuple(rest[given:]), grads, ctx.needs_input_grad[4:]
            )
        return (None, None, None, None, *found)


def _windowed_backward(
    ctx: Any,
    x: Tensor,
    tensors: list[Tensor | None],
    kept: Kept,
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """One recursion over all windows; their deltas of the same step are then summed."""
    windows, at = ctx.windows, ctx.at
    initial, w = _unflatten(ctx.cell, tensors)
    before = _states_before(ctx, initial, kept)

    def windowed(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows[windows.rows]

    def summed(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        return rows.new_zeros(len(x), rows.shape[1]).index_add_(0, windows.rows, rows)

    d_state = tuple(s.new_zeros(windows.steps.batch, s.shape[1]) for s in initial)
    for d, of_final in zip(d_state, grads[1:], strict=True):
        if of_final is not None:
            d[windows.last] = of_final
    deltas = TWINS[ctx.cell.mode].backward(
        tuple(k[windows.rows] for k in kept),
        tuple(b[windows.rows] for b in before),
        grads[0],
        d_state,
        w,
        windows.steps,
        Crossing(windowed(at.carry), windowed(at.resets)),
    )
    d_initial = [
        s.new_zeros(s.shape).index_add_(0, windows.of_first, d[windows.first])
        for s, d in zip(initial, d_state, strict=True)
    ]
    total = Deltas(*(summed(d) for d in deltas))  # type: ignore[arg-type]
    found = _of_weights(ctx.cell, x, before[0], kept, total, needed)
    d_x = deltas.of_input.mm(w.ih) if needed[0] else None
    return [d_x, *d_initial, *(found.get(name) for name in Weights._fields)]


def _differentiable_backward(
    ctx: Any,
    x: Tensor,
    tensors: list[Tensor | None],
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """The same gradients through the cells, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, each is a node of its own: one that is given twice, or comes from another,
        # gets only what reaches it through its own place.
        x, tensors = x.view_as(x), [None if t is None else t.view_as(t) for t in tensors]
        initial, w = _unflatten(ctx.cell, tensors)
        inputs = [
            t for t, need in zip((x, *tensors), needed, strict=True) if need and t is not None
        ]
        outputs, state = loop.sequence(ctx.cell, x, initial, w, ctx.steps, *ctx.at)
        used = [(y, d) for y, d in zip((outputs, *state), grads, strict=True) if d is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in used],
                inputs,
                [d for _, d in used],
                create_graph=again,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needed]


def _unflatten(cell: Cell, tensors: Any) -> tuple[State, Weights]:
    return tuple(tensors[: cell.states]), Weights(*tensors[cell.states :])


def needs_the_cells(*tensors: Tensor | None) -> bool:
    """Whether what is asked for is more than the hand-derived first derivative.

    That is forward mode, a torch.func transform, a batch of gradients, complex numbers, or an
    export, which wants operations that it knows.
    """
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or _is_exporting()
    ):
        return True
    return any(
        t is not None
        and (
            t.is_complex()
            or torch.autograd.forward_ad.unpack_dual(t).tangent is not None
            or torch._C._functorch.is_legacy_batchedtensor(t)  # autograd.grad(is_grads_batched)
        )
        for t in tensors
    )


def _is_exporting() -> bool:
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return True
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # not in torch 2.6
    return bool(ask())


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off, on devices that have it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def sequence(
    cell: Cell,
    x: Inexact[Tensor, "rows input"],
    state: State,
    w: Weights,
    steps: Steps,
    carry: Float[Tensor, "rows 1"] | None = None,
    resets: Bool[Tensor, "rows 1"] | None = None,
) -> tuple[Inexact[Tensor, "rows output"], State]:
    """Run a cell over the rows of a sequence, in one direction, as one node of the graph.

    Arguments and results are those of :func:`bptt.kernels.loop.sequence`, which serves in its
    place where a derivative of the derivative, forward mode or a transform is asked for.
    """
    if needs_the_cells(x, *state, *w):
        return loop.sequence(cell, x, state, w, steps, carry, resets)
    y, *final = _Sequence.apply(cell, steps, Crossing(carry, resets), x, *state, *w)
    return y, tuple(final)


def windowed_sequence(
    cell: Cell,
    x: Inexact[Tensor, "windowed input"],
    state: State,
    w: Weights,
    steps: Steps,
    windows: Windows,
    carry: Float[Tensor, "rows 1"] | None = None,
    resets: Bool[Tensor, "rows 1"] | None = None,
) -> tuple[Inexact[Tensor, "windowed output"], State]:
    """Run a cell over the rows of a sequence whose losses have windows that overlap.

    Args:
        cell: whose equations.
        x: the inputs, laid out by windows, so that each window has a gradient of its own.
        state: the initial state, each of its tensors [B, ...].
        w: the layer's weights.
        steps: which rows belong to which step.
        windows: which rows belong to which window.
        carry: as in :func:`sequence`, [N, 1].
        resets: as in :func:`sequence`, [N, 1].

    Returns:
        The outputs, laid out by windows, and the final state.

    Raises:
        NotImplementedError: more than a first derivative is asked for.
    """
    if needs_the_cells(x, *state, *w):
        raise NotImplementedError(
            "windows that overlap (every < reach) know the first derivative only, without "
            "transforms of torch.func: use a credit without them, as bptt.Truncated(k)"
        )
    y, *final = _Windowed.apply(cell, steps, windows, Crossing(carry, resets), x, *state, *w)
    return y, tuple(final)


assert TWINS.keys() == BY_MODE.keys()
