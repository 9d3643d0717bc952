"""What a credit is: one method, from the length of a sequence to a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bptt.credit.decay import Decay
from bptt.credit.plan import Plan

Probe = Callable[[int], Decay]
"""``probe(lags)`` measures the decay of the state's gradient, on the model as it is."""


class Credit:
    """How far back a loss is credited. A subclass with :meth:`plan` is a new one.

    The rest has defaults, which suit what does not learn from training.

    >>> import numpy as np
    >>> class Fading(Credit):
    ...     "Weights that fall by a tenth with each step."
    ...     def plan(self, steps, batch=1, generator=None):
    ...         return Plan(steps, carry=np.full(steps, 0.9))
    >>> print(Fading().plan(3))
       1
     0.9    1
    0.81  0.9    1
    """

    window: int | None = None
    """The steps between updates that suit it where training goes along a stream; None: any."""

    history: int = 0
    """How many steps before the window of an update it reaches into, where training goes along a
    stream: they are run again, from the state that was stored there, under the current
    parameters."""

    adapt_every: int | None = None
    """Updates between calls of :meth:`adapt`; None: one call an epoch."""

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Plan for one sequence, or batch of sequences.

        Args:
            steps: T.
            batch: B; 1 asks for weights that all sequences share, or there is just one.
            generator: draws what is random; None draws from torch's own.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define plan(steps, batch, generator)"
        )

    def adapt(self, probe: Probe) -> None:
        """Learn from training. Called now and then; this one does not ask.

        Args:
            probe: measures the decay of the state's gradient, on the model as it is.
        """

    def state_dict(self) -> dict[str, Any]:
        """Give what was learnt from training, to be saved as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    @property
    def spelling(self) -> str:
        """How the command line spells it: what :func:`bptt.credit.parse` reads."""
        kind = type(self)
        name = kind.__name__.lower()
        if not kind.__module__.startswith("bptt.credit."):
            name = f"{kind.__module__}.{kind.__qualname__}"
        return ":".join(filter(None, (name, ",".join(_options(self, str)))))

    def __repr__(self) -> str:
        """Write it as Python makes it."""
        return f"{type(self).__name__}({', '.join(_options(self, repr))})"


def _options(credit: Credit, write: Callable[[Any], str]) -> list[str]:
    """A dataclass's fields: the first by its value alone, others if they are not at defaults."""
    options: list[str] = []
    for number, f in enumerate(getattr(type(credit), "__dataclass_fields__", {}).values()):
        value = getattr(credit, f.name)
        if f.init and value is not None and (number == 0 or not np.all(value == f.default)):
            written = _number(value) if isinstance(value, float) else write(value)
            options.append(written if number == 0 else f"{f.name}={written}")
    return options


def _number(value: float) -> str:
    """Write a float in few digits, unless that would be another one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
