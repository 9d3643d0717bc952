"""Rules of our own that replace operations by ones that programs have instructions for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

A = torch.ops.aten
RULES: dict[Any, Callable[..., Any]] = {}
"""By operation. A rule gives NotImplemented where it does not apply."""


def _rule(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(rule: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return add


# ---------------------------------------------------------------- parts, and what puts them back


@_rule(A.slice_scatter.default)
def _slice_scatter(
    x: Tensor,
    part: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    size = x.shape[dim]
    if step != 1:
        taken = {at: i for i, at in enumerate(range(*slice(start, end, step).indices(size)))}
        each = [
            part.narrow(dim, taken[i], 1) if i in taken else x.narrow(dim, i, 1)
            for i in range(size)
        ]
        return torch.cat(each, dim)
    begin, end, _ = slice(start, end).indices(size)
    parts = [part]
    if begin > 0:
        parts.insert(0, x.narrow(dim, 0, begin))
    if max(begin, end) < size:
        parts.append(x.narrow(dim, max(begin, end), size - max(begin, end)))
    return torch.cat(parts, dim) if len(parts) > 1 else part.clone()


@_rule(A.slice_backward.default)
def _slice_backward(
    d: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Any:
    return _slice_scatter(d.new_zeros(sizes), d, dim, start, end, step)


@_rule(A.select.int)
def _select(x: Tensor, dim: int, index: int) -> Tensor:
    return x.narrow(dim, index % x.shape[dim], 1).squeeze(dim)


@_rule(A.select_scatter.default)
def _select_scatter(x: Tensor, part: Tensor, dim: int, index: int) -> Any:
    at = index % x.shape[dim]
    return _slice_scatter(x, part.unsqueeze(dim), dim, at, at + 1)


@_rule(A.select_backward.default)
def _select_backward(d: Tensor, sizes: Sequence[int], dim: int, index: int) -> Any:
    return _select_scatter(d.new_zeros(sizes), d, dim, index)


@_rule(A.transpose.int)
def _transpose(x: Tensor, first: int, second: int) -> Any:
    if x.dim() == 2:  # a weight, at times
        return NotImplemented
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return x.permute(order)


@_rule(A.flip.default)
def _flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        x = torch.cat([x.narrow(dim, i, 1) for i in reversed(range(x.shape[dim]))], dim)
    return x


@_rule(A.roll.default)
def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    if not dims:
        return NotImplemented
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        if n := shift % size:
            x = torch.cat([x.narrow(dim, size - n, n), x.narrow(dim, 0, size - n)], dim)
    return x.clone()


@_rule(A.repeat.default)
def _repeat(x: Tensor, times: Sequence[int]) -> Any:
    if x.dim() != len(times) or times[0] != 1 or 0 in times:
        return NotImplemented
    for dim, n in enumerate(times):
        x = torch.cat([x] * n, dim) if n > 1 else x
    return x.clone()


@_rule(A.constant_pad_nd.default)
def _pad(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    for i, (first, last) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = x.dim() - 1 - i
        x = x.narrow(dim, max(-first, 0), x.shape[dim] + min(first, 0) + min(last, 0))
        shape = list(x.shape)
        before, after = ([*shape[:dim], max(n, 0), *shape[dim + 1 :]] for n in (first, last))
        x = torch.cat([x.new_full(before, value), x, x.new_full(after, value)], dim)
    return x


# ----------------------------------------------------------------------- numbers of a row


@_rule(A.linalg_vector_norm.default)
def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    if dim is None or dtype not in (None, x.dtype) or ord not in (1, 2, math.inf):
        return NotImplemented
    if ord == 1:
        return x.abs().sum(dim, keepdim)
    return (x * x).sum(dim, keepdim).sqrt() if ord == 2 else x.abs().amax(dim, keepdim)


@_rule(A.var_mean.correction)
def _var_mean(
    x: Tensor,
    dim: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    if dim is None:
        return NotImplemented
    n = math.prod(x.shape[i] for i in dim) - (1 if correction is None else correction)
    mean = x.mean(dim, keepdim=True)
    d = x - mean
    variance = (d * d).sum(dim, keepdim) * (1 / n if n > 0 else math.nan)
    return variance, mean if keepdim else x.mean(dim)


@_rule(A.var.correction)
def _var(x: Tensor, dim: list[int] | None = None, **how: Any) -> Any:
    found = _var_mean(x, dim, **how)
    return found if found is NotImplemented else found[0]


@_rule(A.std.correction)
def _std(x: Tensor, dim: list[int] | None = None, **how: Any) -> Any:
    found = _var_mean(x, dim, **how)
    return found if found is NotImplemented else found[0].sqrt()


@_rule(A.amin.default)
def _amin(x: Tensor, dim: list[int] | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    return -((-x).amax(dim, keepdim))


@_rule(A.any.dim)
def _any(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return (x != 0).to(torch.float32).amax(dim, keepdim) > 0


@_rule(A.all.dim)
def _all(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return (x == 0).to(torch.float32).amax(dim, keepdim) == 0


# ---------------------------------------------------------------------------- functions


@_rule(A.log2.default)
def _log2(x: Tensor) -> Tensor:
    return x.log() * (1 / math.log(2))


@_rule(A.log10.default)
def _log10(x: Tensor) -> Tensor:
    return x.log() * (1 / math.log(10))


@_rule(A.exp2.default)
def _exp2(x: Tensor) -> Tensor:
    return (x * math.log(2)).exp()


@_rule(A.tan.default)
def _tan(x: Tensor) -> Tensor:
    return x.sin() / x.cos()


@_rule(A.isinf.default)
def _isinf(x: Tensor) -> Tensor:
    return x.abs() == math.inf


@_rule(A.ceil.default)
def _ceil(x: Tensor) -> Tensor:
    return -((-x).floor())


@_rule(A.trunc.default)
def _trunc(x: Tensor) -> Tensor:
    return torch.where(x < 0, -((-x).floor()), x.floor())
