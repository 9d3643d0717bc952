"""The buffers of a module, such as BatchNorm's statistics and spectral norm's vectors.

A step that is run again must not count again. Buffers are not copied into, which would invalidate
graphs that have saved them; instead the module is given other tensors for a while.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Values = list[Tensor | None]


def modules_in(function: Any) -> list[nn.Module]:
    """Return the modules that a callable uses, and all modules inside them.

    They are found in a module itself, the object of a method, the arguments of
    :func:`functools.partial`, and the names that a function refers to in its scopes; not in other
    places, such as a list.
    """
    found: dict[nn.Module, None] = {}
    seen: set[int] = set()

    def look(at: Any) -> None:
        if id(at) in seen:
            return
        seen.add(id(at))
        if isinstance(at, nn.Module):
            for module in at.modules():
                found[module] = None
                if not isinstance(getattr(module, "cell", None), nn.Module | None):
                    look(module.cell)  # bptt.Stepwise of a function
        elif isinstance(at, partial):
            for part in (at.func, *at.args, *at.keywords.values()):
                look(part)
        elif inspect.ismethod(at):
            look(at.__self__)
            look(at.__func__)
        elif inspect.isfunction(at):
            variables = inspect.getclosurevars(at)
            for value in (*variables.nonlocals.values(), *variables.globals.values()):
                if isinstance(value, nn.Module | partial) or _is_own(value, at):
                    look(value)
        elif callable(at) and isinstance(vars(at) if hasattr(at, "__dict__") else None, dict):
            for value in vars(at).values():
                if isinstance(value, nn.Module):
                    look(value)

    look(function)
    return list(found)


def _is_own(value: Any, function: Callable[..., Any]) -> bool:
    """Whether it is a function, or method, from the same file, and not from a library."""
    if inspect.ismethod(value):
        return isinstance(value.__self__, nn.Module)
    return inspect.isfunction(value) and value.__module__ == function.__module__


class Buffers:
    """The buffers of the modules that a callable uses, each once."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.places = [
            (m, name)
            for m in modules
            if not isinstance(m, torch.jit.ScriptModule)  # its buffers cannot be exchanged
            for name in m._buffers
        ]

    def values(self) -> Values:
        """Return the present tensors."""
        return [m._buffers[name] for m, name in self.places]

    def put(self, values: Values) -> None:
        """Put these tensors into the module."""
        for (m, name), value in zip(self.places, values, strict=True):
            m._buffers[name] = value

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work on copies for a while, and discard them afterwards."""
        own = self.values()
        self.put(copies(own))
        try:
            yield
        finally:
            self.put(own)


def copies(values: Values, like: tuple[Values, Values] | None = None) -> Values:
    """Copy tensors; one that occurs twice is copied once.

    Args:
        values: the tensors.
        like: earlier tensors, and copies of them; the copies of equal tensors are used again.
    """
    made: dict[int, Tensor] = {}
    found: Values = []
    old, old_copies = like if like is not None else ([None] * len(values), [None] * len(values))
    for value, before, copy in zip(values, old, old_copies, strict=True):
        if value is None:
            found.append(None)
            continue
        if id(value) not in made:
            again = value is before and copy is not None and torch.equal(value, copy)
            made[id(value)] = copy if again and copy is not None else value.detach().clone()
        found.append(made[id(value)])
    return found
