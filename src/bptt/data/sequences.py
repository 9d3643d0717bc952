"""A text as separate sequences: its sentences, or its lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import sentencex  # type: ignore[import-untyped]

LONGEST = 1 << 18
"""Characters from which a paragraph or line without an end is cut, so that it fits in memory."""

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# What misleads the splitter is hidden from it, one character for one: single quotes, which it
# would pair with apostrophes and then not look inside, and the decimal points of WikiText.
_SINGLE_QUOTE = re.compile(r"(?<!\w)['‘’]|['‘’](?!\w)")
_HIDDEN_POINT = re.compile(r"@[.,]@")
_BETWEEN = "'‘’\"“”"


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The sentences of a text.

    A blank line ends a sentence whatever it holds; a single newline is white space.

    Args:
        pieces: The text in order.

    Yields:
        Sentences as they are written, newlines and all, without white space around them.
    """
    rest = ""
    for piece in pieces:
        *paragraphs, rest = _BLANK_LINE.split(rest + piece)
        for paragraph in paragraphs:
            yield from _sentences_of(paragraph)
        if len(rest) > LONGEST:
            *whole, rest = _sentences_of(rest) or [""]
            if not whole:
                whole, rest = [rest], ""
            yield from whole
    yield from _sentences_of(rest)


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that hold more than white space.

    Args:
        pieces: The text in order.

    Yields:
        Lines without their newline.
    """
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        if len(rest) > LONGEST:
            whole, rest = [*whole, rest], ""
        yield from (line for line in whole if line and not line.isspace())
    if rest and not rest.isspace():
        yield rest


def _sentences_of(paragraph: str) -> list[str]:
    """The sentences of a text without blank lines."""
    flat = re.sub(r"\s", " ", paragraph)
    flat = _HIDDEN_POINT.sub("@-@", _SINGLE_QUOTE.sub(" ", flat))
    ends = (boundary["end_index"] for boundary in sentencex.get_sentence_boundaries("en", flat))
    found, start = [], 0
    for end in ends:
        cut = _settled(paragraph, end)
        if cut is not None and cut > start:
            found.append(paragraph[start:cut].strip())
            start = cut
    return [sentence for sentence in found if sentence]


def _settled(text: str, end: int) -> int | None:
    """Where a sentence that was found to end about here ends, given the quotes around; or None.

    A quote right after the full stop closes this sentence, one after white space opens the next.
    """
    if end >= len(text):
        return len(text)
    begin = end
    while begin > 0 and (text[begin - 1].isspace() or text[begin - 1] in _BETWEEN):
        begin -= 1
    gap = text[begin:end]
    space = next((i for i, character in enumerate(gap) if character.isspace()), None)
    if space is None:  # as in: swear,'tis
        return None
    if space and text[end].islower():  # as in: 'So soon?' said he
        return None
    return begin + space
