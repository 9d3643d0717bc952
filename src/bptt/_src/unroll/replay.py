"""A sequence as one node of the graph, whose backward pass runs segments of it again.

The segments are the pieces that a plan cuts, further divided by a grid that keeps each of them
short. A schedule on integers (:mod:`bptt.memory`) decides which are run when, and what is stored;
the losses of overlapping windows travel back side by side. Whatever is stored, the same segments
are differentiated in the same order, so the gradients have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bptt._src.autograd import (
    Gradients,
    added,
    as_leaf,
    autocast_as,
    autocast_of,
    devices_of,
    leaves_of_graph,
    sequence_number,
    summed,
    vjp,
    vjp_together,
)
from bptt._src.credit.plan import Block, Plan
from bptt._src.layout import Layout
from bptt._src.pytree import flatten, is_float, leaves_of, map_tensors
from bptt._src.unroll.boundary import Boundaries
from bptt._src.unroll.buffers import modules_in
from bptt._src.unroll.calls import (
    RETURNS,
    check_batch,
    check_output,
    check_visible,
    is_detached,
    pair,
    refuse_detached,
)
from bptt._src.unroll.circumstances import Circumstances
from bptt._src.unroll.repeated import Repeated
from bptt._src.unroll.slots import Graph, Slots, Stored, measuring
from bptt.memory import Action, Memory

LONGEST = 128  # default limit for the steps of a segment


@dataclass
class _Flow:
    """The gradient of one block's losses on its way back."""

    block: Block
    state: Gradients
    """The gradient with respect to the state after the next segment to be reversed."""


@dataclass
class Replay:
    """One run of a sequence, from the forward pass to the end of the backward pass."""

    module: Any
    layout: Layout
    inputs: Any
    plan: Plan
    crossing: Boundaries
    memory: Memory
    takes_carry: bool
    dim_is_given: bool
    """Whether the caller gave the batch dimension of the state."""
    tensors: list[Tensor] = field(default_factory=list)
    """The tensors to find gradients for: the inputs, the initial state, the parameters."""
    constants: list[Tensor] = field(default_factory=list)
    """Other tensors that the module is given."""

    def __post_init__(self) -> None:
        """Cut the sequence into segments."""
        T = self.layout.steps
        length = self.memory.segment or min(LONGEST, math.isqrt(T - 1) + 1)
        places = {*range(0, T, length), *(b.first for b in self.plan.blocks)}
        places |= {b.since for b in self.plan.blocks}
        if not self.takes_carry:
            places |= set(self.crossing.places())
        self.segments = list(pairwise([*sorted(places), T]))
        self.stored: dict[int, Stored] = {}
        self.graphs: dict[int, Graph] = {}
        self.ready: Graph | None = None  # segment 0, run first to measure its size
        self.together = not self.takes_carry
        self.recomputes = True  # until the schedule says otherwise
        self.repeated = Repeated()

    # ------------------------------------------------------------------- the forward pass

    def forward(self, state: Any) -> tuple[Any, Any]:
        """Run all segments once, and keep what the schedule says."""
        devices, modules = devices_of(self.inputs, state), modules_in(self.module)
        self.around = Circumstances(modules, devices)
        self.autocast = autocast_of(devices)
        self.initial = [s for s in leaves_of(state) if is_float(s)]
        self.x = [x for x in leaves_of(self.inputs) if is_float(x)]
        self.joined: list[Any] | None = None
        self.known = False  # whether the outputs are known and need not be written again
        self.wanted = torch.is_grad_enabled()
        self._look_at_module()
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
        self.tensors = [*self.x, *self.initial, *self.owners]
        given = [*leaves_of(self.inputs), *leaves_of(state), self.crossing.resets]
        self.constants += [v for v in given if isinstance(v, Tensor) and not is_float(v)]
        if self.recomputes:
            self.around.settle()
        final, self.state = self.state, None
        return self._outputs(), final

    def _look_at_module(self) -> None:
        """Record what the module computes with, so that the backward pass uses the same."""
        self.parameters: list[Tensor] = []  # in the segments' graphs
        self.owners: list[Tensor] = []  # the caller's
        self.named: dict[str, Tensor] = {}
        if isinstance(self.module, nn.Module):
            # A tensor that is not a leaf was put there by torch.func.functional_call.
            leaves: dict[Tensor, Tensor] = {
                p: p if p.is_leaf else as_leaf(p) for p in self.module.parameters()
            }
            self.owners = [p for p in leaves if p.requires_grad]
            self.parameters = [leaves[p] for p in self.owners]
            self.constants += [p for p in leaves if not p.requires_grad]
            named = self.module.named_parameters(remove_duplicate=False)
            self.named = {n: leaves[p] for n, p in named}
        self.replaced = self._is_replaced()

    def _is_replaced(self) -> bool:
        """Whether the module's parameters are now others than those the segments must use."""
        if not isinstance(self.module, nn.Module):
            return False
        named = self.module.named_parameters(remove_duplicate=False)
        return any(self.named.get(n) is not p for n, p in named)

    def _schedule(self) -> Iterator[Action]:
        """Run the first segment to measure the memory of its graph, then plan."""
        before = self.state
        with measuring([*self.x, *self.parameters]) as size:
            self.ready = self._run(0)
        after, self.state = self.state, before
        self.ready_state = after
        states = [s for s in leaves_of(after) if isinstance(s, Tensor)]
        per_state = sum(v.nbytes for v in (*states, *self.around.random, *self.around.changed()))
        schedule = self.memory.schedule(
            len(self.segments), state_bytes=per_state, segment_bytes=size()
        )
        self.recomputes = schedule.states is not None
        self.slots = Slots(after, min(schedule.states or 0, len(self.segments)))
        return schedule.actions()

    def _do(self, action: Action) -> None:
        kind, i, to = action
        if kind == "keep":
            if self.ready is None or i:  # otherwise segment 0 has been run already
                self.around.note()
            self.stored[i] = self.slots.store(self.state, *self.around.noted)
        elif kind == "restore":
            self.state = self.stored[i].state
            self.around.restore(self.stored[i].random, self.stored[i].buffers)
        elif kind == "drop":
            self.slots.drop(self.stored.pop(i))
        elif kind == "advance":
            for segment in range(i, to):
                self._advance(segment)
        elif kind == "record":
            self.graphs[i] = self._take_ready(i) or self._run(i)
        else:
            self._reverse(i)

    def _take_ready(self, i: int) -> Graph | None:
        """Take the segment that was run to measure its size, if it is this one."""
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
            y, self.state = self._call(
                i, self.layout.piece(self.inputs, first, end), self._before(i)
            )
        self._put(first, end, y)

    def _run(self, i: int) -> Graph:
        """Run a segment with its graph, from new leaves."""
        first, end = self.segments[i]
        x = map_tensors(as_leaf, self.layout.piece(self.inputs, first, end))
        with torch.no_grad():
            before = self._before(i)
        wanted = bool(i) or any(s.requires_grad for s in self.initial)
        before = map_tensors(lambda s: as_leaf(s, wanted), before)
        with torch.enable_grad():
            mark = sequence_number()
            y, after = self._call(i, x, before)
        self._put(first, end, y)
        self._refuse_detached(i, x, before, (y, after))
        graph = Graph(*(leaves_of(v) for v in (x, before, y, after)))
        self._find_parameters(graph, i, mark)
        self.state = map_tensors(torch.Tensor.detach, after)
        return graph

    def _before(self, i: int) -> Any:
        if self.takes_carry:
            return self.state
        first, _ = self.segments[i]
        if not self.known:
            self.crossing.check(first, self.state)
        return self.crossing.reset(first, self.state)

    def _call(self, i: int, x: Any, state: Any) -> tuple[Any, Any]:
        # Integers may be changed in place, such as a counter; the stored ones must not change.
        state = map_tensors(lambda s: s if is_float(s) else s.clone(), state)
        crossing: dict[str, Any] = {}
        if self.takes_carry:
            first, end = self.segments[i]
            crossing = self.crossing.handed_on(self.layout, first, end)
        with autocast_as(self.autocast):
            if self.replaced:
                found = functional_call(self.module, self.named, (x, state), crossing)
            else:
                found = self.module(x, state, **crossing)
        y, after = pair(found, *RETURNS)
        if self.wanted and self.recomputes:
            (self.repeated.compare if self.known else self.repeated.note)(i, (y, after))
        if i == 0 and not self.known:
            length = self.segments[0][1]
            if not self.takes_carry and len(self.segments) > 1:
                check_visible(after)
            check_batch(self.module, after, self.layout, length, self.dim_is_given)
        return y, after

    def _refuse_detached(self, i: int, x: Any, before: Any, found: tuple[Any, Any]) -> None:
        """Refuse a state without a graph if a gradient is to cross into the segment."""
        _, end = self.segments[i]
        if end == self.layout.steps or self.known or not is_detached(*found):
            return
        if self.takes_carry or self.crossing.passes(end):
            run = partial(self._call, i)
            refuse_detached(run, self.around.buffers, x, before, "a single call of it")

    def _put(self, first: int, end: int, y: Any) -> None:
        """Write a segment's outputs in their place, in the forward pass."""
        if self.known:
            return
        time = self.layout.time
        check_output(y, end - first, time)
        leaves, put = flatten(y)
        if self.joined is None:
            self.put = put
            self.joined = [self._buffer(v) for v in leaves]
        assert self.joined is not None
        for buffer, v in zip(self.joined, leaves, strict=True):
            if isinstance(v, Tensor):
                buffer.narrow(time, first, end - first).copy_(v.detach())

    def _buffer(self, v: Any) -> Any:
        if not isinstance(v, Tensor):
            return v
        shape = [*v.shape]
        shape[self.layout.time] = self.layout.steps
        return v.new_empty(shape)

    def _outputs(self) -> Any:
        assert self.joined is not None
        outputs, self.joined = self.put(self.joined), None
        self.known = True
        return outputs

    def _find_parameters(self, graph: Graph, i: int, mark: int) -> None:
        """Add the unknown leaves of a graph: tensors that a plain function uses."""
        known = {id(v) for v in (*graph.x, *graph.before, *self.parameters)}
        roots = [v for v in (*graph.y, *graph.after) if isinstance(v, Tensor)]
        found = leaves_of_graph(roots, known, mark)
        if found and self.tensors:
            first, end = self.segments[i]
            raise RuntimeError(
                f"bptt.unroll: the steps {first} to {end - 1} use a tensor of shape "
                f"{tuple(found[0].shape)} that requires a gradient, is not a parameter of the "
                "module, and was not used in the first and last segments; make it an "
                "nn.Parameter of an nn.Module, or use memory=None"
            )
        self.parameters += found
        self.owners += found

    # ------------------------------------------------------------------ the backward pass

    def backward(
        self, of_outputs: Gradients, of_final: Gradients, needed: tuple[bool, ...]
    ) -> Gradients:
        """Compute the gradients of :attr:`tensors`."""
        if self.next is None:
            raise RuntimeError(
                "bptt.unroll: the backward pass was run a second time, but what memory= kept has "
                "been freed; run unroll again, or use memory=None"
            )
        self.of_outputs = of_outputs
        self.of_x: Gradients = [
            torch.zeros_like(x) if need else None for x, need in zip(self.x, needed, strict=False)
        ]
        self.needed = needed[len(needed) - len(self.parameters) :]
        self.of_parameters: Gradients = [None] * len(self.parameters)
        self.blocks = list(self.plan.blocks) or [Block(0, self.layout.steps, 0)]
        self.flows = [_Flow(self.blocks.pop(), of_final)]
        first, self.next = self.next, None
        self.replaced = self._is_replaced()
        with self.around.again():
            self._reverse(first.segment)
            for action in self.actions:
                self._do(action)
        self.repeated.refuse_strayed(self.segments)
        found = [*self.of_x, *self.of_initial, *self.of_parameters]
        del self.of_outputs, self.of_x, self.of_initial, self.of_parameters
        return found

    def _reverse(self, i: int) -> None:
        """Take the gradients of all active blocks back through a segment."""
        first, end = self.segments[i]
        graph = self.graphs.pop(i)
        time = self.layout.time
        dy = [None if d is None else d.narrow(time, first, end - first) for d in self.of_outputs]
        if not self.flows or self.flows[-1].block.first >= end:  # the block before starts here
            nothing: Gradients = [None for s in graph.after if is_float(s)]
            self.flows.append(_Flow(self.blocks.pop(), nothing))
        self._differentiate(graph, dy, first, end)
        for flow in self.flows:
            if not self.takes_carry:
                flow.state = [self.crossing.scale(first, d) for d in flow.state]
        if first == 0:
            self.of_initial = summed([f.state for f in self.flows])
        self.flows = [f for f in self.flows if f.block.since < first]

    def _differentiate(self, graph: Graph, dy: Gradients, first: int, end: int) -> None:
        """Turn the flows' gradients into those before the segment; accumulate all the others."""
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
                    d.narrow(self.layout.time, first, end - first).copy_(piece)
        for n, need in enumerate(self.needed):
            if need:
                self.of_parameters[n] = added(self.of_parameters[n], next(rest))

    def _vjp_each(
        self, outputs: list[Tensor], inputs: list[Tensor], each: list[Gradients]
    ) -> list[Gradients]:
        """Differentiate with several gradients, batched if the module's operations allow it."""
        if not inputs:
            return [[] for _ in each]
        if self.together:
            found = vjp_together(outputs, inputs, each)
            if found is not None:
                return found
            self.together = False  # from now on one by one
        return [vjp(outputs, inputs, gradients, keep=True) for gradients in each]
