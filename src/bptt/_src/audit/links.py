"""Ways on which gradient goes from a call's initial state into earlier calls: found in the graph.

Each way is asked with one random Jacobian product: equal values do not mean that a gradient goes
on, and a weight may lie between. The random numbers are not the user's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from bptt._src.audit.reading import Reading
from bptt._src.audit.record import OUTPUTS, Call, Links, Place

NEAR = 1e-5


class Port(NamedTuple):
    """A tensor that a call returned, as autograd knows it."""

    call: int
    part: int
    """Which tensor of the state; -1: the outputs."""


class Ports:
    """The tensors that calls returned, in the graph."""

    def __init__(self) -> None:
        self._key = object()
        self._readings: dict[int, Reading] = {}
        self._without: set[Node] = set()
        """Nodes known to lead to none of them."""

    def mark(self, call: int, part: int, v: Tensor, read: Reading) -> None:
        """Remember a tensor that a call returned."""
        if v.grad_fn is not None:
            marks = _notes(v.grad_fn).setdefault(self._key, {})
            marks[v.output_nr] = Port(call, part)
            self._readings[call] = read

    def forget(self) -> None:
        """Let go of the graphs that were searched."""
        self._without.clear()

    def feeding(self, x: Any) -> list[int]:
        """Return the calls whose results reach the inputs of another, with their graph."""
        if not isinstance(x, Tensor) or x.grad_fn is None:
            return []
        found, seen = set(), set()
        todo: list[tuple[Node | None, int]] = [(x.grad_fn, x.output_nr)]
        while todo:
            node, number = todo.pop()
            if node is None or (node, number) in seen or node in self._without:
                continue
            seen.add((node, number))
            port = self._port(node, number)
            if port is not None:
                found.add(port.call)
            else:
                todo += node.next_functions
        if not found:
            self._without |= {node for node, _ in seen}
        return sorted(found)

    def links(self, call: Call, given: list[Tensor], read: Reading) -> None:
        """Find the links of a call, from the graph of its initial state.

        Args:
            call: the call; its links and operations are set.
            given: views of its initial state that only this call uses.
            read: the call.
        """
        for part, v in enumerate(given):
            if v.grad_fn is None:
                continue
            for edge, port in self._reached(v, call.operations):
                self._link(call, part, v, edge, port, read)

    def _reached(self, v: Tensor, operations: set[str]) -> list[tuple[GradientEdge, Port]]:
        """Walk from a state back to the first results of earlier calls on every way."""
        found, seen = {}, set()
        assert v.grad_fn is not None
        todo = list(v.grad_fn.next_functions)
        while todo:
            node, number = todo.pop()
            if node is None or (node, number) in seen:
                continue
            seen.add((node, number))
            port = self._port(node, number)
            if port is not None:
                found[port] = GradientEdge(node, number)
                continue
            if node.next_functions:
                operations.add(type(node).__name__.removesuffix("0").removesuffix("Backward"))
            todo += node.next_functions
        return [(edge, port) for port, edge in found.items()]

    def _port(self, node: Node, number: int) -> Port | None:
        marks = _notes(node).get(self._key)
        return None if marks is None else marks.get(number)

    def _link(
        self, call: Call, part: int, v: Tensor, edge: GradientEdge, port: Port, read: Reading
    ) -> None:
        """Find which sequence's gradient goes where, and with what weight."""
        earlier = self._readings[port.call]
        assert v.grad_fn is not None
        is_direct = v.grad_fn.next_functions == ((edge.node, edge.output_nr),)
        ways: list[tuple[int, Place, float, bool]]
        if is_direct and port.part != OUTPUTS and call.batch == earlier.batch:
            # Handed on as it is.
            ways = [(row, _end(port, row, earlier), 1.0, True) for row in range(call.batch)]
        else:
            ways = _ways(call, v, edge, port, earlier, read)
        if ways:
            rows, places, weights, known = zip(*ways, strict=True)
            to_rows, ts = [p.row for p in places], [p.t for p in places]
            columns = (np.array(rows), np.array(to_rows), np.array(ts), np.array(weights))
            call.links.append(Links(part, port.call, port.part, *columns, np.array(known)))


def _ways(
    call: Call, v: Tensor, edge: GradientEdge, port: Port, earlier: Reading, read: Reading
) -> list[tuple[int, Place, float, bool]]:
    """Ask by a random Jacobian product which sequence's gradient goes where, and times what."""
    random = torch.Generator().manual_seed(1)
    vector = torch.randn(v.shape, generator=random, dtype=torch.float64).to(v)
    arrived = _product(v, edge, vector)
    if arrived is None:
        return []
    arrived, sent = _rows(arrived, port, earlier), read.by_sequence(vector)
    ways, unexplained = [], []
    for place in torch.nonzero((arrived != 0).any(1)).flatten().tolist():
        found = _explained(sent, arrived[place])
        if found is None:
            unexplained.append(place)
        else:
            ways.append((found[0], _place(port, place, earlier), found[1], True))
    for row in range(call.batch) if unexplained else ():
        alone = torch.zeros_like(sent)
        alone[row] = sent[row]
        product = _product(v, edge, _like(alone, v, read))
        if product is None:
            continue
        there = (_rows(product, port, earlier)[unexplained] != 0).any(1).tolist()
        places = [place for place, moved in zip(unexplained, there, strict=True) if moved]
        ways += [(row, _place(port, place, earlier), 1.0, False) for place in places]
    return ways


def _product(v: Tensor, edge: GradientEdge, vector: Tensor) -> Tensor | None:
    """Send a vector from a state to an earlier result; None if nothing can arrive."""
    try:
        found: Any = torch.autograd.grad(
            v,
            edge,
            vector,
            retain_graph=True,
            allow_unused=True,
        )
    except RuntimeError as e:
        if "second time" not in str(e):
            raise
        return None  # the graph between is freed: so nothing will go there
    return cast(Tensor | None, found[0])


def _notes(node: Node) -> dict[Any, Any]:
    """What may be noted at a node of the graph, and stays there as long as it does."""
    return cast(dict[Any, Any], node.metadata)


def _explained(sent: Tensor, arrived: Tensor) -> tuple[int, float] | None:
    """Return which sequence's vector has arrived, and times what; None: not just one."""
    if arrived.numel() != sent.shape[1]:
        return None
    weight = (sent @ arrived) / (sent * sent).sum(1)
    rest = (arrived - weight[:, None] * sent).norm(dim=1)
    row = int(rest.argmin())
    if rest[row] > max(NEAR, 100 * torch.finfo(sent.dtype).eps) * arrived.norm():
        return None
    return row, round(float(weight[row]), 6)


def _like(rows: Tensor, v: Tensor, read: Reading) -> Tensor:
    """Lay out [B, n] as a tensor of the state."""
    if read.is_unbatched or (
        v.shape[0] == read.batch
        and not (v.dim() >= 3 and read.time is not None and v.shape[1] == read.batch)
    ):
        return rows.reshape(v.shape)
    if v.dim() >= 2 and v.shape[1] == read.batch:
        return rows.reshape(read.batch, v.shape[0], *v.shape[2:]).transpose(0, 1).contiguous()
    return rows.sum(0).reshape(v.shape)


def _rows(gradient: Tensor, port: Port, earlier: Reading) -> Tensor:
    """Lay out a gradient of results as one row for each place where it can arrive."""
    if port.part != OUTPUTS:
        return earlier.by_sequence(gradient)
    return earlier.by_step(gradient).reshape(earlier.steps * earlier.batch, -1)


def _place(port: Port, row: int, earlier: Reading) -> Place:
    if port.part != OUTPUTS:
        return _end(port, row, earlier)
    return Place(port.call, row % earlier.batch, row // earlier.batch)


def _end(port: Port, row: int, earlier: Reading) -> Place:
    return Place(port.call, row, earlier.lengths[row] - 1)
