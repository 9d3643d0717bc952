"""Train recurrent networks through time.

The public names of the package are those of :mod:`bptt.public`, and those of the modules that the
documentation's reference describes; everything else is private.
"""

import importlib
import os.path
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"


def _is_command() -> bool:
    """Whether this process is the command ``bptt``, or ``python -m bptt``.

    The command loads torch only once it knows that it needs it, and can be interrupted meanwhile.
    """
    name = sys.argv[0] if getattr(sys, "argv", None) else ""
    if name == "-m":  # this package is what Python is about to run
        options = sys.orig_argv[:-1]
        return any(o == "-m" and m == "bptt" for o, m in zip(options, sys.orig_argv[1:]))  # noqa: B905
    return os.path.splitext(os.path.basename(name))[0] == "bptt"  # noqa: PTH119, PTH122


if TYPE_CHECKING or not _is_command():
    from bptt.public import *  # noqa: F403
    from bptt.public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Load the public names when the first one is asked for."""
        if name == "public" or (name.startswith("__") and name != "__all__"):
            raise AttributeError(f"module 'bptt' has no attribute {name!r}")
        public = importlib.import_module("bptt.public")
        return globals()[name] if name in globals() else getattr(public, name)
