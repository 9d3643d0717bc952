"""Functions of torch that are traced as simpler ones, which keep the batch in the first dimension.

``einsum`` moves the batch to another one, and ``mv`` takes a vector, which in the loop is a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Simpler(TorchFunctionMode):
    """Replaces them while a step is traced."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = None
        if func is torch.einsum and not kwargs:
            found = _einsum(*args)
        elif func in _MATRIX_VECTOR and not kwargs:
            found = _matrix_vector(*args)
        return func(*args, **(kwargs or {})) if found is None else found


_MATRIX_VECTOR = (torch.mv, torch.matmul, Tensor.mv, Tensor.matmul, Tensor.__matmul__)


def _matrix_vector(left: Tensor, right: Tensor) -> Tensor | None:
    return (left * right).sum(-1) if left.dim() > 1 and right.dim() == 1 else None


def _einsum(equation: Any, *operands: Any) -> Tensor | None:
    """Return a product of two operands, if it is one of matrices or elementwise; None if not."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    given, to = equation.replace(" ", "").replace("...", "B").split("->")
    (a, b), (left, right) = given.split(","), operands
    if len(set(a)) != len(a) or len(set(b)) != len(b) or not set(to) <= set(a) | set(b):
        return None
    if (left.dim(), right.dim()) == (2, 2) and len(to) == 2:
        shared = (set(a) & set(b)) - set(to)
        if len(shared) == 1 and set(to) == (set(a) | set(b)) - shared:
            if a[0] in shared:
                a, left = a[::-1], left.t()
            if b[1] in shared:
                b, right = b[::-1], right.t()
            return left @ right if to == a[0] + b[1] else _in_order(left, right)
    if set(b) <= set(a) and a.endswith(b) and (to in (a, a[: len(to)])) and left.dim() == len(a):
        product: Tensor = left * right
        return product if to == a else product.sum(list(range(len(to), len(a))))
    return None


def _in_order(left: Tensor, right: Tensor) -> Tensor:
    """Return (left right)ᵀ as a product whose left side is the batch's."""
    return right.t() @ left.t()
