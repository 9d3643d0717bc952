"""A step split by what depends on what: before the loop over the steps, the loop, and after it.

What the states do not reach runs before the loop, on all steps at once: the input's products, and
what is made of parameters alone. What does not reach the next state runs after it, likewise. Both
are torch's own operations, and autograd's. The loop holds the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from bptt._src.engines.loops.lowering import INTEGERS
from bptt._src.engines.loops.step import ancestors
from bptt._src.fuse.independence import has_rows
from bptt._src.fuse.tracing import StepGraph, leaves_of_args, name_of
from bptt._src.fuse.writing import PRODUCTS, Writing, layer_norm
from bptt.errors import FuseError

A = torch.ops.aten
_PARTS = {A.split.Tensor, A.split_with_sizes.default, operator.getitem, A.slice.Tensor}


@dataclass(frozen=True)
class SplitStep:
    """The parts of a step, as functions of lists of tensors, for any number n of rows.

    Attributes:
        before: ``(n, x, own) -> (rows, vectors, weights, passed)``.
        loop: ``(n, rows, states, vectors, weights, adds) -> (states, outs)``.
        after: ``(n, x, own, passed, states before, states after, outs) -> outputs``.
        lefts: of each product in the loop, what its left side is: ``("before", i)``,
            ``("after", i)`` or ``("out", i)``.
        products: of each product in the loop, which weight it is with, and whether with its
            transpose.
        rows, vectors, adds: their widths.
        weights: their shapes.
        uses_before: the states that ``after`` reads as they are before each step.
    """

    before: fx.GraphModule
    loop: fx.GraphModule
    after: fx.GraphModule
    lefts: list[tuple[str, int]]
    products: list[tuple[int, bool]]
    rows: tuple[int, ...]
    vectors: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    adds: tuple[int, ...]
    uses_before: set[int]


def split(graph: StepGraph, dtype: torch.dtype) -> SplitStep:
    """Split a step.

    Raises:
        bptt.errors.FuseError: something in the loop is none of rows, vectors, weights and states.
    """
    return _Splitting(graph, dtype).split()


class _Splitting:
    def __init__(self, graph: StepGraph, dtype: torch.dtype) -> None:
        self.of, self.dtype = graph, dtype
        self.states = {n: i for i, n in enumerate(graph.state)}
        self.nodes = [n for n in graph.graph.nodes if n.op != "output"]
        self.depends: set[fx.Node] = set()  # on a state
        for n in self.nodes:
            if n in self.states or any(a in self.depends for a in n.all_input_nodes):
                self.depends.add(n)
        self.has_rows = {n for n in self.nodes if has_rows(graph, n)}
        reached = ancestors(graph.after) & self.depends - set(self.states)
        self.loop = [n for n in self.nodes if n in reached]
        late = self.depends - reached - set(self.states)
        self.late = [n for n in self.nodes if n in late]
        self.rows: dict[fx.Node, int] = {}
        self.vectors: dict[fx.Node, int] = {}
        self.weights: dict[fx.Node, int] = {}
        self.transposed: list[bool] = []
        self.products: list[fx.Node] = []
        self.order = {n: i for i, n in enumerate(self.nodes)}

    def split(self) -> SplitStep:
        outs, lefts = self._find_outs()
        loop = self._write_loop(outs)
        passed, after, uses_before = self._write_after(outs)
        before = self._write_before(passed)
        with_weights = [self.weights[n.args[-1]] for n in self.products]  # type: ignore[index]
        return SplitStep(
            before,
            loop,
            after,
            lefts,
            [(w, self.transposed[w]) for w in with_weights],
            tuple(map(_width, self.rows)),
            tuple(map(_size, self.vectors)),
            tuple(
                tuple(n.meta["val"].shape)[:: -1 if t else 1]
                for n, t in zip(self.weights, self.transposed, strict=True)
            ),
            tuple(map(_width, self.products)),
            uses_before,
        )

    # ------------------------------------------------------------------ what leaves the loop

    def _find_outs(self) -> tuple[list[fx.Node], list[tuple[str, int]]]:
        """Find the results of the loop that are needed outside it, and its products' left sides."""
        new = {n: i for i, n in reversed(list(enumerate(self.of.after)))}
        inside, outs = set(self.loop), list[fx.Node]()
        needed = [n for late in self.late for n in late.all_input_nodes] + self.of.outputs
        for n in self._opened(needed, inside):
            if n not in new and n not in outs:
                outs.append(n)
        lefts = []
        for n in self.loop:
            if n.target not in PRODUCTS:
                continue
            left = n.args[-2]
            assert isinstance(left, fx.Node)
            self.products.append(n)
            if left in self.states:
                lefts.append(("before", self.states[left]))
            elif left in new:
                lefts.append(("after", new[left]))
            else:
                if left not in outs:
                    outs.append(left)
                lefts.append(("out", outs.index(left)))
        return outs, lefts

    def _opened(self, nodes: Sequence[fx.Node], inside: set[fx.Node]) -> list[fx.Node]:
        """Of results of the loop that are lists, what the list is made of."""
        found: list[fx.Node] = []
        for n in nodes:
            if n in inside and isinstance(n.meta["val"], Tensor):
                found.append(n)
            elif n in inside:
                found += self._opened(n.all_input_nodes, inside)
        return found

    # ------------------------------------------------------------------------- the graphs

    def _write_loop(self, outs: list[fx.Node]) -> fx.GraphModule:
        writing = Writing(self.of)
        n, env = writing.graph.placeholder("n"), writing.env
        for node in list(self.loop):
            self._collect(node)
        for node in self.of.after:
            if node not in self.loop and node not in self.states:
                self._enter(node)
        for i, node in enumerate(self.rows):
            row = writing.graph.placeholder(f"row_{i}")
            env[node] = _unpacked(writing, row, node, n)
        for node, i in self.states.items():
            env[node] = writing.graph.placeholder(f"state_{i}")
        for i, node in enumerate(self.vectors):
            vector = writing.graph.placeholder(f"vector_{i}")
            env[node] = _as_it_was(writing, vector, node)
        vectors = {node: env[node] for node in self.vectors}
        weights = {}
        for i, (node, is_transposed) in enumerate(zip(self.weights, self.transposed, strict=True)):
            weight = writing.graph.placeholder(f"weight_{i}")
            weights[node] = writing.call(A.t.default, weight) if is_transposed else weight
        adds = [writing.graph.placeholder(f"add_{i}") for i in range(len(self.products))]
        for node in self.loop:
            if node.target in PRODUCTS:
                add = adds[self.products.index(node)]
                env[node] = self._product(writing, node, weights, add)
            elif node.target is A.native_layer_norm.default:
                env[node] = layer_norm(writing, node)
            elif node.target is A.gather.default:  # whose places are numbers there as all others
                places = writing.call(A._to_copy.default, env[node.args[2]], dtype=torch.int64)
                env[node] = writing.call(A.gather.default, env[node.args[0]], 1, places)
            else:
                self._shape_vectors(writing, node, vectors)
                writing.copy(node, n)
        after = [env[node] for node in self.of.after]
        return writing.module((after, [self._packed(writing, node, n) for node in outs]))

    def _shape_vectors(
        self, writing: Writing, user: fx.Node, vectors: dict[fx.Node, fx.Node]
    ) -> None:
        """Let the vectors [1, units] that a node takes be as many dimensions as it gives."""
        val = user.meta["val"]
        for a in user.all_input_nodes:
            if a not in vectors or not isinstance(val, Tensor):
                continue
            shape = list(a.meta["val"].shape)
            writing.env[a] = vectors[a]
            if val.dim() == 1 and _size(a) > 1:
                raise FuseError(f"bptt.fuse: {name_of(user)} gives [batch]: use keepdim=True")
            if val.dim() != 2:
                sizes = [-1, *[1] * (val.dim() - 1 - len(shape)), *shape][: val.dim()]
                writing.env[a] = writing.call(A.view.default, vectors[a], sizes)

    def _collect(self, node: fx.Node) -> None:
        """Find what a node of the loop takes from outside it."""
        if node.target in PRODUCTS:
            left, right = node.args[-2:]
            assert isinstance(left, fx.Node)
            assert isinstance(right, fx.Node)
            if right in self.depends or right in self.has_rows or left not in self.depends:
                raise FuseError(
                    f"bptt.fuse: {name_of(node)} multiplies by a matrix that changes from step to "
                    "step: in the loop over the steps, products are with parameters, or with what "
                    "is made of parameters alone"
                )
            if right not in self.weights:
                self.weights[right] = len(self.weights)
                self.transposed.append(_is_transpose(right))
            given = list(node.args[:-2])
            if given and (node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)) != (1, 1):
                raise FuseError("bptt.fuse: aten.addmm with beta or alpha: write it as a sum")
        else:
            is_gather = node.target is A.gather.default and node.args[2] not in self.depends
            words = ("index", "gather", "scatter", "embedding")
            if any(word in name_of(node) for word in words) and not is_gather:
                raise FuseError(
                    f"bptt.fuse: {name_of(node)} has no instruction in the loop: choose units of a "
                    "state by h[:, places], torch.gather, .flip, .roll or slices, at places that "
                    "do not depend on it, and choose values with torch.where"
                )
            given = leaves_of_args((node.args, node.kwargs))  # type: ignore[assignment]
        for a in given:
            if isinstance(a, fx.Node) and a not in self.depends:
                self._enter(a)

    def _enter(self, node: fx.Node) -> None:
        """Let something from outside enter the loop: as rows, or as a vector.

        Parts of a tensor enter as the whole, so that its gradient is written as a whole.
        """
        if node.target is A.expand.default and _is_vector(node.args[0], self.has_rows):
            self._enter(node.args[0])  # type: ignore[arg-type]
            self.loop.append(node)
            self.loop.sort(key=self.order.__getitem__)
            return
        whole = _whole_of(node)
        if whole is not node and whole in self.has_rows and whole.meta["val"].dim() == 2:
            self._enter(whole)
            chain = [node]
            while chain[-1].args[0] is not whole:
                chain.append(chain[-1].args[0])  # type: ignore[arg-type]
            for part in reversed(chain):
                if part not in self.loop:
                    self.loop.insert(0, part)
            self.loop.sort(key=self.order.__getitem__)
            return
        val = node.meta["val"]
        if not isinstance(val, Tensor):
            raise FuseError(f"bptt.fuse: {name_of(node)} gives a list that the loop takes")
        if node in self.has_rows:
            self._check_dtype(node, val)
            self.rows.setdefault(node, len(self.rows))
            return
        if val.numel() != (val.shape[-1] if val.dim() else 1):
            raise FuseError(
                f"bptt.fuse: {name_of(node)} gives the loop a tensor of shape {list(val.shape)} "
                "that does not change from step to step: such a one is a number, a vector of one "
                "number a unit, or the right side of a product"
            )
        self._check_dtype(node, val)
        self.vectors.setdefault(node, len(self.vectors))

    def _check_dtype(self, node: fx.Node, val: Tensor) -> None:
        is_float = val.dtype in (torch.float32, self.dtype) or (
            val.dtype.is_floating_point and not val.dim()
        )
        if not is_float and val.dtype not in (torch.bool, *INTEGERS):
            raise FuseError(
                f"bptt.fuse: {name_of(node)} gives the loop {val.dtype}, which works on "
                f"{self.dtype}: convert it with .to(x.dtype)"
            )

    def _product(
        self, writing: Writing, node: fx.Node, weights: dict[fx.Node, fx.Node], add: fx.Node
    ) -> fx.Node:
        *bias, left, right = node.args
        found = writing.call(A.mm.default, writing.env[left], weights[right])  # type: ignore[index]
        found = writing.call(A.add.Tensor, found, add)
        return writing.call(A.add.Tensor, found, writing.env[bias[0]]) if bias else found  # type: ignore[index]

    def _write_before(self, passed: list[fx.Node]) -> fx.GraphModule:
        writing = Writing(self.of)
        n = writing.graph.placeholder("n")
        for node in (*self.of.x, *self.of.own.values()):
            writing.env[node] = writing.graph.placeholder(node.name)
        early = [a for a in self.nodes if a not in self.depends and a.op != "placeholder"]
        wanted = ancestors([*self.rows, *self.vectors, *self.weights, *passed], self.depends)
        for node in early:
            if node in wanted:
                writing.copy(node, n, with_products=True)
        weights = []
        rows = [self._packed(writing, node, n) for node in self.rows]
        vectors = [self._packed(writing, node, 1) for node in self.vectors]
        for node, is_transposed in zip(self.weights, self.transposed, strict=True):
            if is_transposed and node.target is A.t.default:
                weights.append(writing.env[node.args[0]])  # type: ignore[index]
                continue
            value = writing.env[node]
            weights.append(writing.call(A.t.default, value) if is_transposed else value)
        return writing.module((rows, vectors, weights, [writing.env[a] for a in passed]))

    def _packed(self, writing: Writing, node: fx.Node, n: Any) -> Any:
        """Write something as [n, units] numbers of the loop's dtype."""
        value, val = writing.env[node], node.meta["val"]
        if val.dtype is not self.dtype:
            value = writing.call(A._to_copy.default, value, dtype=self.dtype)
        if val.dim() == 2 and n != 1:
            return value
        return writing.call(A.reshape.default, value, [n, _size(node) if n == 1 else _width(node)])

    def _write_after(self, outs: list[fx.Node]) -> tuple[list[fx.Node], fx.GraphModule, set[int]]:
        writing = Writing(self.of)
        n, env = writing.graph.placeholder("n"), writing.env
        inside = set(self.loop) - set(outs) - set(self.of.after)
        wanted = ancestors(self.of.outputs, set(outs) | set(self.of.after) | set(self.states))
        late = [a for a in self.nodes if a in wanted and (a in self.late or a in inside)]
        late = [a for a in late if a not in outs and a not in self.of.after]
        for node in (*self.of.x, *self.of.own.values()):
            env[node] = writing.graph.placeholder(node.name)
        used = [a for b in late for a in b.all_input_nodes] + self.of.outputs
        passed = [a for a in dict.fromkeys(used) if a not in self.depends and a not in env]
        for a in passed:
            env[a] = writing.graph.placeholder(a.name)
        for node, i in self.states.items():
            env[node] = writing.graph.placeholder(f"before_{i}")
        for i, node in enumerate(self.of.after):
            value = writing.graph.placeholder(f"after_{i}")
            if node in self.loop:
                env.setdefault(node, value)
        for i, node in enumerate(outs):
            value = writing.graph.placeholder(f"out_{i}")
            value = _unpacked(writing, value, node, n)
            is_other = node.meta["val"].dtype not in (self.dtype, torch.bool)
            dtype = node.meta["val"].dtype
            env[node] = writing.call(A._to_copy.default, value, dtype=dtype) if is_other else value
        for node in late:
            writing.copy(node, n, with_products=True)
        module = writing.module([env[a] for a in self.of.outputs])
        return passed, module, {i for a, i in self.states.items() if env[a].users}


def _is_vector(node: Any, has_rows: set[fx.Node]) -> bool:
    val = node.meta["val"]
    return node not in has_rows and val.dim() == 2 and val.shape[0] == 1


def _width(node: fx.Node) -> int:
    return prod(node.meta["val"].shape[1:])


def _size(node: fx.Node) -> int:
    return int(node.meta["val"].numel())


def _as_it_was(writing: Writing, value: fx.Node, node: fx.Node) -> fx.Node:
    is_bool = node.meta["val"].dtype is torch.bool
    return writing.call(A.ne.Scalar, value, 0) if is_bool else value


def _unpacked(writing: Writing, value: fx.Node, node: fx.Node, n: fx.Node) -> fx.Node:
    """Undo what was done to rows of another shape, too."""
    if len(shape := node.meta["val"].shape) != 2:
        value = writing.call(A.view.default, value, [n, *shape[1:]])
    return _as_it_was(writing, value, node)


def _is_transpose(node: fx.Node) -> bool:
    """Whether a matrix lies in memory as its transpose."""
    val = node.meta["val"]
    return bool(val.dim() == 2 and val.stride(0) == 1 and val.shape[0] > 1)


def _whole_of(node: fx.Node) -> fx.Node:
    """What a node is a part of: columns of it."""
    while node.target in _PARTS and isinstance(node.args[0], fx.Node):
        dim = _dim_of(node)
        source = node.args[0].meta["val"]
        if isinstance(source, Tensor) and (source.dim() != 2 or dim % 2 != 1):
            break
        node = node.args[0]
    return node


def _dim_of(node: fx.Node) -> int:
    if node.target is operator.getitem:
        return 1  # of what is split there
    of: Any = node.args[2 if node.target is not A.slice.Tensor else 1 :]
    return int(of[0]) if of else 0
