"""A sequence step by step through the cells, under autograd: the truth, and the general path.

The twin's and the native kernels' results are compared with this one. It is also what runs when
a derivative of the derivative, forward mode or a transform of ``torch.func`` is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from bptt._src.steps import Steps
from bptt.cells import Cell, State, Weights


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


def sequence(
    cell: Cell,
    x: Inexact[Tensor, "rows input"],
    state: State,
    w: Weights,
    steps: Steps,
    carry: Float[Tensor, "rows 1"] | None = None,
    resets: Bool[Tensor, "rows 1"] | None = None,
) -> tuple[Inexact[Tensor, "rows output"], State]:
    """Run a cell over the rows of a sequence, in one direction.

    Args:
        cell: whose equations.
        x: the inputs, [N, I].
        state: the initial state, each of its tensors [B, ...].
        w: the layer's weights.
        steps: which rows belong to which step.
        carry: factors of the state's gradient where it leaves each row's step, [N, 1].
        resets: where the state is set to zero before the row's step, [N, 1].

    Returns:
        The outputs, [N, P], and the final state, each of its tensors [B, ...].
    """
    outputs: list[Tensor] = []
    for x_t, carry_t, reset_t in steps.forth(x, carry, resets):
        n = len(x_t)
        before = tuple(s[:n] for s in state)
        if carry_t is not None:
            before = tuple(ScaleGradient.apply(s, carry_t) for s in before)
        if reset_t is not None:
            before = tuple(torch.where(reset_t, torch.zeros_like(s), s) for s in before)
        after = cell.step(x_t, before, w)
        state = tuple(torch.cat([a, s[n:]]) for a, s in zip(after, state, strict=True))
        outputs.append(after[0])
    if steps.reverse:
        outputs.reverse()
    return torch.cat(outputs), state
