"""The check of an option's value: its type and its bounds."""

from __future__ import annotations

import math
import os
from typing import Any, get_args

from bptt.errors import ConfigError, spelled

_LARGEST = 2**63 - 1


def check_value(name: str, value: Any, hint: Any, *, least: Any, most: Any) -> None:
    """Refuse a value of the wrong type or out of the option's bounds.

    Args:
        name: the option's name.
        value: its value.
        hint: the option's type, as ``typing.get_type_hints`` returns it.
        least: the least number; None: none.
        most: the largest number; None: what floats and torch can hold.

    Raises:
        ConfigError: the value does not suit the option.
    """
    flag = spelled(name)
    if tuple[float, ...] in get_args(hint):  # one number or several
        for each in value if isinstance(value, tuple | list) else [value]:
            check_value(name, each, float, least=least, most=most)
        return
    if get_args(hint) and isinstance(get_args(hint)[0], str):  # Literal
        if not isinstance(value, str) or value not in get_args(hint):
            raise ConfigError(f"{flag} must be one of {', '.join(get_args(hint))}, got {value!r}")
        return
    kinds = tuple(t for t in (get_args(hint) or (hint,)) if t is not Ellipsis)
    if hint == tuple[str, ...]:
        right = isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)
    elif float in kinds:
        right = isinstance(value, (*kinds, int)) and not isinstance(value, bool)
        right = right and (not isinstance(value, float) or math.isfinite(value))
    else:
        right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not right:
        words = {float: "a finite number", int: "a whole number", type(None): "null"}
        names = " or ".join(words.get(k, k.__name__) for k in kinds)
        names = "a list of str" if hint == tuple[str, ...] else names
        raise ConfigError(f"{flag} must be {names}, got {value!r}")
    if isinstance(value, int | float):
        _check_bounds(flag, value, least, most)
    for text in value if isinstance(value, tuple | list) else [value]:
        if isinstance(text, str):
            _check_text(flag, text)


def _check_bounds(flag: str, value: float, least: float | None, most: float | None) -> None:
    most = _LARGEST if most is None else most  # what floats and torch can hold
    if least is not None and value < least:
        raise ConfigError(f"{flag} must be at least {least}, got {value}")
    if value > most:
        raise ConfigError(f"{flag} must be at most {most}, got {value}")


def _check_text(flag: str, text: str) -> None:
    """Refuse text that no system accepts as the name of a file."""
    try:
        os.fsencode(text)
        is_right = "\0" not in text
    except UnicodeEncodeError:
        is_right = False
    if not is_right:
        raise ConfigError(f"{flag} must be text without null and lone surrogates, got {text!r}")
