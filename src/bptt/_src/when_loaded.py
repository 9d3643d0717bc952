"""Something to do once a module of somebody else's is loaded, without loading it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def when_loaded(name: str, action: Action) -> None:
    """Call ``action`` with a module, now or right after it is loaded.

    Args:
        name: the module's full name.
        action: called once.
    """
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _WhenLoaded(name, action))


class _WhenLoaded(MetaPathFinder):
    """Finds that one module where it is, and sees to it after it is loaded."""

    def __init__(self, name: str, action: Action) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run, action = spec.loader.exec_module, self.action

            def exec_module(module: ModuleType) -> None:
                run(module)
                action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
