"""How a credit is spelt: ``full``, ``truncated:35``, ``truncated:every=10,reach=35``..."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from bptt.credit.adaptive import Adaptive
from bptt.credit.credit import Credit
from bptt.credit.full import Full
from bptt.credit.randomized import Randomized
from bptt.credit.truncated import Truncated
from bptt.errors import ConfigError

KINDS: dict[str, type[Credit]] = {
    "full": Full,
    "truncated": Truncated,
    "randomized": Randomized,
    "adaptive": Adaptive,
}

_HOW = (
    "write full, truncated:35, truncated:every=10,reach=35, randomized:35, adaptive:0.1, or your "
    "own as module.Class:arguments"
)


def parse(spelling: str) -> Credit:
    """Read a credit as the command line spells it.

    A name, and after a colon its arguments: the first may be a value alone, the others are
    ``name=value``. A name with a dot in it is a class of yours, in a module that Python finds.

    Raises:
        ConfigError: there is no such credit, or its arguments do not fit.

    >>> parse("truncated:every=10,reach=35")
    Truncated(every=10, reach=35)
    >>> parse("randomized:35,tail=constant").spelling
    'randomized:35,tail=constant'
    """
    name, _, rest = spelling.strip().partition(":")
    kind = KINDS.get(name.lower()) or _import(name, spelling)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.rpartition("=")
        if equals:
            named[key.strip()] = _value(value)
        else:
            positional.append(_value(part))
    try:
        return kind(*positional, **named)
    except TypeError as e:
        reason = str(e).replace("__init__()", kind.__name__).split(kind.__name__ + ".")[-1]
        raise ConfigError(f"credit {spelling!r}: {reason}; {_HOW}") from None


def _import(name: str, spelling: str) -> type[Credit]:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"there is no credit {spelling!r}; {_HOW}")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # so that a class in a file beside you is found
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"credit {spelling!r} cannot be imported: {e}") from None
    finally:
        sys.path.remove(here)
    if not hasattr(found, "plan"):
        raise ConfigError(
            f"credit {spelling!r}: {name} has no method plan(steps, batch, generator)"
        )
    return found  # type: ignore[no-any-return]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
