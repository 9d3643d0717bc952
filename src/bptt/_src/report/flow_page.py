"""The page of a gradient flow."""

from __future__ import annotations

import os
from pathlib import Path

from bptt._src.atomic import write_whole
from bptt._src.report.flow_data import Flow, as_dict, packed
from bptt._src.report.page_file import whole_page
from bptt.errors import ConfigError

SCRIPTS = (
    "numbers",
    "data",
    "words",
    "scale",
    "redraw",
    "parts",
    "view",
    "plots",
    "lags",
    "text",
    "map",
    "credit",
    "notes",
    "dynamics",
    "main",
)


def write(path: str | os.PathLike[str], *flows: Flow) -> None:
    """Write the page: text, matrix, curves, verdict and advice of one or more flows.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        flows: results of :func:`bptt.gradient_flow`, or the dicts of ``to_dict()``, shown side by
            side in this order.

    Raises:
        ConfigError: there is none, or one of them is something else.
        OSError: it could not be written; the previous file is still there.
    """
    write_whole(Path(path), page(*flows))


def page(*flows: Flow) -> str:
    """Return the page as text; see :func:`write`."""
    if not flows:
        raise ConfigError("a page needs at least one gradient flow, got none")
    found = [as_dict(flow) for flow in flows]
    names = ", ".join(str(flow["name"]) for flow in found)
    return whole_page("Gradient flow", names, ["flow"], SCRIPTS, [packed(flow) for flow in found])
