r"""Set the equations of docstrings as formulas.

A docstring is read in an editor, so it has its equations as text: in a block of their own,
``h_t = o_t ⊙ tanh(c_t)``, or within a sentence. For the reference this griffe extension makes TeX
of them, ``h_t = o_t \odot \tanh(c_t)``. What makes a formula of words in a sentence is a sign that
English has not, as ∂, a Greek letter or a subscript; to it belong the letters, numbers and
operators beside it. Shapes, as [T, B, H], and code in backticks stay as they are.
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
UPRIGHT = {"softmax", "onehot", "ReLU", "LN", "diag", "Re", "Im"}
SIGNS = {
    "⊙": r"\odot ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "∂": r"\partial ", "Σ": r"\sum ",
    "‖": r"\Vert ", "ᵀ": r"^\top ", "²": "^2 ", "₁": "_1 ", "₂": "_2 ", "₃": "_3 ", "⁺": "^+ ",
}  # fmt: skip

KEPT = re.compile(
    r"(`+)[^`]+\1|\$\$.*?\$\$|^>>> .*(?:\n.+)*|(?<=\n\n)(?: {4}\S.*(?:\n|\Z))+"
    r"|^ *\*?\w+(?: \([^)]*\))?:(?= )",
    re.MULTILINE | re.DOTALL,
)
"""What is no sentence: code, formulas, blocks, and the name of an argument before what it is."""
GREEK = r"\u0370-\u03ff\u2113ĝ"
LETTER = rf"∂⁺?[A-Za-z{GREEK}]*|[{GREEK}]|(?<![A-Za-z])d?[A-Za-z](?![A-Za-z])"
LONG = r"(?<![A-Za-z])[a-z]{3,}(?=_[a-z]\b)"
FUNCTION = r"(?:tanh|exp|log|max|min|sup|softmax|onehot|diag|mean|bias|LN|Re|Im)(?![A-Za-z])"
BELOW = r"_(?:\{[^}\s]*\}|[A-Za-z0-9]{1,2}(?![A-Za-z0-9_]))"
OPERATORS = "-+=<>≤≥≠∈±/·⊙"
PART = re.compile(
    rf"(?!->)(?:(?:{FUNCTION}|{LETTER}|{LONG})(?:{BELOW})?|\d+(?:\.\d+)?|'(?!s\b)"
    rf"|[{OPERATORS}^²ᵀ‖√⟨⟩|()\[\]{{}},;…⋯])+"
)
"""One of the words of a formula, between spaces."""
SIGN = re.compile(rf"[∂⊙‖√⟨ᵀ{GREEK}]|[A-Za-z]²|(?<![A-Za-z])[A-Za-z]{{1,2}}_")
"""What no English sentence has."""
STOPS = re.compile(r"[.,;:?]+$")
LOOSE = re.compile(
    rf"^\s+|^(?:[{OPERATORS}]|mean|max|min|bias|[aAI](?!\s[{OPERATORS}]))\s"
    rf"|\s(?:[{OPERATORS}]|(?<![{OPERATORS}]\s)(?:mean|bias|[aAI]))$|\s+$"
)
"""What is no part of a formula that it begins or ends."""
PAIRS = {")": "(", "]": "[", "}": "{", "⟩": "⟨"}
IN_TEX = (
    (re.compile(r"√(?:\(([^()]*)\)|(\w))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\^(?:\(([^()]*)\)|(-?[0-9A-Za-z]+(?:\.\d+)?))"), r"^{\1\2}"),
)
"""What is written with brackets in a line, and without in TeX."""


class Equations(griffe.Extension):
    """Rewrites each docstring once, when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object, if it has one."""
        if obj.docstring:
            obj.docstring.value = typeset(obj.docstring.value)


def typeset(docstring: str) -> str:
    """Return the docstring with TeX for its equations; other blocks stay as they are."""
    text = BLOCK.sub(lambda block: _formula(block[0]) or block[0], docstring)
    parts, end = [], 0
    for kept in KEPT.finditer(text):
        parts += [_sentences(text[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, _sentences(text[end:])])


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


def _sentences(text: str) -> str:
    """Put formulas between dollars."""
    parts, end = [], 0
    for start, stop in _runs(text):
        parts += [text[end:start], _inline(text[start:stop])]
        end = stop
    return "".join([*parts, text[end:]])


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Where words that may belong to a formula stand beside each other, and one has a sign."""
    words = [*re.finditer(r"\S+", text)]
    start = stop = depth = 0
    for n, word in enumerate(words):
        near = {w[0] for w in words[max(0, n - 1) : n + 2]} & {*OPERATORS}
        if not _is_part(word[0], near, depth):
            yield from _fitting(text, start, stop)
            start = stop = word.end()
            depth = 0
            continue
        start = max(start, word.start()) if start == stop else start
        depth += sum((c in PAIRS.values()) - (c in PAIRS) for c in word[0])
        is_inside = depth > 0 and word[0].endswith((",", ";"))
        stop = word.end() if is_inside else word.start() + len(STOPS.sub("", word[0]))
        if stop < word.end():
            yield from _fitting(text, start, stop)
            start = stop = word.end()
            depth = 0
    yield from _fitting(text, start, stop)


def _is_part(word: str, near: set[str], depth: int) -> bool:
    bare = STOPS.sub("", word)
    if bare in ("a", "A", "I") and not near:
        return False  # an article
    if bare.startswith("[") and not depth and "∈" not in near:
        return False  # a shape
    return PART.fullmatch(bare) is not None


def _fitting(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a run down to what is a formula, whose brackets match."""
    while loose := LOOSE.search(text[start:stop]):
        if loose.start() == 0:
            start += loose.end()
        else:
            stop = start + loose.start()
    if not SIGN.search(text[start:stop]) or text.count("‖", start, stop) % 2:
        return
    opened: list[int] = []
    for at in range(start, stop):
        if text[at] in PAIRS.values():
            opened.append(at)
        elif text[at] in PAIRS and not opened:
            yield from _fitting(text, start, at)
            yield from _fitting(text, at + 1, stop)
            return
        elif text[at] in PAIRS:
            opened.pop()
    if opened:
        yield from _fitting(text, start, opened[0])
        yield from _fitting(text, opened[0] + 1, stop)
    else:
        yield start, stop


def _inline(text: str) -> str:
    text = re.sub(r"(?<![_^])\{([^{}]*)\}", r"\\{\1\\}", " ".join(text.split()))
    tex = to_tex(text).strip()
    for wanted, instead in IN_TEX:
        tex = wanted.sub(instead, tex)
    return f"${tex}$"


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
    return _name(token["name"], is_apart and not below) + below


def _name(name: str, is_apart: bool) -> str:
    if name in FUNCTIONS:
        return rf"\{name}" + r"\," * is_apart
    is_upright = name in UPRIGHT or len(name) > 2
    return rf"\mathrm{{{name}}}" if is_upright else SIGNS.get(name, name)
