"""A plan: how much of each loss is credited to each step, as integers and weights.

Write C[t, s] for the part of the gradient that flows from the loss at step t back to the use of
the parameters at step s. Backpropagation through time is the sum of all of them, s ≤ t; every way
of assigning credit is a weight matrix over the same terms,

    ĝ = Σ W[t, s] C[t, s],        W[t, t] = 1,  W[t, s] = 0 for s > t,

and a plan is that matrix in a form that can be carried out:

    W[t, s] = [s ≥ since(t)] · carry[s+1] · carry[s+2] ··· carry[t]

``carry[j]`` is the factor on the state's gradient where it crosses from step j to step j-1: 1
passes it, 0 cuts it, 1/π reweights it. One backward pass carries it out. ``since`` is a window's
edge; losses with the same edge form a block and travel back together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt._src.ranks import ALONE, whole_batch
from bptt.errors import ConfigError


class Block(NamedTuple):
    """Losses that reach back to the same step: those of the steps ``first`` to ``end - 1``."""

    first: int
    """The first step whose loss belongs to the block."""
    end: int
    """The step after the last one."""
    since: int
    """The first step they are credited to; 0 includes the initial state."""


class Plan:
    """How far back the losses of a sequence of T steps are credited, and with what weight.

    Args:
        steps: the number of steps T, at least 1.
        carry: factors of the state's gradient, [T], or [T, B] if each sequence of the batch
            has its own; ``carry[j]`` where it crosses from step j to step j-1, ``carry[0]``
            where it reaches the initial state. Ones by default.
        blocks: blocks of losses with a window each. They follow each other and cover all steps;
            by default every loss reaches back to the first step, as far as ``carry`` lets it.

    Attributes:
        steps: T.
        carry: The factors, float64 [T] or [T, B].
        blocks: The blocks if windows overlap; otherwise they are expressed as cuts in ``carry``
            and there are none.

    Raises:
        ConfigError: the sizes do not match, or a factor is not a finite number.

    >>> print(Plan(4, carry=[1, 1, 0, 1]))
    1
    1 1
    . . 1
    . . 1 1
    >>> print(Plan(4, blocks=[Block(0, 2, 0), Block(2, 4, 1)]))
    1
    1 1
    . 1 1
    . 1 1 1
    """

    def __init__(
        self, steps: int, carry: ArrayLike | None = None, blocks: Iterable[Block] = ()
    ) -> None:
        if steps < 1:
            raise ConfigError(f"a plan needs at least one step, got {steps}")
        factors = np.ones(steps) if carry is None else np.array(carry, np.float64)
        if factors.ndim not in (1, 2) or len(factors) != steps:
            raise ConfigError(
                f"a plan for {steps} steps needs carry of shape [{steps}] or [{steps}, B], got "
                f"{list(factors.shape)}"
            )
        if not np.isfinite(factors).all():
            raise ConfigError("a plan's carry must be finite numbers; 0 cuts, 1 passes")
        windows = tuple(blocks)
        if windows:
            _check(windows, steps)
            cuts = _as_cuts(windows)
            if cuts is not None:  # windows that do not overlap
                factors[cuts] = 0
                windows = ()
        self.steps, self.carry, self.blocks = steps, factors, windows

    def __reduce__(self) -> tuple[Any, ...]:
        # Without arrays, which torch.load(weights_only=True) does not read.
        return type(self), (self.steps, self.carry.tolist(), self.blocks)

    @classmethod
    def windows(cls, steps: int, *, every: int, reach: int) -> Plan:
        """Make the plan of Williams and Peng's BPTT(reach; every).

        The losses of each block of ``every`` steps reach back ``reach`` steps from the block's
        end. The last block may be shorter; its losses reach as far as those of a full block.

        >>> print(Plan.windows(5, every=1, reach=3))
        1
        1 1
        1 1 1
        . 1 1 1
        . . 1 1 1
        """
        if every == reach:  # each window begins where the one before it ends
            carry = np.ones(steps)
            carry[every::every] = 0
            return cls(steps, carry)
        ends = range(every, steps + every, every)
        blocks = [Block(e - every, min(e, steps), max(0, e - reach)) for e in ends]
        return cls(steps, blocks=tuple(blocks))

    @property
    def is_product(self) -> bool:
        """Whether ``carry`` alone defines the plan, so that one backward pass carries it out."""
        return not self.blocks

    @cached_property
    def is_full(self) -> bool:
        """Whether it is backpropagation through time itself: every weight is 1."""
        return self.is_product and bool((self.carry == 1).all())

    @property
    def batch(self) -> int | None:
        """B if each sequence has its own weights, otherwise None."""
        return None if self.carry.ndim == 1 else int(self.carry.shape[1])

    def since(self) -> NDArray[np.int64]:
        """The first step in the window of each step's loss, [T]."""
        since = np.zeros(self.steps, np.int64)
        for first, end, edge in self.blocks:
            since[first:end] = edge
        return since

    def matrix(self) -> NDArray[np.float64]:
        """Return W: [T, T], or [B, T, T] if each sequence of the batch has its own weights.

        This matrix defines the plan; every implementation is tested against it.
        """
        T = self.steps
        carry = self.carry if self.carry.ndim == 2 else self.carry[:, None]
        W = np.zeros((carry.shape[1], T, T))
        for t in range(T):
            if t:
                W[:, t, :t] = W[:, t - 1, :t] * carry[t][:, None]
            W[:, t, t] = 1
        W *= np.arange(T) >= self.since()[:, None]
        return W if self.carry.ndim == 2 else W[0]

    def of_initial_state(self) -> NDArray[np.float64]:
        """Return the weight with which each loss is credited to the initial state, [T] or [B, T].

        What reaches step 0 goes on to the initial state, times ``carry[0]``.
        """
        first = self.carry[:1] if self.carry.ndim == 1 else self.carry[0][:, None]
        weights: NDArray[np.float64] = self.matrix()[..., 0] * first
        return weights

    @property
    def reach(self) -> int:
        """The largest number of steps that a loss is credited to, its own included."""
        W = self.matrix().reshape(-1, self.steps, self.steps).any(0)
        t, s = np.nonzero(W)
        return int((t - s).max()) + 1

    @property
    def backward_steps(self) -> int:
        """The number of backward steps over all blocks: T unless windows overlap."""
        return sum(b.end - b.since for b in self.blocks) or self.steps

    def of_sequences(self, chosen: slice) -> Plan:
        """Return the plan of some of the sequences."""
        if self.batch is None:
            return self
        return Plan(self.steps, self.carry[:, chosen], self.blocks)

    def slice(self, first: int, end: int) -> Plan:
        """Return the part of a product plan for the steps ``first`` to ``end - 1``."""
        if not self.is_product:
            raise ConfigError("a plan with overlapping windows cannot be sliced")
        return Plan(end - first, self.carry[first:end])

    def plan(self, steps: int, batch: int = 1, generator: Any = None) -> Plan:
        """Return itself: a plan can be used as a credit for sequences of its length."""
        if steps != self.steps:
            raise ConfigError(f"this plan is for {self.steps} steps, got {steps}")
        return self

    def figure(self, title: str | None = None) -> Any:
        """Draw the matrix.

        Returns:
            A matplotlib ``Figure``.
        """
        from bptt._src.report.matrices import draw_plans

        return draw_plans({title or "": self})

    def __repr__(self) -> str:
        """Name its sizes; the matrix is what ``str`` and ``print`` write."""
        batch = "" if self.batch is None else f", a batch of {self.batch}"
        windows = f", {len(self.blocks)} windows" if self.blocks else ""
        return f"<Plan of {self.steps} steps{batch}{windows}>"

    def __str__(self) -> str:
        """Write the matrix, with a dot for each zero; of a large one only the corner."""
        most = 16
        W = self.matrix() if self.steps <= 64 else Plan._corner(self, most)
        note = "" if self.batch is None else f"\nthe first of {self.batch} sequences"
        W = W if W.ndim == 2 else W[0]
        if self.steps > most:
            note = f"\nthe first {most} of {self.steps} steps" + note.replace("\n", ", ")
        cells = [[_cell(W[t, s]) for s in range(t + 1)] for t in range(min(most, self.steps))]
        width = max(len(c) for row in cells for c in row)
        return "\n".join(" ".join(c.rjust(width) for c in row) for row in cells) + note

    def _corner(self, n: int) -> NDArray[np.float64]:
        blocks = [Block(f, min(e, n), s) for f, e, s in self.blocks if f < n]
        return Plan(n, self.carry[:n], tuple(blocks)).matrix()


def _cell(weight: float) -> str:
    return "." if weight == 0 else f"{weight:.3g}"


def _check(blocks: Iterable[Block], T: int) -> None:
    before = 0
    for b in blocks:
        if b.first != before or b.end <= b.first or not 0 <= b.since <= b.first:
            raise ConfigError(
                f"a plan's blocks must follow each other from step 0 on, each with "
                f"0 <= since <= first < end; got {tuple(b)} after step {before}"
            )
        before = b.end
    if before != T:
        raise ConfigError(f"a plan's blocks must cover all {T} steps; these end at {before}")


def _as_cuts(blocks: tuple[Block, ...]) -> list[int] | None:
    """Find cuts equivalent to the windows, which exist if no window begins inside another one."""
    _, ends, since = np.array(blocks).T
    edges = np.unique([0, *since])
    # The last cut at or before every loss of a block must be the block's own edge.
    if (edges[np.searchsorted(edges, ends - 1, side="right") - 1] != since).any():
        return None
    cuts: list[int] = edges[1:].tolist()
    return cuts


heard: list[Callable[[Plan], None]] = []
"""What is called with each plan that a network is run by: the audit's."""


def plan_for(
    credit: Any,
    steps: int,
    batch: int | None,
    generator: Any = None,
    *,
    where: str,
    together: bool = False,
) -> Plan:
    """Ask a credit for a plan, and check that it fits.

    Where several processes share the batch, the credit plans for all of it, so that each sequence
    has the plan that it has in one process; the processes' generators must be in step.

    Args:
        credit: anything with a ``plan``.
        steps: T.
        batch: B; None if the inputs have no batch.
        generator: a torch.Generator that draws what is random.
        where: the function that messages name.
        together: whether the credit is asked for weights that all sequences share.

    Raises:
        TypeError: what it returns is no plan.
        ValueError: the plan is for other inputs.
    """
    ranks, whole = (ALONE, 1) if together or batch is None else whole_batch(batch)
    plan = credit.plan(steps, whole, generator)
    if not isinstance(plan, Plan):
        raise TypeError(
            f"{where}: {credit!r} must plan by returning a bptt.Plan, got {type(plan).__name__}"
        )
    if ranks != ALONE and plan.batch == whole:
        plan = plan.of_sequences(ranks.own())
    if plan.steps != steps or plan.batch not in (None, 1, batch):
        raise ValueError(
            f"{where}: {credit!r} has planned for {plan.steps} steps and "
            f"{'any batch' if plan.batch is None else f'a batch of {plan.batch}'}, the inputs have "
            f"{steps} steps and {'no batch' if batch is None else f'a batch of {batch}'}"
        )
    for hear in heard:
        hear(plan)
    return plan


def check_directions(plan: Plan, credit: Any, both: bool, where: str) -> None:
    """Refuse windows that overlap for a network of two directions.

    Raises:
        ValueError: it has both.
    """
    if plan.blocks and both:
        raise ValueError(
            f"{where}: {credit!r} has windows that overlap (every < reach), which have no "
            "meaning in the reverse direction: use a credit without them, as "
            "bptt.Truncated(k), or bidirectional=False"
        )
