"""One step of a loop and its derivative, as graphs of torch's own operations.

The step is a function of tensors [B, width]: rows, which are other ones at each step; the states;
vectors, the same for all; and weights, which only matrix products use. Each product has something
of zeros added to its result, so that the gradient with respect to that is what the gradient of the
weight follows from, for all steps at once: dW = Σ deltaᵀ left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from bptt._src.engines.loops.decompositions import RULES

BATCH = 11
"""Sequences of a step while it is traced."""

Step = Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]]
"""``(rows, states, vectors, weights, adds) -> (states, outputs)``: lists of tensors."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of what a step is given, besides the number of sequences."""

    rows: tuple[int, ...]
    states: tuple[int, ...]
    vectors: tuple[int, ...] = ()
    weights: tuple[tuple[int, ...], ...] = ()
    adds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Traced:
    """A step and its derivative as one graph, and what its nodes are."""

    graph: fx.Graph
    module: fx.GraphModule
    rows: list[fx.Node]
    states: list[fx.Node]
    vectors: list[fx.Node]
    weights: list[fx.Node]
    adds: list[fx.Node]
    d_states: list[fx.Node]
    d_outputs: list[fx.Node]
    new: list[fx.Node]
    """The states after the step."""
    outputs: list[fx.Node]
    of: dict[str, list[fx.Node | None]]
    """The gradients of rows, states, vectors and adds, by that name; None: it is zero."""


def trace(step: Step, sizes: Sizes, dtype: torch.dtype) -> Traced:
    """Trace a step and its derivative.

    Raises:
        Exception: whatever the step, or tracing it, raises.
    """
    generator = torch.Generator().manual_seed(0)

    def some(width: int) -> Tensor:
        return torch.rand(BATCH, width, generator=generator, dtype=dtype, device="cpu") + 0.1

    def joint(*given: Any) -> list[Tensor | None]:
        rows, states, vectors, weights, adds = given[:5]
        d_states, d_outputs = given[5:]
        rows, states, vectors, adds = (
            [t.detach().requires_grad_() for t in each] for each in (rows, states, vectors, adds)
        )
        new, outputs = step(rows, states, vectors, weights, adds)
        pairs = [
            (t, d)
            for t, d in zip((*new, *outputs), (*d_states, *d_outputs), strict=False)
            if t.requires_grad
        ]
        wanted = [*rows, *states, *vectors, *adds]
        grads: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs and wanted:
            results, ds = zip(*pairs, strict=True)
            grads = torch.autograd.grad(results, wanted, ds, allow_unused=True)
        return [*new, *outputs, *grads]

    with quietly():
        given: list[list[Tensor]] = [
            [some(n) for n in sizes.rows],
            [some(n) for n in sizes.states],
            [some(n) for n in sizes.vectors],
            [torch.rand(s, generator=generator, dtype=dtype, device="cpu") for s in sizes.weights],
            [torch.zeros(BATCH, n, dtype=dtype, device="cpu") for n in sizes.adds],
            [some(n) for n in sizes.states],
        ]
        trial = [[t.detach().clone() for t in part] for part in given[:5]]
        _, outputs = step(*trial)
        given.append([some(t.shape[-1]) for t in outputs])
        table = _decompositions()
        module = graph_of(joint, given, table)
        if any(map(changes, module.graph.nodes)):  # in place, as autograd does it at times
            module = graph_of(joint, given)
            module = graph_of(torch.func.functionalize(module), given, table)
    _simplify(module.graph)
    holders = iter([n for n in module.graph.nodes if n.op == "placeholder"])
    rows, states, vectors, weights, adds, d_states, d_outputs = (
        [next(holders) for _ in part] for part in given
    )
    results = list(next(n for n in module.graph.nodes if n.op == "output").args[0])
    first, second = len(sizes.states), len(sizes.states) + len(given[-1])
    new, outs, grads = results[:first], results[first:second], results[second:]
    of: dict[str, list[fx.Node | None]] = {}
    for name, part in (("rows", 0), ("states", 1), ("vectors", 2), ("adds", 4)):
        of[name], grads = grads[: len(given[part])], grads[len(given[part]) :]
    return Traced(
        *(module.graph, module, rows, states, vectors, weights, adds),
        *(d_states, d_outputs, new, outs, of),
    )


def graph_of(
    function: Callable[..., Any], given: Sequence[Any], rules: dict[Any, Any] | None = None
) -> fx.GraphModule:
    """Write down what a function does, as a graph of torch's operations, by make_fx.

    Args:
        function: a function of tensors, or of lists of such.
        given: the arguments to trace it with.
        rules: torch's decompositions of operations, to apply.

    Raises:
        Exception: whatever the function, or make_fx, raises.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # One mode for all shapes in the graph; by itself make_fx makes one for each, far slower.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function, decomposition_table=rules, tracing_mode="real")(*given)


@contextmanager
def quietly() -> Iterator[None]:
    """Run a step apart from what the caller has switched on, and leave torch's generator alone."""
    before, _apart.is_on = is_apart(), True
    try:
        with (
            _disable_current_modes(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            yield
    finally:
        _apart.is_on = before


_apart = threading.local()


def is_apart() -> bool:
    """Whether a step runs to be known, and not for its caller: nobody is to listen to it."""
    return getattr(_apart, "is_on", False)


def changes(node: fx.Node) -> bool:
    """Whether an operation works in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


_MORE = """
addmm addcmul addcdiv lerp rsub split split_with_sizes native_layer_norm native_layer_norm_backward
var_mean var std _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data
tanh_backward sigmoid_backward threshold_backward gelu gelu_backward silu
silu_backward softplus softplus_backward elu elu_backward leaky_relu leaky_relu_backward hardtanh
hardtanh_backward hardsigmoid hardsigmoid_backward mish mish_backward log_sigmoid_forward
log_sigmoid_backward clamp linear_backward select_backward slice_backward squeeze t hardswish
hardswish_backward clamp_min clamp_max softshrink frac logaddexp xlogy square
"""


@lru_cache(maxsize=1)
def _decompositions() -> dict[Any, Any]:
    """Return torch's rules that replace an operation by simpler ones; versions have others."""
    from torch import _decomp

    more = [getattr(torch.ops.aten, n) for n in _MORE.split() if hasattr(torch.ops.aten, n)]
    # The table of core_aten_decompositions, which itself imports torch.export, without the
    # operations that autograd has decomposed before anything is traced.
    core = getattr(_decomp, "_core_aten_decompositions_post_autograd", None)
    table = dict((core or _decomp.core_aten_decompositions)())
    table.update(_decomp.get_decompositions(more))
    table.update(RULES)
    return table


def _simplify(graph: fx.Graph) -> None:
    """Take out what changes nothing, and what is computed twice."""
    A = torch.ops.aten
    same = (A.detach.default, A.alias.default, A.clone.default, A.lift_fresh_copy.default)
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" or node.op == "output":
            continue
        if node.target in same:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        key = (node.op, node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _key(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return tuple(map(_key, x))
    if isinstance(x, (int, float)):  # 1 is not 1.0, nor True
        return type(x), x
    return x if isinstance(x, (fx.Node, str)) else repr(x)


def ancestors(
    roots: Sequence[Any], stop: set[fx.Node] | frozenset[fx.Node] = frozenset()
) -> set[fx.Node]:
    """Return the nodes that some need, with them; what some of them need is left out."""
    seen: set[fx.Node] = set()
    todo = [r for r in roots if isinstance(r, fx.Node)]
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            if n not in stop:
                todo += n.all_input_nodes
    return seen
