"""A text in chunks that can be processed one by one: cut where no token spans the cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BEGINNING_OF_SPACE = re.compile(r"(?<=\S)\s")
"""Where white space begins after something else."""

SIZE = 1 << 16
"""The least number of characters in a chunk."""


def chunks(pieces: Iterable[str]) -> Iterator[str]:
    """Cut a text anew, before white space, so that tokens do not depend on the pieces.

    Words and BPE's parts of words never span the beginning of white space, so the tokens
    of the chunks are those of the whole text.

    Args:
        pieces: The text in order.

    Yields:
        The same text; a run of :data:`SIZE` characters without white space is cut anywhere.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        while len(rest) >= SIZE:
            cut = before_space(rest, SIZE)
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def before_space(text: str, end: int) -> int:
    """The last place before ``end`` where white space begins after something else, else ``end``.

    Args:
        text: Any text.
        end: A place in it, or its end.

    Returns:
        A place above 0.
    """
    for cut in range(end - 1, 0, -1):
        if text[cut].isspace() and not text[cut - 1].isspace():
            return cut
    return end


def between(pieces: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """The part of a text between two places.

    Args:
        pieces: The text in order.
        start: Characters to leave out.
        stop: Where to stop, counted from the text's beginning.

    Yields:
        The characters ``start`` to ``stop`` of the text, in pieces.
    """
    place = 0
    for piece in pieces:
        if place >= stop:
            return
        part = piece[max(start - place, 0) : stop - place]
        place += len(piece)
        if part:
            yield part
