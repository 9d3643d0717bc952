"""Objects of one's own by their dotted names, ``module.NAME``, as the command line takes them."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from bptt.errors import ConfigError


def imported(name: str, what: str) -> Any:
    """Import what a dotted name means; the current directory's modules are found too.

    Args:
        name: the name, of identifiers with dots between.
        what: what it is the name of, as ``"credit 'mine.Own'"``; errors begin with it.

    Raises:
        ConfigError: there is no such module, it has no such name, or importing it failed.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return _find(name.split("."))
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"{what} cannot be imported: {e}; run in the directory of {name.split('.')[0]}.py, "
            "or add it to PYTHONPATH"
        ) from None
    except Exception as e:  # a user's own module may raise anything
        raise ConfigError(f"{what} cannot be imported, {type(e).__name__}: {one_line(e)}") from e
    finally:
        sys.path.remove(here)


def is_dotted(name: str) -> bool:
    """Whether a name may be one of a module's."""
    parts = name.split(".")
    return len(parts) > 1 and all(p.isidentifier() for p in parts)


def loaded(name: str) -> Any:
    """Return what a dotted name means among the modules that are imported; None: nothing."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:n]))
        if module is not None:
            try:
                return reduce(getattr, parts[n:], module)
            except AttributeError:
                return None
    return None


def one_line(text: object) -> str:
    """Write something on one line."""
    return " ".join(str(text).split())


def _find(parts: list[str]) -> Any:
    """Import the longest prefix of the names that is a module, then follow the attributes."""
    for n in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:n])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as e:
            if n > 1 and e.name == name:  # perhaps a nested class
                continue
            raise
        return reduce(getattr, parts[n:], module)
    raise AssertionError
