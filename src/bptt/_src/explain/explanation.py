"""What was found in a gradient: the weights over its terms, or that there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt._src.explain.patterns import matrix_text, recognise
from bptt._src.explain.solving import WeightFit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """The result of :func:`bptt.explain_gradient`. Printed, it is a text."""

    total: WeightFit
    """The weights that explain the gradients of all parameters together."""
    parameters: dict[str, WeightFit]
    """The weights that explain each parameter's gradient alone, by name."""
    datasets: int
    """How many data sets the equations come from."""

    @property
    def weights(self) -> Floats | None:
        """W[t, s], float64 [T, T], NaN for s > t, where C[t, s] is zero, and where it is unknown.

        None if no weights explain the gradients, or if the data determine none of them.
        """
        known = np.isfinite(self.total.values).any()
        return self.total.values if self.total.is_weights and known else None

    @property
    def rank(self) -> int:
        """How many combinations of the unknown weights the data determine."""
        return self.total.rank

    @property
    def unknowns(self) -> int:
        """How many unknown weights there are."""
        return self.total.unknowns

    @property
    def condition(self) -> float:
        """The condition number of the terms, scaled to one length; infinite below full rank."""
        return self.total.condition

    @property
    def residual(self) -> float:
        """What no weights explain, relative to the gradients."""
        return self.total.residual

    @property
    def is_full(self) -> bool:
        """Whether the gradients are the full ones, all weights 1, to rounding."""
        return self.total.is_full

    def __str__(self) -> str:
        """Format a table of the fits, what the weights say, and the weights."""
        width = max(map(len, ["all together", *self.parameters]))
        T = len(self.total.values)
        lines = [
            f"{self.datasets} data set{'s' * (self.datasets > 1)} of {T} steps; "
            f"{self.total.equations} equations for {self.unknowns} weights",
            f"{'':{width}}  {'residual':>9}  {'rank':>12}  {'condition':>9}",
        ]
        several = len(self.parameters) > 1
        together = {"all together": self.total} if several else {}
        for name, fit in {**self.parameters, **together}.items():
            rank = f"{fit.rank} of {fit.unknowns}"
            lines.append(f"{name:{width}}  {fit.residual:9.1e}  {rank:>12}  {fit.condition:9.1e}")
        lines.append("")
        if several:
            lines.append(_says("all together", self.total))
        if not (several and self.total.is_weights):
            lines += [_says(name, fit) for name, fit in self.parameters.items()]
        if self.weights is not None and not self.is_full:
            lines.append(matrix_text(self.weights))
        return "\n".join(lines)


def _says(name: str, fit: WeightFit) -> str:
    if fit.is_full:
        rest = "" if fit.is_determined else _undetermined(fit)
        return f"{name}: the full gradient, to {fit.deviation:.0e}: all weights are 1{rest}."
    if not fit.is_weights:
        return (
            f"{name}: no weights explain it, {fit.residual:.1g} of it is left over. The mistake "
            "is not how far losses reach or how often they count, but in a step's derivative, a "
            "state, a sum or a transpose."
        )
    if not np.isfinite(fit.values).any():
        return f"{name}: weights may explain it{_undetermined(fit)}."
    pattern = recognise(fit.values, fit.errors)
    times = "" if np.isclose(pattern.factor, 1, rtol=5e-3) else f", times {pattern.factor:.4g}"
    if fit.is_determined:
        return f"{name}: {pattern.text}{times}."
    return f"{name}: as far as the weights are known, {pattern.text}{times}{_undetermined(fit)}."


def _undetermined(fit: WeightFit) -> str:
    why = f"the data determine {fit.rank} of {fit.unknowns} combinations of the weights"
    if fit.rank == fit.equations:
        why = f"{fit.equations} equations for {fit.unknowns} weights: nothing is left to check them"
    elif fit.rank == fit.unknowns:
        few = int((fit.has_term & ~np.isfinite(fit.values)).sum())
        why = f"rounding hides {few} of {fit.unknowns} weights, whose terms are too small"
    return f" ({why}; give more data sets, or a function that computes the gradient)"
