"""Initial weights by the options of the command line, for those of :mod:`bptt.init`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from bptt import init as initials
from bptt._src.networks import make_network
from bptt.errors import ConfigError, spelled

M = TypeVar("M", bound=nn.Module)


class _Init(NamedTuple):
    """A function of bptt.init, and its number where none is given; None: one must be."""

    function: Callable[..., Any]
    number: float | None


_INITS = {
    "chrono": _Init(initials.chrono_, None),
    "forget": _Init(initials.forget_bias_, 1.0),
    "orthogonal": _Init(initials.orthogonal_, 1.0),
    "identity": _Init(initials.identity_, 1.0),
}


def parse_init(text: str) -> tuple[Callable[..., Any], float]:
    """Read an initialisation: its function and the number that this takes.

    Raises:
        ConfigError: there is none of this name, or it lacks its number.

    >>> parse_init("forget")[1], parse_init("chrono:99")[1]
    (1.0, 99.0)
    """
    name, colon, given = text.partition(":")
    found = _INITS.get(name)
    try:
        number = float(given) if colon or found is None else found.number
    except ValueError:
        number = None
    if found is None or number is None or not math.isfinite(number):
        raise ConfigError(
            f"{spelled('init')} must be chrono:STEPS (the longest dependency, as chrono:99), "
            f"forget:1, orthogonal or identity, each with a finite number; got {text!r}"
        )
    return found.function, number


def initialise(module: M, init: str | None, radius: float | None) -> M:
    """Change the initial weights of a recurrent module in place.

    Args:
        module: the recurrent layers.
        init: an initialisation, as for :func:`parse_init`; None leaves the weights as they are.
        radius: the spectral radius of the recurrent weights, set last; None leaves it as it is.

    Raises:
        ConfigError: the module's cell does not suit, or a number is out of range.
    """
    if init is not None:
        function, number = parse_init(init)
        _apply(spelled("init", init), function, module, number)
    if radius is not None:
        _apply(spelled("radius", radius), initials.spectral_radius_, module, radius)
    return module


def check_initial(cell: str, nonlinearity: str, init: str | None, radius: float | None) -> None:
    """Try initial weights on a network of one unit, which takes no time.

    Raises:
        ConfigError: as for :func:`initialise`.
    """
    if init is None and radius is None:
        return
    with torch.random.fork_rng([]):
        initialise(make_network(cell, 1, 1, nonlinearity=nonlinearity), init, radius)


def _apply(given: str, function: Callable[..., Any], module: nn.Module, number: float) -> None:
    try:
        function(module, number)
    except (TypeError, ConfigError) as e:
        raise ConfigError(f"{given} cannot be used: {e}") from None
