"""Annotations are checked at each of a function's first calls in a test, then at every tenth.

A check costs more than a small step of a cell, which a test of gradients takes thousands of times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

FIRST, EVERY = 30, 10


class Calls:
    """How often each function has been called in the test that runs now."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def begin(self) -> None:
        """Another test begins."""
        self.counts[:] = [0] * len(self.counts)

    def sampled(self, jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``jaxtyped``, which adds the checks to a function or a class, for some calls."""

        def add(made: Any = None, *, typechecker: Any) -> Any:
            if made is None:
                return functools.partial(add, typechecker=typechecker)
            checked = jaxtyped(made, typechecker=typechecker)
            return self._some(made, checked) if isinstance(made, FunctionType) else checked

        return add

    def _some(self, plain: FunctionType, checked: Callable[..., Any]) -> Callable[..., Any]:
        number, counts = len(self.counts), self.counts
        counts.append(0)

        @functools.wraps(plain)
        def called(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if torch.compiler.is_compiling():  # would look through checks and counts as well
                return plain(*args, **kwargs)
            counts[number] = n = counts[number] + 1
            if n > FIRST and n % EVERY:
                return plain(*args, **kwargs)
            return checked(*args, **kwargs)

        return called


CALLS = Calls()
