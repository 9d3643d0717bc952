"""Adaptive credit: as far back as the gradient needs for a given relative bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bptt._src.credit.credit import Credit, Probe, is_number
from bptt._src.credit.decay import SMALLEST, Decay, fit_decay_rate
from bptt._src.credit.plan import Plan
from bptt.errors import CheckpointError, ConfigError, DivergedError


@dataclass(repr=False)
class Adaptive(Credit):
    """Truncated credit whose reach follows the measured decay of the state's gradient.

    C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to
    control gradient bias", UAI 2019, arXiv:1905.07473. With φ_k = ‖∂L_t/∂h_{t-k}‖, assume that
    E φ_{k+1} ≤ β E φ_k from some lag τ on. Then a reach of K steps leaves out at most

        bias(K) = Σ_{K ≤ k < τ} φ_k + φ_τ / (1 - β)       for K < τ,
        bias(K) = φ_τ β^{K-τ} / (1 - β)                   from τ on,

    and relative to the gradient at most bias(K) / max_J (‖g_J‖ - bias(J)), where ‖g_J‖ is
    the gradient from the lags up to J - 1. The reach is the least K for which this is below the
    tolerance. β is the slope of a least-squares line through log φ_k from τ on.

    It measures what the network already uses, so it cannot see a dependency that is not learnt
    yet. Set ``least`` to about the shortest lag that matters, and use a small tolerance.

    The plan is ``Truncated(every=K, reach=2K)``: every loss reaches at least K + 1 steps back,
    its own included, at twice the cost of the exact gradient. Before the first measurement
    (:meth:`adapt`), K is an assumption, which ``repr`` shows.

    Args:
        tolerance: the tolerated relative bias, above 0.
        start: K before the first measurement.
        least: the smallest K.
        most: the largest K, and the number of lags to measure.
        tau: τ, below ``most``; by default 4/5 of it.
        adapt_every: updates between measurements; None leaves this to the training loop, which
            measures once per epoch.

    Attributes:
        reach: The current K.
        beta: The measured decay per step, β; None before the first measurement, 1 or more if the
            gradient does not decay, in which case no bound holds and K is ``most``.
        relative_bias: The bound at K; infinite if there is none.
        measurements: The number of measurements.

    Raises:
        ConfigError: an option is out of its range.

    >>> credit = Adaptive(0.1, start=8)
    >>> credit
    Adaptive(0.1, start=8; reach 8 assumed, nothing measured yet)
    >>> credit.observe(Decay(norms=0.5 ** np.arange(100.0)[None], sums=2 - 0.5 ** np.arange(100.0)))
    >>> credit
    Adaptive(0.1, start=8; reach 4, decay 0.5 a step)
    >>> print(credit.plan(3))
    1
    1 1
    1 1 1
    """

    tolerance: float = 0.1
    start: int = 15
    least: int = 2
    most: int = 100
    tau: int | None = None
    adapt_every: int | None = None
    reach: int = field(init=False)
    beta: float | None = field(init=False, default=None)
    relative_bias: float = field(init=False, default=math.inf)
    measurements: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Check the options."""
        if not is_number(self.tolerance) or not 0 < self.tolerance < math.inf:
            raise ConfigError(f"Adaptive: tolerance must be above 0, got {self.tolerance!r}")
        for name in ("start", "least", "most", "tau", "adapt_every"):
            value = getattr(self, name)
            is_integer = isinstance(value, int) and is_number(value)
            if value is not None and (not is_integer or value < 1):
                raise ConfigError(f"Adaptive: {name} must be a positive integer, got {value!r}")
        if not self.least <= self.start <= self.most:
            raise ConfigError(
                f"Adaptive: least <= start <= most must hold, got least={self.least}, "
                f"start={self.start}, most={self.most}; change those that contradict this"
            )
        if self.most < 3:
            raise ConfigError(
                f"Adaptive: measuring a decay takes at least 3 lags, got most={self.most}; raise "
                f"it, or use Truncated(every={self.start}, reach={2 * self.start})"
            )
        if self.tau is not None and self.tau >= self.most:
            raise ConfigError(f"Adaptive: tau must be below most={self.most}, got {self.tau}")
        self.reach = self.start

    def __repr__(self) -> str:
        """Write the options and what was measured."""
        if self.beta is None:
            found = f"reach {self.reach} assumed, nothing measured yet"
        elif self.beta < 1:
            found = f"reach {self.reach}, decay {self.beta:.3g} a step"
        else:
            found = f"reach {self.reach}, the gradient does not decay"
        return f"{super().__repr__()[:-1]}; {found})"

    @property
    def window(self) -> int:  # type: ignore[override]
        """The number of steps between updates, K."""
        return self.reach

    @property
    def history(self) -> int:  # type: ignore[override]
        """The K steps before the window, which are run again."""
        return self.reach

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Plan for T steps; the arguments are those of :meth:`Credit.plan`."""
        return Plan.windows(steps, every=self.reach, reach=2 * self.reach)

    def adapt(self, probe: Probe) -> None:
        """Measure the decay, and set the reach accordingly."""
        self.observe(probe(self.most))

    def observe(self, decay: Decay) -> None:
        """Set the reach according to a measured decay.

        Args:
            decay: a result of :func:`bptt.credit.measure_decay`. Fewer than 3 lags, as from very
                short sequences, are ignored.

        Raises:
            DivergedError: the measured values are not finite.
        """
        norms = decay.norms.mean(0)
        if not (np.isfinite(norms).all() and np.isfinite(decay.sums).all()):
            raise DivergedError(
                "Adaptive has measured a gradient that is not finite: the state's gradient "
                "explodes within the measured lags",
                "clip, or use a smaller most=",
            )
        if len(norms) < 3:
            return
        tau = 4 * self.most // 5 if self.tau is None else self.tau
        tau = min(tau, 4 * len(norms) // 5, len(norms) - 2)  # a slope needs two points
        self.beta = _slope(norms, tau)
        bias = _bias(norms, tau, self.beta)
        gradient = float(np.max(decay.sums - bias[1:]))  # K steps have the lags to K - 1
        relative = bias[1:] / gradient if gradient > 0 else np.full(len(norms), math.inf)
        (enough,) = np.nonzero(relative < self.tolerance)
        K = int(enough[0]) + 1 if len(enough) else self.most
        self.reach = min(max(K, self.least), self.most)
        reached = min(self.reach, len(relative)) - 1
        self.relative_bias = float(relative[reached])
        self.measurements += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the reach and the measurements, to be saved as JSON."""
        bias = None if math.isinf(self.relative_bias) else self.relative_bias
        return {
            "reach": self.reach,
            "beta": self.beta,
            "relative_bias": bias,
            "measurements": self.measurements,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            reach, measurements = int(state["reach"]), int(state["measurements"])
            beta, bias = (
                None if state[k] is None else float(state[k]) for k in ("beta", "relative_bias")
            )
            if not self.least <= reach <= self.most:
                raise ValueError(f"reach {reach} is not from {self.least} to {self.most}")
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"the saved state of {self!r} is damaged: {e}") from None
        self.reach, self.beta, self.measurements = reach, beta, measurements
        self.relative_bias = math.inf if bias is None else bias


def _slope(norms: NDArray[np.float64], tau: int) -> float:
    """β: the least-squares slope of log φ_k from τ on; 0 if nothing is left by then."""
    k = np.arange(tau, len(norms))
    k = k[norms[k] > SMALLEST]
    return fit_decay_rate(k.astype(float), np.log(norms[k]))[0] if len(k) > 1 else 0.0


def _bias(norms: NDArray[np.float64], tau: int, beta: float) -> NDArray[np.float64]:
    """The most that a reach of K steps leaves out, for K = 0 ... lags."""
    K = np.arange(len(norms) + 1)
    if beta >= 1:
        return np.full(len(K), math.inf)
    rest = norms[tau] / (1 - beta)
    between = np.append(np.cumsum(norms[:tau][::-1])[::-1], 0.0)  # Σ_{K ≤ k < τ}
    beyond = rest * beta ** np.maximum(K - tau, 0).astype(float)
    bias: NDArray[np.float64] = np.where(tau > K, between[np.minimum(K, tau)] + rest, beyond)
    return bias
