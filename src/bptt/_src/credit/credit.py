"""The base class of credits: one method, from the length of a sequence to a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bptt._src.credit.decay import Decay
from bptt._src.credit.plan import Plan

Probe = Callable[[int], Decay]
"""``probe(lags)`` measures the decay of the state's gradient, on the current model."""


class Credit:
    """How far back a loss is credited. A subclass with :meth:`plan` is a new credit.

    Everything else has defaults, which suit a credit that does not learn from training.

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
    """The number of steps between updates on a stream; None: any."""

    history: int = 0
    """The number of steps before an update's window that its losses reach, on a stream. They are
    run again, from the state that was stored there, under the current parameters."""

    spelled: str | None = None
    """:attr:`spelling`, of a credit that it says everything about, in any process; noted when it is
    made, for torch.compile, which cannot spell numbers."""

    is_online: bool = False
    """Whether it hands on more than a state, as :class:`bptt.Online`; it has no plan then."""

    adapt_every: int | None = None
    """The number of updates between calls of :meth:`adapt`; None: one call per epoch."""

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Plan for one sequence, or batch of sequences.

        Args:
            steps: the number of steps, T.
            batch: the batch size, B; 1 also asks for weights that all sequences share.
            generator: the generator for random plans; None uses torch's own.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define plan(steps, batch, generator)"
        )

    def adapt(self, probe: Probe) -> None:
        """Learn from training. Called from time to time; the base class does nothing.

        Args:
            probe: measures the decay of the state's gradient, on the current model.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt from training, to be saved as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    @property
    def spelling(self) -> str:
        """Its spelling on the command line, as :func:`bptt.credit.parse` reads it."""
        kind = type(self)
        name = kind.__name__.lower()
        if not kind.__module__.startswith("bptt._src.credit."):
            name = f"{kind.__module__}.{kind.__qualname__}"
        return ":".join(filter(None, (name, ",".join(_options(self, str)))))

    def __repr__(self) -> str:
        """Write the call that makes it."""
        return f"{type(self).__name__}({', '.join(_options(self, repr))})"


def _options(credit: Credit, write: Callable[[Any], str]) -> list[str]:
    """A dataclass's fields: the first by its value alone, the others unless they are defaults."""
    options: list[str] = []
    for number, f in enumerate(getattr(type(credit), "__dataclass_fields__", {}).values()):
        value = getattr(credit, f.name)
        if f.init and value is not None and (number == 0 or not _is(value, f.default)):
            written = _number(value) if isinstance(value, float) else write(value)
            options.append(written if number == 0 else f"{f.name}={written}")
    return options


def is_number(value: object) -> bool:
    """Whether a value is a number; a text or a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def note_spelling(credit: Credit) -> None:
    """Set :attr:`Credit.spelled`, unless it is a class of one's own, which is imported."""
    spelling = credit.spelling
    if "." not in spelling.partition(":")[0]:
        object.__setattr__(credit, "spelled", spelling)


def _is(value: Any, default: Any) -> bool:
    same = value == default
    return same if isinstance(same, bool) else bool(np.all(same))


def _number(value: float) -> str:
    """Write a float in few digits, if they determine it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
