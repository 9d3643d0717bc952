"""A text as separate sequences: its sentences, or its lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import sentencex  # type: ignore[import-untyped]

from bptt.data.chunks import before_space

LONGEST = 1 << 18
"""Characters of a text without a blank line, or of a line, that are held in memory at a time."""

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_OTHER_SPACE = re.compile(r"[^\S ]")
# What misleads the splitter is hidden from it, one character for one: single quotes, which it
# would pair with apostrophes and then not look inside, and the decimal points of WikiText.
_SINGLE_QUOTE = re.compile(r"['‘’](?:(?<!\w.)|(?!\w))")
_HIDDEN_POINT = re.compile(r"@[.,]@")
_BETWEEN = "'‘’\"“”"


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The sentences of a text, however it is cut into pieces.

    A blank line ends a sentence whatever it holds; a single newline is white space. A sentence of
    :data:`LONGEST` characters is cut, before white space where there is some.

    Args:
        pieces: The text in order.

    Yields:
        Sentences as they are written, newlines and all, without white space around them.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        start = 0
        while True:
            # What is done with a place depends on the LONGEST characters from it on alone.
            blank = _BLANK_LINE.search(rest, start, start + LONGEST)
            if blank:
                yield from _stripped(_sentences_of(rest[start : blank.start()]))
                start = blank.end()
            elif len(rest) - start >= LONGEST:
                whole = _all_but_last(rest[start : start + LONGEST])
                yield from _stripped(whole)
                start += sum(map(len, whole))
            else:
                break
        rest = rest[start:]
    yield from _stripped(_sentences_of(rest))


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that hold more than white space, however it is cut into pieces.

    Args:
        pieces: The text in order.

    Yields:
        Lines without their newline; those of more than :data:`LONGEST` characters in parts, cut
        before white space where there is some.
    """
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield from _not_blank(_in_parts(line))
        *parts, rest = _in_parts(rest)
        yield from _not_blank(parts)
    yield from _not_blank([rest])


def _in_parts(line: str) -> list[str]:
    """A line in parts of at most LONGEST characters."""
    parts, start = [], 0
    while len(line) - start > LONGEST:
        cut = start + before_space(line[start : start + LONGEST], LONGEST)
        parts.append(line[start:cut])
        start = cut
    return [*parts, line[start:]]


def _not_blank(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if text and not text.isspace())


def _stripped(texts: Iterable[str]) -> Iterator[str]:
    return (text.strip() for text in _not_blank(texts))


def _all_but_last(text: str) -> list[str]:
    """The sentences of a text that goes on, but for the last; a single one is cut."""
    found = _sentences_of(text)
    return found[:-1] or [text[: before_space(text, len(text))]]


def _sentences_of(paragraph: str) -> list[str]:
    """The sentences of a text without blank lines, with the white space before each."""
    flat = _OTHER_SPACE.sub(" ", paragraph)
    flat = _HIDDEN_POINT.sub("@-@", _SINGLE_QUOTE.sub(" ", flat))
    ends = (boundary["end_index"] for boundary in sentencex.get_sentence_boundaries("en", flat))
    found, start = [], 0
    for end in ends:
        cut = _settled(paragraph, end)
        if cut is not None and cut > start:
            found.append(paragraph[start:cut])
            start = cut
    return found


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
