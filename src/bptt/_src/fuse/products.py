"""Matrix products before and after the loop, by the kernel library, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bptt._src.engines.guard import is_watched, only_by_autograd
from bptt._src.engines.product import multiply
from bptt._src.fuse import tape


def product(
    left: Tensor, right: Tensor, bias: Tensor | None = None, is_transposed: bool = False
) -> Tensor:
    """Return left right + bias, differentiable.

    Args:
        left: [N, K], float32 or float64.
        right: [K, M], or [M, K] if it is transposed.
        bias: [M], or what broadcasts to [N, M].
        is_transposed: whether the product is with the transpose of right.
    """
    if is_watched() or only_by_autograd(left, right, bias) is not None:
        return _by_torch(left, right.t() if is_transposed else right, bias)
    columns = right.shape[0 if is_transposed else 1]
    if not is_ours(left, columns, bias):
        return _by_torch(left, right.t() if is_transposed else right, bias)
    needs = left.requires_grad or right.requires_grad or (bias is not None and bias.requires_grad)
    if needs and torch.is_grad_enabled():
        found: Tensor = _Product.apply(left, right, bias, is_transposed)
        return found
    return _computed(left, right, bias, is_transposed)


def is_ours(left: Tensor, columns: int, bias: Tensor | None) -> bool:
    """Whether the kernel library has such a product."""
    return left.is_floating_point() and (bias is None or bias.shape == (columns,))


def _by_torch(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)


def _computed(left: Tensor, right: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    known = tape.again(1)
    if known is not None:
        return known[0]
    right = _dense(right)
    found = multiply(_dense(left), right.t() if is_transposed else right, bias)
    tape.note(found)
    return found


class _Product(Function):
    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None, is_transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.is_transposed = is_transposed
        return _computed(left, right, bias, is_transposed)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        of_left, of_right, of_bias = ctx.needs_input_grad[:3]
        d_right = None
        if of_right:
            d_right = product(d.t(), left) if ctx.is_transposed else product(left.t(), d)
        return (
            product(d, right, None, not ctx.is_transposed) if of_left else None,
            d_right,
            d.sum(0) if of_bias else None,
            None,
        )


def _dense(t: Tensor) -> Tensor:
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()
