"""A whole sequence of one layer as one node of the graph, whoever computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.engines import looped, native, norm_hooks, reference, twin
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call, Engine, Incoming, Saved
from bptt._src.engines.guard import NotPlain, is_watched, only_by_autograd, without_autocast
from bptt._src.steps import Boundary
from bptt.cells import State


def sequence(call: Call) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a cell over the rows of a sequence, in one direction, as one node of the graph.

    Where the losses have windows that overlap, the outputs are laid out by windows
    (:mod:`engines.windows`), and so are the inputs of a call ``by_windows``, so that each window
    has a gradient of its own: rows of the same step are copies of each other and differ in nothing
    but the gradient that comes back through them.

    Args:
        call: the sequence.

    Returns:
        The outputs, laid out like the inputs, or by windows; the final state; and, where all
        states are asked for, those but h after each step, each [N, H], or by windows.

    Raises:
        NotImplementedError: there are windows, and more than a first derivative is asked for.
    """
    if call.windows is not None:
        flat = call._replace(state=tuple(s.flatten(0, -2) for s in call.state))
        y, *rest = _Sequence.apply(engine_for(call, recorded=False), flat, *flat.tensors())
        final, others = rest[: len(call.state)], rest[len(call.state) :]
        final = [a.view(b.shape) for a, b in zip(final, call.state, strict=True)]
        return y, tuple(final), tuple(others)
    engine = engine_for(call)
    try:
        if not engine.RECORDS and torch.is_grad_enabled():
            tensors = call.tensors()
            if any(t.requires_grad for t in tensors if t is not None):
                y, *rest = _Sequence.apply(engine, call, *tensors)
                states = call.cell.states
                return y, tuple(rest[:states]), tuple(rest[states:])
        return _run(engine, call)
    except NotPlain:
        return _run(reference, call)


def again(
    run: native.Again,
    x: Tensor,
    given: State,
    w: tuple[Tensor | None, ...],
    resets: Tensor | None,
    records: bool,
) -> tuple[Tensor, State]:
    """Run a call like an earlier one, whose operands have been compared with that one's.

    Args:
        run: the earlier one.
        x: the input.
        given: the initial state; empty where there is none.
        w: W_ih, W_hh and the biases.
        resets: where the state is set to zero, [T, B].
        records: whether it becomes a node of the graph.
    """
    state = run.state(x, given)
    if records:
        y, *final = _Again.apply(run, resets, x, *state, *w, None, None)
        return y, tuple(final)
    return run.forward(x, state, w, resets, False)[:2]


def _run(engine: Any, call: Call) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    y, final, kept = engine.forward(call, keep=call.all_states)
    return y, final, engine.other_states(call, kept) if call.all_states else ()


class _Sequence(torch.autograd.Function):
    """The whole sequence as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, engine: Engine, call: Call, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.engine, ctx.call = engine, call.emptied()  # the graph has the tensors themselves
        windows = call.windows
        if windows is not None and call.by_windows:
            tensors = (call.x.index_select(0, windows.own), *tensors[1:])
            call = call.filled(tensors)
        y, final, kept = engine.forward(call, keep=True)
        ctx.save_for_backward(*tensors, y, *kept)
        ctx.set_materialize_grads(False)
        # Copies: what is kept must not change with what is given out.
        others = [s.clone() for s in engine.other_states(call, kept)] if call.all_states else []
        if windows is not None:
            y, *others = (s.index_select(0, windows.rows) for s in (y, *others))
        return (y, *final, *others)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        n = len(needed)
        call, saved = ctx.call.filled(tensors[:n]), Saved(tensors[n], tensors[n + 1 :])
        with without_autocast(call.x.device):
            if torch.is_grad_enabled() or only_by_autograd(*grads):
                return None, None, *gradients(reference, call, saved, grads, needed)
            try:
                return None, None, *gradients(ctx.engine, call, saved, grads, needed)
            except NotPlain:  # as hooks on what is saved may leave it
                if call.windows is not None:
                    raise
                return None, None, *gradients(reference, call, saved, grads, needed)


class _Again(torch.autograd.Function):
    """The same for a call like an earlier one."""

    @staticmethod
    def forward(
        ctx: Any, run: native.Again, resets: Tensor | None, *tensors: Any
    ) -> tuple[Tensor, ...]:
        boundary = Boundary() if resets is None else Boundary(None, resets.reshape(-1, 1))
        ctx.engine, ctx.call = native, run.call._replace(boundary=boundary)
        x, after = tensors[0], 1 + run.call.cell.states
        state, w = tensors[1:after], tensors[after : after + 4]
        y, final, kept = run.forward(x, state, w, resets, True)
        ctx.save_for_backward(*tensors, y, *kept)
        ctx.set_materialize_grads(False)
        return (y, *final)

    backward = _Sequence.backward


def gradients(
    engine: Any,
    call: Call,
    saved: Saved,
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, the initial state and the weights, in that order.

    Args:
        engine: the one that ran forwards, or the reference.
        call: the sequence.
        saved: what the forward pass left.
        grads: ∂L/∂y, ∂L/∂(final state) and, where all states were asked for, those of the states
            but h after each step; None where they are zero.
        needed: whether the gradient of each tensor is, in the order of :meth:`Call.tensors`.
    """
    if engine is reference:
        return reference.gradients(call, grads, needed)
    if engine in (native, looped) and is_watched():  # what it kept is for itself alone
        engine, (y, _, kept) = twin, twin.forward(call, keep=True)
        saved = Saved(y, kept)
    states, windows = call.cell.states, call.windows
    d_state = _of_final(call, grads, any(needed[1 : 1 + states]))
    norms = norm_hooks.room(call.walk, states, call.x.device)
    incoming = Incoming(grads[0], d_state, needed, norms, grads[1 + states :])
    found = engine.backward(call, saved, incoming)
    norm_hooks.tell(call.w.hh, call.walk, norms)
    d_initial: tuple[Tensor | None, ...] = found.state or (None,) * states
    if found.state and windows is not None:
        d_initial = tuple(
            s.new_zeros(s.shape).index_add_(0, windows.of_first, d[windows.first])
            for s, d in zip(call.state, found.state, strict=True)
        )
    return (found.x, *d_initial, *found.w)


def _of_final(call: Call, grads: tuple[Tensor | None, ...], needed: bool) -> State | None:
    """The gradients of the final state, to be worked on: of each sequence, or of each window.

    None where they are zero, as all but those of y are, and what becomes of them is not needed.
    """
    if not needed and all(d is None for d in grads[1:]):
        return None
    grads = grads[1 : 1 + call.cell.states]
    windows = call.windows
    if windows is None:
        return tuple(
            torch.zeros_like(s, memory_format=torch.contiguous_format)
            if d is None
            else d.clone(memory_format=torch.contiguous_format)
            for s, d in zip(call.state, grads, strict=True)
        )
    d_state = tuple(s.new_zeros(windows.steps.batch, s.shape[1]) for s in call.state)
    for d, of_final in zip(d_state, grads, strict=True):
        if of_final is not None:
            d[windows.last] = of_final
    return d_state
