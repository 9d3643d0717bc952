"""What norms by pairs of steps say by lag: mean and spread, the fitted decay, the horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt._src.credit.decay import SMALLEST, fit_decay_rate


@dataclass(frozen=True, eq=False)
class ByLag:
    """‖∂L_t/∂state_{t-k}‖ by lag k, over all losses followed and all sequences; NaN: none defined.

    The larger a lag, the fewer losses have a step so far before them.
    """

    lag: NDArray[np.int64]
    """k = 0, 1, ..., [K]."""
    mean: NDArray[np.float64]
    """[K]."""
    low: NDArray[np.float64]
    """The quantile of 10 %, [K]."""
    high: NDArray[np.float64]
    """The quantile of 90 %, [K]."""
    count: NDArray[np.int64]
    """How many values there are at each lag, [K]."""
    ratio: NDArray[np.float64] | None = None
    """What a norm is at lag k over that at lag k - 1, the geometric mean over the losses that have
    both, [K]; NaN at lag 0. None: as the means themselves say."""


class DecayFit(NamedTuple):
    """A line through log mean norm: the norm is multiplied by β for each step further back."""

    beta: float
    error: float
    """The standard error of β, by the scatter around the line. Neighbouring lags are not
    independent, so the true one is rather larger."""
    first: int
    """The first lag that it was fitted on,"""
    last: int
    """and the last."""


class Horizon(NamedTuple):
    """The lag that nearly all of the gradient is within."""

    threshold: float
    """What is left out, as a share of the sum over all lags."""
    lag: int | None
    """None where no norm is defined, or one is not finite."""
    reached: bool
    """Whether the lags followed settle it: if not, the gradient goes on beyond them."""


def by_lag(norms: NDArray[np.float64], times: NDArray[np.int64], lags: int) -> ByLag:
    """Sort norms by lag.

    Args:
        norms: ‖∂L_t/∂state_s‖, [B, N, T]; NaN where not defined.
        times: the steps t of the N losses, [N].
        lags: how many lags were followed.
    """
    mean, low, high, ratio = np.full((4, lags), np.nan)
    count = np.zeros(lags, np.int64)
    for k in range(lags):
        (row,) = np.nonzero(times >= k)
        values = norms[:, row, times[row] - k].ravel()
        if k:
            before = norms[:, row, times[row] - k + 1].ravel()
            ratio[k] = mean_ratio(values[:, None], before[:, None])[0]
        values = values[~np.isnan(values)]
        count[k] = len(values)
        if len(values):
            mean[k] = values.mean()
            # "lower" and "higher" are values that occur: nothing is made of two infinities.
            low[k] = np.quantile(values, 0.1, method="lower")
            high[k] = np.quantile(values, 0.9, method="higher")
    return ByLag(np.arange(lags), mean, low, high, count, ratio)


def mean_ratio(values: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geometric mean of the ratios over the rows, [n, K] by [n, K]: [K].

    Rows in which either is zero, or not defined, do not count; where none does, it is 0 if a value
    is zero, or NaN.
    """
    both = (values > 0) & (before > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logarithms = np.where(both, np.log(values / before), 0).sum(0) / both.sum(0)
        found = np.exp(logarithms)
    none = np.where((values == 0).any(0), 0.0, np.nan)
    return np.where(both.any(0), found, none)


def fit_decay(found: ByLag, smallest: float = SMALLEST) -> DecayFit | None:
    """Fit the decay β by weighted least squares to log mean norm.

    The larger a lag, the fewer losses have it, and these may be larger ones than the others: of a
    task whose last steps alone are asked for, the mean grows with the lag though no gradient does.
    So the line goes through the logarithms of the ratios of neighbouring lags, the mean of those
    losses that have both, added up. A lag weighs as much as it has values. Lags count from 1 on
    (what comes at lag 0 comes through the output) to the last before the mean is below
    ``smallest`` or not finite. The latter half of them is taken, where a product of Jacobians is
    ruled by its largest exponent and no longer by where it started: as in :class:`bptt.Adaptive`,
    β is the decay of the tail.

    Returns:
        The fit; None where fewer than three lags are left.
    """
    logarithms = _logarithms(found)
    good = np.isfinite(found.mean) & (found.mean > smallest) & np.isfinite(logarithms)
    good[0] = True
    last = int(np.argmin(good)) - 1 if not good.all() else len(good) - 1
    if last < 3:
        return None
    first = min(last - 2, (last + 1) // 2)
    at = slice(first, last + 1)
    fit = fit_decay_rate(found.lag[at].astype(float), logarithms[at], found.count[at].astype(float))
    return DecayFit(*fit, first, last)


def _logarithms(found: ByLag) -> NDArray[np.float64]:
    """Of the mean norm at each lag, all as if of the same losses."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if found.ratio is None:
            return np.log(found.mean)
        steps = np.log(found.ratio)
    steps[:2] = 0  # from lag 1 on
    return np.cumsum(steps)


def find_horizon(found: ByLag, decay: DecayFit | None, threshold: float = 0.01) -> Horizon:
    """Find the least lag K so that Σ_{k≤K} of the mean norms is all of it but a threshold.

    What lies beyond the lags followed is estimated by the fitted decay: :func:`what_follows`. The
    lags settle the horizon if it lies within them with that added to the sum.

    Args:
        found: the norms by lag; where lag 0 is not defined, lag 1 is the first.
        decay: as :func:`fit_decay` fits it.
        threshold: the share that is left out, between 0 and 1.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"horizon: threshold must be between 0 and 1, got {threshold!r}")
    mean = np.where(np.isnan(found.mean) & (found.lag == 0), 0.0, found.mean)
    total = mean.sum()
    if not np.isfinite(total) or total <= 0:
        return Horizon(threshold, None, False)
    so_far = np.cumsum(mean)
    (enough,) = np.nonzero(so_far >= (1 - threshold) * total)
    return Horizon(threshold, int(enough[0]), _is_settled(mean, decay, threshold))


def _is_settled(mean: NDArray[Any], decay: DecayFit | None, threshold: float) -> bool:
    m = float(mean[-1])
    if m <= SMALLEST * float(mean.max()):
        return True
    beyond = what_follows(mean, 1.0 if decay is None else decay.beta)
    return bool(mean.sum() >= (1 - threshold) * (mean.sum() + beyond))


def what_follows(values: NDArray[np.float64], beta: float) -> float:
    """Estimate the sum of what follows values by lag, [K]: from the latter half of them.

    They go on to be multiplied by β at each lag; where β is no decay, they stay as large as in
    that half for K lags more.
    """
    half = max(1, len(values) // 2)
    level, left = float(values[-half:].sum()), beta**half
    return level * left / (1 - left) if beta < 1 else level / half * len(values)
