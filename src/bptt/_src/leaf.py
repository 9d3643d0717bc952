"""A module as a leaf of ``torch.fx``, which traces the inside only of what it knows as none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf(forward: Callable[..., Any]) -> Any:
    """Make :func:`torch.fx.symbolic_trace` record a call of the module, as it does of torch.nn's.

    Args:
        forward: the module's; its first argument tells whether it is being traced.
    """

    @functools.wraps(forward)
    def call(self: nn.Module, input: Any, *args: Any, **options: Any) -> Any:
        if type(input) is not Proxy:
            return forward(self, input, *args, **options)
        tracer: Any = input.tracer
        where = tracer.path_of_module(self)
        return tracer.create_proxy("call_module", where, (input, *args), options)

    return call
