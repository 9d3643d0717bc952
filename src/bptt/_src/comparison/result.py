"""The result of a comparison: the runs as measured, and the figures derived from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bptt._src.comparison.measures import Plans
from bptt._src.comparison.table import write_comparison
from bptt._src.comparison.verdict import verdict
from bptt.credit import Block, Plan

FORMAT = "bptt-comparison-1"
Ending = Literal["solved", "updates", "time", "diverged"]


@dataclass(frozen=True)
class Trial:
    """One credit with one seed. Losses are in nats or mean squared errors, as the task's."""

    seed: int
    updates: list[int]
    """The numbers of updates after which a loss was measured."""
    losses: list[float]
    """The losses: for a task that of the update's batch, for a text that of the held-out part."""
    seconds: list[float]
    """Seconds of training until then, including the measurements of an adaptive credit."""
    ended: Ending
    made: int
    """The number of updates."""
    peak_bytes: int | None = None
    """The peak memory of tensors in one forward and backward pass, beyond what was there
    before: weights, optimizer and batch."""
    bias: float | None = None
    """The gradient's error at the final weights, from :func:`bptt.estimator_error`; None if
    the run diverged or the exact gradient is zero."""
    bias_noise: float | None = None
    variance: float | None = None
    credit: str = ""
    """The credit at the end, written out."""
    state: dict[str, Any] | None = None
    """What the credit learnt from training."""

    def smoothed(self, window: int) -> NDArray[np.float64]:
        """Means over the last measurements, over fewer at the beginning."""
        losses = np.array(self.losses)
        first = [losses[: n + 1].mean() for n in range(min(window - 1, len(losses)))]
        if len(losses) < window:
            return np.array(first)
        return np.concatenate([first, sliding_window_view(losses, window).mean(1)])

    def reached(self, target: float, window: int) -> int | None:
        """The index of the first measurement whose smoothed loss reaches the target."""
        smooth = self.smoothed(window)
        (places,) = np.nonzero(smooth[window - 1 :] <= target)
        return int(places[0]) + window - 1 if len(places) else None


@dataclass(frozen=True)
class CreditResult:
    """The runs of one credit."""

    spelling: str
    plans: Plans
    """The properties of its plans at the end of the first run."""
    trials: list[Trial]


@dataclass(frozen=True)
class Figures:
    """One line of the table. None: not reached, or not defined."""

    runs: int
    diverged: int
    solved: int
    """Number of runs that reached the target."""
    loss: float | None
    """The smoothed loss at the end, for a text a perplexity; the mean of runs that did not
    diverge."""
    loss_least: float | None
    loss_most: float | None
    updates: int | None
    """Until the target: the median, where a run that did not reach it counts as the longest."""
    seconds: float | None
    milliseconds: float | None
    """Mean per update."""
    peak_bytes: int | None
    bias: float | None
    """Medians of the runs."""
    bias_noise: float | None
    variance: float | None


@dataclass(frozen=True)
class Comparison:
    """Several credits, each trained with the same seeds."""

    task: str
    options: dict[str, Any]
    """The task's own options."""
    conditions: dict[str, Any]
    """Cell, sizes, learning rate: the same for all runs."""
    steps: int
    """The number of steps in a batch, T."""
    lag: int | None
    """How far back the answer lies; None for a text, where it is not known."""
    baseline: float
    """The loss of a model without memory; for a text, of a unigram model."""
    target: float
    """The loss at which a run counts as solved."""
    window: int
    """The number of measurements over which losses are smoothed."""
    is_text: bool
    seeds: int
    credits: list[CreditResult]
    notes: list[str]
    """Remarks needed to read the result."""
    interrupted: bool = False

    def shown(self, loss: float) -> float:
        """A loss as it is displayed: itself, or a perplexity."""
        return math.exp(min(loss, 700)) if self.is_text else loss

    @property
    def measure(self) -> str:
        """What :meth:`shown` gives."""
        return "perplexity" if self.is_text else "loss"

    def figures(self, result: CreditResult) -> Figures:
        """Summarise the runs of a credit."""
        trials = result.trials
        ends = [t for t in trials if t.ended != "diverged" and t.losses]
        losses = [self.shown(float(t.smoothed(self.window)[-1])) for t in ends]
        places = [(t, t.reached(self.target, self.window)) for t in trials]
        updates = _median([math.inf if p is None else t.updates[p] for t, p in places])
        seconds = _median([math.inf if p is None else t.seconds[p] for t, p in places])
        made = sum(t.updates[-1] for t in trials if t.updates)
        spent = sum(t.seconds[-1] for t in trials if t.seconds)
        return Figures(
            runs=len(trials),
            diverged=sum(t.ended == "diverged" for t in trials),
            solved=sum(p is not None for _, p in places),
            loss=statistics.fmean(losses) if losses else None,
            loss_least=min(losses, default=None),
            loss_most=max(losses, default=None),
            updates=None if updates is None else round(updates),
            seconds=seconds,
            milliseconds=1000 * spent / made if made else None,
            peak_bytes=max((t.peak_bytes for t in trials if t.peak_bytes), default=None),
            bias=_median([t.bias for t in trials if t.bias is not None]),
            bias_noise=_median([t.bias_noise for t in trials if t.bias_noise is not None]),
            variance=_median([t.variance for t in trials if t.variance is not None]),
        )

    def verdicts(self) -> dict[str, str]:
        """Return a sentence about each credit's result."""
        return {r.spelling: verdict(self, r) for r in self.credits}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold: measurements and derived figures."""
        found = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "credits"}
        verdicts = self.verdicts()
        found["credits"] = [
            {
                "credit": r.spelling,
                "exact": r.plans.exact,
                "reach": r.plans.reach,
                "drawn": r.plans.drawn,
                "figures": asdict(self.figures(r)),
                "verdict": verdicts[r.spelling],
                "plan": _plan_to_dict(r.plans.example),
                "trials": [asdict(t) for t in r.trials],
            }
            for r in self.credits
        ]
        return {"format": FORMAT, **found}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Comparison:
        """Make a comparison from the value of :meth:`to_dict`."""
        fields = {k: v for k, v in found.items() if k in cls.__dataclass_fields__}
        fields["credits"] = [
            CreditResult(
                spelling=c["credit"],
                plans=Plans(c["exact"], c["reach"], c["drawn"], _plan_from_dict(c["plan"])),
                trials=[Trial(**t) for t in c["trials"]],
            )
            for c in found["credits"]
        ]
        return cls(**fields)

    def figure(self) -> Any:
        """Draw the learning curves and the reach of each credit.

        Returns:
            A matplotlib ``Figure``.
        """
        from bptt._src.comparison.figure import draw_comparison

        return draw_comparison(self)

    def __str__(self) -> str:
        """Write the table and the verdicts."""
        return write_comparison(self)


def _median(values: list[float]) -> float | None:
    """The median; None if it is infinite, or there are no values."""
    found = statistics.median(values) if values else math.inf
    return None if math.isinf(found) else float(found)


def _plan_to_dict(plan: Plan) -> dict[str, Any]:
    blocks = [list(b) for b in plan.blocks]
    return {"steps": plan.steps, "carry": plan.carry.tolist(), "blocks": blocks}


def _plan_from_dict(found: dict[str, Any]) -> Plan:
    blocks = [Block(*b) for b in found["blocks"]]
    return Plan(found["steps"], found["carry"], blocks)


Stop = Callable[[], str | None]
"""Called after every update: a reason to end everything, or None."""
