"""A whole sequence of one layer as one node of the graph, whoever computes it.

The native kernels do where they can serve, otherwise the twin; where more than a first derivative
is asked for, the cells themselves, under autograd.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor
from torch.autograd import forward_ad

from bptt._src.engines import backend, native, norm_hooks, reference, twin
from bptt._src.engines.engine import Engine
from bptt._src.engines.guard import PLAIN, NotPlain, has_storage, is_watched
from bptt._src.engines.windows import Windows
from bptt._src.steps import Crossing, Steps
from bptt.cells import WEIGHT_NAMES, Cell, State, Weights


def sequence(
    cell: Cell,
    x: Inexact[Tensor, "*rows input"],
    state: State,
    w: Weights,
    steps: Steps,
    carry: Float[Tensor, "rows 1"] | None = None,
    resets: Bool[Tensor, "rows 1"] | None = None,
) -> tuple[Inexact[Tensor, "*rows output"], State]:
    """Run a cell over the rows of a sequence, in one direction, as one node of the graph.

    Arguments and results are those of :func:`engines.reference.sequence`, which serves in its
    place where a derivative of the derivative, forward mode or a transform is asked for. Besides,
    rows may be laid out in several dimensions, [T, B, I] for [T·B, I] or [1, B, H] for [B, H], and
    the results are then laid out likewise: that way no other node of the graph has to do it.
    """
    at = Crossing(carry, resets)
    if is_watched() or needs_the_cells(x, *state, *w):
        return _through_the_cells(cell, x, state, w, steps, at)
    engine = _engine_for(cell, x, w)
    if engine is not native:
        _check_sizes(cell, x, state, w)
    try:
        if _is_recorded(x, *state, *w):
            y, *final = _Sequence.apply(_How(engine, cell, steps, at), x, *state, *w)
        else:
            y, final, _ = engine.forward(cell, x, state, w, steps, at, keep=False)
    except NotPlain:
        return _through_the_cells(cell, x, state, w, steps, at)
    return y, tuple(final)


def windowed_sequence(
    cell: Cell,
    x: Inexact[Tensor, "given input"],
    state: State,
    w: Weights,
    steps: Steps,
    windows: Windows,
    carry: Float[Tensor, "rows 1"] | None = None,
    resets: Bool[Tensor, "rows 1"] | None = None,
    *,
    by_windows: bool = True,
) -> tuple[Inexact[Tensor, "windowed output"], State]:
    """Run a cell over the rows of a sequence whose losses have windows that overlap.

    Args:
        cell: whose equations.
        x: the inputs: laid out by windows, so that each window has a gradient of its own, or, if
            not ``by_windows``, the rows of the sequence, [N, I].
        state: the initial state, each of its tensors [B, ...].
        w: the layer's weights.
        steps: which rows belong to which step.
        windows: which rows belong to which window.
        carry: as in :func:`sequence`, [N, 1].
        resets: as in :func:`sequence`, [N, 1].
        by_windows: how x is laid out.

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
    at, engine = Crossing(carry, resets), engine_for(cell, x, w)
    if engine is not native:
        _check_sizes(cell, x, state, w)
    how = _How(engine, cell, steps, at, windows, by_windows)
    y, *rest = _Sequence.apply(how, x, *(s.flatten(0, -2) for s in state), *w)
    return y, tuple(a.view(b.shape) for a, b in zip(rest, state, strict=True))


class _How(NamedTuple):
    """What a node knows besides its tensors."""

    engine: Engine
    cell: Cell
    steps: Steps
    at: Crossing
    windows: Windows | None = None
    by_windows: bool = False


def engine_for(cell: Cell, x: Tensor, w: Weights) -> Engine:
    """Return the native kernels where they can serve, the twin otherwise."""
    return cast(Engine, twin) if is_watched() else _engine_for(cell, x, w)


def _engine_for(cell: Cell, x: Tensor, w: Weights) -> Engine:
    if backend.runs_native() and native.serves(cell, x, w):
        return cast(Engine, native)
    return cast(Engine, twin)


def _check_sizes(cell: Cell, x: Tensor, state: State, w: Weights) -> None:
    """Refuse weights of other sizes or devices: torch would expand or misread some of them."""
    P, H = state[0].shape[-1], cell.hidden(w)
    of_x, of_h = cell.gates_x * H, cell.gates_h * H
    shapes = ((of_x, x.shape[-1]), (of_h, P), (of_x,), (of_h,), (P, H), (cell.units, H))
    for name, t, shape in zip(WEIGHT_NAMES, w, shapes, strict=True):
        if t is not None and t.device != x.device:
            raise RuntimeError(
                f"bptt: the input and weights are not at the same device, found the input at "
                f"{x.device} and {name} at {t.device}: move one of them with .to(device)"
            )
        if t is not None and t.shape != shape:
            raise RuntimeError(
                f"bptt: expected {name} of shape {shape}, as the sizes of the input and the state "
                f"have it, got {tuple(t.shape)}"
            )


def _is_recorded(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _through_the_cells(
    cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
) -> tuple[Tensor, State]:
    """The same step by step, under autograd, whatever the layout."""
    if not _is_exporting():
        _check_sizes(cell, x, state, w)
    rows = tuple(s.flatten(0, -2) for s in state)
    y, final = reference.sequence(cell, x.flatten(0, -2), rows, w, steps, *at)
    return (
        y.view(*x.shape[:-1], y.shape[-1]),
        tuple(a.view(b.shape) for a, b in zip(final, state, strict=True)),
    )


class _Sequence(torch.autograd.Function):
    """The whole sequence as one node of the graph.

    With windows that overlap, the outputs are laid out by windows (:mod:`engines.windows`):
    rows of the same step are copies of each other and differ in nothing but the gradient that
    comes back through them.
    """

    @staticmethod
    def forward(ctx: Any, how: _How, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        initial, w = _unflatten(how.cell, tensors)
        if how.windows is not None and how.by_windows:
            x = x.index_select(0, how.windows.own)
        y, final, kept = how.engine.forward(how.cell, x, initial, w, how.steps, how.at, keep=True)
        ctx.how = how
        ctx.save_for_backward(x, *tensors, y, *kept)
        ctx.set_materialize_grads(False)
        return (y if how.windows is None else y.index_select(0, how.windows.rows), *final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        how: _How = ctx.how
        x, *rest = ctx.saved_tensors
        given = how.cell.states + len(Weights._fields)
        tensors, y, kept = rest[:given], rest[given], tuple(rest[given + 1 :])
        needed = ctx.needs_input_grad[1:]
        with without_autocast(x.device):
            if torch.is_grad_enabled() or needs_the_cells(*grads):
                return None, *_differentiable_backward(how, x, tensors, grads, needed)
            try:
                return None, *_backward(how, x, tensors, y, kept, grads, needed)
            except NotPlain:  # as hooks on what is saved may leave it
                if how.windows is not None:
                    raise
                return None, *_differentiable_backward(how, x, tensors, grads, needed)


def _backward(
    how: _How,
    x: Tensor,
    tensors: list[Tensor | None],
    y: Tensor,
    kept: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The hand-derived gradients of x, the initial state and the weights, in that order."""
    cell, windows, engine = how.cell, how.windows, how.engine
    initial, w = _unflatten(cell, tensors)
    if engine is native and is_watched():  # what it kept is for itself alone
        engine = twin
        y, _, kept = twin.forward(cell, x, initial, w, how.steps, how.at, keep=True)
    of_state = needed[1 : 1 + cell.states]
    walk = how.steps if windows is None else windows.steps
    row_norms = norm_hooks.room(walk, cell.states, x.device)
    found = engine.backward(
        cell,
        x,
        initial,
        w,
        how.steps,
        how.at,
        y,
        kept,
        grads[0],
        _gradients_of_final(initial, grads[1:], windows, any(of_state)),
        (needed[0], *needed[1 + cell.states :]),
        windows,
        how.by_windows,
        row_norms,
    )
    norm_hooks.tell(w.hh, walk, row_norms)
    d_initial: tuple[Tensor | None, ...] = found.state or (None,) * cell.states
    if found.state and windows is not None:
        d_initial = tuple(
            s.new_zeros(s.shape).index_add_(0, windows.of_first, d[windows.first])
            for s, d in zip(initial, found.state, strict=True)
        )
    return (found.x, *d_initial, *found.w)


def _gradients_of_final(
    final: State, grads: tuple[Tensor | None, ...], windows: Windows | None, needed: bool
) -> State | None:
    """Those of the final state, to be worked on: of each sequence, or of each window.

    None where they are zero and what becomes of them is not needed.
    """
    if not needed and all(d is None for d in grads):
        return None
    if windows is None:
        return tuple(
            torch.zeros_like(s, memory_format=torch.contiguous_format)
            if d is None
            else d.clone(memory_format=torch.contiguous_format)
            for s, d in zip(final, grads, strict=True)
        )
    d_state = tuple(s.new_zeros(windows.steps.batch, s.shape[1]) for s in final)
    for d, of_final in zip(d_state, grads, strict=True):
        if of_final is not None:
            d[windows.last] = of_final
    return d_state


def _differentiable_backward(
    how: _How,
    x: Tensor,
    tensors: list[Tensor | None],
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The same gradients through the cells, so that they can be differentiated again."""
    if how.windows is not None:
        raise NotImplementedError(
            "the gradient of windows that overlap (every < reach) cannot be differentiated "
            "again: use a credit without such windows, as bptt.Full() or bptt.Truncated(k)"
        )
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, each is a node of its own: one that is given twice, or comes from another,
        # gets only what reaches it through its own place.
        x, tensors = x.view_as(x), [None if t is None else t.view_as(t) for t in tensors]
        initial, w = _unflatten(how.cell, tensors)
        inputs = [
            t for t, need in zip((x, *tensors), needed, strict=True) if need and t is not None
        ]
        outputs, state = _through_the_cells(how.cell, x, initial, w, how.steps, how.at)
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
    return tuple(next(found) if need else None for need in needed)


def _unflatten(cell: Cell, tensors: Any) -> tuple[State, Weights]:
    return tuple(tensors[: cell.states]), Weights(*tensors[cell.states :])


def needs_the_cells(*tensors: Tensor | None) -> bool:
    """Whether what is asked for is more than the hand-derived first derivative.

    That is forward mode, a torch.func transform, a batch of gradients, complex numbers, tensors
    that only torch's own operations can read, or an export, which wants operations that it knows.
    """
    if torch._C._are_functorch_transforms_active() or _is_exporting():
        return True
    forward_mode = forward_ad._current_level >= 0
    for t in tensors:
        if t is None:
            continue
        if type(t) not in PLAIN or not has_storage(t) or t.dtype.is_complex:
            return True
        if forward_mode and forward_ad.unpack_dual(t).tangent is not None:
            return True
    return False


def _is_exporting() -> bool:
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return True
    return bool(_is_in_export())


_is_in_export = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6
_NOTHING = nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off, where it is on."""
    kind = device.type
    available = kind == "cpu" or torch.amp.is_autocast_available(kind)
    if available and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return _NOTHING
