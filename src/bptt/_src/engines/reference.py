"""A sequence step by step through the cells, under autograd: the truth, and the general path.

The twin's and the native kernels' results are compared with this one. It is also what runs when
a derivative of the derivative, forward mode or a transform of ``torch.func`` is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.engines.call import AnyCall, Call, Gradients, Incoming, Saved
from bptt._src.engines.guard import is_exporting
from bptt._src.engines.readout import Found, Readout
from bptt.cells import State

RECORDS = True


class ScaleGradient(torch.autograd.Function):
    """The identity, whose derivative is multiplied by a factor; where that is 0, nothing passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return _scaled(grad, factor), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor | None) -> Tensor:
        (factor,) = ctx.saved_tensors
        return _scaled(tangent, factor)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    # A cut stops an infinite gradient too, where 0 · ∞ would be NaN.
    return torch.where(factor == 0, torch.zeros_like(x), x * factor)


def serves(call: AnyCall) -> str | None:
    """Return why it cannot do this, as :class:`engines.call.Engine` says."""
    if isinstance(call, Call) and call.windows is not None:
        return (
            "windows that overlap (every < reach) know the first derivative only, without "
            "transforms of torch.func: use a credit without them, as bptt.Truncated(k)"
        )
    return None


def forward(call: Call, keep: bool = False) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.call.Engine` says; autograd keeps what it needs
    besides the other states.
    """
    if not is_exporting():
        call.check_sizes()
    cell, x, _, w, steps, (carry, resets), *_ = call
    state = tuple(s.flatten(0, -2) for s in call.state)
    after_each: list[State] = []
    for x_t, carry_t, reset_t in steps.forth(x.flatten(0, -2), carry, resets):
        n = len(x_t)
        before = tuple(s[:n] for s in state)
        if carry_t is not None:
            before = tuple(ScaleGradient.apply(s, carry_t) for s in before)
        if reset_t is not None:
            before = tuple(torch.where(reset_t, torch.zeros_like(s), s) for s in before)
        after = cell.step(x_t, before, w)
        state = tuple(torch.cat([a, s[n:]]) for a, s in zip(after, state, strict=True))
        after_each.append(after)
    if steps.reverse:
        after_each.reverse()
    columns = zip(*after_each, strict=True)
    y, *others = [torch.cat(c) for c in (columns if keep else (next(columns),))]
    final = tuple(a.view(b.shape) for a, b in zip(state, call.state, strict=True))
    return y.view(*x.shape[:-1], y.shape[-1]), final, tuple(others)


def blocks(call: Call, before: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates before their nonlinearities, as :class:`engines.call.Engine` says."""
    return None


def values(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates, as :class:`engines.call.Engine` says."""
    return None


def other_states(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the states but h after each step, as :class:`engines.call.Engine` says."""
    return kept


def backward(call: Call, saved: Saved, incoming: Incoming) -> Gradients:
    """Go back through it, as :class:`engines.call.Engine` says; the norms are not to be had."""
    d_state = incoming.d_state or (None,) * call.cell.states
    grads = (incoming.d_y, *d_state, *incoming.d_others)
    x, *rest = gradients(call, grads, incoming.needed)
    states = call.cell.states
    d_initial = tuple(
        torch.zeros_like(s) if d is None else d
        for s, d in zip(call.state, rest[:states], strict=True)
    )
    return Gradients(x, incoming.d_state and d_initial, tuple(rest[states:]))


def gradients(
    call: Call, grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Find gradients by autograd, so that they can be differentiated again.

    Args:
        call: the sequence.
        grads: ∂L/∂y and ∂L/∂(final state), and perhaps those of the states but h after each step;
            None where they are zero.
        needed: whether the gradient of each tensor is, in the order of :meth:`Call.tensors`.

    Returns:
        The gradients in that order.
    """
    if call.windows is not None:
        raise NotImplementedError(
            "the gradient of windows that overlap (every < reach) cannot be differentiated "
            "again: use a credit without such windows, as bptt.Full() or bptt.Truncated(k)"
        )
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, each is a node of its own: one that is given twice, or comes from another,
        # gets only what reaches it through its own place.
        given = tuple([None if t is None else t.view_as(t) for t in call.tensors()])
        inputs = [t for t, need in zip(given, needed, strict=True) if need and t is not None]
        for t in inputs:
            if not t.requires_grad:  # whoever calls an engine's own backward pass records nothing
                t.requires_grad_()
        y, state, others = forward(call.filled(given), call.all_states)
        results = (y, *state, *others)
        used = [(t, d) for t, d in zip(results, grads, strict=True) if d is not None]
        found = iter(
            torch.autograd.grad(
                [t for t, _ in used],
                inputs,
                [d for _, d in used],
                create_graph=again,
                allow_unused=True,
            )
        )
    return tuple(next(found) if need else None for need in needed)


def cross_entropy(readout: Readout) -> Found:
    """Not to be had apart: :mod:`bptt.losses` leaves it to torch's own two functions."""
    raise NotImplementedError("the reference has no readout of its own: see bptt.losses")
