"""Lets torch.compile look into modules that are subclasses of torch.nn's RNN, GRU and LSTM.

It looks into none of those, because it would write out every step; ours are one operation a layer.
What refuses them is a line of torch's that asks for nothing but the class. It has a switch for all
modules, ``torch._dynamo.config.allow_rnn``: here it is on for ours alone, from the moment that the
compiler is loaded, which torch does when it is first needed. Where torch has no such line any more,
nothing is changed.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE = "torch._dynamo.variables.builder"


def allow(kind: type) -> None:
    """Allow the instances of a class, now or when the compiler is loaded."""
    if _MODULE in sys.modules:
        _allow(sys.modules[_MODULE], kind)
    else:
        sys.meta_path.insert(0, _WhenLoaded(kind))


class _WhenLoaded(MetaPathFinder):
    """Finds that one module where it is, and sees to it after it is loaded."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run, kind = spec.loader.exec_module, self.kind

            def exec_module(module: ModuleType) -> None:
                run(module)
                _allow(module, kind)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _allow(module: ModuleType, kind: type) -> None:
    builder = getattr(module, "VariableBuilder", None)
    wrap = getattr(builder, "wrap_module", None)
    config: Any = getattr(module, "config", None)
    if wrap is None or not hasattr(config, "allow_rnn"):
        return

    def wrap_module(self: Any, value: Any) -> Any:
        if not isinstance(value, kind):
            return wrap(self, value)
        with config.patch(allow_rnn=True):
            return wrap(self, value)

    builder.wrap_module = wrap_module  # type: ignore[union-attr]
