"""Functions of torch that are traced as simpler ones, which keep the batch in the first dimension.

``einsum`` moves the batch to another one, and ``mv`` takes a vector, which in the loop is a matrix.
What is computed under ``torch.no_grad()``, of which a trace knows nothing, is detached.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm
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
        elif func in _PRODUCTS and not kwargs:
            found = _product(*args)
        elif func is group_norm:
            found = _group_norm(*args, **(kwargs or {}))
        if found is None:
            found = func(*args, **(kwargs or {}))
        return found if torch.is_grad_enabled() else _detached(found)


def _detached(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.detach()
    if type(found) in (list, tuple):
        return type(found)(map(_detached, found))
    return found


_PRODUCTS = (torch.mv, torch.matmul, Tensor.mv, Tensor.matmul, Tensor.__matmul__)
_MOST_HEADS = 64


def _product(left: Tensor, right: Tensor) -> Tensor | None:
    if left.dim() > 1 and right.dim() == 1:
        return (left * right).sum(-1)
    if (left.dim(), right.dim()) == (4, 3) and left.shape[2] == 1:  # of each head a vector
        found = _of_heads("bhd", "hde", "bhe", left.squeeze(2), right)
        return None if found is None else found.unsqueeze(2)
    return None


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return the norm of each group of the units [B, units]."""
    if x.dim() != 2 or x.shape[1] % num_groups:
        return None
    parts = x.view(len(x), num_groups, -1)
    d = parts - parts.mean(2, keepdim=True)
    found = (d * ((d * d).mean(2, keepdim=True) + eps).rsqrt()).view(x.shape)
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


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
    if b[:1] == to[:1] and b[0] not in a:
        a, b, left, right = b, a, right, left
    return _of_heads(a, b, to, left, right)


def _of_heads(a: str, b: str, to: str, left: Tensor, right: Tensor) -> Tensor | None:
    """Return a product of each sequence's numbers with one matrix for each head; None: it is none.

    The sequences are a[0]; heads are what both have and the result too, and what both have and it
    has not is summed over.
    """
    heads, summed = ([c for c in a if c in b and (c in to) == kept] for kept in (True, False))
    columns = [c for c in b if c not in a]
    sizes = dict(zip(a + b, (*left.shape, *right.shape), strict=False))
    is_one = len(a) == left.dim() and len(b) == right.dim() and a[:1] == to[:1] and a[0] not in b
    if not is_one or not summed or set(to) != {a[0], *heads, *columns} or len(set(to)) != len(to):
        return None
    if set(a[1:]) != {*heads, *summed}:
        return None
    of_heads, of_columns = ([sizes[c] for c in part] for part in (heads, columns))
    n, width = prod(of_heads), prod(of_columns)
    if n > _MOST_HEADS:
        return None
    left = left.permute([a.index(c) for c in (a[0], *heads, *summed)]).reshape(len(left), n, -1)
    right = right.permute([b.index(c) for c in (*heads, *summed, *columns)]).reshape(n, -1, width)
    found = torch.stack([left[:, k] @ right[k] for k in range(n)], 1)
    order = [a[0], *heads, *columns]
    return found.view(-1, *of_heads, *of_columns).permute([order.index(c) for c in to])


def _in_order(left: Tensor, right: Tensor) -> Tensor:
    """Return (left right)ᵀ as a product whose left side is the batch's."""
    return right.t() @ left.t()
