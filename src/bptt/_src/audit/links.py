"""Ways on which gradient goes from a call's initial state into earlier calls: found in the graph.

Each way is asked with one random Jacobian product: equal values do not mean that a gradient goes
on, and a weight may lie between. The random numbers are not the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from bptt._src.audit.halves import alone
from bptt._src.audit.reading import CallRead
from bptt._src.audit.record import OUTPUTS, RELAY, HeardCall, Links

NEAR = 1e-5
FEW = 2
"""Numbers of a state, of which the vectors of two sequences may be multiples of each other."""


Way = tuple[int, int, float, bool]
"""From which sequence, to which row of what arrived, times what, and whether that is known."""


class Port(NamedTuple):
    """A tensor that a call returned, as autograd knows it."""

    call: int
    part: int
    """Which tensor of the state; -1: the outputs; -2, -3, ...: of the state before the call."""


class Ports:
    """The tensors that calls returned, in the graph."""

    def __init__(self) -> None:
        self._key = object()
        self._readings: dict[int, CallRead] = {}
        self._shapes: dict[Port, torch.Size] = {}
        self._calls: dict[int, HeardCall] = {}
        self._without: set[Node] = set()
        """Nodes known to lead to none of them."""
        self.measured: set[Port] = set()
        """States before calls, between which and results gradients are heard."""
        self._arrived: dict[Port, Tensor] | None = None
        """What arrived where while a Jacobian product is asked for; None: none is."""

    def mark(self, call: int, part: int, v: Tensor, read: CallRead) -> None:
        """Remember a tensor that a call returned."""
        if v.grad_fn is not None:
            marks = _notes(v.grad_fn).setdefault(self._key, {})
            marks[v.output_nr] = Port(call, part)
            self._readings[call] = read
            self._shapes[Port(call, part)] = v.shape

    def layout(self, port: Port) -> tuple[Callable[[Tensor], Tensor], torch.Size]:
        """Return how a gradient of a tensor is laid out, by step or by sequence, and its shape."""
        read = self._readings[port.call]
        return (read.by_step if port.part == OUTPUTS else read.by_sequence), self._shapes[port]

    def relay(self, call: HeardCall, part: int, v: Tensor, read: CallRead) -> None:
        """Remember the state that went into a call, if it was made of results, for later ones.

        Where a state is held by a mask, h = m * cell(x, h) + (1 - m) * h, the next one is made of
        this one; what is known of this one need not be asked again.
        """
        if v.grad_fn is None or self._port(v.grad_fn, v.output_nr) is not None:
            return
        port = Port(call.number, RELAY - part)
        self.mark(*port, v, read)
        self._calls[call.number] = call
        v.register_hook(lambda g: self.stopped(port, g) if self.is_asking else None)

    def _through(self, port: Port, part: int, ways: list[Way]) -> list[Links]:
        """Join ways to the state before a call with the links of that call."""
        rows, at, weights, known = (np.array(v) for v in zip(*ways, strict=True))
        found = []
        for links in self._calls[port.call].links:
            if links.source != RELAY - port.part:
                continue
            i, j = np.nonzero(at[:, None] == links.rows)
            together = np.round(weights[i] * links.weights[j], 6)
            i, j, together = i[together != 0], j[together != 0], together[together != 0]
            if len(i):
                to = links.to_rows[j], links.ts[j], together
                known_both = known[i] & links.is_known[j]
                found.append(Links(part, *links[1:3], rows[i], *to, known_both, links.is_measured))
        return found

    def forget(self) -> None:
        """Let go of the graphs that were searched."""
        self._without.clear()

    @property
    def is_asking(self) -> bool:
        """Whether the backward pass that runs is a question of this class."""
        return self._arrived is not None

    def stopped(self, port: Port, gradient: Tensor) -> Tensor:
        """Keep what arrives at a result, of a question, and return what goes on instead."""
        assert self._arrived is not None
        self._arrived[port] = gradient.detach()
        return torch.zeros_like(gradient)

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

    def links(
        self, call: HeardCall, edges: list[GradientEdge | None], read: CallRead
    ) -> Iterator[tuple[Node, int, Port]]:
        """Find the links of a call, from the graph of its initial state.

        Args:
            call: the call; its links and operations are set.
            edges: where gradients of its initial state arrive.
            read: the call.

        Yields:
            Where gradients have to be heard on their way: the node, which of the gradients that it
            returns, and what this arrives at.
        """
        for part, edge in enumerate(map(_through_hooks, edges)):
            reached = {} if edge is None else self._reached(edge, call.operations)
            if edge is not None and reached:
                ways_to = self._ways(call, edge, read.given[part], reached, read)
                found: list[Links] = []
                for port, ways in ways_to.items():
                    if port.part <= RELAY:
                        found += self._through(port, part, ways)
                        if port == self._port(edge.node, edge.output_nr):
                            also = RELAY - port.part, call.number, part
                            self._calls[port.call].also_given.append(also)
                    else:
                        found.append(self._links(port, part, ways))
                if not all(known for ways in ways_to.values() for *_, known in ways):
                    self.measured.add(Port(call.number, RELAY - part))
                    found = [links._replace(is_measured=True) for links in found]
                    yield from self._measure(edge)
                call.links += found

    def _links(self, port: Port, part: int, ways: list[Way]) -> Links:
        rows, at, weights, known = (np.array(v) for v in zip(*ways, strict=True))
        earlier = self._readings[port.call]
        to_rows, ts = at, np.array(earlier.lengths)[at % earlier.batch] - 1
        if port.part == OUTPUTS:
            to_rows, ts = at % earlier.batch, at // earlier.batch
        return Links(part, *port, rows, to_rows, ts, weights, known)

    def _reached(self, state: GradientEdge, operations: set[str]) -> dict[Port, GradientEdge]:
        """Walk from a state back to the first results of earlier calls on every way."""
        found, seen = {}, set()
        todo: list[tuple[Node | None, int]] = [(state.node, state.output_nr)]
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
        return found

    def _measure(self, state: GradientEdge) -> Iterator[tuple[Node, int, Port]]:
        """Find where gradients on their way from a state arrive at results; each is told once."""
        todo, seen = [state.node], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            told = _notes(node).setdefault(self._key, {}).setdefault("told", set())
            for place, (before, number) in enumerate(node.next_functions):
                port = None if before is None else self._port(before, number)
                if port is not None and place not in told:
                    told.add(place)
                    yield node, place, port
                if port is not None and port.part <= RELAY and port not in self.measured:
                    self._measured_from_now_on(port)
                    port = None
                if before is not None and port is None:
                    todo.append(before)

    def _measured_from_now_on(self, port: Port) -> None:
        self.measured.add(port)
        links = self._calls[port.call].links
        for i, each in enumerate(links):
            if each.source == RELAY - port.part:
                links[i] = each._replace(is_measured=True)

    def _port(self, node: Node, number: int) -> Port | None:
        marks = _notes(node).get(self._key)
        return None if marks is None else marks.get(number)

    def _ways(
        self,
        call: HeardCall,
        state: GradientEdge,
        v: Tensor,
        reached: dict[Port, GradientEdge],
        read: CallRead,
    ) -> dict[Port, list[Way]]:
        """Ask by a random Jacobian product which sequence's gradient goes where, times what."""
        (port, edge), *others = reached.items()
        earlier = self._readings[port.call]
        is_direct = state[:2] == edge[:2]
        if is_direct and not others and port.part != OUTPUTS and call.batch == earlier.batch:
            # Handed on as it is.
            return {port: [(row, row, 1.0, True) for row in range(call.batch)]}
        random = torch.Generator().manual_seed(1)  # of numbers that every floating type has
        vector = torch.randint(1, 128, v.shape, generator=random)
        vector = (vector * (1 - 2 * torch.randint(2, v.shape, generator=random))).to(v)
        sent = read.by_sequence(vector)
        found: dict[Port, list[Way]] = {}
        unexplained: dict[Port, list[int]] = {}
        for port, gradient in self._ask(state, reached, vector).items():
            earlier = self._readings[port.call]
            arrived = _rows(gradient, port, earlier)
            own = _own(sent, arrived)
            if own:
                found[port] = own
            done = {place for _, place, _, _ in own}
            for place in torch.nonzero((arrived != 0).any(1)).flatten().tolist():
                if place in done:
                    continue
                way = _explained(sent, arrived[place])
                if way is None:
                    unexplained.setdefault(port, []).append(place)
                else:
                    found.setdefault(port, []).append((way[0], place, way[1], True))

        def ask(which: Tensor) -> dict[Port, Tensor]:
            some = torch.where(which.to(sent.device)[:, None], sent, 0)
            product = self._ask(state, reached, _like(some, v, read))
            return {port: _rows(g, port, self._readings[port.call]) for port, g in product.items()}

        answers = alone(ask, unexplained, call.batch) if unexplained else ()
        for port, row, place, gradient in answers:
            way = _explained(sent[row : row + 1], gradient)
            known = (1.0, False) if way is None else (way[1], True)
            found.setdefault(port, []).append((row, place, *known))
        return {port: ways for port, ways in found.items() if ways}

    def _ask(
        self, state: GradientEdge, reached: dict[Port, GradientEdge], vector: Tensor
    ) -> dict[Port, Tensor]:
        """Send a vector from a state back, and return what arrives at earlier results first."""
        self._arrived = {}
        edges: Any = list(reached.values())
        try:
            torch.autograd.grad(state, edges, vector, retain_graph=True, allow_unused=True)
        except RuntimeError as e:
            if "second time" not in str(e):
                raise  # the graph is freed there: so nothing will go on
        finally:
            arrived, self._arrived = self._arrived, None
        return {port: g for port, g in arrived.items() if port in reached}


def _notes(node: Node) -> dict[Any, Any]:
    """What may be noted at a node of the graph, and stays there as long as it does."""
    return cast(dict[Any, Any], node.metadata)


def _through_hooks(edge: GradientEdge | None) -> GradientEdge | None:
    """Step over the nodes in which torch runs a module's full backward hooks; they change nothing.

    So the state a module hands on as it is need not be asked for, which would run the hooks.
    """
    while edge is not None and type(edge.node).__name__ == "BackwardHookFunctionBackward":
        node, number = edge.node.next_functions[edge.output_nr]
        edge = None if node is None else GradientEdge(node, number)
    return edge


def _own(sent: Tensor, arrived: Tensor) -> list[Way]:
    """Explain what arrives in each row by the same row of what was sent, where that is all."""
    if arrived.shape != sent.shape or sent.shape[1] <= FEW:
        return []
    near, sent, arrived = _near(sent, arrived), sent.double(), arrived.double()
    weight = (sent * arrived).sum(1) / (sent * sent).sum(1)
    rest = (arrived - weight[:, None] * sent).norm(dim=1)
    size = arrived.norm(dim=1)
    rows = torch.nonzero((size > 0) & (rest <= near * size)).flatten().tolist()
    weights = weight.tolist()
    return [(row, row, round(weights[row], 6), True) for row in rows]


def _near(*values: Tensor) -> float:
    return max(NEAR, *(4 * torch.finfo(v.dtype).eps for v in values))


def _explained(sent: Tensor, arrived: Tensor) -> tuple[int, float] | None:
    """Return which sequence's vector has arrived, and times what; None: not just one."""
    if arrived.numel() != sent.shape[1]:
        return None
    near, sent, arrived = _near(sent, arrived), sent.double(), arrived.double()  # no autocast
    weight = (sent @ arrived) / (sent * sent).sum(1)
    rest = (arrived - weight[:, None] * sent).norm(dim=1)
    fits = torch.nonzero(rest <= near * arrived.norm())
    if len(fits) != 1:  # several do where a state is of FEW numbers
        return None
    row = int(fits)
    return row, round(float(weight[row]), 6)


def _like(rows: Tensor, v: Tensor, read: CallRead) -> Tensor:
    """Lay out [B, n] as a tensor of the state."""
    if read.is_unbatched or (
        v.shape[0] == read.batch
        and not (v.dim() >= 3 and read.time is not None and v.shape[1] == read.batch)
    ):
        return rows.reshape(v.shape)
    if v.dim() >= 2 and v.shape[1] == read.batch:
        return rows.reshape(read.batch, v.shape[0], *v.shape[2:]).transpose(0, 1).contiguous()
    return rows.sum(0).reshape(v.shape)


def _rows(gradient: Tensor, port: Port, earlier: CallRead) -> Tensor:
    """Lay out a gradient of results as one row for each place where it can arrive."""
    if port.part != OUTPUTS:
        return earlier.by_sequence(gradient)
    return earlier.by_step(gradient).reshape(earlier.steps * earlier.batch, -1)
