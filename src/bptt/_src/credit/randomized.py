"""Randomized credit: cuts at random places, with weights that compensate for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bptt._src.credit.credit import Credit, is_number, note_spelling
from bptt._src.credit.plan import Plan
from bptt.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Randomized(Credit):
    """Cuts the state's gradient at random and reweights it elsewhere. Unbiased.

    Between steps j-1 and j the gradient is cut with probability c_j, otherwise multiplied by
    1 / (1 - c_j): carry[j] is 0 or 1 / (1 - c_j), its mean is 1 whatever happened before, so
    the mean of W[t, s] is 1. C. Tallec and Y. Ollivier, "Unbiasing truncated backpropagation
    through time" (2017), arXiv:1705.08209.

    Args:
        mean: the mean length of the pieces in steps, above 1.
        tail: ``"heavy"``, the paper's choice: c_j = (α - 1) / ((α - 2) · mean + δ), where δ
            counts the steps since the last cut. Long pieces are less rare, and the weight of
            a lag ℓ grows like ℓ^(α-1). ``"constant"``: c_j = 1 / mean; lengths are geometric, and
            the weights, and with them the variance, grow exponentially, by e every ``mean``
            steps.
        alpha: α of the heavy tail, above 2; from 3 on, lengths have a finite variance.
        shared: whether all sequences of a batch are cut at the same places. Otherwise each has
            its own cuts, which lowers the variance.
        pi: the form of D2L (Dive into Deep Learning, 9.7.1.3) instead of ``mean``:
            ξ_j ∈ {0, 1/π_j} with P(ξ_j ≠ 0) = π_j, as one number or one per step.

    Raises:
        ConfigError: an option is out of its range.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(7)
    >>> plan = Randomized(mean=2, tail="constant").plan(4, generator=generator)
    >>> plan.carry.tolist()
    [1.0, 0.0, 2.0, 2.0]
    >>> print(plan)
    1
    . 1
    . 2 1
    . 4 2 1
    """

    mean: float | None = None
    tail: Literal["heavy", "constant"] = "heavy"
    alpha: float = 4.0
    shared: bool = False
    pi: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if (self.mean is None) == (self.pi is None):
            raise ConfigError(
                "Randomized takes a mean length, Randomized(mean=35), or probabilities pi, "
                f"Randomized(pi=0.97); got {self!r}"
            )
        if self.mean is not None and not (is_number(self.mean) and 1 < self.mean < np.inf):
            raise ConfigError(f"Randomized: mean must be above 1 and finite, got {self.mean!r}")
        if self.tail not in ("heavy", "constant"):
            raise ConfigError(f"Randomized: tail must be heavy or constant, got {self.tail!r}")
        if not isinstance(self.shared, bool):  # "false" is a true value
            raise ConfigError(f"Randomized: shared must be True or False, got {self.shared!r}")
        if not (is_number(self.alpha) and 2 < self.alpha < np.inf):
            raise ConfigError(f"Randomized: alpha must be above 2 and finite, got {self.alpha!r}")
        if self.pi is not None:
            pi = np.asarray(self.pi)
            if pi.ndim > 1 or pi.dtype.kind not in "fi" or not ((pi > 0) & (pi <= 1)).all():
                raise ConfigError(f"Randomized: pi must be above 0 and at most 1, got {self.pi!r}")
        if self.pi is None or isinstance(self.pi, (int, float)):  # an array is not spelled
            note_spelling(self)

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Draw a plan; the arguments are those of :meth:`Credit.plan`."""
        columns = 1 if self.shared else batch
        drawn = torch.rand(steps, columns, generator=generator, dtype=torch.float64).numpy()
        carry = self.carry_of(drawn)
        return Plan(steps, carry[:, 0] if columns == 1 else carry)

    def carry_of(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn numbers drawn from U(0, 1) into factors: [T, B] to [T, B].

        A number below the probability of a cut means a cut. The first step's number is not used:
        the gradient always passes to the initial state.
        """
        if self.pi is None and self.tail == "heavy":
            return self._with_heavy_tail(drawn)
        steps = np.arange(len(drawn))[:, None]
        c = self.cut_probability(steps, np.ones_like(drawn), len(drawn))
        cuts = drawn < c
        carry: NDArray[np.float64] = np.where(cuts, 0.0, 1 / np.where(cuts, 1.0, 1 - c))
        carry[0] = 1
        return carry

    def _with_heavy_tail(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn the numbers into factors; a walk from step to step, with as few steps as possible.

        The sequences are laid end to end, each as if it began with a cut. A cut is likeliest just
        after another one, so that only the steps whose number is below that probability are looked
        at one by one.
        """
        T, B = drawn.shape
        numbers = drawn.T.flatten()
        numbers[::T] = -1  # the beginnings
        probability, factors = _by_length(self, T)
        (chances,) = np.nonzero(numbers < probability[1])
        cuts, back, last = [], [], -1
        for j, number in zip(chances.tolist(), numbers[chances].tolist(), strict=True):
            if number < probability[j - last]:
                cuts.append(j)
                back.append(1 - (j - last))
                last = j
        steps = np.ones(T * B, np.int64)
        steps[cuts] = back
        carry: NDArray[np.float64] = factors[steps.cumsum()].reshape(B, T).T
        carry[0] = 1
        return carry

    def cut_probability(
        self, step: int | NDArray[np.int64], since_cut: NDArray[np.float64], steps: int
    ) -> NDArray[np.float64]:
        """c_j, the probability of a cut between the steps j-1 and j.

        Args:
            step: the step j, or several, [T, 1].
            since_cut: δ for each sequence, [B] or [T, B]: the steps since its last cut, 1 for the
                first boundary after it.
            steps: the number of steps T.

        Returns:
            As many probabilities as ``since_cut`` has values.
        """
        if self.pi is not None:
            pi = np.asarray(self.pi, np.float64)
            if pi.ndim and len(pi) != steps:
                raise ConfigError(
                    f"Randomized: pi has {len(pi)} probabilities, the sequence {steps} steps"
                )
            return np.full_like(since_cut, 1 - (pi[step] if pi.ndim else pi))
        assert self.mean is not None
        if self.tail == "constant":
            return np.full_like(since_cut, 1 / self.mean)
        return (self.alpha - 1) / ((self.alpha - 2) * self.mean + since_cut)


@lru_cache(maxsize=16)
def _by_length(credit: Randomized, steps: int) -> tuple[list[float], NDArray[np.float64]]:
    """The probability of a cut after δ = 0 ... T steps, and the factor where there is none.

    The values for δ = 0 stand for the cut itself.
    """
    c = credit.cut_probability(0, np.arange(1.0, steps + 1), steps)
    return [1.0, *c.tolist()], np.append(0.0, 1 / (1 - c))
