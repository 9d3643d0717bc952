"""Solving a gradient for its weights: ĝ = Σ W[t, s] C[t, s], by least squares. NumPy only.

The unknowns are the W[t, s], s ≤ t, whose terms are not zero, the equations the numbers of the
gradients of all data sets. The columns are scaled to one length first, as terms shrink with the
distance t - s. Every weight comes with its standard error; one that the data do not determine, as
the null space of the terms or rounding reaches it, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ZERO_SINGULAR_VALUE = 1e-11
"""What is this much smaller than the greatest singular value is rounding of float64."""
NO_TERM = 1e-13
"""A term this much smaller than the greatest one is none."""
UNCERTAIN = 0.02
"""A weight with a greater standard error is not determined."""


@dataclass(frozen=True)
class Equations:
    """What one data set says: its terms, and the gradient that was computed on it."""

    terms: Floats
    """C[t, s] in one row, [T, T, N]; what lies above the diagonal is not looked at."""
    gradient: Floats
    """[N]."""


@dataclass(frozen=True)
class WeightFit:
    """The weights over the terms C[t, s] that come closest to a gradient."""

    values: Floats
    """W[t, s], float64 [T, T]; NaN where there is no term, or where it is not determined."""
    errors: Floats
    """The standard error of each weight, [T, T]; infinite where it is not determined."""
    has_term: NDArray[np.bool_]
    """Where C[t, s] is not zero, [T, T]: the unknowns."""
    rank: int
    """How many combinations of the unknowns the data determine."""
    unknowns: int
    """How many weights there are to find."""
    equations: int
    """How many numbers there are to find them from."""
    condition: float
    """The condition number of the terms, scaled to one length; infinite below full rank."""
    residual: float
    """What no weights explain, ‖ĝ - Σ W C‖ / ‖ĝ‖; 0 if ĝ is zero."""
    tolerance: float
    """Up to which residual rounding explains the rest."""
    deviation: float
    """The distance to the full gradient, ‖ĝ - Σ C‖ / ‖Σ C‖."""

    @property
    def is_weights(self) -> bool:
        """Whether some weights explain the gradient; without spare equations they always do."""
        return self.residual <= self.tolerance

    @property
    def is_full(self) -> bool:
        """Whether the gradient is the sum of all terms, to rounding."""
        return self.deviation <= self.tolerance

    @property
    def is_determined(self) -> bool:
        """Whether all weights are: full rank, spare equations, errors that are small."""
        known = bool(np.isfinite(self.values[self.has_term]).all())
        return self.rank == self.unknowns < self.equations and known


def solve(data: Sequence[Equations], tolerance: float) -> WeightFit:
    """Find the weights that fit the gradients of all data sets best.

    Args:
        data: at least one data set; all have the same T.
        tolerance: the relative error of the gradients that rounding explains.
    """
    T = len(data[0].terms)
    lower = np.tri(T, dtype=bool)
    rows = [d.terms[lower] for d in data]  # [pairs (t, s), N]
    fulls = [of_one.sum(0) for of_one in rows]
    sizes = [float(np.linalg.norm(full)) or 1.0 for full in fulls]  # so that all data sets count
    terms = np.concatenate([of_one / size for of_one, size in zip(rows, sizes, strict=True)], 1)
    full = np.concatenate([of_one / size for of_one, size in zip(fulls, sizes, strict=True)])
    g = np.concatenate([d.gradient / size for d, size in zip(data, sizes, strict=True)])
    length = np.linalg.norm(terms, axis=1)
    present = length > NO_TERM * max(float(length.max()), np.finfo(float).tiny)
    A = (terms[present] / length[present, None]).T  # [equations, unknowns]
    left, singular, right = np.linalg.svd(A, full_matrices=False)
    kept = singular > ZERO_SINGULAR_VALUE * singular[:1].sum()
    rank, (equations, unknowns), size = int(kept.sum()), A.shape, float(np.linalg.norm(g))
    inverse = right[kept].T / singular[kept]  # the pseudo-inverse is inverse @ left.T
    found = inverse @ (left[:, kept].T @ g)
    rest = float(np.linalg.norm(g - A @ found))
    noise = max(rest / max(1, equations - rank) ** 0.5, np.finfo(float).eps * size)
    errors = noise * np.linalg.norm(inverse, axis=1)
    if equations == rank:  # no residual could tell a wrong fit
        errors[:] = np.inf
    errors[(right[kept] ** 2).sum(0) < 1 - 1e-6] = np.inf  # the null space reaches these
    has_term, values, of_each = (
        np.zeros((T, T), bool),
        np.full((T, T), np.nan),
        np.full((T, T), np.inf),
    )
    has_term[lower] = present
    of_each[has_term] = errors / length[present]
    values[has_term] = found / length[present]
    values[of_each > UNCERTAIN] = np.nan
    return WeightFit(
        values=values,
        errors=of_each,
        has_term=has_term,
        rank=rank,
        unknowns=unknowns,
        equations=equations,
        condition=float(singular[0] / singular[-1]) if rank == unknowns > 0 else np.inf,
        residual=rest / size if size else 0.0,
        # Large terms may cancel in a small gradient, and rounding is that of the terms.
        tolerance=tolerance * (max(1.0, float(length.max()) / size) if size else 1.0),
        deviation=float(np.linalg.norm(g - full)) / (float(np.linalg.norm(full)) or 1.0),
    )


def is_single(arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether gradients were computed in float32 or less: float32 holds all of them exactly."""
    with np.errstate(over="ignore"):
        return all((a == a.astype(np.float32)).all() for a in arrays)
