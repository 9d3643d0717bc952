"""When a gradient that explodes or dies is a reason for an alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bptt._src.engines import norm_hooks
from bptt._src.flow.course import Course
from bptt._src.flow.lags import DecayFit, Horizon

REMEMBERED = 100
"""Updates whose gradient norm an alarm compares with,"""
ENOUGH = 10
"""and how many there have to be."""
JUMPS = 100.0
"""An alarm: the gradient's norm is so many times the median, or falls to the inverse of it."""
GROWS = 10.0
"""An alarm: the state's gradient grows to so many times itself on its way back."""
WILD = 1e6
"""An alarm in any case: where it grows so much more, or is not finite, no clipping helps."""
DIES_WITHIN = 2
"""An alarm: all but the threshold of the gradient is within so many lags,"""
LOOKS = 3
"""in so many looks in a row: before a network has learnt anything hardly any gradient goes back."""


class Probe(NamedTuple):
    """How far the gradient reached when it was last looked at."""

    update: int
    """After how many updates that was."""
    horizon: Horizon
    """The lag that nearly all of the gradient is within: :meth:`bptt.GradientFlow.horizon`."""
    decay: DecayFit | None
    """What the norm is multiplied by for each step further back; None where too few are left."""
    growth: float
    """The largest ‖∂L_t/∂h_{t-k}‖ from lag 1 on, over that at lag 1."""
    by_lag: tuple[float, ...]
    """The mean norm ‖∂L_t/∂h_{t-k}‖ at each lag that was followed, from 0 on; 0 at lag 0 where that
    is not defined."""

    @property
    def lags(self) -> int:
        """How many lags were followed."""
        return len(self.by_lag)

    def __str__(self) -> str:
        """Describe it in a few words."""
        horizon = self.horizon_in_words()
        return horizon if self.decay is None else f"{horizon}, decay {self.decay.beta:.3g} a step"

    def horizon_in_words(self) -> str:
        """``horizon 12``, or ``horizon ≥ 12`` where the lags followed do not settle it."""
        if self.horizon.lag is None:
            return "no horizon"
        return f"horizon {'' if self.horizon.reached else '≥ '}{self.horizon.lag}"


def growth_of(heard: list[norm_hooks.Report]) -> float | None:
    """By what the norm of the state's gradient grew over the earlier half of the steps.

    A loss at each step makes it larger on its way back anyway, up to the horizon; in the half
    that is further back only what explodes goes on growing. The first three steps do not count:
    there all sequences may be in the same state, zero, and after it they start with the same token.

    Args:
        heard: the reports of a backward pass, as for :func:`engines.norm_hooks.by_layer`.

    Returns:
        The most that it grew in a layer; infinite where it is not finite; None where nothing was
        heard, or there are fewer than 16 steps.
    """
    found = []
    for norms in norm_hooks.by_layer(heard):
        half = len(norms) // 2
        if not all(map(math.isfinite, norms)):
            return math.inf
        if half >= 8 and norms[half] > 0:
            found.append(norms[3] / norms[half])
    return max(found, default=None)


def alarm_of(
    norm: float,
    before: Sequence[float],
    growth: float | None,
    probe: Probe | None,
    dying: int,
    course: Course | None = None,
    clipped: bool = False,
) -> str | None:
    """Return what is wrong, in words, if anything is.

    A gradient that is large, that grows on its way back, or that is small because all is learnt,
    is what many a run has that learns well. Where the loss is known these are alarms only as long
    as it has risen, or has not fallen at all: :class:`flow.course.Course`. A single jump is
    one at once, unless the gradient is clipped.

    Args:
        norm: the gradient's, before clipping.
        before: those of the updates before.
        growth: what :func:`growth_of` gave.
        probe: the last look.
        dying: how many looks in a row, with the last one, found that it dies: :func:`dies`.
        course: of the losses, with that of this update; None: it is not known.
        clipped: whether the gradient is scaled down before the update is made.
    """
    if not math.isfinite(norm):
        return f"the gradient is not finite: its norm is {norm:g}"
    jump = _jump(norm, before)
    strange = jump or _strange(norm, before, growth, probe)
    if strange is not None:
        trouble = None if course is None else course.trouble()
        at_once = jump is not None and not clipped
        most = max(growth or 0.0, 0.0 if probe is None else probe.growth)
        if course is None or at_once or trouble is not None or not most < WILD:
            return strange if trouble is None else f"{strange}; {trouble}"
    return dies(probe) if probe is not None and dying >= LOOKS else None


def _usual(before: Sequence[float]) -> float | None:
    return median(before) if len(before) >= ENOUGH else None


def _jump(norm: float, before: Sequence[float]) -> str | None:
    usual = _usual(before)
    if usual is None or not norm > JUMPS * usual:
        return None
    return (
        f"the gradient jumps: its norm is {norm:.3g}, {norm / usual:.3g} times the median "
        f"of the last {len(before)} updates"
    )


def _strange(
    norm: float, before: Sequence[float], growth: float | None, probe: Probe | None
) -> str | None:
    if growth is not None and growth >= GROWS:
        return (
            f"the gradient explodes: over the earlier half of the window the state's grew to "
            f"{growth:.3g} times itself on its way back"
        )
    if probe is not None and probe.growth >= GROWS:
        return (
            f"the gradient explodes: over {probe.lags - 1} steps the state's grows to "
            f"{probe.growth:.3g} times itself on its way back"
        )
    usual = _usual(before)
    if usual is not None and norm < usual / JUMPS:
        return (
            f"the gradient dies away: its norm is {norm:.3g}, {norm / usual:.3g} of the median of "
            f"the last {len(before)} updates"
        )
    return None


def dies(probe: Probe) -> str | None:
    """Describe a gradient of which hardly anything goes back."""
    if probe.lags <= DIES_WITHIN + 1:
        return None
    if probe.horizon.lag is None:
        return "the gradient dies: none of it goes back a single step" if not probe.growth else None
    if probe.horizon.lag > DIES_WITHIN:
        return None
    share, lag = 100 * (1 - probe.horizon.threshold), probe.horizon.lag
    return (
        f"the gradient dies: {share:g} % of it is within {lag} step{'s' * (lag != 1)}, so nothing "
        "from further back is learnt"
    )
