"""Problems with signal in them: where nothing flows back, every wrong gradient is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from oracles import Terms, credited, terms_of
from torch import Tensor

import bptt
from bptt.cells import BY_NAME, Cell, State, Weights
from bptt.credit import Block


def weights(
    cell: Cell, inputs: int, hidden: int, *, bias: bool = True, projection: int = 0, seed: int = 0
) -> Weights:
    """Draw weights whose recurrent blocks are near orthogonal, so that gradients reach far back."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    outputs = projection or hidden
    blocks = [
        torch.linalg.qr(normal(max(hidden, outputs), max(hidden, outputs)))[0][:hidden, :outputs]
        for _ in range(cell.gates_h)
    ]
    of_x, of_h = cell.gates_x * hidden, cell.gates_h * hidden
    w = Weights(
        ih=0.5 * normal(of_x, inputs),
        hh=torch.cat(blocks) if blocks else normal(0, outputs),
        b_ih=0.1 * normal(of_x) if bias else None,
        b_hh=0.1 * normal(of_h) if bias else None,
        hr=normal(projection, hidden) if projection else None,
        units=0.5 * normal(cell.units, hidden) if cell.units else None,
    )
    return Weights(*(None if p is None else p.contiguous().requires_grad_() for p in w))


def state(cell: Cell, batch: int, hidden: int, *, projection: int = 0, seed: int = 1) -> State:
    """Draw an initial state that requires gradients."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (projection or hidden, *(hidden,) * (cell.states - 1))
    drawn = [
        torch.randn(batch, n, generator=generator, dtype=torch.float64).mul_(0.5) for n in sizes
    ]
    if cell is BY_NAME["SLSTM"]:  # whose normaliser is a sum of what is positive
        drawn[2].abs_().add_(0.5)
    return tuple(s.requires_grad_() for s in drawn)


@st.composite
def lengths(draw: st.DrawFn, most_steps: int = 6, most_sequences: int = 4) -> tuple[int, ...]:
    """Draw the lengths of the sequences of a batch, longest first."""
    drawn = draw(st.lists(st.integers(1, most_steps), min_size=1, max_size=most_sequences))
    return tuple(sorted(drawn, reverse=True))


def sizes_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Count how many of the sequences are still running at each step."""
    return tuple(sum(n > t for n in lengths) for t in range(max(lengths)))


# --------------------------------------------------------------------------------- credits


class Fading(bptt.Credit):
    """A user's own credit: weights that fall with each step, in the initial state's too."""

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=np.linspace(0.7, 0.95, steps))


class FadingWindows(bptt.Credit):
    """A user's own credit: windows of all sizes that overlap, and factors for each sequence."""

    def plan(self, steps, batch=1, generator=None):
        carry = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 1.5], (steps, batch))
        carry[0] = 0.5
        middle, end = (steps + 1) // 3, 2 * steps // 3
        blocks = [Block(0, middle, 0), Block(middle, end, 0), Block(end, steps, middle - 1)]
        return bptt.Plan(steps, carry, [b for b in blocks if b.end > b.first])


CREDITS: dict[str, bptt.Credit] = {
    "full": bptt.Full(),
    **{f"truncated {k}": bptt.Truncated(k) for k in (1, 3, 7)},
    **{
        f"every {every} reach {reach}": bptt.Truncated(every=every, reach=reach)
        for every, reach in [(1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 8), (4, 5), (5, 6), (2, 9)]
    },
    "constant": bptt.Randomized(mean=2.5, tail="constant"),
    "constant, shared": bptt.Randomized(mean=2.5, tail="constant", shared=True),
    "heavy": bptt.Randomized(mean=2.5),
    "heavy, shared": bptt.Randomized(mean=2.5, alpha=3.0, shared=True),
    "pi": bptt.Randomized(pi=(0.5, 0.9, 0.6, 0.8, 0.7, 0.5, 0.9)),
    "fading": Fading(),
    "fading windows": FadingWindows(),
}
"""Credits of every kind, for problems of seven steps."""


SPIKING = {"LIF"}
"""The cells with a surrogate gradient, to which finite differences do not apply."""

OF_TORCH = ["GRU", "LSTM", "RNN_RELU", "RNN_SIGMOID", "RNN_TANH"]
"""The cells with a module of torch.nn's interface."""


class Problem(NamedTuple):
    """Layers of one cell, a batch of sequences, and a loss that is the sum of one at each step.

    The loss of a sequence's last step includes its final states, so it needs no output of those.
    """

    mode: str
    layers: int = 1
    projection: int = 0
    lengths: tuple[int, ...] = (7, 7)
    inputs: int = 2
    hidden: int = 3
    with_resets: bool = False

    @property
    def cell(self) -> Cell:
        return BY_NAME[self.mode]

    @property
    def steps(self) -> int:
        return max(self.lengths)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def weights(self) -> list[Weights]:
        outputs = self.projection or self.hidden
        options = {"projection": self.projection}
        drawn = [
            weights(self.cell, outputs if n else self.inputs, self.hidden, seed=n, **options)
            for n in range(self.layers)
        ]
        return [self._alive(w) for w in drawn]

    def _alive(self, w: Weights) -> Weights:
        """Where the derivative is small by nature, or zero, weights with which it is not."""
        hh, b_ih, b_hh = (p.detach() for p in (w.hh, w.b_ih, w.b_hh))
        if self.mode == "RNN_SIGMOID":  # φ' is a quarter at most, and that where a = 0
            hh = 4.5 * hh
            b_hh = -hh.sum(1) / 2
        elif self.mode in ("RNN_RELU", "RATE"):
            hh, b_ih = hh.abs() / torch.linalg.matrix_norm(hh.abs(), 2), b_ih + 0.5
        elif self.mode == "PEEPHOLE_LSTM":  # c reaches far where the forget gate is open
            b_ih = b_ih + torch.tensor([0.0, 1, 0, 0]).repeat_interleave(self.hidden)
        elif self.mode == "MIN_LSTM":
            b_ih = b_ih + torch.tensor([1.0, -1, 0]).repeat_interleave(self.hidden)
        elif self.mode == "MIN_GRU":  # h reaches far where the gate is closed
            b_ih = b_ih - torch.tensor([1.0, 0]).repeat_interleave(self.hidden)
        elif self.mode == "INDRNN":  # a unit hands on what it is while it is on
            w = w._replace(units=w.units.detach().sigmoid().requires_grad_())
            b_ih = b_ih + 1.5
        return w._replace(
            hh=hh.clone().requires_grad_(),
            b_ih=b_ih.clone().requires_grad_(),
            b_hh=b_hh.clone().requires_grad_(),
        )

    @property
    def states(self) -> list[State]:
        return [
            state(self.cell, self.batch, self.hidden, projection=self.projection, seed=9 + layer)
            for layer in range(self.layers)
        ]

    @property
    def x(self) -> Tensor:
        """[T, B, I]."""
        generator = torch.Generator().manual_seed(20)
        shape = (self.steps, self.batch, self.inputs)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    @property
    def resets(self) -> Tensor | None:
        """[T, B] bool: at different steps in each sequence, and one before the first step."""
        if not self.with_resets:
            return None
        at = torch.zeros(self.steps, self.batch, dtype=torch.bool)
        for b in range(self.batch):
            at[(3 * b + 4) % self.steps, b] = True
        return at

    def module(self, **options) -> torch.nn.Module:
        """A bptt.RNN, GRU or LSTM with these weights, in float64."""
        name, _, phi = self.mode.partition("_")
        if name == "RNN":
            options["nonlinearity"] = phi.lower()
        if self.projection:
            options["proj_size"] = self.projection
        made = getattr(bptt, name) if self.mode in OF_TORCH else None
        make = made or partial(bptt.Recurrent, self.cell)
        module = make(self.inputs, self.hidden, self.layers, dtype=torch.float64, **options)
        given = [p for w in self.weights for p in w if p is not None]
        with torch.no_grad():
            for ours, p in zip(list(module.parameters())[: len(given)], given, strict=True):
                ours.copy_(p)
        return module

    def loss(self, states: list[State], t: int, b: int) -> Tensor:
        """L_t of sequence b, from the states of all layers after step t, each of B = 1."""
        loss = self.weigh(states[-1][0], t + 2 * b)
        if t == self.lengths[b] - 1:
            loss = loss + sum(self.weigh(s, b) for state in states for s in state)
        return loss

    def total(self, y: Tensor, final: list[State]) -> Tensor:
        """The sum of all those losses, from outputs [T, B, P] and the final state of each layer."""
        return sum(
            self.weigh(y[t, b], t + 2 * b) for b, n in enumerate(self.lengths) for t in range(n)
        ) + sum(self.weigh(s[b], b) for state in final for s in state for b in range(self.batch))

    @staticmethod
    def weigh(h: Tensor, number: int) -> Tensor:
        """Weigh every element differently, and not linearly."""
        weights = torch.linspace(0.5, 1.5, h.numel(), dtype=h.dtype).view_as(h)
        return ((h + 0.1 * number).sin() * weights).sum() * (1 + 0.2 * number)

    def terms(self, masks: Sequence[Tensor] = ()) -> list[Terms]:
        """C[t, s] of each sequence; masks [T, B, H] for each layer but the last."""
        found = []
        for b, n in enumerate(self.lengths):
            found.append(
                terms_of(
                    self.cell,
                    self.x[:n, b : b + 1],
                    [tuple(s[b : b + 1] for s in state) for state in self.states],
                    self.weights,
                    lambda states, t, b=b: self.loss(states, t, b),
                    None if self.resets is None else self.resets[:n, b],
                    [m[:n, b : b + 1] for m in masks],
                )
            )
        return found


def expected(problem: Problem, terms: list[Terms], plan: bptt.Plan) -> list[Tensor]:
    """The gradient that a plan means: of all weights, of x [T, B, I], of the initial states."""
    total, inputs, initial = [], torch.zeros_like(problem.x), []
    for b, n in enumerate(problem.lengths):
        own = slice(None) if plan.batch is None else b
        matrix = torch.from_numpy(plan.matrix()[own][:n, :n])
        first = torch.from_numpy(plan.of_initial_state()[own][:n])
        of_weights, of_inputs, of_initial = credited(terms[b], matrix, first)
        total = [a + g for a, g in zip(total, of_weights, strict=True)] if total else of_weights
        inputs[:n, b] = of_inputs[:, 0]
        initial.append(of_initial)
    return [*total, inputs.detach(), *(torch.cat(s) for s in zip(*initial, strict=True))]
