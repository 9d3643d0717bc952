"""The page of a gradient flow: a single file that opens from disk and loads nothing else.

It shows text of a corpus, which may contain anything. The text never becomes markup: it is in
the file as JSON in which no character can end the element around it, and the page's scripts insert
it as text. A content security policy allows only the scripts written here, and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from bptt._src.atomic import write_whole
from bptt._src.report.flow_data import Flow, as_dict, packed
from bptt.errors import ConfigError

SCRIPTS = (
    "data",
    "words",
    "scale",
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
    style = _source("flow.css")
    parts = "\n".join(_source(f"{name}.js") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}\n}})();\n'
    values = {
        "title": html.escape(_visible(", ".join(str(flow["name"]) for flow in found))),
        "policy": _policy(script, style),
        "style": style,
        "script": script,
        "data": _as_json([packed(flow) for flow in found]),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _source("flow.html"))


def _policy(script: str, style: str) -> str:
    """Allow only this script and this style; no network, no markup made from text."""
    allowed = {"script-src": _hash(script), "style-src": _hash(style), "img-src": "data:"}
    rules = ["default-src 'none'", *(f"{what} {where}" for what, where in allowed.items())]
    rules += ["base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"]
    return "; ".join(rules)


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _as_json(value: Any) -> str:
    """JSON that can be put into an element: ASCII, without characters special to HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda c: f"\\u{ord(c[0]):04x}", text)


def _visible(text: str) -> str:
    """Text that can be written as UTF-8, with replacement characters where needed."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _source(name: str) -> str:
    return (resources.files("bptt._src.report") / "page" / name).read_text(encoding="utf-8")
