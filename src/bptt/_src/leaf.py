"""A module as a leaf of ``torch.fx``, which traces the inside only of what it knows as none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy


def leaf(forward: Callable[..., Any]) -> Any:
    """Make :func:`torch.fx.symbolic_trace` record a call of the module, as it does of torch.nn's.

    Args:
        forward: the module's; its first argument tells whether it is being traced.
    """
    kinds = inspect.signature(forward).parameters.values()
    by_name = [p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY]
    most = len(kinds) - len(by_name) - 2  # without the module and its input

    @functools.wraps(forward)
    def call(self: nn.Module, input: Any, *args: Any, **options: Any) -> Any:
        if len(args) > most and torch._C._get_tracing_state() is not None:
            # torch.onnx.export(dynamo=False) hands all arguments on by their places.
            options |= zip(by_name, args[most:], strict=False)
            args = args[:most]
        if type(input) is not Proxy:
            return forward(self, input, *args, **options)
        tracer: Any = input.tracer
        where = tracer.path_of_module(self)
        return tracer.create_proxy("call_module", where, (input, *args), options)

    return call
