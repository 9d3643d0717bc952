"""The cells of one column of a CSV or TSV file, streamed.

Tables are read by Python's ``csv`` module in strict mode. The dialect is found by trying:
the column's name determines the separator, and a first reading of the whole
file determines the meaning of quotation marks and backslashes. A table that fits no dialect is
refused with the number of a row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from bptt.errors import CorpusError, spelled

SUFFIXES = (".csv", ".tsv")
"""Suffixes of files that are read as tables."""

LARGEST = 1 << 27
"""Largest size of a cell in characters; an unclosed quotation mark would read the whole file."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_NOTHING = "\x1f"  # the separator of a table with a single column: it occurs in none
_EXCEL = re.compile(r"sep=(.)\n?")
_ESCAPE = re.compile(r"\\(.)")
_SPACED = re.compile(r' +"(?:[^"]|"")*"')
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Dialect:
    """The dialect of a table.

    Attributes:
        separator: The character between two cells.
        quotes: Whether a cell that begins with a quotation mark ends with one, and may hold
            separators, line ends and doubled quotation marks in between.
        spaces: Whether white space after a separator is skipped.
        escapes: Whether a backslash escapes a quotation mark, a separator, a line end and a
            backslash.
        by_excel: Whether the first line is Excel's ``sep=``.
    """

    separator: str
    quotes: bool = True
    spaces: bool = False
    escapes: bool = False
    by_excel: bool = False

    def __str__(self) -> str:
        """Describe its differences from the dialect that the file's name implies."""
        between = _SEPARATORS.get(self.separator, f"{self.separator!r} signs")
        words = ["one column" if self.separator == _NOTHING else f"cells between {between}"]
        words.append("quoted where needed" if self.quotes else "quotation marks are text")
        words += ["spaces after separators skipped"] * self.spaces
        words += ["backslash escapes"] * self.escapes
        return ", ".join(words)

    def usual(self, *, tabs: bool) -> bool:
        """Whether it is the dialect that the name implies: CSV with quotes, or TSV without."""
        return self == Dialect("\t" if tabs else ",", quotes=not tabs)


@dataclass(frozen=True)
class Table:
    """A table that has been read once.

    Attributes:
        dialect: Its dialect.
        index: The index of the column, from 0.
        width: The number of columns.
        skipped: The number of rows that hold text but are too short to have the column.
        first_skipped: The number of the first such row; the header is row 1.
    """

    dialect: Dialect
    index: int
    width: int
    skipped: int = 0
    first_skipped: int = 0

    def cells(self, blocks: Iterable[str]) -> Iterator[str]:
        """Read the column.

        Args:
            blocks: The file's text in pieces, newlines as ``\\n``.

        Yields:
            The cells that hold more than white space, in order.
        """
        rows = _rows(_body(blocks, self.dialect), self.dialect)
        try:
            next(rows, None)
            for row in rows:
                cell = row[self.index] if len(row) > self.index else ""
                if cell and not cell.isspace():
                    yield cell
        except csv.Error as error:
            raise CorpusError(
                f"a table can no longer be read as it was ({error}): did the file change?"
            ) from None


def examine(
    read: Callable[[], Iterable[str]], name: str, column: str | None, *, tabs: bool
) -> Table:
    """Find a table's dialect by reading all of it, once for each possible dialect.

    Args:
        read: Returns the file's text in pieces, from the beginning at each call.
        name: What to call the file in messages.
        column: The header of the column; it must occur exactly once.
        tabs: Whether the file's name implies that tabs separate the cells.

    Raises:
        CorpusError: If there is no such column, or no dialect fits all rows.
    """
    start, header = _header(read, name, column, tabs=tabs)

    def best(*dialects: Dialect) -> _Fit | _Misfit:
        """The first dialect with rows of equal length, or the first that fits, or the reason."""
        found = []
        for dialect in dialects:
            found.append(_examine(read, name, column, dialect))
            if isinstance(found[-1], _Fit) and found[-1].uniform:
                return found[-1]
        return next((each for each in found if isinstance(each, _Fit)), found[0])

    spaced, literal = replace(start, spaces=True), replace(start, quotes=False)
    tidy = header[0] == header[0].strip() if len(header) == 1 else column in header
    order = (start, spaced) if tidy else (spaced, start)
    quoted = best(*order, *(replace(dialect, escapes=True) for dialect in order))
    if isinstance(quoted, _Fit) and quoted.spaces_before_quotes:
        again = _examine(read, name, column, spaced)
        if isinstance(again, _Fit) and again.rows == quoted.rows:
            quoted = again
    plain = best(literal)
    if len(header) == 1 and isinstance(quoted, _Misfit) and isinstance(plain, _Misfit):
        alone = replace(start, separator=_NOTHING)
        quoted = best(alone, replace(alone, quotes=False))
    return _chosen(quoted, plain, tabs=tabs)


@dataclass
class _Fit:
    """A dialect that fits all rows."""

    table: Table
    rows: int
    uniform: bool  # all rows have as many cells as the header
    closed: bool = True  # cells that begin with a quotation mark end with one
    doubled: bool = False  # some quotation marks are doubled, as in quoted cells
    spaces_before_quotes: bool = False  # every cell that begins with a space then has a quote


@dataclass
class _Misfit:
    """A dialect that does not fit, and why."""

    message: str


def _chosen(quoted: _Fit | _Misfit, plain: _Fit | _Misfit, *, tabs: bool) -> Table:
    """Choose whether quotation marks delimit cells or are text."""
    if isinstance(plain, _Misfit) or not (plain.uniform or tabs):
        if isinstance(quoted, _Misfit):
            raise CorpusError(quoted.message)
        return quoted.table
    if isinstance(quoted, _Misfit) or quoted.table.skipped > plain.table.skipped:
        return plain.table
    if quoted.table.skipped < plain.table.skipped:
        return quoted.table
    lines = plain.uniform and plain.table.width > 1 and not plain.doubled
    if lines and quoted.rows < plain.rows:
        # Each line is a row: a quotation mark that spans lines delimits nothing.
        return plain.table
    quotes_meant = plain.closed and plain.doubled
    return plain.table if tabs and not quotes_meant else quoted.table


def _examine(
    read: Callable[[], Iterable[str]], name: str, column: str | None, dialect: Dialect
) -> _Fit | _Misfit:
    """Read a whole table in one dialect."""
    table = None
    number = skipped = first_skipped = 0
    uniform, closed, doubled, spaced = True, True, False, False
    try:
        for number, row in enumerate(_rows(_body(read(), dialect), dialect), 1):
            if table is None:
                table = Table(dialect, _index(row, name, column), len(row))
            elif len(row) > table.width and any(cell.strip() for cell in row[table.width :]):
                return _Misfit(_too_long(name, number, len(row), table.width, column))
            elif len(row) <= table.index and any(cell.strip() for cell in row):
                skipped += 1
                first_skipped = first_skipped or number
            uniform = uniform and len(row) == table.width
            for cell in row:
                if not dialect.quotes and '"' in cell:
                    closed = closed and (cell[0] != '"' or bool(_QUOTED.fullmatch(cell)))
                    doubled = doubled or '""' in cell
                elif dialect.quotes and cell.startswith(" "):
                    closed = closed and _SPACED.fullmatch(cell) is not None
                    spaced = True
    except csv.Error as error:
        return _Misfit(_unreadable(name, number + 1, error))
    assert table is not None  # there was a header
    table = replace(table, skipped=skipped, first_skipped=first_skipped)
    return _Fit(table, number, uniform, closed, doubled, spaced and closed)


# The header


def _header(
    read: Callable[[], Iterable[str]], name: str, column: str | None, *, tabs: bool
) -> tuple[Dialect, list[str]]:
    """The separator and the names of the columns."""
    first = next(iter(_after_blank(_lines(read()))), "")
    told = _EXCEL.fullmatch(first)
    separators = [told[1]] if told else ["\t"] if tabs else list(_SEPARATORS)
    found: list[tuple[Dialect, list[str]]] = []
    for separator in separators:
        dialect = Dialect(separator, by_excel=told is not None)
        for one in (dialect, replace(dialect, quotes=False)):
            try:
                names = next(iter(_rows(_body(read(), one), one)), [])
            except csv.Error:
                continue
            found.append((dialect, names))
            break
    found.sort(key=lambda each: -len(each[1]))  # most columns first; otherwise in the order above
    for dialect, names in found:
        if column is not None and column in [each.strip() for each in names]:
            return replace(dialect, quotes=True), names
    names = found[0][1] if found else []
    wanted = "name the column of its text" if column is None else f"it has no column {column!r}"
    listed = ", ".join(names) or "none"
    raise CorpusError(f"{name} is a table: {wanted}, {spelled('column')}; its columns are {listed}")


def _index(header: list[str], name: str, column: str | None) -> int:
    names = header if column in header else [each.strip() for each in header]
    if column not in names:  # in another dialect
        raise csv.Error(f"there is no column {column!r}")
    if names.count(column) > 1:
        raise CorpusError(
            f"{name} has {names.count(column)} columns named {column!r}: rename one of them"
        )
    return names.index(column)


# Rows


def _rows(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    """The rows that are not empty.

    Cells may have any size up to LARGEST; csv's global limit is restored.
    """
    if dialect.escapes:
        lines = (_keep_backslashes(line, dialect.separator) for line in lines)
    reader = csv.reader(
        lines,
        delimiter=dialect.separator,
        quoting=csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE,
        quotechar='"' if dialect.quotes else None,
        escapechar="\\" if dialect.escapes else None,
        skipinitialspace=dialect.spaces,
        strict=True,
    )
    while True:
        limit = csv.field_size_limit(LARGEST)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield row


def _keep_backslashes(line: str, separator: str) -> str:
    """Double backslashes that escape nothing, such as that of ``\\n``, which csv would drop."""
    special = {'"', "\\", separator}
    return _ESCAPE.sub(lambda m: m[0] if m[1] in special else "\\" + m[0], line)


def _body(blocks: Iterable[str], dialect: Dialect) -> Iterator[str]:
    """The lines from the header on."""
    lines = _after_blank(_lines(blocks))
    if dialect.by_excel:
        next(lines, None)
        lines = _after_blank(lines)
    return lines


def _after_blank(lines: Iterator[str]) -> Iterator[str]:
    first = next((line for line in lines if not line.isspace()), None)
    return chain([first], lines) if first is not None else iter(())


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []  # of a line that continues in the next block
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            yield "".join((*parts, line, "\n"))
            parts.clear()
        if rest:
            parts.append(rest)
    if parts:
        yield "".join(parts)


# Messages


def _too_long(name: str, number: int, cells: int, width: int, column: str | None) -> str:
    return (
        f"{name}: row {number:,} has {cells} cells, but the header {width}, so the cell of column "
        f"{column!r} is ambiguous: put quotation marks around cells that hold the separator"
    )


def _unreadable(name: str, number: int, error: csv.Error) -> str:
    reason = str(error)
    if "unexpected end of data" in reason or "field larger" in reason:
        reason = "a quotation mark is opened and not closed"
    elif "expected after" in reason:  # the quotation mark
        reason = "text follows the quotation mark that closes a cell"
    return (
        f"{name}: row {number:,} cannot be read ({reason}): double the quotation marks within "
        "quoted cells, or give plain text"
    )
