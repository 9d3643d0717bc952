"""Train recurrent networks through time.

The public names of the package are those of :mod:`bptt.public`, and those of the modules that the
documentation's reference describes; everything else is private.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from bptt.public import *  # noqa: F403
    from bptt.public import __all__ as __all__


def __getattr__(name: str) -> Any:
    """Load the public names, and torch with them, when the first one is asked for."""
    if name == "__all__" or not name.startswith("_"):
        public = vars(importlib.import_module("bptt.public"))  # loads parts of this package, too
        for names in (globals(), public):
            if name in names:
                return names[name]
    raise AttributeError(f"module 'bptt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
