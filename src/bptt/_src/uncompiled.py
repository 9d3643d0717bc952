"""What torch.compile is told of our functions, without loading it."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Run a function, and all that it calls, as written inside what :func:`torch.compile` makes.

    This is ``torch.compiler.disable``, which loads the compiler: a thousand modules, and as much
    time as torch itself takes. It is applied once something else has loaded that; until then
    nothing can have been compiled.
    """
    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)  # type: ignore[no-any-return]
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args, **options)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **options)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # it is not traced into
    return call  # type: ignore[return-value]


def at_compile_time(function: Function) -> Function:
    """Let torch.compile call a function while it compiles, and take the result as a constant.

    Its arguments are constants, too: before torch 2.13 the compiler takes no other objects for one.
    The ``id`` of one is, with a check that the object is the same: :func:`object_of`.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def object_of(number: int) -> Any:
    """Return the object with this ``id``, which must be alive: as those are that are compiled."""
    return ctypes.cast(number, ctypes.py_object).value
