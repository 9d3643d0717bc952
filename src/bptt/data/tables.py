"""The cells of one column of a CSV or TSV file, streamed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from bptt.errors import CorpusError

SUFFIXES = (".csv", ".tsv")
"""Files that are read as tables."""

_FIELD_LIMIT = 2**31 - 1  # the most that fits a C long on every platform


def cells(blocks: Iterable[str], name: str, column: str | None, *, tabs: bool) -> Iterator[str]:
    """Read one column of a table that has a header line.

    Args:
        blocks: The file's text in pieces, newlines as ``\\n``.
        name: What to call the file in messages.
        column: The header of the column; it must be there.
        tabs: Whether the fields are separated by tabs. Otherwise by commas, or by semicolons
            where the header has some and no comma.

    Yields:
        The cells that hold more than white space, in order.

    Raises:
        CorpusError: If there is no such column, or the table cannot be parsed.
    """
    lines = _lines(blocks)
    first = next(lines, "")
    delimiter = "\t" if tabs else ";" if ";" in first and "," not in first else ","
    rows = _rows(csv.reader(_chain(first, lines), delimiter=delimiter), name)
    header = next(rows, [])
    if column not in header:
        wanted = "name the column of its text" if column is None else f"it has no column {column!r}"
        listed = ", ".join(header) or "none"
        raise CorpusError(f"{name} is a table: {wanted} (--column); its columns are {listed}")
    index = header.index(column)
    for row in rows:
        if len(row) > index and not row[index].isspace() and row[index]:
            yield row[index]


def _rows(reader: Iterator[list[str]], name: str) -> Iterator[list[str]]:
    """The reader's rows with fields of any size, without leaving the global limit changed."""
    while True:
        limit = csv.field_size_limit(_FIELD_LIMIT)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise CorpusError(
                f"{name} cannot be read as a table ({error}): check its quotes, or give plain text"
            ) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield row


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []  # of the line that goes on in the next block
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            yield "".join((*parts, line, "\n"))
            parts.clear()
        if rest:
            parts.append(rest)
    if parts:
        yield "".join(parts)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
