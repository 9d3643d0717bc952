"""Parts of rows, sums over some of their dimensions, and broadcasting, as instructions.

A row holds the dimensions of a tensor, but for the batch's, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from bptt._src.engines.loops.program import TEMPORARY, Value, Writer
from bptt._src.engines.loops.step import BATCH

A = torch.ops.aten
MOST_PARTS = 1024
"""Of a row, that are copied one by one."""


class Number(float):
    """A tensor of one known number."""


Lowered = Value | Number | list[Any]


class NotAProgram(Exception):
    """A step does something that programs have no instructions for."""


def args_of(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def width_of(node: fx.Node) -> int:
    """Return the number of columns of what a node gives: of all its dimensions but the batch's.

    Raises:
        NotAProgram: it has neither a row for each sequence, nor one row for all.
    """
    shape = tuple(node.meta["val"].shape)
    if shape and shape[0] not in (1, BATCH):
        raise NotAProgram(
            f"{called(node)} gives a tensor of shape {list(shape)} for a batch of {BATCH}: a step "
            "works on tensors of [batch, units]"
        )
    return prod(shape[1:])


def called(node: fx.Node) -> str:
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet or getattr(target, "__name__", target))


def outside(shape: Sequence[int], dim: int) -> int:
    """Return of how many parts a row is, each of which a dimension and those after it make."""
    return prod(shape[1 : dim % len(shape)])


class Shapes:
    """What :class:`engines.loops.lowering.Lowering` does with shapes."""

    writer: Writer
    lower: Callable[[fx.Node], Any]
    value: Callable[[Any, int], Value]
    _to: Callable[[fx.Node], Value]

    def _as_wide(self, x: Any, node: fx.Node) -> Value:
        """Return an operand of a node, broadcast to the node's shape."""
        width = width_of(node)
        val = x.meta["val"] if isinstance(x, fx.Node) else None
        if not isinstance(val, Tensor) or prod(val.shape[1:]) in (1, width):
            return self.value(x, width)
        to = list(node.meta["val"].shape[1:])
        given = [1] * (len(to) + 1 - val.dim()) + list(val.shape[1:])
        whole, found = self.value(x, prod(given)), Value(width)
        if prod(to[:-1]) > MOST_PARTS:
            raise NotAProgram(f"{called(node)} repeats {prod(to[:-1])} parts")

        def fill(dim: int, at: int, source: int) -> None:
            n, columns = prod(given[dim:]), prod(to[dim:])
            if n in (1, columns):
                place, part = found.part(at, columns), whole.part(source, n)
                self.writer.emit("copy" if n == columns else "spread", place, part)
                return
            for i in range(to[dim]):
                step = i * prod(given[dim + 1 :]) if given[dim] > 1 else 0
                fill(dim + 1, at + i * prod(to[dim + 1 :]), source + step)

        fill(0, 0, 0)
        return found

    def _sum(self, node: fx.Node) -> Value:
        x, dims = args_of(node)[0], (*args_of(node)[1:], None)[0]
        assert isinstance(x, fx.Node)
        shape, op = x.meta["val"].shape, "amax" if node.target is A.amax.default else "sum"
        dims = sorted(d % len(shape) for d in dims) if dims else list(range(len(shape)))
        if 0 in dims or dims != list(range(dims[0], dims[0] + len(dims))):
            raise NotAProgram(f"{called(node)} over the batch, or over dimensions far apart")
        outer, inner = prod(shape[1 : dims[0]]), prod(shape[dims[-1] + 1 :])
        n, value, to = prod(shape[i] for i in dims), self.value(x, width_of(x)), self._to(node)
        if outer * (1 if inner == 1 else n) > MOST_PARTS:
            raise NotAProgram(f"{called(node)} of {outer * n} parts")
        for i in range(outer):
            place, parts = to.part(i * inner, inner), value.part(i * n * inner, n * inner)
            if inner == 1:
                self.writer.emit(op, place, parts)
                continue
            total = parts.part(0, inner)
            for k in range(1, n):
                by = "maximum" if op == "amax" else "add"
                more = parts.part(k * inner, inner)
                total = self.writer.emit(by, Value(inner), total, more)
            self.writer.emit("copy", place, total)
        if node.target is A.mean.dim:
            return self.writer.emit("mul", to, to, self.value(1 / n, to.width))
        return to

    def _slice(self, node: fx.Node) -> Lowered:
        given: Any = (*args_of(node), *(0, None, None, 1)[len(args_of(node)) - 1 :])
        x, dim, begin, end, step = given
        assert isinstance(x, fx.Node)
        shape = x.meta["val"].shape
        begin, end, step = slice(begin, end, step).indices(shape[dim])
        if (begin, end, step) == (0, shape[dim], 1):
            return self.lower(x)  # type: ignore[no-any-return]
        if dim % len(shape) == 0:
            raise NotAProgram(f"{called(node)} of the batch")
        return self._columns(x, dim, [*range(begin, end, step)] if step > 1 else begin, end)

    def _columns(self, x: fx.Node, dim: int, begin: int | list[int], end: int) -> Value:
        """Return a part of a dimension, or the chosen ones of it."""
        shape = x.meta["val"].shape
        dim %= len(shape)
        outer, inner = prod(shape[1:dim]), prod(shape[dim + 1 :])
        value = self.value(x, width_of(x))
        runs = [(begin, max(end - begin, 0))] if isinstance(begin, int) else [(i, 1) for i in begin]
        if outer == 1 and len(runs) == 1:
            return value.part(runs[0][0] * inner, runs[0][1] * inner)
        if outer * len(runs) > MOST_PARTS:
            raise NotAProgram(f"{outer * len(runs)} parts of a tensor")
        to, at = Value(outer * sum(n for _, n in runs) * inner), 0
        for i in range(outer):
            for first, n in runs:
                part = value.part((i * shape[dim] + first) * inner, n * inner)
                self.writer.emit("copy", to.part(at, n * inner), part)
                at += n * inner
        return to

    def _split(self, node: fx.Node) -> Lowered:
        x, sizes, dim = (*args_of(node), 0)[:3]
        assert isinstance(x, fx.Node)
        total = x.meta["val"].shape[dim]
        if dim % x.meta["val"].dim() == 0:
            raise NotAProgram(f"{called(node)} of the batch")
        found: list[Any] = []
        offset = 0
        if isinstance(sizes, int):
            sizes = [min(sizes, total - at) for at in range(0, total, sizes)]
        for size in sizes:
            found.append(self._columns(x, dim, offset, offset + size))
            offset += size
        return found

    def _permute(self, node: fx.Node) -> Lowered:
        x = args_of(node)[0]
        if node.target is not A.permute.default:
            raise NotAProgram(f"{called(node)} of the batch")
        shape, order = x.meta["val"].shape, [d % x.meta["val"].dim() for d in args_of(node)[1]]
        if order[0] != 0:
            raise NotAProgram(f"{called(node)} of the batch")
        wide = [d for d in order if shape[d] > 1]
        if wide == sorted(wide):
            return self.lower(x)  # type: ignore[no-any-return]
        numbers = torch.arange(prod(shape[1:])).view(1, *shape[1:]).permute(order).flatten()
        return self._chosen(self.value(x, len(numbers)), numbers.tolist())

    def _chosen(self, value: Value, columns: Sequence[int]) -> Value:
        """Return some columns, in that order; those that follow each other are copied at once."""
        begins = [i for i, c in enumerate(columns) if i == 0 or c != columns[i - 1] + 1]
        if len(begins) > MOST_PARTS:
            raise NotAProgram(f"{len(begins)} parts of a tensor in another order")
        to = Value(len(columns))
        for begin, end in zip(begins, [*begins[1:], len(columns)], strict=True):
            part = value.part(columns[begin], end - begin)
            self.writer.emit("copy", to.part(begin, end - begin), part)
        return to

    def _getitem(self, node: fx.Node) -> Lowered:
        parts: Any = self.lower(args_of(node)[0])
        found: Lowered = parts[args_of(node)[1]]
        return found

    def _cat(self, node: fx.Node) -> Value:
        parts, dim = (*args_of(node), 0)[:2]
        shape = node.meta["val"].shape
        if dim % len(shape) == 0:
            raise NotAProgram(f"{called(node)} of batches")
        to, offset, outer = self._to(node), 0, outside(shape, dim)
        if outer * len(parts) > MOST_PARTS:
            raise NotAProgram(f"{called(node)} of {outer * len(parts)} parts")
        values = [self.value(part, width_of(part)) for part in parts]
        for i in range(outer):
            for value in values:
                width = value.width // outer
                self._put(to.part(offset, width), value.part(i * width, width))
                offset += width
        return to

    def _put(self, place: Value, value: Value) -> None:
        """Copy, unless it was written there."""
        is_there = (value.name, value.offset, value.kind) == (place.name, place.offset, place.kind)
        if not is_there or value.whole is not place.whole or value.kind == TEMPORARY:
            self.writer.emit("copy", place, value)
