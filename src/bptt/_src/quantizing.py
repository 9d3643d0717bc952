"""The warning that torch.ao.quantization leaves our modules as they are."""

from __future__ import annotations

import warnings
from typing import Any

from bptt.errors import BpttWarning


class NotQuantized:
    """A module that ``torch.ao.quantization`` passes by, because it looks for the very classes.

    It writes ``qconfig``, how a module is to be quantized, into those that it knows and into all
    others; so here a module hears of it.
    """

    @property
    def qconfig(self) -> Any:
        """What torch.ao.quantization wrote."""
        if "qconfig" not in vars(self):
            raise AttributeError("qconfig")
        return vars(self)["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value
        called = f"bptt.{type(self).__name__}"
        if getattr(self, "_is_torchs", False):
            remedy = 'to quantize it, call bptt.convert(model, to="torch") first'
        else:
            remedy = "torch.nn has no such module"
        warnings.warn(
            f"torch.ao.quantization leaves {called} as it is, because it goes by torch.nn's own "
            f"classes; {remedy}",
            BpttWarning,
            stacklevel=2,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]
