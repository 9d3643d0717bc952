"""torch's operations as instructions of a program.

A tensor of a step has a row for each sequence, in which its other dimensions lie one after the
other. What is the same number along a row has one column.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from bptt._src.engines.loops.operations import BINARY, COSTLY, UNARY
from bptt._src.engines.loops.program import Value, Weight, Writer
from bptt._src.engines.loops.shapes import (
    Lowered,
    NotAProgram,
    Number,
    Shapes,
    args_of,
    called,
    outside,
    width_of,
)

A = torch.ops.aten


INTEGERS = (torch.int32, torch.int64)


_SAME = {
    *(A.view.default, A._unsafe_view.default, A.reshape.default, A.expand.default),
    *(A.unsqueeze.default, A.squeeze.dim, A.squeeze.dims, A.squeeze.default),
    *(A._to_copy.default, torch.ops.prims.convert_element_type.default),
    *(A.contiguous.default, A.clone.default, torch.ops.prims.squeeze.default),
}
_AT_PLACES = (A.gather.default, A.scatter_add.default)
"""Operations that take numbers as whole ones."""
_FLIPS = (A.permute.default, A.t.default, A.transpose.int)
_FULL = {
    A.full.default: lambda n: args_of(n)[1],
    A.full_like.default: lambda n: args_of(n)[1],
    A.scalar_tensor.default: lambda n: args_of(n)[0],
    A.zeros_like.default: lambda n: 0,
    A.zeros.default: lambda n: 0,
    A.new_zeros.default: lambda n: 0,
    A.ones_like.default: lambda n: 1,
    A.ones.default: lambda n: 1,
    # What is not filled with anything is copied over before it is read.
    A.empty_permuted.default: lambda n: 0,
    A.empty.memory_format: lambda n: 0,
    A.empty_like.default: lambda n: 0,
    A.new_empty.default: lambda n: 0,
    A.new_full.default: lambda n: args_of(n)[2],
    A.new_ones.default: lambda n: 1,
}


def is_costly(node: fx.Node) -> bool:
    """Whether it is better kept than computed again."""
    return node.op == "call_function" and node.target in COSTLY


class Lowering(Shapes):
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
                if outside(node.meta["val"].shape, (*args_of(node), 0)[1]) != 1:
                    continue
                offset = 0
                for part in args_of(node)[0]:
                    width = width_of(part)
                    if part in needed and part not in leaves:
                        destinations.setdefault(part, destinations[node].part(offset, width))
                    offset += width
        self.products: dict[fx.Node, fx.Node] = {}
        self._find_sums()

    def write(self, nodes: list[fx.Node]) -> None:
        """Write the needed ones of the nodes, in order."""
        products = set(self.products.values())
        for node in nodes:
            if node.op in ("placeholder", "output") or node.target in _FLIPS:
                continue  # weights, which products find by themselves
            if node in self.needed and node not in self.found and node not in products:
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
        target, args = node.target, args_of(node)
        if "bitwise" in called(node) and node.meta["val"].dtype is not torch.bool:
            raise NotAProgram(f"{called(node)} of integers has no instruction")
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
            raise NotAProgram(f"{called(node)} has no instruction")
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
        width_of(node)
        given = [self._as_wide(x, node) for x in operands]
        return self.writer.emit(op, self._to(node), *given)

    def _binary(self, node: fx.Node) -> Value:
        (a, b, *_), op = args_of(node), BINARY[node.target]
        alpha: Any = node.kwargs.get("alpha", 1)
        if op == "div" and node.kwargs.get("rounding_mode") is not None:
            raise NotAProgram("aten.div with rounding has no instruction")
        if op in ("add", "sub") and alpha != 1:
            scale = float(alpha) * (1 if op == "add" else -1)
            return self._elementwise("muladd", node, b, scale, a)
        if op == "add" and node.meta["val"].dtype is torch.bool:
            op = "logical_or"
        if op == "add":
            for zero, other in ((a, b), (b, a)):
                if self.found.get(zero) == Number(0) and width_of(other) == width_of(node):
                    return self.value(other, width_of(node))
            product = self.products.get(node)
            if product is not None:
                other = b if product is a else a
                return self._elementwise("muladd", node, *args_of(product)[:2], other)
        if op == "mul" and isinstance(b, (int, float)) and b == 1:
            return self._elementwise("copy", node, a)
        return self._elementwise(op, node, a, b)

    def _find_sums(self) -> None:
        """Find the products that only a sum, as wide, takes: both are one instruction."""
        for node in self.needed:
            if node.target is not A.add.Tensor or node in self.leaves:
                continue
            if node.kwargs.get("alpha", 1) != 1 or len(set(args_of(node))) != 2:
                continue
            product = next((x for x in args_of(node) if self._is_only_for(node, x)), None)
            if product is not None:
                self.products[node] = product

    def _is_only_for(self, user: fx.Node, x: Any) -> bool:
        if not isinstance(x, fx.Node) or x.target is not A.mul.Tensor or x in self.leaves:
            return False
        if x in self.destinations or width_of(x) != width_of(user):
            return False
        return [u for u in x.users if u in self.needed] == [user]

    # ------------------------------------------------------------------------------ others

    def _same(self, node: fx.Node) -> Lowered:
        source = args_of(node)[0]
        assert isinstance(source, fx.Node)
        dtype, before = node.meta["val"].dtype, source.meta["val"].dtype
        is_kept = _keeps_numbers(before, dtype) or all(u.target in _AT_PLACES for u in node.users)
        if dtype is not before and not is_kept:
            raise NotAProgram(f"{called(node)} from {before} to {dtype}")
        found = self.lower(source)
        if isinstance(found, Value) and width_of(node) != found.width:
            return self._as_wide(source, node)
        width_of(node)
        return found

    def _as_strided(self, node: fx.Node) -> Lowered:
        """Some columns, as parts of what is split are called by autograd."""
        source, shape, stride, offset = (*args_of(node), 0)[:4]
        assert isinstance(source, fx.Node)
        before = source.meta["val"]
        if (
            before.dim() != 2
            or not before.is_contiguous()
            or len(shape) != 2
            or tuple(stride) != before.stride()
        ):
            raise NotAProgram(f"{called(node)} of other rows")
        return self.value(source, before.shape[1]).part(offset, shape[1])

    def _product(self, node: fx.Node) -> Value:
        left, right = args_of(node)
        flips = 0
        while right.target in _FLIPS:
            right, flips = args_of(right)[0], flips + 1
        if right not in self.weights:
            raise NotAProgram("a matrix product of two tensors that both change from step to step")
        value = self.value(left, width_of(left))
        if value.storage.is_vector:
            raise NotAProgram("a matrix product with the same left side at each step")
        weight = Weight(self.weights[right], flips % 2 == 1)
        return self.writer.product(self._to(node), value, weight)

    def _gather(self, node: fx.Node) -> Value:
        x, dim, places = args_of(node)
        return self._at_places("gather", node, x, dim, places)

    def _scatter(self, node: fx.Node) -> Value:
        to, dim, places, values = args_of(node)
        if self.lower(to) != Number(0):
            raise NotAProgram("aten.scatter_add to what is not zero has no instruction")
        return self._at_places("scatter", node, values, dim, places)

    def _at_places(self, op: str, node: fx.Node, x: fx.Node, dim: int, places: fx.Node) -> Value:
        if dim % 2 != 1 or node.meta["val"].dim() != 2:
            raise NotAProgram(f"{called(node)} but of the units in [batch, units]")
        given = [self.value(t, width_of(t)) for t in (x, places)]
        return self.writer.emit(op, self._to(node), *given)

    def _where(self, node: fx.Node) -> Value:
        return self._elementwise("where", node, *args_of(node))

    def _clamp(self, node: fx.Node) -> Value:
        x, low, high = (*args_of(node), None, None)[:3]
        width, value = width_of(node), None
        for op, limit in (("maximum", low), ("minimum", high)):
            if limit is not None:
                of = x if value is None else value
                wide = of if isinstance(of, Value) else self._as_wide(of, node)
                value = self.writer.emit(op, Value(width), wide, self._as_wide(limit, node))
        assert value is not None
        return value

    def _power(self, node: fx.Node) -> Value:
        x, n = args_of(node)
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


def _keeps_numbers(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether a conversion is none in a program, which has numbers of one dtype."""
    if before is torch.bool or (before, after) == (torch.float32, torch.float64):
        return after.is_floating_point or after in INTEGERS
    return before in INTEGERS and (after.is_floating_point or after in INTEGERS)


_SPECIAL: dict[Any, Callable[[Lowering, fx.Node], Lowered]] = {
    A.as_strided.default: Lowering._as_strided,
    A.copy.default: lambda self, n: self.value(args_of(n)[1], width_of(n)),
    A.mm.default: Lowering._product,
    A.gather.default: Lowering._gather,
    A.scatter_add.default: Lowering._scatter,
    A.isnan.default: lambda self, n: self._elementwise("ne", n, *args_of(n), *args_of(n)),
    A.where.self: Lowering._where,
    A.clamp.default: Lowering._clamp,
    A.clamp.Tensor: Lowering._clamp,
    A.pow.Tensor_Scalar: Lowering._power,
    A.pow.Tensor_Tensor: lambda self, n: self._elementwise("pow", n, *args_of(n)),
    A.pow.Scalar: lambda self, n: self._elementwise("pow", n, *args_of(n)),
    A.sum.dim_IntList: Lowering._sum,
    A.sum.default: Lowering._sum,
    A.mean.dim: Lowering._sum,
    A.amax.default: Lowering._sum,
    A.slice.Tensor: Lowering._slice,
    A.split.Tensor: Lowering._split,
    A.split_with_sizes.default: Lowering._split,
    operator.getitem: Lowering._getitem,
    A.cat.default: Lowering._cat,
    A.permute.default: Lowering._permute,
    A.transpose.int: Lowering._permute,
    A.t.default: Lowering._permute,
}
