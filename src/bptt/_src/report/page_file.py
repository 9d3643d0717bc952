"""A page: a single file that opens from disk and loads nothing else.

It shows names and texts of the user, which may contain anything. They never become markup: they are
in the file as JSON in which no character can end the element around it, and the page's scripts
insert them as text. A content security policy allows only the scripts written here, and no
requests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

STYLE = "page"
"""The style sheet that all pages begin with."""


def whole_page(
    kind: str, title: str, styles: Sequence[str], scripts: Sequence[str], data: Any
) -> str:
    """Return a page as text.

    Args:
        kind: what it is: the page's heading.
        title: what it is of.
        styles: names of style sheets in the folder ``page``, after the one that all have.
        scripts: names of scripts there, joined in this order.
        data: what the scripts find as JSON in the element ``data``.
    """
    style = "\n".join(source(f"{name}.css") for name in (STYLE, *styles))
    parts = "\n".join(source(f"{name}.js") for name in scripts)
    script = f'"use strict";\n(() => {{\n{parts}\n}})();\n'
    values = {
        "kind": html.escape(kind),
        "title": html.escape(_visible(title)),
        "policy": policy(script, style),
        "style": style,
        "script": script,
        "data": _as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], source("page.html"))


def policy(script: str, style: str) -> str:
    """Allow only this script and this style; no network, no markup made from text."""
    allowed = {"script-src": hash_of(script), "style-src": hash_of(style), "img-src": "data:"}
    rules = ["default-src 'none'", *(f"{what} {where}" for what, where in allowed.items())]
    rules += ["base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"]
    return "; ".join(rules)


def hash_of(text: str) -> str:
    """Return what a policy calls a script or a style."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _as_json(value: Any) -> str:
    """JSON that can be put into an element: ASCII, without characters special to HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda c: f"\\u{ord(c[0]):04x}", text)


def _visible(text: str) -> str:
    """Text that can be written as UTF-8, with replacement characters where needed."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def source(name: str) -> str:
    """Return a file of the folder ``page``."""
    return (resources.files("bptt._src.report") / "page" / name).read_text(encoding="utf-8")
