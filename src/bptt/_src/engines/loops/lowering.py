"""torch's operations as instructions of a program.

A tensor of a step has a row for each sequence. What is the same number along a row has one column.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from bptt._src.engines.loops.program import Value, Weight, Writer
from bptt._src.engines.loops.step import BATCH

A = torch.ops.aten


class NotAProgram(Exception):
    """A step does something that programs have no instructions for."""


class Number(float):
    """A tensor of one known number."""


Lowered = Value | Number | list[Any]

_UNARY = (
    "neg abs sign reciprocal sqrt rsqrt exp expm1 log log1p tanh sigmoid relu sin cos erf floor"
)
_BINARY = "add sub mul div maximum minimum lt le gt ge eq ne logical_and logical_or"
_COSTLY = "reciprocal sqrt rsqrt exp expm1 log log1p tanh sigmoid sin cos erf div pow mm sum amax"


def _targets(names: str) -> dict[Any, str]:
    found = {}
    for name in names.split():
        packet = getattr(A, name)
        for overload in packet.overloads():
            if "out" not in overload and overload not in ("complex", "int"):
                found[getattr(packet, overload)] = name
    return found


UNARY, BINARY, COSTLY = _targets(_UNARY), _targets(_BINARY), _targets(_COSTLY)
BINARY |= {
    A.bitwise_and.Tensor: "logical_and",
    A.bitwise_or.Tensor: "logical_or",
}
UNARY |= {A.logical_not.default: "logical_not", A.bitwise_not.default: "logical_not"}
COSTLY.pop(A.div.Scalar, None)

_SAME = {
    *(A.view.default, A._unsafe_view.default, A.reshape.default, A.expand.default),
    *(A.unsqueeze.default, A.squeeze.dim, A.squeeze.dims, A.squeeze.default),
    *(A._to_copy.default, torch.ops.prims.convert_element_type.default),
    *(A.contiguous.default, A.clone.default),
}
_FLIPS = (A.permute.default, A.t.default, A.transpose.int)
_FULL = {
    A.full.default: lambda n: n.args[1],
    A.full_like.default: lambda n: n.args[1],
    A.scalar_tensor.default: lambda n: n.args[0],
    A.zeros_like.default: lambda n: 0,
    A.zeros.default: lambda n: 0,
    A.new_zeros.default: lambda n: 0,
    A.ones_like.default: lambda n: 1,
    A.ones.default: lambda n: 1,
    A.new_full.default: lambda n: n.args[2],
    A.new_ones.default: lambda n: 1,
}


def is_costly(node: fx.Node) -> bool:
    """Whether it is better kept than computed again."""
    return node.op == "call_function" and node.target in COSTLY


def width_of(node: fx.Node) -> int:
    """Return the number of columns of what a node gives; 1 where it has none.

    Raises:
        NotAProgram: it is no matrix with a row for each sequence, nor one row for all.
    """
    shape = tuple(node.meta["val"].shape)
    if shape == (BATCH,):
        return 1
    if len(shape) > 2 or (len(shape) == 2 and shape[0] not in (1, BATCH)):
        raise NotAProgram(
            f"{_name(node)} gives a tensor of shape {list(shape)} for a batch of {BATCH}: a step "
            "works on tensors of [batch, units]"
        )
    return shape[-1] if shape else 1


def _name(node: fx.Node) -> str:
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet or getattr(target, "__name__", target))


class Lowering:
    """Writes nodes of a graph as instructions."""

    def __init__(
        self,
        writer: Writer,
        leaves: Mapping[fx.Node, Lowered],
        weights: dict[fx.Node, str],
        destinations: dict[fx.Node, Value],
        needed: set[fx.Node],
        attributes: Callable[[fx.Node], Lowered],
    ) -> None:
        """
        Args:
            writer: what writes the program down.
            leaves: what is there already.
            weights: nodes that are weights, by their name.
            destinations: where the results of some nodes go.
            needed: the nodes of the program.
            attributes: what a constant of the graph is.
        """
        self.writer, self.leaves, self.weights = writer, leaves, weights
        self.destinations, self.needed, self.attributes = destinations, needed, attributes
        self.found: dict[fx.Node, Lowered] = dict(leaves)
        for node in needed:  # the parts of what is put side by side go where they belong
            if node.target is A.cat.default and node in destinations and node not in leaves:
                offset = 0
                for part in node.args[0]:
                    width = width_of(part)
                    if part in needed and part not in leaves:
                        destinations.setdefault(part, destinations[node].part(offset, width))
                    offset += width

    def write(self, nodes: list[fx.Node]) -> None:
        """Write the needed ones of the nodes, in order."""
        for node in nodes:
            if node.op in ("placeholder", "output") or node.target in _FLIPS:
                continue  # weights, which products find by themselves
            if node in self.needed and node not in self.found:
                if self._is_part_of_sum(node):
                    continue
                self.lower(node)

    def lower(self, node: fx.Node) -> Lowered:
        """Write a node, unless it is, and return what it gives."""
        if node in self.found:
            return self.found[node]
        result = self._lower(node)
        to = self.destinations.get(node)
        if to is not None and result is not to:
            value = self.value(result, to.width)
            result = self.writer.emit("copy", to, value)
        self.found[node] = result
        return result

    def _lower(self, node: fx.Node) -> Lowered:
        if node.op == "get_attr":
            return self.attributes(node)
        if node.op != "call_function":
            raise NotAProgram(f"{node.name} is used in a way that a loop has no place for")
        target, args = node.target, node.args
        if target in UNARY:
            return self._elementwise(UNARY[target], node, args[0])
        if target in BINARY:
            return self._binary(node)
        if target in _FULL:
            return Number(_FULL[target](node))
        if target in _SAME:
            return self._same(node)
        special = _SPECIAL.get(target)
        if special is None:
            raise NotAProgram(f"{_name(node)} has no instruction")
        return special(self, node)

    # ------------------------------------------------------------------------- elementwise

    def value(self, x: Any, width: int) -> Value:
        """Return what is as wide as this: a number, or a row's number, is repeated."""
        if isinstance(x, fx.Node):
            x = self.lower(x)
        if isinstance(x, (int, float, bool)):
            return self.writer.constant(float(x), width)
        if not isinstance(x, Value):
            raise NotAProgram("a list of tensors is used as a tensor")
        if x.width == width:
            return x
        if x.width != 1:
            raise NotAProgram(f"tensors of {x.width} and of {width} columns meet")
        return self.writer.emit("spread", Value(width), x)

    def _to(self, node: fx.Node) -> Value:
        return self.destinations.get(node) or Value(width_of(node))

    def _elementwise(self, op: str, node: fx.Node, *operands: Any) -> Value:
        width = width_of(node)
        return self.writer.emit(op, self._to(node), *(self.value(x, width) for x in operands))

    def _binary(self, node: fx.Node) -> Value:
        target, (a, b, *_), op = node.target, node.args, BINARY[node.target]
        alpha = node.kwargs.get("alpha", 1)
        if op == "div" and node.kwargs.get("rounding_mode") is not None:
            raise NotAProgram("aten.div with rounding has no instruction")
        if op in ("add", "sub") and alpha != 1:
            width = width_of(node)
            scale = self.value(float(alpha) * (1 if op == "add" else -1), width)
            operands = (self.value(b, width), scale, self.value(a, width))
            return self.writer.emit("muladd", self._to(node), *operands)
        if op == "add":
            for zero, other in ((a, b), (b, a)):
                if self.found.get(zero) == Number(0) and width_of(other) == width_of(node):
                    return self.value(other, width_of(node))
            for product, other in ((a, b), (b, a)):
                if isinstance(product, fx.Node) and self._is_part_of_sum(product):
                    return self._elementwise("muladd", node, *product.args[:2], other)
        if op == "mul" and isinstance(b, (int, float)) and b == 1:
            return self._elementwise("copy", node, a)
        del target
        return self._elementwise(op, node, a, b)

    def _is_part_of_sum(self, node: fx.Node) -> bool:
        """Whether it is a product that only a sum, as wide, takes."""
        if node.target is not A.mul.Tensor or node in self.found or node in self.destinations:
            return False
        users = [u for u in node.users if u in self.needed]
        return (
            len(users) == 1
            and users[0].target is A.add.Tensor
            and users[0] not in self.leaves
            and users[0].kwargs.get("alpha", 1) == 1
            and width_of(users[0]) == width_of(node)
            and users[0].args[0] is not users[0].args[1]
            and not (
                isinstance(first := users[0].args[0], fx.Node)
                and first is not node
                and first.target is A.mul.Tensor
                and self._would_be_part(first, users[0])
            )
        )

    def _would_be_part(self, other: fx.Node, user: fx.Node) -> bool:
        """Of two products that are added, the first one is taken into the sum."""
        return (
            other in self.needed
            and other not in self.found
            and other not in self.destinations
            and [u for u in other.users if u in self.needed] == [user]
            and width_of(other) == width_of(user)
        )

    # ------------------------------------------------------------------------------ others

    def _same(self, node: fx.Node) -> Lowered:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        dtype, before = node.meta["val"].dtype, source.meta["val"].dtype
        if dtype is not before and not (before is torch.bool and dtype.is_floating_point):
            raise NotAProgram(f"{_name(node)} from {before} to {dtype}")
        found = self.lower(source)
        if isinstance(found, Value) and width_of(node) != found.width:
            return self.value(found, width_of(node))
        width_of(node)
        return found

    def _as_strided(self, node: fx.Node) -> Lowered:
        """Some columns, as parts of what is split are called by autograd."""
        source, shape, stride, offset = (*node.args, 0)[:4]
        assert isinstance(source, fx.Node)
        before = source.meta["val"]
        if (
            before.dim() != 2
            or not before.is_contiguous()
            or len(shape) != 2
            or tuple(stride) != before.stride()
        ):  # type: ignore[arg-type]
            raise NotAProgram(f"{_name(node)} of other rows")
        return self.value(source, before.shape[1]).part(offset, shape[1])  # type: ignore[arg-type, index]

    def _product(self, node: fx.Node) -> Value:
        left, right = node.args
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        flips = 0
        while right.target in _FLIPS:
            right, flips = right.args[0], flips + 1  # type: ignore[assignment]
        if right not in self.weights:
            raise NotAProgram("a matrix product of two tensors that both change from step to step")
        value = self.value(left, width_of(left))
        if value.is_vector or value.kind == 4 and value.storage.is_vector:
            raise NotAProgram("a matrix product with the same left side at each step")
        weight = Weight(self.weights[right], flips % 2 == 1)
        return self.writer.product(self._to(node), value, weight)

    def _where(self, node: fx.Node) -> Value:
        return self._elementwise("where", node, *node.args)

    def _clamp(self, node: fx.Node) -> Value:
        x, low, high = (*node.args, None, None)[:3]
        width, value = width_of(node), None
        for op, limit in (("maximum", low), ("minimum", high)):
            if limit is not None:
                of = x if value is None else value
                value = self.writer.emit(
                    op, Value(width), self.value(of, width), self.value(limit, width)
                )
        assert value is not None
        return value

    def _power(self, node: fx.Node) -> Value:
        x, n = node.args
        if n == 2:
            return self._elementwise("mul", node, x, x)
        if n == 0.5:
            return self._elementwise("sqrt", node, x)
        if n == -1:
            return self._elementwise("reciprocal", node, x)
        if n == -0.5:
            return self._elementwise("rsqrt", node, x)
        if n == 1:
            return self._elementwise("copy", node, x)
        if n == 3:
            width = width_of(node)
            of = self.value(x, width)
            square = self.writer.emit("mul", Value(width), of, of)
            return self.writer.emit("mul", self._to(node), square, of)
        return self._elementwise("pow", node, x, n)

    def _sum(self, node: fx.Node) -> Value:
        x, dims = node.args[0], (*node.args[1:], None)[0]
        assert isinstance(x, fx.Node)
        shape = x.meta["val"].shape
        dims = [d % len(shape) for d in dims] if dims else list(range(len(shape)))  # type: ignore[union-attr]
        if len(shape) != 2 or dims != [1]:
            raise NotAProgram(f"{_name(node)} over the batch, or over more than the units")
        value = self.value(x, shape[1])
        if node.target is A.mean.dim:
            total = self.writer.emit("sum", Value(1), value)
            return self.writer.emit("mul", self._to(node), total, self.value(1 / shape[1], 1))
        return self.writer.emit("sum", self._to(node), value)

    def _slice(self, node: fx.Node) -> Lowered:
        x, dim, begin, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
        assert isinstance(x, fx.Node)
        shape = x.meta["val"].shape
        begin, end, _ = slice(begin, end).indices(shape[dim])  # type: ignore[arg-type, index]
        if dim % len(shape) != len(shape) - 1 or step != 1:  # type: ignore[operator]
            if (begin, end, step) == (0, shape[dim], 1):  # type: ignore[index]
                return self.lower(x)
            raise NotAProgram(f"{_name(node)} of the batch, or with a stride")
        return self.value(x, shape[-1]).part(begin, max(end - begin, 0))

    def _split(self, node: fx.Node) -> Lowered:
        x, sizes, dim = (*node.args, 0)[:3]
        assert isinstance(x, fx.Node)
        shape = x.meta["val"].shape
        if dim % len(shape) != len(shape) - 1:  # type: ignore[operator]
            raise NotAProgram(f"{_name(node)} of the batch")
        value, found, offset = self.value(x, shape[-1]), [], 0
        if isinstance(sizes, int):
            sizes = [min(sizes, shape[-1] - at) for at in range(0, shape[-1], sizes)]
        for size in sizes:  # type: ignore[union-attr]
            found.append(value.part(offset, size))
            offset += size
        return found

    def _getitem(self, node: fx.Node) -> Lowered:
        parts = self.lower(node.args[0])  # type: ignore[arg-type]
        assert isinstance(parts, list)
        return parts[node.args[1]]  # type: ignore[no-any-return, index]

    def _cat(self, node: fx.Node) -> Value:
        parts, dim = (*node.args, 0)[:2]
        shape = node.meta["val"].shape
        if dim % len(shape) != len(shape) - 1:  # type: ignore[operator]
            raise NotAProgram(f"{_name(node)} of batches")
        to, offset = self._to(node), 0
        for part in parts:  # type: ignore[union-attr]
            width = width_of(part)
            place = to.part(offset, width)
            value = self.value(part, width)
            if not (
                value.name == place.name
                and value.offset == place.offset
                and value.kind == place.kind
                and value.whole is place.whole
                and value.kind != 3
            ):
                self.writer.emit("copy", place, value)
            offset += width
        return to


_SPECIAL: dict[Any, Callable[[Lowering, fx.Node], Lowered]] = {
    A.as_strided.default: Lowering._as_strided,
    A.mm.default: Lowering._product,
    A.where.self: Lowering._where,
    A.clamp.default: Lowering._clamp,
    A.clamp.Tensor: Lowering._clamp,
    A.pow.Tensor_Scalar: Lowering._power,
    A.pow.Tensor_Tensor: lambda self, n: self._elementwise("pow", n, *n.args),
    A.pow.Scalar: lambda self, n: self._elementwise("pow", n, *n.args),
    A.sum.dim_IntList: Lowering._sum,
    A.sum.default: Lowering._sum,
    A.mean.dim: Lowering._sum,
    A.slice.Tensor: Lowering._slice,
    A.split.Tensor: Lowering._split,
    A.split_with_sizes.default: Lowering._split,
    operator.getitem: Lowering._getitem,
    A.cat.default: Lowering._cat,
}
