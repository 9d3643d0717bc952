"""What is recorded of a run: calls of the module, and the backward passes through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Numbers = NDArray[np.int64]
Gradient = NDArray[np.floating[Any]]


class Place(NamedTuple):
    """A step of a sequence in a call."""

    call: int
    row: int
    """The sequence's place in the batch."""
    t: int
    """The step within the call."""


ZERO = "zero"
START = "start"
"""An initial state that is no earlier one: learnt, or the same for all sequences."""
UNKNOWN = "unknown"
"""One that resembles the state after the last call: changed by noise, rounding or an operation."""
ELSEWHERE = "elsewhere"
"""One that resembles no state."""

Origin = Place | str
"""Where a state comes from: after which step it was returned, or one of the words above."""


OUTPUTS = -1
RELAY = -2
"""Numbers of tensors of a call that are not of the state after it: its outputs; and the state
before it, RELAY, RELAY - 1, and so on, where that was made of results."""


class Links(NamedTuple):
    """Ways on which gradient goes on from a tensor of a call's initial state into an earlier call.

    Each is the same row of all arrays, [n].
    """

    source: int
    """From which tensor of the initial state."""
    call: int
    """The number of the earlier call."""
    part: int
    """Which tensor of its state; -1: its outputs."""
    rows: Numbers
    """From which sequence."""
    to_rows: Numbers
    """To which sequence of the earlier call."""
    ts: Numbers
    """To which step of it."""
    weights: Matrix
    is_known: NDArray[np.bool_]
    """Whether the gradient arrives as it left, times the weight."""
    is_measured: bool = False
    """Whether what arrives is heard on its way, because it does not follow from what has left."""


@dataclass
class HeardCall:
    """One call of the module."""

    number: int
    first: int
    """The number of its first step, counted over all calls."""
    steps: int
    batch: int
    lengths: list[int]
    with_graph: bool
    """Whether it was made with gradients enabled."""
    is_training: bool
    update: int
    """The number of updates of the module's parameters before it."""
    origins: list[list[Origin]] = field(default_factory=list)
    """Where the state of each sequence comes from, for each tensor of the state."""
    ends_zero: list[list[bool]] = field(default_factory=list)
    """Whether the state after it is zero, for each sequence and tensor."""
    returned_graph: list[bool] = field(default_factory=list)
    """Which tensors of the state after it have a graph."""
    links: list[Links] = field(default_factory=list)
    operations: set[str] = field(default_factory=set)
    """What lies in the graph between the initial state and the earlier call."""
    also_given: list[tuple[int, int, int]] = field(default_factory=list)
    """Which of its initial state's tensors another call got, too: (tensor, call, tensor there)."""
    fed_back: list[int] = field(default_factory=list)
    """Earlier calls whose outputs come back as inputs, with their graph."""
    weights: Matrix | None = None
    """W within the call, [T, T] or [B, T, T]; None: all ones, s ≤ t."""
    of_initial: Matrix | None = None
    """Weights of its losses at the initial state, [T] or [B, T]; None: ones."""
    resets: NDArray[np.bool_] | None = None
    """Where it sets the state to zero itself, [T, B]."""
    is_bidirectional: bool = False
    is_online: bool = False
    """Whether it was given sensitivities, which credit its losses to earlier calls."""
    returns_state_only: bool = False
    labels: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    """The stream and the step of each place, [T, B]."""
    episodes: NDArray[np.int64] | None = None
    """[T, B]."""

    @cached_property
    def sources(self) -> list[list[Place]]:
        """After which steps each sequence's initial state was returned; none if it is new.

        The graph knows better than values do: a state may have been transformed in between.
        """
        found: dict[int, set[tuple[int, int, int]]] = {}
        for links in self.links:
            values = (links.rows, links.to_rows, links.ts, links.weights)
            for row, to, t, weight in zip(*(v.tolist() for v in values), strict=True):
                if weight:
                    found.setdefault(row, set()).add((links.call, to, t))
        return [self._sources_of(row, found.get(row)) for row in range(self.batch)]

    def _sources_of(self, row: int, linked: set[tuple[int, int, int]] | None) -> list[Place]:
        origins = self.origins[row] if self.origins else []
        if origins and all(o == ZERO for o in origins):
            return []  # reset, by way of .data perhaps, though its graph goes on
        known = {o for o in origins if isinstance(o, Place)}
        if linked and linked != known:
            return sorted(Place(*p) for p in linked)
        return sorted(known)

    @cached_property
    def attached(self) -> list[set[int]]:
        """Which tensors of each sequence's initial state have a graph that goes on."""
        parts = np.zeros((self.batch, 1 + max((v.source for v in self.links), default=0)), bool)
        for links in self.links:
            parts[links.rows[links.weights != 0], links.source] = True
        shared: dict[bytes, set[int]] = {}  # nearly all rows have the same
        return [shared.setdefault(row.tobytes(), {*np.flatnonzero(row).tolist()}) for row in parts]


@dataclass
class Pass:
    """One backward pass: what arrived where."""

    update: int
    reaches_parameters: bool
    is_cleared: bool = False
    """Whether what it adds gradients to, as a rule the parameters, had none, or zeros, before it.

    Zeros that an earlier pass has added, as behind a mask of zeros, are not told from these.
    """
    is_returned: bool = False
    """Whether the gradients are returned, as torch.autograd.grad does, and not added to grad."""
    outputs: dict[int, Gradient] = field(default_factory=dict)
    """The gradient of each call's outputs, [T, B, n]."""
    after: dict[tuple[int, int], Gradient] = field(default_factory=dict)
    """The gradient of the state after a call, by call and part, [B, n]."""
    before: dict[tuple[int, int], Gradient] = field(default_factory=dict)
    """What a call passes on to its initial state, [B, n]."""
    initial: dict[tuple[int, int], Gradient] = field(default_factory=dict)
    """All that arrives at an initial state that was made of results, where that is measured."""
    measured: dict[tuple[int, int], Gradient] = field(default_factory=dict)
    """What arrives from later states at results, [T, B, n] or [B, n], and at initial states."""


class EffectiveReach(NamedTuple):
    """Within how many steps 99 % of the gradient of a loss lies, its own included."""

    steps: int
    of: int
    """How many steps were looked at."""
    is_settled: bool
    """Whether these settle it, or the gradient may go beyond."""


@dataclass
class Record:
    """All that was heard of one module."""

    name: str
    parts: tuple[str, ...] = ()
    """What the tensors of its state are called."""
    calls: list[HeardCall] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    steps: int = 0
    near: float = 1e-5
    """How far gradients that are the same may differ by rounding."""
    optimizer_steps: int = 0
    can_learn: bool = True
    """Whether any parameter of the module requires a gradient."""
    not_recorded: int = 0
    """How many steps came after the last that is recorded."""
    reach: EffectiveReach | None = None
    """How far the gradient really reaches; None: not measured."""
    failure: Exception | None = None
    """What the run raised, where the audit can say why."""

    @property
    def batch(self) -> int:
        return max((c.batch for c in self.calls), default=0)

    def part(self, number: int) -> str:
        """Return what a tensor of the state is called."""
        return self.parts[number] if number < len(self.parts) else f"tensor {number}"

    def call_of(self, step: int) -> HeardCall:
        return next(c for c in self.calls if c.first <= step < c.first + c.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the calls as plain values."""
        return {
            "module": self.name,
            "calls": [
                {
                    "first": c.first,
                    "steps": c.steps,
                    "batch": c.batch,
                    "with_graph": c.with_graph,
                    "training": c.is_training,
                    "update": c.update,
                }
                for c in self.calls
            ],
            "passes": len(self.passes),
            "not_recorded": self.not_recorded,
        }
