r"""Set the equations of docstrings as formulas.

A docstring is read in an editor, so it has its equations as text, in a block of their own:
``h_t = o_t ⊙ tanh(c_t)``. For the reference this griffe extension makes TeX of them,
``h_t = o_t \odot \tanh(c_t)``.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

BLOCK = re.compile(r"(?<=\n\n)(?: {4}\S.*(?:\n|\Z))+")
"""Indented, after a blank line."""
GAP = re.compile(r" {3,}")
"""Between equations on one line, and before a remark."""
EQUALS = re.compile(r" *(\+?=) +")
NAMES = r"(?:tanh|exp|log|max|sup|softmax|onehot|ReLU)\b"
WORD = rf"(?:(?!{NAMES})[A-Za-z]{{3,}}|or|of|on|it|to|at|in)(?![\w'])"
TOKEN = re.compile(
    rf"(?P<words> ?{WORD}(?: {WORD})*:? ?)"
    r"|(?P<name>[A-Za-z\u0370-\u03ffĝ]+)(?:_(?P<below>\{[^}]*\}|[A-Za-z0-9]+))?"
    r"|(?P<sign>.)"
)
FUNCTIONS = {"tanh", "exp", "log", "max", "sup"}
UPRIGHT = {"softmax", "onehot", "ReLU", "LN"}
SIGNS = {
    "⊙": r"\odot ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "∂": r"\partial ", "Σ": r"\sum ",
    "‖": r"\Vert ", "ᵀ": r"^\top ", "²": "^2 ", "₁": "_1 ", "₂": "_2 ", "₃": "_3 ",
}  # fmt: skip


class Equations(griffe.Extension):
    """Rewrites each docstring once, when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object, if it has one."""
        if obj.docstring:
            obj.docstring.value = typeset(obj.docstring.value)


def typeset(docstring: str) -> str:
    """Return the docstring with TeX for its equations; other blocks stay as they are."""
    return BLOCK.sub(lambda block: _formula(block[0]) or block[0], docstring)


def _formula(block: str) -> str | None:
    lines = [EQUALS.sub(r" \1 ", line) for line in block.strip().split("\n")]
    if not all("= " in line for line in lines):
        return None
    rows = r" \\ ".join(row for line in lines for row in _rows(line.strip()))
    return rf"$$\begin{{align*}} {rows} \end{{align*}}$$" + "\n"


def _rows(line: str) -> Iterator[str]:
    """Each equation of a line is a row, with the remark that follows it."""
    rows: list[str] = []
    for part in GAP.split(line):
        left, *right = re.split(r" (?=(?:\+?=|≤) )", part, maxsplit=1)
        if rows and (not right or left.startswith("complex:")):
            rows[-1] += rf" && \quad {to_tex(part)}"
        else:
            rows.append(" & ".join(map(to_tex, (left, *right))))
    yield from rows


def to_tex(text: str) -> str:
    """Return one equation, or a remark beside it, as TeX."""
    return "".join(map(_token, TOKEN.finditer(text)))


def _token(token: re.Match[str]) -> str:
    if token["words"]:
        return rf"\text{{{token['words']}}}"
    if token["sign"]:
        return SIGNS.get(token["sign"], token["sign"])
    below = f"_{{{to_tex(token['below'].strip('{}'))}}}" if token["below"] else ""
    is_apart = token.string[token.end() :].startswith(" ")
    return _name(token["name"], is_apart) + below


def _name(name: str, is_apart: bool) -> str:
    if name in FUNCTIONS:
        return rf"\{name}" + r"\," * is_apart
    return rf"\mathrm{{{name}}}" if name in UPRIGHT else SIGNS.get(name, name)
