"""Whoever wants to hear of calls of :func:`bptt.unroll`: the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[..., tuple[Any, Any]]
"""``(module, run, inputs, state, **options) -> (outputs, state)``, by calling the rest as
``run(inputs, state, **options)``."""

observers: list[Observer] = []


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Hand each call of ``bptt.unroll`` to an observer, until the end of the block."""
    observers.append(by)
    try:
        yield
    finally:
        observers.remove(by)
