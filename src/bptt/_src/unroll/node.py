"""A replayed sequence as one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.credit.plan import Plan
from bptt._src.layout import Layout
from bptt._src.pytree import flatten, is_float
from bptt._src.unroll.boundary import Boundaries
from bptt._src.unroll.replay import Replay
from bptt.memory import Memory, Store


def replayed(
    module: Any,
    layout: Layout,
    inputs: Any,
    state: Any,
    plan: Plan,
    crossing: Boundaries,
    memory: Memory | None,
    takes_carry: bool,
    dim_is_given: bool,
) -> tuple[Any, Any]:
    """Run a module over a sequence; the arguments are those of :func:`bptt.unroll`, prepared."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "bptt.unroll: torch.func's transforms cannot see through recomputed segments; use "
            "memory=None and a credit without windows that overlap, such as bptt.Truncated(k)"
        )
    how = (plan, crossing, memory or Store(), takes_carry, dim_is_given)
    replay = Replay(module, layout, inputs, *how)
    outputs, final = replay.forward(state)
    if not any(t.requires_grad for t in replay.tensors) or not torch.is_grad_enabled():
        return outputs, final
    y, put_y = flatten(outputs)
    s, put_s = flatten(final)
    floats = [leaf for leaf in (*y, *s) if is_float(leaf)]
    of_outputs = sum(map(is_float, y))
    joined = iter(_Node.apply(replay, of_outputs, floats, *replay.tensors))
    y = [next(joined) if is_float(v) else v for v in y]
    s = [next(joined) if is_float(v) else v for v in s]
    return put_y(y), put_s(s)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, replay: Replay, outputs: int, results: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.replay, ctx.outputs = replay, outputs
        # So that a change before the backward pass is noticed.
        ctx.save_for_backward(*tensors, *replay.constants)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors is not None
        of_outputs, of_final = list(grads[: ctx.outputs]), list(grads[ctx.outputs :])
        with torch.no_grad():
            found = ctx.replay.backward(of_outputs, of_final, ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # create_graph=True
            found = _Once.apply(torch.zeros((), requires_grad=True), *found)
        return (None, None, None, *found)


class _Once(torch.autograd.Function):
    """Gradients without a derivative, which raise an error if one is asked for."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else g.view_as(g) for g in found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            "bptt.unroll: the gradient has no second derivative if windows overlap or memory= "
            "is given; use memory=None and a credit without overlapping windows: bptt.Truncated(k)"
        )
