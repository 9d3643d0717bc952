"""Train recurrent networks through time.

Public are the names of ``bptt.__all__``, :class:`bptt.LanguageModel` and the modules beside this
one, which docs/reference describes. What lies in ``bptt._src``, or begins with an underscore, is
private and may change. Nothing is loaded before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bptt._public import *  # noqa: F403
    from bptt._public import __all__ as __all__
    from bptt.language_model import LanguageModel as LanguageModel

_PARTS = (
    "bench", "cells", "checks", "comparison", "credit", "data", "errors", "flow", "kernels",
    "language_model", "report", "textbook",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the core, and torch with it, when the first of its names is asked for."""
    if name in _PARTS:
        return import_module(f"bptt.{name}")
    if name == "LanguageModel":
        return import_module("bptt.language_model").LanguageModel
    if name == "__all__" or not name.startswith("_"):
        public = import_module("bptt._public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module 'bptt' has no attribute {name!r}")


def __dir__() -> list[str]:
    dunders = (name for name in globals() if name.startswith("__"))
    return sorted({*dunders, *__getattr__("__all__"), *_PARTS, "LanguageModel"})
