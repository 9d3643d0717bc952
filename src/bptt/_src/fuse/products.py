"""Matrix products before and after the loop, by the kernel library, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bptt._src.engines.guard import is_watched, only_by_autograd
from bptt._src.engines.product import multiply
from bptt._src.fuse import tape


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left right + bias, differentiable.

    Args:
        left: [N, K], float32 or float64.
        right: [K, M].
        bias: [M], or what broadcasts to [N, M].
    """
    if not is_ours(left, right, bias) or is_watched() or only_by_autograd(left, right, bias) is not None:
        return torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)
    found: Tensor = _Product.apply(left, right, bias)
    return found


def is_ours(left: Tensor, right: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel library has such a product."""
    return left.is_floating_point() and (bias is None or bias.shape == right.shape[1:])


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        (found,) = tape.again(1) or (multiply(_dense(left), _dense(right), bias),)
        tape.note(found)
        return found

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        of_left, of_right, of_bias = ctx.needs_input_grad
        return (
            product(d, right.t()) if of_left else None,
            product(left.t(), d) if of_right else None,
            d.sum(0) if of_bias else None,
        )


def _dense(t: Tensor) -> Tensor:
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()
