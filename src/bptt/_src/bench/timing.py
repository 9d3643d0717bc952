"""Contenders take turns, so that a busy moment falls upon all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bptt.errors import ConfigError, spelled

Step = Callable[[], float]
"""Does its work once, and gives the seconds that what is to be timed took."""

MOST_CALLS = 50


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        rounds: in each, every contender has a turn.
        turn: seconds of a turn, about; the median of the steps that fit is its time.
        steps: untimed updates of a language model, after which the losses are compared.
        sentences: of the seed's epoch, those that are trained on.
        textbook: of the seed's epoch, the sentences that the textbook is timed on.
        search: random shapes.
        seed: of their draws.
    """

    rounds: int = 15
    turn: float = 0.1
    steps: int = 20
    sentences: int = 2000
    textbook: int = 5
    search: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that there is something to measure."""
        for name, least, most in (
            ("rounds", 1, 10**6),
            ("sentences", 1, 79_000),
            ("search", 1, 10**6),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{spelled(name)} must be at least {least}, got {value}")
            if value > most:
                raise ConfigError(f"{spelled(name)} must be at most {most}, got {value}")

    @classmethod
    def quick(cls) -> Effort:
        """The least that says something: a first look."""
        return cls(rounds=3, turn=0.02, sentences=200, textbook=2, search=20)


class Stopped(Exception):
    """A measurement was stopped before there was anything of it."""


class Pace:
    """What a measurement asks and tells while it runs; this one goes on silently."""

    def stopped(self) -> bool:
        """Whether to end after this round."""
        return False

    def check(self) -> None:
        """Leave a measurement that has nothing to give yet, where it is to end."""
        if self.stopped():
            raise Stopped

    def done(self, share: float) -> None:
        """Called with the part of this measurement that is done, from 0 to 1."""


def take_turns(
    contenders: Mapping[str, Step], effort: Effort, pace: Pace
) -> dict[str, list[float]]:
    """Time steps of several contenders in rounds, after a warm-up.

    Args:
        contenders: by name.
        effort: how many rounds, and how long a turn.
        pace: where it is asked to stop, the rounds that are finished are given, one at least.

    Returns:
        For each contender the seconds of a step in each round, the median of its turn.
    """
    calls = {name: _calls(step, effort.turn) for name, step in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(effort.rounds):
        if number and pace.stopped():
            break
        for name, step in contenders.items():
            times[name].append(statistics.median(step() for _ in range(calls[name])))
        pace.done((number + 1) / effort.rounds)
    return times


def _calls(step: Step, turn: float) -> int:
    """Warm up, and find how many steps fit into a turn."""
    seconds = min(step() for _ in range(3))
    return max(1, min(MOST_CALLS, math.ceil(turn / max(seconds, 1e-9))))


class Surroundings:
    """What a training step has around a layer: a readout, its softmax, and fresh buffers for both.

    Without it a layer would find all that it left in the caches, and the same memory again.

    Args:
        rows: steps times batch; no more than 1024 are taken.
        hidden: H.
    """

    def __init__(self, rows: int, hidden: int) -> None:
        self.h = torch.randn(min(rows, 1024), hidden)
        self.weight = torch.randn(hidden, 1000)

    def __call__(self) -> None:
        """Run."""
        torch.mm(self.h, self.weight).softmax(-1)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
