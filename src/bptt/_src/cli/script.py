"""A user's script: loaded, and a function of it called."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from bptt._src.cli.terminal import show_traceback
from bptt.errors import BpttError, ConfigError

Found = TypeVar("Found")
NAME = "__audited__"
"""What the script is called as a module: no name that a script has, so that it hides none."""
OURS = "bptt.audit: "
"""What our own messages about what was given begin with."""


class Script:
    """A script and the function that is to be called.

    Args:
        target: ``SCRIPT.py:FUNCTION``.

    Raises:
        ConfigError: there is no such file or function, or it needs arguments.
        BpttError: the script has raised; its traceback has been shown.
    """

    def __init__(self, target: str) -> None:
        file, colon, name = target.rpartition(":")
        if not colon or not file.endswith(".py") or not name:
            raise ConfigError(f"expected SCRIPT.py:FUNCTION, as train.py:main, got {target}")
        self.file = file
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"there is no file {file}")
        self.names = vars(self._load(path.resolve()))
        self.called = name
        self.function = self.named(name, target)
        self._check()

    def _load(self, path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(NAME, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module  # where dataclasses and pickle look
        sys.path.insert(0, str(path.parent))  # as where Python runs it
        sys.argv = [self.file]
        with self._shown("while it was loaded"):
            spec.loader.exec_module(module)
        return module

    def _check(self) -> None:
        name = self.called
        if not callable(self.function):
            kind = type(self.function).__name__
            raise ConfigError(f"{self.file}: {name} is no function but of the type {kind}")
        try:
            inspect.signature(self.function).bind()
        except TypeError:
            needed = inspect.signature(self.function)
            raise ConfigError(
                f"{self.file}: {name}{needed} needs arguments; write a function without that "
                "calls it"
            ) from None
        except ValueError:  # it does not say what it takes
            pass

    def named(self, name: str, given_by: str) -> Any:
        """Return what a name stands for in the script.

        Raises:
            ConfigError: there is no such name.
        """
        if name not in self.names:
            raise ConfigError(f"{given_by}: {self.file} has no {name}; it has {self._holds()}")
        return self.names[name]

    def module(self, given: str) -> tuple[Any, str | None]:
        """Return what ``bptt.audit`` takes: a model and the path from it, or a class and None.

        Raises:
            ConfigError: the name is not in the script, and no class either.
        """
        first, _, rest = given.partition(".")
        if first in self.names and not isinstance(self.names[first], ModuleType):
            return self.names[first], rest or None
        try:
            found = self._imported(first, rest)
        except (AttributeError, ImportError, ValueError) as e:
            raise ConfigError(
                f"--module {given}: {e}; give a name in {self.file} and a path from there (it has "
                f"{self._holds()}), or a class, as torch.nn.LSTM"
            ) from None
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ConfigError(f"--module {given} is no class of modules: it is {found!r}")
        return found, None

    def _imported(self, first: str, rest: str) -> Any:
        """Return what a dotted name stands for, from a module that the script has, or any other."""
        if not rest:
            raise ImportError(f"there is no {first}")
        if first not in self.names:
            return resolve_name(f"{first}.{rest}")
        found = self.names[first]
        for name in rest.split("."):
            found = getattr(found, name)
        return found

    def _holds(self) -> str:
        """Name the script's modules, and its own functions and classes."""
        kept = {n: v for n, v in self.names.items() if not n.startswith("_")}
        modules = [f"{n} ({type(v).__name__})" for n, v in kept.items() if isinstance(v, nn.Module)]
        written = [n for n, v in kept.items() if inspect.isroutine(v) or inspect.isclass(v)]
        here = [n for n in written if kept[n].__module__ == NAME]
        return ", ".join(modules + here) or "no modules, functions or classes of its own"

    def running(self, use: Callable[[Callable[[], Any]], Found]) -> Found:
        """Hand over the function; show what it raises as its user would see it.

        Raises:
            ConfigError: ``use`` cannot do with what was given.
            BpttError: the function has raised; its traceback has been shown.
        """
        with self._shown(f"in {self.called}"):
            return use(self.function)

    @contextmanager
    def _shown(self, when: str) -> Iterator[None]:
        try:
            yield
        except BpttError:
            raise
        except SystemExit as e:
            raise BpttError(f"{self.file} left Python {when}, by exit({e.code!r})") from None
        except Exception as e:  # a script may raise anything
            if str(e).startswith(OURS):
                raise ConfigError(str(e).removeprefix(OURS)) from None
            show_traceback(e)
            raise BpttError(f"{self.file} raised {type(e).__name__} {when}") from None
