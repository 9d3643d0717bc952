"""What a training loop of the gallery is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Training:
    """A training loop that is ready to run, as ``bptt.audit`` takes it.

    ``run`` may be called more than once. ``model`` and ``module``: a module and the path in it, or
    None and what finds the module (an object, a class, a predicate). ``credit`` is what the right
    version must satisfy; None: its credit is no question.
    """

    run: Callable[[], object]
    model: Any
    module: Any
    options: dict[str, Any] = field(default_factory=dict)
    credit: Any = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments of ``bptt.audit``."""
        return (self.run, *(a for a in (self.model, self.module) if a is not None))


@dataclass(frozen=True)
class Loop:
    """A training loop in a right and a wrong version.

    ``fault`` is the kind of the wrong version's fault, ``t`` and ``s`` its first place; ``also``
    lists the kinds in which the same mistake may show itself besides.
    """

    name: str
    fault: str
    t: int
    s: int
    also: tuple[str, ...]
    make: Callable[[bool], Training]

    def __call__(self, *, is_wrong: bool) -> Training:
        torch.manual_seed(0)
        return self.make(is_wrong)


LOOPS: list[Loop] = []


def loop(
    fault: str, t: int, s: int, also: tuple[str, ...] = ()
) -> Callable[[Callable[[bool], Training]], Callable[[bool], Training]]:
    """Put a function ``(is_wrong) -> Training`` into the list."""

    def register(make: Callable[[bool], Training]) -> Callable[[bool], Training]:
        name = make.__name__
        if any(other.name == name for other in LOOPS):
            raise ValueError(f"two loops of the gallery are called {name}: rename one")
        LOOPS.append(Loop(name, fault, t, s, also, make))
        return make

    return register
