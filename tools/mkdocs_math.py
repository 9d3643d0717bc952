r"""Render the documentation's formulas to MathML while it is built.

``pymdownx.arithmatex`` (generic) leaves each formula as text, ``\(...\)`` or ``\[...\]``, for a
script to render in the browser; this MkDocs hook does it here, so that a page needs neither a
script nor a network.
"""

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.math")  # a warning fails a strict build

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
UNKNOWN = re.compile(r"\\[A-Za-z]+")  # the converter leaves what it does not know
ESCAPED = re.compile(r"\\[{}]")


def on_page_content(page_html: str, /, *, page: Any, **kwargs: Any) -> str:
    """Replace the formulas of one page; MkDocs calls this with each page's HTML."""
    return FORMULA.sub(lambda match: render(match, page.file.src_uri), page_html)


def render(match: re.Match[str], where: str) -> str:
    """Turn one formula into MathML, warning about what cannot be."""
    tex = html.unescape(match["tex"]).strip()
    try:
        mathml = convert(tex, display="block" if match["tag"] == "div" else "inline")
    except Exception as error:  # whatever the converter raises, the page and formula are named
        log.warning("%s: cannot render the formula %s: %r", where, tex, error)
        return match[0]
    bare = ESCAPED.sub("", tex)
    if bare.count("{") != bare.count("}"):  # the converter would guess
        log.warning("%s: a brace is missing in the formula %s", where, tex)
    if unknown := UNKNOWN.search(mathml):
        log.warning("%s: unknown %s in the formula %s", where, unknown[0], tex)
    return mathml
