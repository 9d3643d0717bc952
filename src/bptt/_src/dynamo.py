"""Lets torch.compile look into modules that are subclasses of torch.nn's RNN, GRU and LSTM.

It looks into none of those, because it would write out every step; ours are one operation a layer.
What refuses them is a line of torch's that asks for nothing but the class. It has a switch for all
modules, ``torch._dynamo.config.allow_rnn``: here it is on for ours alone, from the moment that the
compiler is loaded, which torch does when it is first needed. Where torch has no such line any more,
nothing is changed.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from bptt._src.when_loaded import when_loaded


def allow(kind: type) -> None:
    """Allow the instances of a class, now or when the compiler is loaded."""
    when_loaded("torch._dynamo.variables.builder", partial(_allow, kind=kind))


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
