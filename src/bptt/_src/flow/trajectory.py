"""A layer's way through a sequence: its states, and each step as a function of the state alone.

A state of several tensors (an LSTM's h and c) is one vector, of n numbers; each sequence is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.flow.contract import call, check_batch, check_step
from bptt._src.flow.given import Given
from bptt._src.flow.network import Layer, Network
from bptt._src.flow.piece import Piece, Step
from bptt._src.flow.untouched import same_random_numbers, untouched
from bptt._src.pytree import flatten, is_float, map_tensors
from bptt.cells import Cell, State, Weights

MOST_NUMBERS = 2**23
"""What a batch of rows may hold, about: so memory stays bounded (32 MB in float32)."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states of one layer over a sequence, and its step.

    A module of bptt or torch.nn has one for each layer; any other one is a single layer.
    """

    layer: int
    function: Callable[[int], Step]
    """The step t."""
    inputs: list[Any]
    """x_t of each step, [T], with a row for each sequence."""
    before: Float[Tensor, "time batch size"]
    """The state from which each step starts, [T, B, n]; zero where a sequence starts anew."""
    after: Float[Tensor, "time batch size"]
    """The state that each step leaves."""
    first: int
    """The first step whose state before it is known: 0, or 1 where a module began by itself."""
    repeat: Callable[[Any, int], Any]
    cell: Cell | None = None
    weights: Weights | None = None
    run: Callable[[int, Any, Tensor], tuple[Any, Tensor]] | None = None
    """Of a foreign module: ``(t, x_t, states before) -> (its output, states after)``."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.inputs)

    @property
    def size(self) -> int:
        """The number of the state's numbers, n."""
        return self.before.shape[2]

    @property
    def batch(self) -> int:
        """B."""
        return self.before.shape[1]

    @property
    def states_before(self) -> State:
        """The tensors of the state from which each step of a cell starts, each [T, B, ...]."""
        assert self.cell is not None
        assert self.weights is not None
        sizes = [
            self.weights.hh.shape[1],
            *(self.cell.hidden(self.weights),) * (self.cell.states - 1),
        ]
        return tuple(self.before.split(sizes, dim=2))

    @property
    def outputs(self) -> Float[Tensor, "time batch output"]:
        """h_t after each step; of a module of which nothing is known, all of its state."""
        return self.after if self.weights is None else self.after[..., : self.weights.hh.shape[1]]

    @property
    def is_projected(self) -> bool:
        """Whether h_t is a projection of what the equations return."""
        return self.weights is not None and self.weights.hr is not None

    def take(self, sequences: int) -> Trajectory:
        """Return the trajectory of the first sequences only; of all if the module is not bptt's."""
        if self.cell is None or sequences >= self.batch:
            return self
        return replace(
            self,
            inputs=[x[:sequences] for x in self.inputs],
            before=self.before[:, :sequences],
            after=self.after[:, :sequences],
        )

    def at(self, t: int) -> Piece:
        """Return a single step."""
        return self._piece(t, self.inputs[t], self.before[t])

    def _piece(self, t: int, x: Any, before: Tensor) -> Piece:
        return Piece(self.function(t), x, before, self.repeat, self._forwards)

    @cached_property
    def _forwards(self) -> bool:
        t = self.first
        if t >= self.steps:
            return True
        return Piece(
            self.function(t), self.inputs[t], self.before[t], self.repeat
        ).knows_forward_mode()

    def pieces(self, numbers: int | None = None, first: int | None = None) -> Iterator[Piece]:
        """Yield all steps from the first one on, many at a time where the layer allows it.

        Args:
            numbers: how many numbers each row takes; n by default.
            first: the first step; by default the first whose state before it is known.
        """
        many = max(1, MOST_NUMBERS // (self.batch * (numbers or self.size)))
        if self.cell is None:
            many = 1
        for t in range(self.first if first is None else first, self.steps, many):
            end = min(t + many, self.steps)
            x = self.inputs[t] if many == 1 else torch.cat(self.inputs[t:end])
            before = self.before[t:end].flatten(0, 1)
            yield self._piece(t, x, before)


def follow(
    module: Any,
    inputs: Any,
    state: Any = None,
    *,
    resets: Tensor | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> tuple[Trajectory, ...]:
    """Run a recurrent module over a sequence and keep the states, layer by layer.

    Nothing is recorded for autograd. There is no dropout between the layers of bptt's and
    torch.nn's networks, and zoneout is its mean; any other module is run as it is.

    Args:
        module: what :func:`bptt.unroll` takes.
        inputs: [T, B, ...], or a pytree of such; [B, T, ...] with ``batch_first``.
        state: the initial state; None where the module knows how to begin.
        resets: [T], or [T, B] ([B, T] with ``batch_first``) bool: the state is set to zero before
            step t where it is true.
        state_batch_dim: where the batch lies in the state's tensors; by default the module's
            own attribute of that name, or 1 as in torch.nn.
        batch_first: by default what the module's attribute of that name says, or False.

    Raises:
        ValueError: the inputs are packed, or the module is bidirectional.
    """
    return follow_given(
        Given.of(
            "follow",
            module,
            inputs,
            state,
            resets=resets,
            state_batch_dim=state_batch_dim,
            batch_first=batch_first,
        )
    )


def follow_given(given: Given) -> tuple[Trajectory, ...]:
    """Follow as :func:`follow`, with arguments that have been checked."""
    with torch.no_grad():
        if given.ours is not None:
            return _follow_layers(given)
        given.needs_batch()
        return (_follow_steps(given),)


@contextmanager
def following(given: Given) -> Iterator[tuple[Trajectory, ...]]:
    """Follow a module in evaluation mode, so that each of its steps is one and the same function.

    Within the ``with`` block its derivatives may be taken; afterwards the module, and torch's
    generators, are as they were.
    """
    with untouched(given.module, evaluating=True), same_random_numbers(given.inputs, given.state):
        yield follow_given(given)


def reset_rows(resets: Tensor | None, t: int, rows: Tensor) -> Tensor:
    """Set the state of the sequences to zero where step t starts anew."""
    if resets is None:
        return rows
    at = resets[t].to(rows.device)
    return rows.masked_fill(at if at.dim() == 0 else at.unsqueeze(1), 0.0)


# ------------------------------------------------------------- modules of bptt and torch.nn


def _follow_layers(given: Given) -> tuple[Trajectory, ...]:
    assert given.ours is not None
    network = Network(given.ours, given.inputs, given.state, given.resets)
    found: list[Trajectory] = []

    def run(layer: Layer) -> Tensor:
        step, rows = _step_of(layer), torch.cat(layer.initial, dim=1)
        inputs, before, after = [], [], []
        for x, reset in network.steps.forth(layer.x, network.resets):
            inputs.append(x)
            before.append(rows if reset is None else rows.masked_fill(reset, 0.0))
            rows = step(x, before[-1])
            after.append(rows)
        found.append(
            Trajectory(
                layer=len(found),
                function=lambda t: step,
                inputs=inputs,
                before=torch.stack(before),
                after=torch.stack(after),
                first=0,
                repeat=lambda x, k: x if k == 1 else x.repeat_interleave(k, 0),
                cell=layer.cell,
                weights=layer.w,
            )
        )
        return found[-1].outputs.flatten(0, 1)

    network.forward(run, drops=False)
    return tuple(found)


def _step_of(layer: Layer) -> Step:
    cell, w, sizes = layer.cell, layer.w, [s.shape[1] for s in layer.initial]

    def step(x: Tensor, rows: Tensor) -> Tensor:
        return torch.cat(cell.step(x, rows.split(sizes, dim=1), w), dim=1)

    return step


# --------------------------------------------------------------------------- other modules


def _follow_steps(given: Given) -> Trajectory:
    layout, state, resets = given.layout, given.state, given.resets
    T, B, dim = layout.steps, layout.batch or 1, layout.state_dim
    xs = [layout.piece(given.inputs, t, t + 1) for t in range(T)]
    forms: dict[int, _Form] = {}
    before, after = [], []
    for t, x in enumerate(xs):
        if state is not None:
            if not forms and T > 1:
                check_step(given, t, state)
            forms[t] = _Form(state, dim, B)
            before.append(reset_rows(resets, t, forms[t].rows()))
            state = forms[t].tree(before[-1])
        _, state = call(given, x, state)
        check_batch(given, state)
        after.append(_Form(state, dim, B).rows())
    begins = T - len(before)
    if begins:  # of the state before the first step nothing is known
        before.insert(0, torch.full_like(after[0], float("nan")))

    def run(t: int, x: Any, rows: Tensor) -> tuple[Any, Tensor]:
        y, after = call(given, x, forms[t].tree(rows) if t in forms else None)
        return y, _Form(after, dim, len(rows)).rows()

    def repeat(x: Any, k: int) -> Any:
        return x if k == 1 else map_tensors(lambda v: v.repeat_interleave(k, 1 - layout.time), x)

    return Trajectory(
        layer=0,
        function=lambda t: lambda x, rows: run(t, x, rows)[1],
        inputs=xs,
        before=torch.stack(before),
        after=torch.stack(after),
        first=begins,
        repeat=repeat,
        run=run,
    )


class _Form:
    """How a state of any form is laid out as rows, one for each sequence, and back."""

    def __init__(self, state: Any, dim: int, batch: int) -> None:
        self.leaves, self.put = flatten(state)
        self.dim, self.batch = dim, batch

    def rows(self) -> Tensor:
        """[B, n]; of complex numbers both parts."""
        parts = [_real(s.movedim(self.dim, 0)).flatten(1) for s in self.leaves if is_float(s)]
        return torch.cat(parts, dim=1)

    def tree(self, rows: Tensor) -> Any:
        """Put rows in place of the state's numbers; k copies of each, if there are so many."""
        k, start = len(rows) // self.batch, 0
        leaves: list[Any] = []
        for s in self.leaves:
            if is_float(s):
                shape = _real(s.movedim(self.dim, 0)).shape
                end = start + shape[1:].numel()
                part = rows[:, start:end].reshape(-1, *shape[1:]).to(s.real.dtype)
                part = torch.view_as_complex(part) if s.is_complex() else part
                leaves.append(part.movedim(0, self.dim))
                start = end
            elif isinstance(s, Tensor) and s.dim() > self.dim and s.shape[self.dim] == self.batch:
                leaves.append(s.repeat_interleave(k, self.dim))
            else:
                leaves.append(s.clone() if isinstance(s, Tensor) else s)
        return self.put(leaves)


def _real(s: Tensor) -> Tensor:
    return torch.view_as_real(s.resolve_conj()) if s.is_complex() else s
