"""Parts of a traced step, written down as graphs of their own for any number of rows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from bptt._src.fuse.products import product
from bptt._src.fuse.tracing import BATCHES, StepGraph
from bptt.errors import FuseError

A = torch.ops.aten
PRODUCTS = {A.mm.default, A.addmm.default}


class Writing:
    """Writes a part of a graph down, with the number of rows as a variable n."""

    def __init__(self, of: StepGraph) -> None:
        self.of, self.graph = of, fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self._sizes: dict[tuple[int, int], Any] = {}

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def copy(self, node: fx.Node, n: fx.Node, with_products: bool = False) -> None:
        """Write a node, for n rows instead of those that it was traced with."""
        if node.op == "get_attr":
            self.env[node] = self.graph.get_attr(str(node.target))
            return
        source = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(self.env.get(source), tuple):  # type: ignore[arg-type]
            self.env[node] = self.env[source][node.args[1]]  # type: ignore[index]
            return
        there = self.of.twin[node]
        args = self._resized(node.args, there.args, n)
        kwargs = self._resized(node.kwargs, there.kwargs, n)
        if with_products and node.target in PRODUCTS and not kwargs:
            *bias, left, right = args
            of_right: Any = node.args[-1]
            if of_right.target is A.t.default and of_right.args[0] in self.env:
                right = self.env[of_right.args[0]]
                bias = [*(bias or [None]), True]
            self.env[node] = self.call(product, left, right, *bias)
            self.env[node].meta["of"] = node
            return
        self.env[node] = self.call(node.target, *args, **kwargs)  # type: ignore[arg-type]

    def _resized(self, here: Any, there: Any, n: fx.Node) -> Any:
        if isinstance(here, fx.Node):
            return self.env[here]
        if isinstance(here, dict):
            return {k: self._resized(v, there[k], n) for k, v in here.items()}
        if isinstance(here, list | tuple):
            return [self._resized(a, b, n) for a, b in zip(here, there, strict=True)]
        if here == there or here is there:
            return here
        if type(here) is not int:
            raise FuseError(
                f"bptt.fuse: the step uses the number {here} at one call and {there} at another: "
                "what changes from step to step belongs into x_t or the state, and what depends on "
                "the size of the batch cannot be fused"
            )
        slope, rest = divmod(there - here, BATCHES[1] - BATCHES[0])
        offset = here - slope * BATCHES[0]
        if rest:
            raise FuseError(f"bptt.fuse: a size of {here} depends on the batch in an odd way")
        key = slope, offset
        if key not in self._sizes:
            size = n if slope == 1 else self.call(operator.mul, n, slope)
            self._sizes[key] = self.call(operator.add, size, offset) if offset else size
        return self._sizes[key]

    def module(self, output: Any) -> fx.GraphModule:
        self.graph.output(output)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.of.module, self.graph)


def layer_norm(writing: Writing, node: fx.Node) -> tuple[Any, ...]:
    """Write a layer norm over the units: (y, mean, 1 / standard deviation)."""
    x, shape, weight, bias, eps = node.args
    if len(shape) != 1:  # type: ignore[arg-type]
        raise FuseError(f"bptt.fuse: aten.native_layer_norm over {shape}: the loop has one, units")
    mean = writing.call(A.mean.dim, writing.env[x], [-1], True)  # type: ignore[index]
    d = writing.call(A.sub.Tensor, writing.env[x], mean)  # type: ignore[index]
    variance = writing.call(A.mean.dim, writing.call(A.mul.Tensor, d, d), [-1], True)
    scale = writing.call(A.rsqrt.default, writing.call(A.add.Tensor, variance, eps))
    y = writing.call(A.mul.Tensor, d, scale)
    if weight is not None:
        y = writing.call(A.mul.Tensor, y, writing.env[weight])  # type: ignore[index]
    if bias is not None:
        y = writing.call(A.add.Tensor, y, writing.env[bias])  # type: ignore[index]
    return y, mean, scale
