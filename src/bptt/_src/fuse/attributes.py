"""What a trace of a cell has taken from Python: numbers, settings and objects, to see them change.

A trace is of one step at one time. ``cell.alpha = 0.5`` afterwards is not in it, so the plain
attributes of the cell's modules, of objects in them, and what its functions refer to are compared
at each call with what they were; if they changed, the step is traced anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_NUMBERS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
_DEPTH = 6
_OF_MODULES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Is:
    """An object that equals itself only, and lives as long as it is compared with."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def attributes_of(module: nn.Module) -> list[Any]:
    """Return what is compared: with ==, and nothing in it is copied."""
    found: list[Any] = [torch.get_default_dtype()]
    for name, m in module.named_modules():
        found.append((name, _Is(type(m))))
        own = [k for k in vars(m) if k not in _OF_MODULES]
        found += [(k, *_look(vars(m)[k], {}, _DEPTH)) for k in own]
        if not type(m).__module__.startswith("torch."):
            found += _of_function(type(m).forward, {}, _DEPTH)
    return found


# Objects that were seen are kept, so that another one does not get the address of one of them.
def _look(value: Any, seen: dict[int, Any], depth: int) -> Iterator[Any]:
    if isinstance(value, _NUMBERS):
        yield type(value), repr(value)  # nan is nan, and 0.0 not -0.0
    elif isinstance(value, Tensor):
        yield _Is(value)
        yield None if value.is_inference() else value._version
    elif isinstance(value, nn.Module) or id(value) in seen or depth == 0:
        yield _Is(value)
    elif isinstance(value, list | tuple | set | frozenset | dict):
        seen[id(value)] = value
        yield type(value), len(value)
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else [*value]
        for each in parts:
            yield from _look(each, seen, depth - 1)
    elif isinstance(value, partial):
        for each in (value.func, value.args, value.keywords):
            yield from _look(each, seen, depth - 1)
    elif inspect.ismethod(value):
        for each in (value.__func__, value.__self__):
            yield from _look(each, seen, depth - 1)
    elif inspect.isfunction(value):
        yield _Is(value)
        seen[id(value)] = value
        yield from _of_function(value, seen, depth - 1)
    else:
        seen[id(value)] = value
        yield _Is(value)
        if not isinstance(value, type) and isinstance(getattr(value, "__dict__", None), dict):
            yield from _look(vars(value), seen, depth - 1)


def _of_function(function: Any, seen: dict[int, Any], depth: int) -> Iterator[Any]:
    """What it refers to in the scopes around it, and its globals, but for modules and classes."""
    function = inspect.unwrap(function) if callable(function) else function
    if not inspect.isfunction(function):
        return
    yield _Is(function.__code__)
    for each in (function.__defaults__, function.__kwdefaults__):
        yield from _look(each, seen, depth)
    for cell in function.__closure__ or ():
        try:
            contents = cell.cell_contents
        except ValueError:  # not set yet
            continue
        yield from _look(contents, seen, depth)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        is_own = inspect.isfunction(value) and value.__module__ == function.__module__
        if is_own or not (callable(value) or inspect.ismodule(value)):
            yield from _look(value, seen, depth - 1)


def hook_of(module: nn.Module) -> str | None:
    """Return the name of a module that has hooks, which a trace would not call; None if none has.

    Those by which torch.nn.utils computes a weight are traced as the cell's own code is.
    """
    for name, m in module.named_modules():
        for hooks in _HOOKS:
            for hook in getattr(m, hooks).values():
                if not type(hook).__module__.startswith("torch.nn.utils."):
                    return name or type(m).__name__
    return None
