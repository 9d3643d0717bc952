"""A step as two programs: the loop over the steps, and that of the deltas back through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from bptt._src.engines.loops.lowering import Lowering, is_costly
from bptt._src.engines.loops.operations import BINARY, UNARY
from bptt._src.engines.loops.program import Program, Value, Writer, rows, state, vector
from bptt._src.engines.loops.shapes import Lowered, NotAProgram, Number, width_of
from bptt._src.engines.loops.step import Sizes, Step, ancestors, trace


@dataclass(frozen=True)
class Columns:
    """Where something is found: columns of a tensor."""

    name: str
    offset: int = 0


class Loop:
    """A step, to be run over sequences by the native library, and back.

    What a run is given and gives are tensors by name, of N rows (all steps of all sequences) where
    nothing else is said:

    ====================  ===========================================================
    names of ``places``    what the rows, vectors (one row) and weights are
    ``of vectors``         what :meth:`of_vectors` computes of those, if anything
    ``after 0``, ...       the states after each step
    ``before 0``, ...      the states before each step; backward
    ``out 0``, ...         the step's other results
    ``kept``               what backward needs besides, [N, ``kept``]
    ``d after 0``, ...     gradients of ``after``; backward, where they are given
    ``d out 0``, ...       gradients of ``out``; backward
    ``of ...``             gradients of the rows, vectors and adds, for each row; backward
    ====================  ===========================================================

    Gradients that are the same tensor, as those of what is added up, are written once where
    :attr:`shared` says so.
    """

    def __init__(
        self,
        step: Step,
        sizes: Sizes,
        dtype: torch.dtype,
        *,
        row_places: Sequence[Columns],
        vector_places: Sequence[Columns] = (),
        weights: Sequence[str] = (),
        add_places: Sequence[Columns] = (),
        shares: bool = False,
    ) -> None:
        """Trace the step.

        Args:
            step: what to do with the tensors of a step.
            sizes: of those tensors.
            dtype: of all of them.
            row_places: where each of the rows is found; its gradient is found in the same columns
                of ``of`` and that name.
            vector_places: likewise of each vector.
            weights: the names of the weights.
            add_places: where the gradient of what is added to each product goes.
            shares: whether :attr:`shared` may leave places out.

        Raises:
            NotAProgram: it does what programs cannot.
        """
        self.sizes, self.dtype = sizes, dtype
        self._traced = trace(step, sizes, dtype)
        self._rows, self._vectors, self._weights = row_places, vector_places, weights
        self._adds = add_places
        traced = self._traced
        self.outputs = [width_of(n) for n in traced.outputs]
        self._of_vectors = self._find_of_vectors()
        self._kept = self._choose_kept()
        offset, places = 0, dict[fx.Node, Value]()
        for node in self._kept:
            places[node] = rows("kept", width_of(node), offset)
            offset += width_of(node)
        self._kept_places, self.kept = places, offset
        self.uses_rows = any(n in self._leaves_back for n in traced.rows)
        """Whether backward needs the rows."""
        self.shared = self._find_shared() if shares else {}
        """Names of gradients that are not written, as ``"add 0"``: which others they are."""

    # ----------------------------------------------------------------- once, before the loop

    def _find_of_vectors(self) -> dict[fx.Node, bool]:
        """Find what depends on vectors alone; true where something else reads it."""
        vectors, found = set(self._traced.vectors), dict[fx.Node, bool]()
        for n in self._traced.graph.nodes:
            sources = n.all_input_nodes
            is_elementwise = n.op == "call_function" and (n.target in UNARY or n.target in BINARY)
            if is_elementwise and sources and all(s in vectors or s in found for s in sources):
                found[n] = True
        return {n: any(u not in found for u in n.users) for n in found}

    def of_vectors(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Compute ``of vectors``, [1, ...], from the vectors by their names; None: there is none.

        It is the same at each step, as an eigenvalue that is computed from the units' weights.
        """
        if not self._of_vectors:
            return None
        traced, values = self._traced, dict[fx.Node, Tensor]()
        for n, place, width in zip(traced.vectors, self._vectors, self.sizes.vectors, strict=True):
            values[n] = tensors[place.name][:, place.offset : place.offset + width]
        for n in self._of_vectors:
            target: Any = n.target
            values[n] = target(
                *fx.map_arg(n.args, values.__getitem__), **fx.map_arg(n.kwargs, values.__getitem__)
            )
        return torch.cat([values[n] for n, is_read in self._of_vectors.items() if is_read], 1)

    # ------------------------------------------------------------------------- what is kept

    @cached_property
    def _forward_nodes(self) -> set[fx.Node]:
        return ancestors([*self._traced.new, *self._traced.outputs])

    @cached_property
    def _grads(self) -> list[fx.Node]:
        of = self._traced.of
        return [n for part in of.values() for n in part if n is not None]

    def _choose_kept(self) -> list[fx.Node]:
        """Choose what backward does not compute again: what is costly, or cannot be had."""
        traced, forth = self._traced, self._forward_nodes
        there = {*traced.states, *traced.vectors, *traced.rows, *traced.weights}
        there |= {*traced.new, *traced.outputs, *self._of_vectors}
        weights = set(traced.weights)
        back = ancestors(self._grads, stop=forth | there)
        frontier = [
            n
            for n in traced.graph.nodes
            if n in forth and n in back and n not in there and n.op == "call_function"
        ]
        frontier = [
            n for n in frontier if isinstance(n.meta["val"], Tensor) and _of_rows(n, weights)
        ]
        kept = [n for n in frontier if is_costly(n)]
        had = {*kept, *traced.states, *traced.vectors, *traced.new, *traced.outputs}
        had |= {*self._of_vectors}
        memo: dict[fx.Node, bool] = {}

        def is_cheap(n: fx.Node) -> bool:
            if n not in memo:
                memo[n] = n in had or (
                    n.op != "placeholder"
                    and not is_costly(n)
                    and all(map(is_cheap, n.all_input_nodes))
                )
            return memo[n]

        for n in frontier:
            if n not in had and not is_cheap(n):
                kept.append(n)
                had.add(n)
                memo[n] = True
        return kept

    @cached_property
    def _leaves_back(self) -> dict[fx.Node, Value]:
        """What is there when backward begins, of what it needs."""
        traced, widths = self._traced, self.sizes
        leaves = dict(self._kept_places)
        for i, n in enumerate(traced.new):
            leaves.setdefault(n, rows(f"after {i}", width_of(n)))
        for i, n in enumerate(traced.outputs):
            leaves.setdefault(n, rows(f"out {i}", width_of(n)))
        for i, (n, width) in enumerate(zip(traced.states, widths.states, strict=True)):
            leaves[n] = rows(f"before {i}", width)
        leaves |= self._given()
        needed = ancestors(self._grads, stop=set(leaves))
        return {n: v for n, v in leaves.items() if n in needed}

    def _of_each(self) -> Iterator[tuple[fx.Node | None, Columns, int]]:
        """Yield each gradient that is written, its place and its width."""
        of, sizes = self._traced.of, self.sizes
        yield from zip(of["rows"], self._rows, sizes.rows, strict=True)
        yield from zip(of["adds"], self._adds, sizes.adds, strict=True)
        yield from zip(of["vectors"], self._vectors, sizes.vectors, strict=True)

    def _find_shared(self) -> dict[str, str]:
        first: dict[fx.Node, str] = {}
        each = [(n, place.name) for n, place, _ in self._of_each() if n is not None]
        return {name: one for n, name in each if (one := first.setdefault(n, name)) != name}

    def _given(self) -> dict[fx.Node, Value]:
        traced, found = self._traced, dict[fx.Node, Value]()
        for n, place, width in zip(traced.rows, self._rows, self.sizes.rows, strict=True):
            found[n] = rows(place.name, width, place.offset)
        for n, place, width in zip(traced.vectors, self._vectors, self.sizes.vectors, strict=True):
            found[n] = vector(place.name, width, place.offset)
        offset = 0
        for n in (n for n, is_read in self._of_vectors.items() if is_read):
            found[n] = vector("of vectors", width_of(n), offset)
            offset += width_of(n)
        return found

    # ---------------------------------------------------------------------------- programs

    @cached_property
    def forward(self) -> Program:
        """The loop over the steps."""
        return self._write_forward(self._kept_places)

    @cached_property
    def inference(self) -> Program:
        """The same, for whom no backward pass follows: nothing is kept."""
        return self._write_forward({})

    def _write_forward(self, kept: dict[fx.Node, Value]) -> Program:
        traced, writer = self._traced, Writer()
        leaves: dict[fx.Node, Lowered] = {**self._given()}
        for i, (n, width) in enumerate(zip(traced.states, self.sizes.states, strict=True)):
            leaves[n] = state(i, width)
        leaves |= dict.fromkeys(traced.adds, Number(0))
        destinations = dict(kept)
        results = [rows(f"after {i}", width_of(n)) for i, n in enumerate(traced.new)]
        outs = [rows(f"out {i}", width_of(n)) for i, n in enumerate(traced.outputs)]
        pairs = [*zip(traced.new, results, strict=True), *zip(traced.outputs, outs, strict=True)]
        for n, to in pairs:
            if n not in leaves:
                destinations.setdefault(n, to)
        needed = ancestors([*traced.new, *traced.outputs, *kept], stop=set(leaves))
        lowering = self._lowering(writer, leaves, destinations, needed)
        lowering.write(list(traced.graph.nodes))
        for n, to in pairs:
            if destinations.get(n) is not to:
                writer.emit("copy", to, lowering.value(n, to.width))
        for i, to in enumerate(results):
            writer.emit("copy", state(i, to.width), to)
        return writer.program(self.sizes.states, self.dtype)

    def backward(self, given: tuple[bool, ...]) -> Program:
        """The loop of the deltas.

        Args:
            given: whether there is a gradient of each state after each step, and of each of the
                step's other results, if any of those has one.
        """
        if given not in self._backward:
            self._backward[given] = self._write_backward(given)
        return self._backward[given]

    @cached_property
    def _backward(self) -> dict[tuple[bool, ...], Program]:
        return {}

    def _write_backward(self, given: tuple[bool, ...]) -> Program:
        traced, writer = self._traced, Writer()
        leaves = dict(self._leaves_back)
        for i, (n, width, is_given) in enumerate(
            zip(traced.d_states, self.sizes.states, given, strict=False)
        ):
            leaves[n] = state(i, width)
            if is_given:
                more = rows(f"d after {i}", width)
                leaves[n] = writer.emit("add", Value(width), leaves[n], more)
        for i, (n, width) in enumerate(zip(traced.d_outputs, self.outputs, strict=True)):
            is_given = i + len(traced.d_states) < len(given) and given[i + len(traced.d_states)]
            leaves[n] = rows(f"d out {i}", width) if is_given else writer.constant(0.0, width)
        destinations: dict[fx.Node, Value] = {}
        copies: list[tuple[fx.Node, Value]] = []
        for grad, place, width in self._of_each():
            if grad is None or place.name in self.shared:
                continue
            to = rows(f"of {place.name}", width, place.offset)
            if grad in leaves or grad in destinations:
                copies.append((grad, to))
            else:
                destinations[grad] = to
        needed = ancestors(self._grads, stop=set(leaves))
        lowering = self._lowering(writer, leaves, destinations, needed)
        lowering.write(list(traced.graph.nodes))
        for n, to in copies:
            writer.emit("copy", to, lowering.value(n, to.width))
        finals = []
        for i, (grad, width) in enumerate(zip(traced.of["states"], self.sizes.states, strict=True)):
            value = lowering.value(0.0 if grad is None else grad, width)
            if value.storage.kind == state(0, 0).kind and value.storage.name != str(i):
                value = writer.emit("copy", Value(width), value)
            finals.append(value)
        for i, value in enumerate(finals):
            writer.emit("copy", state(i, value.width), value)
        return writer.program(self.sizes.states, self.dtype)

    def _lowering(
        self,
        writer: Writer,
        leaves: Mapping[fx.Node, Lowered],
        destinations: dict[fx.Node, Value],
        needed: set[fx.Node],
    ) -> Lowering:
        weights = dict(zip(self._traced.weights, self._weights, strict=True))
        return Lowering(writer, leaves, weights, destinations, needed, self._attribute)

    def _attribute(self, node: fx.Node) -> Lowered:
        value: Any = getattr(self._traced.module, str(node.target))
        if isinstance(value, Tensor) and value.numel() == 1:
            return Number(value.item())
        raise NotAProgram("a tensor of its own that is no parameter and no single number")

    def unused(self, part: str) -> list[int]:
        """Return the numbers of the rows, vectors or adds whose gradient is zero."""
        return [i for i, n in enumerate(self._traced.of[part]) if n is None]


def _of_rows(node: fx.Node, weights: set[fx.Node]) -> bool:
    """Whether it depends on more than weights and numbers."""
    return any(n.op == "placeholder" and n not in weights for n in ancestors([node]))
