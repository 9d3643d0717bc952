"""One credit with one seed on a text: a small language model."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt import Stream
from bptt._src.comparison.measures import gradient_error, peak_bytes
from bptt._src.comparison.result import Ending, Stop, Trial
from bptt._src.comparison.tasks import credit_state, generator_of
from bptt._src.language_model.step import loss_of
from bptt.data import IGNORED, Batch
from bptt.errors import DivergedError
from bptt.language_model import Config, Score, Training, Watch, evaluate, start

DEFAULTS: dict[str, Any] = {
    "steps": 50,
    "batch_size": 20,
    "vocabulary": 2000,
    "max_tokens": 100_000,
    "sampling": "random",
    "schedule": "constant",
    "epochs": 1_000_000,  # no limit: updates are counted instead
    "save_every": 1e9,
}
OPTIONS = ("level", "vocabulary", "lowercase", "max_tokens", "steps", "batch_size")
"""The options of a text, as for ``bptt train``."""
EVALUATIONS = 20


def default_options(level: str | None) -> dict[str, Any]:
    """The default options of a text at a level; bytes are never unknown."""
    return {k: v for k, v in DEFAULTS.items() if k != "vocabulary" or level != "byte"}


@dataclass
class _Follow(Watch):
    """Records the losses on the held-out text."""

    config: Config
    every: int
    told: Callable[[int, float], None]

    def __post_init__(self) -> None:
        self.updates: list[int] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.average: float | None = None

    def updated(self, training: Training, loss: float) -> None:
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        self.told(training.progress.updates, self.average)
        if training.progress.updates % self.every == 0:
            self.look(training)

    def look(self, training: Training) -> None:
        score = _score(training)
        self.updates.append(training.progress.updates)
        self.losses.append(score.loss)
        self.seconds.append(round(training.progress.seconds, 4))


def _score(training: Training) -> Score:
    return evaluate(training.model, training.text.valid, batch_size=training.config.batch_size)


def evaluations_apart(updates: int) -> int:
    """The number of updates between two evaluations on the held-out text."""
    return max(1, updates // EVALUATIONS)


def train_text(
    config: Config,
    credit: str,
    seed: int,
    updates: int,
    told: Callable[[int, float], None],
    stop: Stop,
    until: float,
) -> tuple[Trial | None, Any]:
    """Train to the end.

    Args:
        config: the options that all runs have in common.
        credit: its spelling.
        seed: the seed of weights, batches and plans.
        updates: the number of updates.
        told: called after each update with its number and the smoothed loss.
        stop: returns a reason to end everything, or None.
        until: the time of ``time.monotonic`` at which this run ends.

    Returns:
        The result, or None if the run was stopped; and the credit.
    """
    follow = _Follow(config, evaluations_apart(updates), told)
    config = replace(config, credit=credit, seed=seed, flow_every=0)
    with (
        TemporaryDirectory(prefix="bptt-compare-") as directory,
        closing(start(config, Path(directory) / "run", watch=follow)) as training,
    ):

        def ended() -> str | None:
            if stop():
                return "stopped"
            if training.progress.updates >= updates:
                return "updates"
            return "time" if time.monotonic() >= until else None

        try:
            reason = training.fit(ended)
        except DivergedError:
            reason = "diverged"
        if reason == "stopped":
            return None, training.credit
        return _trial(training, follow, reason), training.credit  # type: ignore[arg-type]


def _trial(training: Training, follow: _Follow, ended: Ending) -> Trial:
    found: dict[str, Any] = {}
    made = training.progress.updates
    if ended != "diverged":
        if not follow.updates or follow.updates[-1] != made:
            follow.look(training)
        found = _measured(training)
    return Trial(
        seed=training.config.seed,
        updates=follow.updates,
        losses=follow.losses,
        seconds=follow.seconds,
        ended=ended,
        made=made,
        credit=repr(training.credit),
        state=credit_state(training.credit),
        **found,
    )


def _next_batch(training: Training) -> Batch:
    """Return the next batch; at the end of an epoch the first one of the next epoch."""
    for _ in range(2):
        for batch in training.reader:
            return batch
    raise AssertionError("a reader always has a batch")


def _measured(training: Training) -> dict[str, Any]:
    """Measure memory, bias and variance on the next batch."""
    batch = _next_batch(training)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)

    plans = generator_of(training.config.seed, 2)

    def back_and_forth() -> None:
        how: dict[str, Any] = {"credit": training.credit, "memory": training.memory}
        given = training.model, batch.inputs, batch.targets, Stream()
        loss_of(*given, generator=plans, **how)[0].backward()

    training.model.zero_grad()
    found: dict[str, Any] = {"peak_bytes": peak_bytes(back_and_forth)}
    error = gradient_error(training.model, batch.inputs, loss, training.credit, plans)
    return {**found, **error}


def unigram_loss(config: Config) -> tuple[float, float]:
    """The loss of a unigram model, and the share of unknown tokens."""
    with (
        TemporaryDirectory(prefix="bptt-compare-") as directory,
        closing(start(config, Path(directory) / "run")) as training,
    ):
        about = training.run.text()
        loss = float(torch.tensor(about["unigram_perplexity"]).log())
        return loss, float(about["valid_unknown_share"])
