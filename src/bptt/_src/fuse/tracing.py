"""One step of a cell as a graph of torch's operations, which holds for any number of rows.

It is traced at two sizes of the batch. Where the two graphs differ in a whole number, that number
depends on the batch; where they differ in anything else, so does the step, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from bptt._src.engines.loops.step import changes, graph_of, quietly
from bptt._src.fuse.choosing import choose
from bptt._src.fuse.separating import separate
from bptt._src.fuse.simpler import Simpler
from bptt._src.fuse.step import CellStep
from bptt.errors import FuseError

A = torch.ops.aten
BATCHES = (11, 13)
"""Two sizes of the batch."""


@dataclass(frozen=True)
class Example:
    """What a cell is given at one step, and what it owns."""

    x: list[Tensor]
    state: list[Tensor]
    own: dict[str, Tensor]

    def to(self, dtype: torch.dtype) -> Example:
        """Return its floating-point numbers in this dtype."""

        def of(t: Tensor) -> Tensor:
            t = t.detach()
            return t.to(dtype) if t.is_floating_point() else t

        own = {name: of(t) for name, t in self.own.items()}
        return Example([of(t) for t in self.x], [of(t) for t in self.state], own)

    def of_batch(self, batch: int, seed: int = 0) -> Example:
        """Return other inputs and states, like those, for so many sequences."""
        generator = torch.Generator().manual_seed(seed)
        x = [_like(t, batch, generator) for t in self.x]
        state = [_like(t, batch, generator) for t in self.state]
        return Example(x, state, self.own)


def _like(t: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Rows like those of t: its own, with noise where they are floating-point numbers."""
    if not len(t):
        t = t.new_zeros((1, *t.shape[1:]))
    rows = t.detach()[torch.randint(len(t), (batch,), generator=generator)]
    if not t.is_floating_point():
        return rows
    size = float(t.detach().abs().mean()) if t.numel() else 0.0
    noise = torch.randn(rows.shape, generator=generator, dtype=t.dtype) * 0.5 * (size or 1.0)
    found = rows + noise
    return found.abs() if t.numel() and size and bool((t >= 0).all()) else found


@dataclass(frozen=True)
class StepGraph:
    """A step, traced.

    Attributes:
        graph: at the first of the :data:`BATCHES`.
        module: what it runs in: the tensors that are neither given nor owned.
        twin: the node of the second graph for each of the first.
        x, state: the placeholders of inputs and states.
        own: those of what the cell owns, by name.
        outputs, after: what the step gives.
    """

    graph: fx.Graph
    module: fx.GraphModule
    twin: dict[fx.Node, fx.Node]
    x: list[fx.Node]
    state: list[fx.Node]
    own: dict[str, fx.Node]
    outputs: list[fx.Node]
    after: list[fx.Node]

    def operations(self) -> list[Any]:
        """Return each operation and its operands; of floats and dtypes only their types."""
        return [
            (name_of(n), *map(_of_any_dtype, leaves_of_args((n.args, n.kwargs))))
            for n in self.graph.nodes
            if n.op == "call_function"
        ]


def trace_step(step: CellStep, example: Example) -> StepGraph:
    """Trace a step.

    Raises:
        bptt.errors.FuseError: it cannot be traced, draws random numbers, changes what it is given,
            or does something else for another batch.
    """
    modules, outputs = [], []
    for n in BATCHES:
        modules.append(_traced(step, example.of_batch(n)))
        outputs.append(step.output)
    if outputs[0] != outputs[1]:
        raise FuseError(
            "bptt.fuse: the output of the step has another form, or another number in it that is "
            f"no tensor, for a batch of {BATCHES[0]} than for one of {BATCHES[1]}"
        )
    first, second = (list(m.graph.nodes) for m in modules)
    for a, b in zip(first, second, strict=False):
        if (a.op, a.target, len(a.args)) != (b.op, b.target, len(b.args)) and a.op != "output":
            raise FuseError(
                f"bptt.fuse: the step does something else for a batch of {BATCHES[0]} "
                f"({name_of(a)}) than for one of {BATCHES[1]} ({name_of(b)})"
            )
    if len(first) != len(second):
        raise FuseError("bptt.fuse: the step does more for some sizes of the batch than for others")
    for node in first:
        _check_operation(node, modules[0])
    for a, b in zip(first, second, strict=True):
        _check_numbers(a, b)
    holders = iter([n for n in first if n.op == "placeholder"])
    x, state = ([next(holders) for _ in part] for part in (example.x, example.state))
    own = {name: next(holders) for name in example.own}
    results: Any = first[-1].args[0]
    at = len(results) - len(state)
    for n, t in zip(results[at:], example.state, strict=True):
        _check_state(n, t)
    twin = dict(zip(first, second, strict=True))
    graph = modules[0].graph
    return StepGraph(graph, modules[0], twin, x, state, own, [*results[:at]], [*results[at:]])


def _traced(step: CellStep, example: Example) -> fx.GraphModule:
    names = list(example.own)

    def run(x: list[Tensor], state: list[Tensor], own: list[Tensor]) -> Any:
        outputs, after = step(x, state, dict(zip(names, own, strict=True)))
        return [*outputs, *after]

    def given() -> tuple[list[Tensor], ...]:
        return (
            [t.clone() for t in example.x],
            [t.clone() for t in example.state],
            [t.detach().clone() for t in example.own.values()],
        )

    with quietly():
        run(*given())  # its own errors, before those of tracing
        try:
            with functions_as_nodes(), Simpler():
                module = graph_of(run, given())
            has_functions = any(is_function(n) for n in module.graph.nodes)
            if any(map(changes, module.graph.nodes)) and not has_functions:
                module = graph_of(torch.func.functionalize(module), given())
                _copy_as_sources(module.graph)
        except FuseError:
            raise
        except Exception as e:
            raise FuseError(f"bptt.fuse: the step cannot be traced: {_reason(e)}") from e
        module.graph.eliminate_dead_code()
        holders = [n for n in module.graph.nodes if n.op == "placeholder"]
        states = holders[len(example.x) :][: len(example.state)]
        chooses = choose(module.graph, states)
        if separate(module.graph, states) or chooses:
            module.recompile()
            with functions_as_nodes():
                module = graph_of(module, given())
            module.graph.eliminate_dead_code()
    return module


def _copy_as_sources(graph: fx.Graph) -> None:
    """Put what is copied into a tensor in its place: autograd knows no copies out of place."""
    for node in graph.nodes:
        if node.target is A.copy.default:
            to, source = node.args
            shape = list(to.meta["val"].shape)
            if shape == list(source.meta["val"].shape):
                node.target, node.args = A.clone.default, (source,)
            else:
                with graph.inserting_before(node):
                    like = graph.call_function(A.zeros_like.default, (to,))
                node.target, node.args = A.add.Tensor, (like, source)


def _reason(e: Exception) -> str:
    line = (str(e).strip().splitlines() or [""])[0]
    if "get value out of a tracing tensor" in line or "data-dependent" in line.lower():
        return (
            "it takes the value of a tensor into Python (if, float(), .item()), which may be "
            "another at each step: choose with torch.where"
        )
    return f"{type(e).__name__}: {line}"


# ------------------------------------------------------------------------ what is refused


def name_of(node: fx.Node) -> str:
    """Return what an operation is called, as ``"aten.softmax"``."""
    target: Any = node.target
    if is_function(node):
        return str(target.of.__name__)
    return str(getattr(target, "overloadpacket", None) or getattr(target, "__name__", target))


def _check_operation(node: fx.Node, module: fx.GraphModule) -> None:
    if node.op == "get_attr" and getattr(module, str(node.target)).requires_grad:
        raise FuseError(
            "bptt.fuse: the cell uses a tensor that needs a gradient and is no parameter of it: "
            "make it an nn.Parameter of an nn.Module"
        )
    if node.op != "call_function":
        return
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        raise FuseError(
            f"bptt.fuse: {name_of(node)} draws random numbers at each step: give them to the "
            "cell as part of x_t, noise and masks alike; or drop units of the inputs before the "
            "fused module, of the outputs after it, or call .eval()"
        )
    if changes(node):
        raise FuseError(
            f"bptt.fuse: {name_of(node)} changes a tensor in place that the cell was given, owns, "
            "or hands to an autograd.Function: return a new one instead"
        )


def _check_numbers(node: fx.Node, other: fx.Node) -> None:
    """Refuse numbers that depend on the batch, where they are not sizes."""
    schema = getattr(node.target, "_schema", None)
    of_numbers = (
        []
        if schema is None
        else [a.type.kind() in ("NumberType", "TensorType") for a in schema.arguments]
    )
    for here, there, is_number in zip(node.args, other.args, of_numbers, strict=False):
        if is_number and here != there and not isinstance(here, fx.Node):
            raise FuseError(
                f"bptt.fuse: {name_of(node)} uses the number {here} at one call and {there} at "
                "another: what changes from step to step belongs into x_t or the state, and what "
                "depends on the size of the batch cannot be fused"
            )


def _check_state(node: Any, before: Tensor) -> None:
    if not isinstance(node, fx.Node):
        raise FuseError("bptt.fuse: the state after a step is no tensor")
    after = node.meta["val"]
    if after.shape != (BATCHES[0], *before.shape[1:]) or after.dtype != before.dtype:
        raise FuseError(
            f"bptt.fuse: the state after a step is {after.dtype} of shape "
            f"[batch, {', '.join(map(str, after.shape[1:]))}], before it {before.dtype} of "
            f"[batch, {', '.join(map(str, before.shape[1:]))}]"
        )


# ---------------------------------------------------------------- functions of autograd


class _Apply:
    """A call of a ``torch.autograd.Function`` as what a node of a graph calls."""

    def __init__(self, of: type) -> None:
        self.of = of
        self.__name__ = self.__qualname__ = of.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.of.apply(*args, **kwargs)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Apply) and self.of is other.of

    def __hash__(self) -> int:
        return hash(self.of)


def is_function(node: fx.Node) -> bool:
    """Whether it is a call of a ``torch.autograd.Function`` of the user's."""
    return isinstance(node.target, _Apply)


@contextmanager
def functions_as_nodes() -> Iterator[None]:
    """Record calls of the user's autograd Functions as what they are, with their own gradients.

    make_fx sees through them to what their forward does, whose gradient is another one.
    """
    from torch.fx.experimental.proxy_tensor import (
        disable_proxy_modes_tracing,
        get_proxy_mode,
        track_tensor_tree,
    )

    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        of_cls: Callable[..., Any] = original.__get__(None, cls)
        mode = get_proxy_mode()
        if mode is None:
            return of_cls(*args, **kwargs)
        tracer: Any = mode.tracer
        given, named = pytree.tree_map(tracer.unwrap_proxy, (args, kwargs))
        with disable_proxy_modes_tracing():
            value = of_cls(*args, **kwargs)
        proxy = tracer.create_proxy("call_function", _Apply(cls), given, named)
        return track_tensor_tree(value, proxy, constant=None, tracer=tracer)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def _of_any_dtype(given: Any) -> Any:
    if isinstance(given, fx.Node):
        return given.name
    return given if isinstance(given, int | str) else type(given)


def leaves_of_args(args: Any) -> Sequence[Any]:
    """Return what an operation is given, lists opened."""
    return pytree.tree_leaves(args)
