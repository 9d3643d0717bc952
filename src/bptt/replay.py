"""A sequence as one node of the graph, whose backward pass runs segments of it again.

The segments are those that a plan cuts, and a grid that keeps each of them short. Which are run
when, and what is stored, is a schedule on integers (:mod:`bptt.memory`); the losses of windows that
overlap travel back side by side. Whatever is stored, the same segments are differentiated in the
same order, so the gradients have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bptt.credit.plan import Block, Plan
from bptt.graphs import (
    Gradients,
    added,
    as_leaf,
    autocast_of,
    devices_of,
    leaves_of_graph,
    random_state,
    sequence_number,
    summed,
    vjp,
    vjp_together,
)
from bptt.memory import Action, Memory, Store
from bptt.nests import flatten, is_float, leaves_of, map_tensors

LONGEST = 128  # steps of a segment, where nothing is said


@dataclass
class _Graph:
    """A segment that was run with its graph: the leaves of its inputs, its outputs, its states."""

    x: list[Any]
    before: list[Any]
    y: list[Any]
    after: list[Any]


@dataclass
class _Stored:
    """All that it takes to run a segment again."""

    state: Any
    random: list[Tensor]


@dataclass
class _Flow:
    """The gradient of one block's losses, on its way back."""

    block: Block
    state: Gradients
    """With respect to the state after the segment that comes next."""


def run(
    module: Any,
    steps: Any,
    state: Any,
    plan: Plan,
    crossing: Any,
    memory: Memory | None,
    takes_carry: bool,
) -> tuple[Any, Any]:
    """Run a module over a sequence; the arguments are those of :func:`bptt.unroll`, prepared."""
    replay = Replay(module, steps, plan, crossing, memory or Store(), takes_carry)
    outputs, final = replay.forward(state)
    if not any(t.requires_grad for t in replay.tensors) or not torch.is_grad_enabled():
        return outputs, final
    y, put_y = flatten(outputs)
    s, put_s = flatten(final)
    floats = [leaf for leaf in (*y, *s) if is_float(leaf)]
    of_outputs = sum(map(is_float, y))
    joined = iter(_Node.apply(replay, of_outputs, floats, *replay.tensors))
    y = [next(joined) if is_float(v) else v for v in y]
    s = [next(joined) if is_float(v) else v for v in s]
    return put_y(y), put_s(s)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, replay: Replay, outputs: int, results: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.replay, ctx.outputs = replay, outputs
        ctx.save_for_backward(*tensors)  # so that a change before the backward pass is noticed
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors is not None
        of_outputs, of_final = list(grads[: ctx.outputs]), list(grads[ctx.outputs :])
        found = ctx.replay.backward(of_outputs, of_final, ctx.needs_input_grad[3:])
        return (None, None, None, *found)


@dataclass
class Replay:
    """One sequence's run, from the forward pass to the end of the backward pass."""

    module: Any
    steps: Any
    plan: Plan
    crossing: Any
    memory: Memory
    takes_carry: bool
    tensors: list[Tensor] = field(default_factory=list)
    """What gradients are found for: the inputs, the initial state, the parameters."""

    def __post_init__(self) -> None:
        """Cut the sequence into segments."""
        T = self.steps.T
        length = self.memory.segment or min(LONGEST, math.isqrt(T - 1) + 1)
        places = {*range(0, T, length), *(b.first for b in self.plan.blocks)}
        places |= {b.since for b in self.plan.blocks}
        if not self.takes_carry:
            places |= set(self.crossing.places())
        self.segments = list(pairwise([*sorted(places), T]))
        self.stored: dict[int, _Stored] = {}
        self.graphs: dict[int, _Graph] = {}
        self.ready: _Graph | None = None  # of segment 0, run to see how large it is
        self.together = not self.takes_carry

    # ------------------------------------------------------------------- the forward pass

    def forward(self, state: Any) -> tuple[Any, Any]:
        """Run all segments once, and keep what the schedule says."""
        self.devices = devices_of(self.steps.inputs, state)
        self.autocast = autocast_of(self.devices)
        self.initial = [s for s in leaves_of(state) if is_float(s)]
        self.x = [x for x in leaves_of(self.steps.inputs) if is_float(x)]
        self.buffers: list[Any] | None = None
        self.known = False  # the outputs, so that what is run again need not give them
        self.mark = sequence_number()
        self.random = random_state(self.devices)
        self.wanted = torch.is_grad_enabled()
        self.parameters: list[Tensor] = []
        if isinstance(self.module, nn.Module):
            self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.state = map_tensors(torch.Tensor.detach, state)
        if not self.wanted:
            for i in range(len(self.segments)):
                self._advance(i)
            return self._outputs(), self.state
        self.actions = self._schedule()
        self.next: Action | None = None
        for action in self.actions:
            if action.kind == "reverse":
                self.next = action
                break
            self._do(action)
        self.tensors = [*self.x, *self.initial, *self.parameters]
        final, self.state = self.state, None
        return self._outputs(), final

    def _schedule(self) -> Iterator[Action]:
        """Run the first segment to see how much memory its graph takes, then plan."""
        before = self.state
        size = 0
        seen: set[int] = set()

        def count(t: Tensor) -> Tensor:
            nonlocal size
            storage = t.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                size += storage.nbytes()
            return t

        seen |= {t.untyped_storage().data_ptr() for t in (*self.x, *self.parameters)}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            self.ready = self._run(0)
        after, self.state = self.state, before
        self.ready_state = after
        states = [s for s in leaves_of(after) if isinstance(s, Tensor)]
        per_state = sum(s.nbytes for s in states) + sum(r.nbytes for r in self.random)
        schedule = self.memory.schedule(
            len(self.segments), state_bytes=per_state, segment_bytes=size
        )
        return schedule.actions()

    def _do(self, action: Action) -> None:
        kind, i, to = action
        if kind == "keep":
            self.stored[i] = _Stored(self.state, self._random_before(i))
        elif kind == "restore":
            self.state = self.stored[i].state
            self._set_random(self.stored[i].random)
        elif kind == "drop":
            del self.stored[i]
        elif kind == "advance":
            for segment in range(i, to):
                self._advance(segment)
        elif kind == "record":
            self.graphs[i] = self._take_ready(i) or self._run(i)
        else:
            self._reverse(i)

    def _take_ready(self, i: int) -> _Graph | None:
        """What has been run already to see its size."""
        if i != 0 or self.ready is None:
            return None
        graph, self.ready, self.state = self.ready, None, self.ready_state
        del self.ready_state
        return graph

    def _advance(self, i: int) -> None:
        if self._take_ready(i) is not None:
            return
        first, end = self.segments[i]
        with torch.no_grad():
            y, self.state = self._call(i, self.steps.piece(first, end), self._before(i))
        self._put(first, end, y)

    def _run(self, i: int) -> _Graph:
        """Run a segment with its graph, from leaves of its own."""
        first, end = self.segments[i]
        x = map_tensors(as_leaf, self.steps.piece(first, end))
        with torch.no_grad():
            before = self._before(i)
        before = map_tensors(lambda s: as_leaf(s, bool(i) or self._initial_wanted()), before)
        with torch.enable_grad():
            y, after = self._call(i, x, before)
        self._put(first, end, y)
        graph = _Graph(*(leaves_of(v) for v in (x, before, y, after)))
        self._find_parameters(graph, i)
        self.state = map_tensors(torch.Tensor.detach, after)
        return graph

    def _initial_wanted(self) -> bool:
        return any(s.requires_grad for s in self.initial)

    def _before(self, i: int) -> Any:
        return (
            self.state if self.takes_carry else self.crossing.reset(self.segments[i][0], self.state)
        )

    def _call(self, i: int, x: Any, state: Any) -> tuple[Any, Any]:
        if not self.takes_carry:
            found: tuple[Any, Any] = self.module(x, state)
            return found
        first, end = self.segments[i]
        carry = torch.from_numpy(self.plan.carry[first:end])
        resets = self.crossing.resets
        found = self.module(
            x,
            state,
            carry=None if bool((carry == 1).all()) else carry,
            resets=None if resets is None else resets[first:end],
        )
        return found

    def _put(self, first: int, end: int, y: Any) -> None:
        """Write a segment's outputs where they belong, in the forward pass."""
        if self.known:
            return
        leaves, put = flatten(y)
        time = self.steps.time
        if self.buffers is None:
            self.put = put
            self.buffers = [self._buffer(v, end - first) for v in leaves]
        assert self.buffers is not None
        for buffer, v in zip(self.buffers, leaves, strict=True):
            if isinstance(v, Tensor):
                buffer.narrow(time, first, end - first).copy_(v.detach())

    def _buffer(self, v: Any, length: int) -> Any:
        time = self.steps.time
        if not isinstance(v, Tensor):
            return v
        if v.dim() <= time or v.shape[time] != length:
            raise ValueError(
                f"bptt.unroll: the module's output for {length} steps is {tuple(v.shape)}; "
                f"dimension {time} has to be time"
            )
        shape = [*v.shape]
        shape[time] = self.steps.T
        return v.new_empty(shape)

    def _outputs(self) -> Any:
        assert self.buffers is not None
        outputs, self.buffers = self.put(self.buffers), None
        self.known = True
        return outputs

    def _find_parameters(self, graph: _Graph, i: int) -> None:
        """Add the leaves of a graph that are nobody's: what a plain function uses."""
        if isinstance(self.module, nn.Module) and i:
            return
        known = {id(v) for v in (*graph.x, *graph.before, *self.parameters)}
        roots = [v for v in (*graph.y, *graph.after) if isinstance(v, Tensor)]
        boundary = [p.grad_fn for p in self.parameters if p.grad_fn is not None]
        found = leaves_of_graph(roots, known, boundary, self.mark)
        if found and self.tensors:
            raise RuntimeError(
                f"bptt.unroll: steps {self.segments[i]} use a parameter of shape "
                f"{tuple(found[0].shape)} that the first and last segments do not, and the "
                "module is a plain function; make it a torch.nn.Module, or use memory=None"
            )
        self.parameters += found

    # ------------------------------------------------------------------ the backward pass

    def backward(
        self, of_outputs: Gradients, of_final: Gradients, needed: tuple[bool, ...]
    ) -> Gradients:
        """Give the gradients of :attr:`tensors`."""
        if self.next is None:
            raise RuntimeError(
                "bptt.unroll: the backward pass was run a second time, but what memory= kept is "
                "used up; run unroll again, or use memory=None"
            )
        self.of_outputs = of_outputs
        self.of_x: Gradients = [
            torch.zeros_like(x) if need else None for x, need in zip(self.x, needed, strict=False)
        ]
        self.needed = needed[len(needed) - len(self.parameters) :]
        self.of_parameters: Gradients = [None] * len(self.parameters)
        self.blocks = list(self.plan.blocks) or [Block(0, self.steps.T, 0)]
        self.flows = [_Flow(self.blocks.pop(), of_final)]
        first, self.next = self.next, None
        with self._as_in_forward():
            self._reverse(first.segment)
            for action in self.actions:
                self._do(action)
        found = [*self.of_x, *self.of_initial, *self.of_parameters]
        del self.of_outputs, self.of_x, self.of_initial, self.of_parameters
        return found

    @contextmanager
    def _as_in_forward(self) -> Iterator[None]:
        """Autocast and random numbers as they were; afterwards as they are now."""
        now = random_state(self.devices)
        try:
            with ExitStack() as stack:
                for options in self.autocast:
                    stack.enter_context(torch.autocast(**options))
                yield
        finally:
            self._set_random(now)

    def _reverse(self, i: int) -> None:
        """Take the gradients of all live blocks back through a segment."""
        first, end = self.segments[i]
        graph = self.graphs.pop(i)
        time = self.steps.time
        dy = [None if d is None else d.narrow(time, first, end - first) for d in self.of_outputs]
        if not self.flows or self.flows[-1].block.first >= end:  # the block before sets out
            nothing: Gradients = [None for s in graph.after if is_float(s)]
            self.flows.append(_Flow(self.blocks.pop(), nothing))
        self._differentiate(graph, dy, first, end)
        for flow in self.flows:
            if not self.takes_carry:
                flow.state = [self.crossing.scale(first, d) for d in flow.state]
        if first == 0:
            self.of_initial = summed([f.state for f in self.flows])
        self.flows = [f for f in self.flows if f.block.since < first]

    def _differentiate(self, graph: _Graph, dy: Gradients, first: int, end: int) -> None:
        """Turn the flows' gradients into those before the segment; add up all the others."""
        x = [v for v in graph.x if is_float(v)]
        before = [v for v in graph.before if is_float(v)]
        y = [v for v in graph.y if is_float(v)]
        after = [s for s in graph.after if is_float(s)]
        total = [*dy, *summed([f.state for f in self.flows])]
        wanted = [v for v, d in zip(x, self.of_x, strict=True) if d is not None]
        wanted += [p for p, need in zip(self.parameters, self.needed, strict=True) if need]
        alone = len(self.flows) == 1
        states = [s for s in before if s.requires_grad]
        found = vjp([*y, *after], [*wanted, *(states if alone else ())], total, keep=not alone)
        if alone:
            flows = [found[len(wanted) :]]
        else:
            others: Gradients = [None] * len(y)
            each = [[*(dy if f is self.flows[-1] else others), *f.state] for f in self.flows]
            flows = self._vjp_each([*y, *after], states, each)
        for flow, gradients in zip(self.flows, flows, strict=True):
            g = iter(gradients)
            flow.state = [next(g) if s.requires_grad else None for s in before]
        rest = iter(found)
        for d in self.of_x:
            if d is not None:
                piece = next(rest)
                if piece is not None:
                    d.narrow(self.steps.time, first, end - first).copy_(piece)
        for n, need in enumerate(self.needed):
            if need:
                self.of_parameters[n] = added(self.of_parameters[n], next(rest))

    def _vjp_each(
        self, outputs: list[Tensor], inputs: list[Tensor], each: list[Gradients]
    ) -> list[Gradients]:
        """Differentiate with several gradients: side by side if the module's operations can."""
        if not inputs:
            return [[] for _ in each]
        if self.together:
            try:
                return vjp_together(outputs, inputs, each)
            except (RuntimeError, NotImplementedError):
                self.together = False  # an operation without a batched derivative: one by one
        return [vjp(outputs, inputs, gradients, keep=True) for gradients in each]

    # -------------------------------------------------------------------- random numbers

    def _random_before(self, i: int) -> list[Tensor]:
        """The generators' states before a segment; the same object while nothing is drawn."""
        if self.ready is None or i:
            now = random_state(self.devices)
            if not all(torch.equal(a, b) for a, b in zip(now, self.random, strict=True)):
                self.random = now
        return self.random

    def _set_random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, s in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(s, device)
