"""Whether training goes well, by its loss: what makes a strange gradient a reason for an alarm."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, stdev
from typing import Any

AVERAGED = 20
"""Updates whose mean loss is a level."""
WORSE = 0.1
"""The loss has risen where it is above its lowest level by this share of all that was learnt."""
BLOWN = 2.0
"""Before there is a level: where it is above the first loss by this factor."""
PATIENCE = 100
"""Updates after which something should have been learnt, ..."""
LEARNT = 0.01
"""... so much of the first level."""
NOISE = 4.0
"""Standard errors of a level, by which a change has to exceed chance."""


class Course:
    """Follows the loss of an update after another.

    >>> course = Course()
    >>> for n in range(200):
    ...     course.add(2.0 * 0.99**n)
    >>> course.trouble() is None
    True
    >>> for n in range(20):
    ...     course.add(1.0)
    >>> course.trouble()
    'the loss has risen from 0.298 to 1'
    """

    def __init__(self) -> None:
        self.updates = 0
        self.start: float | None = None
        self.first: float | None = None
        self.best: float | None = None
        self.recent: deque[float] = deque(maxlen=AVERAGED)

    def add(self, loss: float) -> None:
        """Take note of an update's loss."""
        self.updates += 1
        self.start = loss if self.start is None else self.start
        self.recent.append(loss)
        if len(self.recent) < AVERAGED or not math.isfinite(loss):
            return
        level = fmean(self.recent)
        self.first = level if self.first is None else self.first
        if math.isfinite(level) and (self.best is None or level < self.best):
            self.best = level

    def trouble(self) -> str | None:
        """Return what is wrong, in words; None where the loss falls, or it is too early to tell."""
        if self.recent and not math.isfinite(self.recent[-1]):
            return f"the loss is {self.recent[-1]:g}"
        if self.first is None or self.best is None:
            if self.start is not None and self.recent[-1] > BLOWN * self.start > 0:
                return f"the loss has risen from {self.start:.3g} to {self.recent[-1]:.3g}"
            return None
        level = fmean(self.recent)
        noise = NOISE * stdev(self.recent) / math.sqrt(AVERAGED)
        if level - self.best > max(WORSE * (self.first - self.best), noise):
            return f"the loss has risen from {self.best:.3g} to {level:.3g}"
        if self.updates >= PATIENCE and self.first - self.best <= LEARNT * abs(self.first):
            return f"the loss has not fallen in {self.updates:,} updates"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return all that it remembers, as JSON can hold it."""
        return {
            "updates": self.updates,
            "start": self.start,
            "first": self.first,
            "best": self.best,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.updates = int(state["updates"])
        self.start, self.first, self.best = (
            None if state[k] is None else float(state[k]) for k in ("start", "first", "best")
        )
        self.recent = deque(map(float, state["recent"]), maxlen=AVERAGED)
