"""Learning rate schedules: the factor of the base rate at a time of the training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bptt.errors import ConfigError, spelled

NAMED = ("halve", "constant", "linear", "cosine")
"""Schedules without options; ``halve`` follows the validation loss and is no function of time."""

_DECAY = re.compile(r"decay:([^,=]+)((?:,(?:after|every)=\d{1,9})*)")


@dataclass(frozen=True)
class StepDecay:
    """The rate is multiplied by a factor after an epoch, and again every so many epochs.

    W. Zaremba, I. Sutskever and O. Vinyals, arXiv:1409.2329 (2014), divide it by 2 after epoch 4
    and after each later one: ``decay:1/2,after=4``.
    """

    factor: float
    after: int = 1
    every: int = 1

    def at(self, epoch: int) -> float:
        """Return the factor in an epoch, counted from 1.

        >>> [StepDecay(0.5, after=2, every=2).at(epoch) for epoch in range(1, 7)]
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
        """
        return self.factor ** max(0, -(-(epoch - self.after) // self.every))


def parse_schedule(text: str) -> StepDecay | None:
    """Read a schedule; None for one of :data:`NAMED`.

    Raises:
        ConfigError: it is no schedule.

    >>> parse_schedule("decay:1/2,after=4")
    StepDecay(factor=0.5, after=4, every=1)
    """
    if text in NAMED:
        return None
    found = _DECAY.fullmatch(text)
    given = [part.split("=") for part in found[2].split(",")[1:]] if found else []
    options = {name: int(value) for name, value in given}
    above, _, below = found[1].partition("/") if found else ("0", "", "")
    try:
        factor = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        factor = 0.0
    is_right = 0 < factor < 1e38 and factor != 1 and len(options) == len(given)
    if not is_right or 0 in options.values():
        raise ConfigError(
            f"{spelled('schedule')} must be one of {', '.join(NAMED)}, or decay:FACTOR,after=EPOCH,"
            f"every=EPOCHS, such as decay:1/2,after=4,every=1 with a factor other than 1; got "
            f"{text!r}"
        )
    return StepDecay(factor, **options)


def scheduled(schedule: str, epoch: int, done: float) -> float:
    """Return the factor of the learning rate.

    Args:
        schedule: the schedule, as the option gives it.
        epoch: the current epoch, from 1.
        done: the share of the training that is done, from 0 on; 1 at the end of the last epoch.
    """
    if schedule == "linear":
        return max(0.0, 1 - done)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    decay = parse_schedule(schedule)
    return 1.0 if decay is None else decay.at(epoch)
