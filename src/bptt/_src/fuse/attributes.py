"""What a trace of a cell has taken from Python: numbers, settings and objects, to see them change.

A trace is of one step at one time. ``cell.alpha = 0.5`` afterwards is not in it, so the plain
attributes of the cell's modules, of objects in them, and what its functions refer to are compared
at each call with what they were; if they changed, the step is traced anew.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

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


class Attributes:
    """What was found in the attributes of a module and all in it, and where to look for changes.

    Two are equal if what they hold is; nothing in it is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._tensors = module, list[Tensor]()
        self._readers: list[Callable[[], Iterable[Any]]] = []
        self.found: list[Any] = [torch.get_default_dtype()]
        self._hooks: list[Any] = []
        for name, m in module.named_modules():
            self.found.append((name, _Is(type(m))))
            self._watch_module(m)
            own = [k for k in vars(m) if k not in _OF_MODULES]
            for k in own:
                self.found += (k, *self._look(vars(m)[k], {}, _DEPTH))
            if not type(m).__module__.startswith("torch."):
                self._readers.append(partial(_forward_of, type(m)))
                self.found += self._of_function(type(m).forward, {}, _DEPTH)
        self._versions = self._read_versions()
        self._seen = self._read()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and self.found == other.found

    __hash__ = None  # type: ignore[assignment]

    def are_as_found(self) -> bool:
        """Whether all are the very objects that they were; also parameters, buffers and modules.

        No hook is there, then, and all modules are in the same mode. If not, they may be equal yet.
        """
        now = self._read()
        return (
            len(now) == len(self._seen)
            and all(map(operator.is_, now, self._seen))
            and not any(self._hooks)
            and not _has_any_global_hook()
            and self._read_versions() == self._versions
        )

    def _read(self) -> list[Any]:
        found: list[Any] = [torch.get_default_dtype()]
        for read in self._readers:
            found += read()
        return found

    def _read_versions(self) -> list[int | None]:
        return [None if t.is_inference() else t._version for t in self._tensors]

    def _watch_module(self, m: nn.Module) -> None:
        own, parts = vars(m), (m._parameters, m._buffers, m._modules)
        self._readers.append(lambda: (m.__class__, m.__dict__, *own))
        self._readers += (own.values, *(d.values for d in parts), *(d.keys for d in parts))
        self._hooks += (getattr(m, name) for name in _HOOKS)

    # Objects that were seen are kept, so that another one does not get the address of one of them.
    def _look(self, value: Any, seen: dict[int, Any], depth: int) -> Iterator[Any]:
        if isinstance(value, _NUMBERS):
            yield type(value), repr(value)  # nan is nan, and 0.0 not -0.0
        elif isinstance(value, Tensor):
            self._tensors.append(value)
            yield _Is(value)
            yield None if value.is_inference() else value._version
        elif isinstance(value, nn.Module) or id(value) in seen or depth == 0:
            yield _Is(value)
        elif isinstance(value, list | tuple | set | frozenset | dict):
            seen[id(value)] = value
            yield type(value), len(value)
            parts: list[Any] = [*value]
            self._readers.append(lambda: value)
            if isinstance(value, dict):
                self._readers.append(value.values)
                parts += value.values()
            for each in parts:
                yield from self._look(each, seen, depth - 1)
        elif isinstance(value, partial):
            for each in (value.func, value.args, value.keywords):
                yield from self._look(each, seen, depth - 1)
        elif inspect.ismethod(value):
            for each in (value.__func__, value.__self__):
                yield from self._look(each, seen, depth - 1)
        elif inspect.isfunction(value):
            yield _Is(value)
            seen[id(value)] = value
            yield from self._of_function(value, seen, depth - 1)
        else:
            seen[id(value)] = value
            yield _Is(value)
            if not isinstance(value, type) and isinstance(getattr(value, "__dict__", None), dict):
                self._readers.append(lambda: (value.__class__, value.__dict__))
                yield from self._look(vars(value), seen, depth - 1)

    def _of_function(self, function: Any, seen: dict[int, Any], depth: int) -> Iterator[Any]:
        """What it refers to in the scopes around it, and globals, but for modules and classes."""
        function = inspect.unwrap(function) if callable(function) else function
        if not inspect.isfunction(function):
            return
        yield _Is(function.__code__)
        self._readers.append(
            lambda: (function.__code__, function.__defaults__, function.__kwdefaults__)
        )
        for each in (function.__defaults__, function.__kwdefaults__):
            yield from self._look(each, seen, depth)
        for cell in function.__closure__ or ():
            self._readers.append(partial(_contents, cell))
            for contents in _contents(cell):
                yield from self._look(contents, seen, depth)
        names, known = function.__code__.co_names, function.__globals__
        self._readers.append(lambda: map(known.get, names))
        for name in names:
            value = known.get(name)
            is_own = inspect.isfunction(value) and value.__module__ == function.__module__
            if is_own or not (callable(value) or inspect.ismodule(value)):
                yield from self._look(value, seen, depth - 1)


def _forward_of(kind: type[nn.Module]) -> tuple[Any, ...]:
    return (kind.forward,)


def _contents(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not set yet
        return ()


def hooked(module: nn.Module) -> str | None:
    """Return what has hooks, which a trace would not call; None if nothing has.

    Those by which torch.nn.utils computes a weight are traced as the cell's own code is.
    """
    if _has_any_global_hook():
        return "torch.nn.modules.module (for all modules)"
    for name, m in module.named_modules():
        for hooks in _HOOKS:
            for hook in getattr(m, hooks).values():
                if not type(hook).__module__.startswith("torch.nn.utils."):
                    return name or type(m).__name__
    return None
