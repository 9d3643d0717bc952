"""Division of a text into separate sequences: its sentences, or its lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from bptt.errors import needs

with needs("lm"):
    import sentencex  # type: ignore[import-untyped]

from bptt._src.data.chunks import before_space

LONGEST = 1 << 18
"""The most characters of a paragraph, or of a line, held in memory at a time."""


class Unfinished(str):
    """A part of a sequence that continues in the next part."""

    __slots__ = ()


_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_OTHER_SPACE = re.compile(r"[^\S ]")
# These mislead the splitter and are replaced, character for character: single quotes, which it
# would pair with apostrophes and then not look inside, and the decimal points of WikiText.
_SINGLE_QUOTE = re.compile(r"['‘’](?:(?<!\w.)|(?!\w))")
_HIDDEN_POINT = re.compile(r"@[.,]@")
_BETWEEN = "'‘’\"“”"
# Full stops that need no white space after them, with the brackets and quotes that they close,
# and the Greek question mark, which is a semicolon elsewhere.
_OTHER_END = re.compile(
    r"[。！？｡]+[」』”’）》〉】〕］]*|(?<=[\u0370-\u03ff\u1f00-\u1fff])[;\u037e](?=\s)"
)


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Split a text into sentences, however it is cut into pieces.

    A blank line always ends a sentence; a single newline is white space. Chinese and
    Japanese sentences end at 。！？ and Greek ones at ; too. A sentence of :data:`LONGEST`
    characters comes in parts, cut before white space if possible.

    Args:
        pieces: The text in order.

    Yields:
        Sentences as written, newlines included, without surrounding white space; all
        parts of a long one except the last are :class:`Unfinished`.
    """
    rest, inside = "", False  # of a sentence whose first parts have been yielded
    for piece in pieces:
        rest += piece
        start = 0
        while True:
            # The treatment of a place depends only on the LONGEST characters from it on.
            blank = _BLANK_LINE.search(rest, start, start + LONGEST)
            if blank:
                yield from _trimmed(_sentences_of(rest[start : blank.start()]), inside)
                start, inside = blank.end(), False
            elif len(rest) - start >= LONGEST:
                window = rest[start : start + LONGEST]
                if whole := _sentences_of(window)[:-1]:
                    yield from _trimmed(whole, inside)
                    start, inside = start + sum(map(len, whole)), False
                else:
                    cut = before_space(window, len(window))
                    part = window[:cut] if inside else window[:cut].lstrip()
                    if part:
                        yield Unfinished(part)
                    start, inside = start + cut, inside or bool(part)
            else:
                break
        rest = rest[start:]
    yield from _trimmed(_sentences_of(rest), inside)


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """Split a text into lines that hold more than white space, however it is cut into pieces.

    Args:
        pieces: The text in order.

    Yields:
        Lines without their newline. Lines longer than :data:`LONGEST` characters come in parts,
        cut before white space if possible; all but the last are :class:`Unfinished`.
    """
    rest, inside = "", False  # of a line whose first parts have been yielded
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            *parts, last = _in_parts(line)
            yield from map(Unfinished, parts)
            if inside or parts or not _is_blank(last):
                yield last
            inside = False
        *parts, rest = _in_parts(rest)
        yield from map(Unfinished, parts)
        inside = inside or bool(parts)
    if inside or not _is_blank(rest):
        yield rest


def _in_parts(line: str) -> list[str]:
    """Split a line into parts of at most LONGEST characters; only the last may be empty."""
    parts, start = [], 0
    while len(line) - start > LONGEST:
        cut = start + before_space(line[start : start + LONGEST], LONGEST)
        parts.append(line[start:cut])
        start = cut
    return [*parts, line[start:]]


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _trimmed(sentences: list[str], inside: bool) -> Iterator[str]:
    """Sentences without surrounding white space; the first may be the end of a long one."""
    if inside:
        yield sentences[0].rstrip() if sentences else ""
        sentences = sentences[1:]
    for sentence in sentences:
        if not _is_blank(sentence):
            yield sentence.strip()


def _sentences_of(paragraph: str) -> list[str]:
    """The sentences of a text without blank lines, with the white space before each."""
    flat = _OTHER_SPACE.sub(" ", paragraph)
    flat = _HIDDEN_POINT.sub("@-@", _SINGLE_QUOTE.sub(" ", flat))
    ends = (boundary["end_index"] for boundary in sentencex.get_sentence_boundaries("en", flat))
    settled = {len(paragraph), *(_settled(paragraph, end) for end in ends)}
    settled |= {match.end() for match in _OTHER_END.finditer(paragraph)}
    places = sorted(place for place in settled if place)
    return [paragraph[a:b] for a, b in itertools.pairwise([0, *places])]


def _settled(text: str, end: int) -> int | None:
    """Find where a sentence that seems to end about here really ends, given the quotes; or None.

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
