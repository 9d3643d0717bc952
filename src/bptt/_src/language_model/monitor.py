"""How far the gradient reaches while a language model trains, compared with its credit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt import FlowMeter
from bptt._src.language_model.config import Config
from bptt._src.language_model.model import LanguageModel
from bptt._src.language_model.probe import draw_losses
from bptt._src.language_model.readout import loss_of
from bptt.credit import Credit
from bptt.data import Tokens
from bptt.errors import CheckpointError, spelled
from bptt.flow import LISTENS_EVERY, Probe, dies

LAGS = 100  # lags to measure, from 0 on
SEQUENCES = 24  # at most; at least 8 more than a batch has
LOST = 0.2  # share of the gradient; a credit that loses more is too short
FAR = 10  # times the horizon; a longer reach is far longer than needed
EVERY, TOKENS = 100, 10_000  # updates, and tokens, between two looks by default
LOOKS_SHORT = 3  # looks in a row that must find the credit too short
LOOKS_LONG = 10  # far too long: near lags are learnt first
QUIET = 300  # updates without an alarm, after which it is over
LARGEST = 512  # steps of the largest plan that is examined
DRAWS = 16  # of a random credit
STEPS = 35  # of a stream's window, unless --steps or the credit sets it


class Reach(NamedTuple):
    """How far back the losses are credited."""

    kept: NDArray[np.float64]
    """The share of the losses that are credited k steps back, for k = 0, 1, ..."""
    is_whole: bool
    """Whether sequences are credited back to their beginnings, so that nothing is cut."""

    @property
    def most(self) -> int:
        """The largest number of steps back that a loss is credited."""
        return int(np.flatnonzero(self.kept)[-1])

    @property
    def mean(self) -> float:
        """The number of steps back, on average."""
        return float(self.kept[1:].sum())

    def beyond(self, by_lag: NDArray[np.float64]) -> float:
        """The share of the gradient that lies beyond the reach, by the mean norms at each lag."""
        kept = np.zeros(len(by_lag))
        some = self.kept[: len(by_lag)]
        kept[: len(some)] = some
        return float((by_lag * (1 - kept)).sum() / by_lag.sum())


def reach_of(credit: Credit, steps: int, history: int, *, sequences: bool) -> Reach:
    """Determine how far back the losses of an update are credited.

    A weight counts as 1 at most. Of a random credit, the largest weights of 16 draws count,
    because its expectation covers everything.

    Args:
        credit: the credit in its present state.
        steps: length of the window or of the sequence.
        history: number of steps before the window that an update runs again.
        sequences: whether whole sequences are read, with nothing before their first step.
    """
    if history:  # the window's losses reach all of it
        k = np.arange(history + steps)
        return Reach(np.clip((history + steps - k) / steps, 0, 1), False)
    W = _weights(credit, steps)
    losses = np.array([steps - k if sequences else steps for k in range(steps)])
    kept = np.array([np.trace(W, -k) for k in range(steps)]) / losses
    return Reach(kept, sequences and bool((kept == 1).all()))


def _weights(credit: Credit, steps: int) -> NDArray[np.float64]:
    """The credit's weights, at most 1; over several draws, the largest."""
    credit = copy.deepcopy(credit)
    drawn = torch.Generator().manual_seed(0)
    W = np.zeros((steps, steps))
    with torch.random.fork_rng([]):
        for _ in range(DRAWS):
            new = credit.plan(steps, 1, drawn).matrix().reshape(-1, steps, steps)[0]
            more = np.maximum(W, np.clip(new, 0, 1))
            if (more == W).all():
                break
            W = more
    return W


def window_of(config: Config) -> int | None:
    """Return the steps of a stream's window; None if whole sequences are read.

    >>> window_of(Config()), window_of(Config(credit="truncated:every=10,reach=35"))
    (35, 10)
    """
    if not config.is_carried:
        return None
    return config.steps or config.make_credit().window or STEPS


def looks_every(tokens: float) -> int:
    """Return the default number of updates between two looks.

    A look reads some thousand tokens, however few an update reads.

    Args:
        tokens: the mean number of tokens that an update reads.

    >>> looks_every(20 * 35), looks_every(1 * 20)
    (100, 500)
    """
    return max(EVERY, math.ceil(TOKENS / tokens))


def looks_of(config: Config, tokens: Tokens, window: int) -> int:
    """Return the number of updates between two looks: as an option sets it, or by default.

    Args:
        config: the options.
        tokens: the training text.
        window: the number of steps that an update runs on a stream.
    """
    if config.flow_every is not None:
        return config.flow_every
    sequences = tokens.offsets
    steps = window if sequences is None else len(tokens.ids) / max(1, len(sequences) - 1)
    return looks_every(config.batch_size * max(1, steps))


class Monitor:
    """Measures every so many updates how far the gradient reaches, and reports what matters.

    A look takes 9 to 24 losses of the training text, drawn uniformly by seed and update, and up to
    100 lags. So its horizon is that of :func:`bptt.gradient_flow` for all losses, as ``bptt flow``
    shows it, except for sampling error and the difference between the texts. The training itself
    is not changed.

    Args:
        model: the model in training.
        tokens: the training text.
        config: the options.
        every: updates between two looks; 0: never look.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens, config: Config, every: int) -> None:
        self.model, self.tokens, self.config = model, tokens, config
        self.meter = FlowMeter(model.recurrent, every, lags=LAGS, clipped=config.clip > 0)
        self.has_looked = False  # in this epoch
        self.alarms: dict[str, dict[str, int]] = {}  # by kind: first and last update, whether told
        self.in_a_row = {"short": 0, "long": 0}
        self.remark: str | None = None  # on the credit, from the last look

    def listening(self) -> AbstractContextManager[None]:
        """Record norms during the backward pass of an update."""
        return self.meter.listening() if self.meter.every else nullcontext()

    def updated(
        self, norm: float, loss: float, update: int, reach: Callable[[int], Reach]
    ) -> dict[str, Any]:
        """Record an update, and look if it is time.

        Args:
            norm: the gradient's norm before clipping.
            loss: the batch's loss.
            update: the update's number, from 1 on.
            reach: a function that returns the credit's reach in a sequence of so many steps.

        Returns:
            The values to log: none for most updates.
        """
        if not self.meter.every:
            return {}
        found = self._look(update, reach) if self.meter.is_due else {}
        found.update(self._alarm(self.meter.update(norm, loss=loss).alarm, update))
        return found

    def epoch_ended(self, update: int, reach: Callable[[int], Reach]) -> dict[str, Any]:
        """Look, unless there was a look in this epoch."""
        found = {}
        if self.meter.every and not self.has_looked:
            found = self._look(update, reach)
        self.has_looked = False
        return found

    def _alarm(self, alarm: str | None, update: int) -> dict[str, str]:
        """Report an alarm when it begins, unless it passes at once, and when it is over."""
        found = {}
        if alarm is not None:
            kind = alarm.split(":")[0]
            seen = self.alarms.setdefault(kind, {"since": update, "last": update, "said": 0})
            seen["last"] = update
            if not seen["said"] and update - seen["since"] >= self._must_last(alarm):
                seen["said"] = 1
                found["alarm"] = alarm
        for kind, seen in list(self.alarms.items()):
            if not seen["said"] and alarm is None:
                del self.alarms[kind]
            elif update - seen["last"] >= QUIET:
                del self.alarms[kind]
                found["alarm_over"] = f"{kind}: not seen since update {seen['last']}"
        return found

    def _must_last(self, alarm: str) -> int:
        """For how many updates an alarm must last before it is reported.

        While a first word is learnt, the gradient of a window may grow for a short time.
        """
        is_heard = alarm.startswith("the gradient explodes: over the earlier half")
        return LISTENS_EVERY if is_heard and "inf times" not in alarm else 0

    def _look(self, update: int, reach: Callable[[int], Reach]) -> dict[str, Any]:
        count = min(SEQUENCES, 8 + self.config.batch_size)
        drawn = draw_losses(self.tokens, [self.config.seed, update], LAGS, count)
        where = self.model.embedding.weight.device
        inputs, targets = (torch.from_numpy(a).to(where) for a in drawn[:2])
        resets = None if drawn.resets is None else torch.from_numpy(drawn.resets).to(where)
        with torch.no_grad():
            x = self.model.embedding(inputs)

        readout = self.model.readout

        def losses(h: Tensor) -> Tensor:
            last = loss_of(readout, h[-1], targets, reduction="sum", learns=False)
            return torch.cat([last.new_zeros(len(h) - 1), last.unsqueeze(0)])

        probe = self.meter.look(x, losses, resets=resets)
        self.has_looked = True
        return {**_as_measured(probe), **self._compare(probe, reach(len(inputs)))}

    def _compare(self, probe: Probe, reach: Reach) -> dict[str, Any]:
        """Compare the horizon with the credit's reach; keep the remark for the end of training."""
        by_lag = np.array(probe.by_lag)
        if probe.horizon.lag is None:
            return {}
        beyond = reach.beyond(by_lag)
        lag, is_settled = probe.horizon.lag, probe.horizon.reached
        holds = {  # a shorter credit does not help a gradient that dies
            "short": not reach.is_whole and beyond > LOST,
            "long": not reach.is_whole
            and is_settled
            and reach.most > FAR * max(1, lag)
            and not dies(probe),
        }
        for kind in holds:
            self.in_a_row[kind] = self.in_a_row[kind] + 1 if holds[kind] else 0
        self.remark = None
        if self.in_a_row["short"] >= LOOKS_SHORT:
            self.remark = _too_short(probe, reach, beyond, self.config)
        elif self.in_a_row["long"] >= LOOKS_LONG:
            self.remark = _far_too_long(probe, reach)
        said = {} if self.remark is None else {"remark": self.remark}
        return {"beyond_credit": round(beyond, 5), **said}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as values that JSON can hold."""
        names = ("has_looked", "alarms", "in_a_row", "remark")
        return {"meter": self.meter.state_dict(), **{n: getattr(self, n) for n in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            self.meter.load_state_dict(state["meter"])
            self.has_looked = bool(state["has_looked"])
            self.remark = None if state["remark"] is None else str(state["remark"])
            self.alarms = {
                kind: {name: int(seen[name]) for name in ("since", "last", "said")}
                for kind, seen in state["alarms"].items()
            }
            self.in_a_row = {kind: int(state["in_a_row"][kind]) for kind in ("short", "long")}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"the saved gradient measurements are damaged: {e!r}") from None


def _as_measured(probe: Probe) -> dict[str, Any]:
    """A look as it is written to metrics.jsonl."""
    decay = probe.decay
    return {
        "horizon": probe.horizon.lag,
        "horizon_settled": probe.horizon.reached,
        "horizon_lags": probe.lags,
        "decay": None if decay is None or not math.isfinite(decay.beta) else round(decay.beta, 5),
        "decay_error": None
        if decay is None or not math.isfinite(decay.error)
        else round(decay.error, 5),
    }


def _too_short(probe: Probe, reach: Reach, beyond: float, config: Config) -> str:
    lag = probe.horizon.lag or 1
    within = "" if probe.horizon.reached else "not even "
    if config.reading != "stream":
        remedy = f"{spelled('credit', 'full')} credits each loss to its sequence's beginning"
    elif config.sampling == "random":
        remedy = (
            f"with {spelled('steps', 4 * lag)}, three in four losses reach {lag} steps back or more"
        )
    else:
        W = window_of(config) or STEPS
        remedy = (
            f"{spelled('credit', f'truncated:every={W},reach={W + lag}')} credits each loss {lag} "
            f"steps back or more, and runs {lag} steps more for each update"
        )
    return (
        f"losses are credited at most {reach.most} steps back ({reach.mean:.0f} on average); by "
        f"its norms, {100 * beyond:.2g} % of the gradient lies beyond, and 99 % {within}within "
        f"{lag} steps. If the model misses longer dependencies: {remedy}"
    )


def _far_too_long(probe: Probe, reach: Reach) -> str:
    lag = max(2, probe.horizon.lag or 0)
    every = max(10, lag)  # shorter windows would cost more updates than the reach saves
    return (
        f"losses are credited up to {reach.most} steps back, but by its norms 99 % of the "
        f"gradient lies within {probe.horizon.lag}. Unless longer dependencies remain to be "
        f"learnt, {spelled('credit', f'truncated:every={every},reach={every + lag}')} takes less "
        "time per update"
    )
