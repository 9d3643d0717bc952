"""Sources of text: files, tables, standard input, or Python's own documentation."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import platform
import shutil
import stat
import sys
import tempfile
import warnings
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from bptt._src.atomic import expanded
from bptt._src.data import builtin, tables
from bptt._src.data.decoding import check_encoding, decoded
from bptt.errors import BpttWarning, CorpusError, spelled

PIECE = 1 << 16
"""The most characters in a piece of text."""

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc")
"""Suffixes of files that are read as text from a directory."""

_OPENERS: dict[str, Callable[[Path], object]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class _File:
    """One file, and how to read it."""

    path: Path
    name: str  # in messages
    encoding: str | None
    column: str | None  # of a table
    warned: list[bool] = field(default_factory=list)  # so that bad bytes are reported once
    examined: list[tables.Table] = field(default_factory=list)  # the table's dialect

    @property
    def table(self) -> bool:
        return _kind(self.path) in tables.SUFFIXES

    def documents(self) -> Iterator[Iterable[str]]:
        """The file's documents, each in blocks: a text is one document, a table one per row."""
        if self.table:
            return ([cell] for cell in self.written().cells(self._blocks()))
        return iter([self._blocks()])

    def written(self) -> tables.Table:
        """The table's dialect; found by reading the file once."""
        if not self.examined:
            found = tables.examine(self._blocks, self.name, self.column, tabs=self.tabs)
            if found.skipped:
                several = "s have" if found.skipped > 1 else " has"
                warnings.warn(
                    f"{self.name}: {found.skipped:,} row{several} too few cells for column "
                    f"{self.column!r} and will be left out; the first is row "
                    f"{found.first_skipped:,}",
                    BpttWarning,
                    stacklevel=2,
                )
            self.examined.append(found)
        return self.examined[0]

    @property
    def tabs(self) -> bool:
        """Whether the file's suffix implies that tabs separate the cells."""
        return _kind(self.path) == ".tsv"

    @property
    def dialect(self) -> str | None:
        """Description of the table's dialect, if it is not the one that the suffix implies."""
        dialect = self.written().dialect if self.table else None
        return None if dialect is None or dialect.usual(tabs=self.tabs) else str(dialect)

    def _blocks(self) -> Iterator[str]:
        opener = _OPENERS.get(self.path.suffix.lower(), lambda path: path.open("rb"))
        try:
            with cast("io.BufferedIOBase", opener(self.path)) as file:
                yield from decoded(file, self.name, self.encoding, warn=not self.warned)
                self.warned.append(True)
        except _READ_ERRORS as error:
            reason = getattr(error, "strerror", None) or error
            raise CorpusError(
                f"cannot read {self.name} ({reason}): check that the file is complete and readable"
            ) from None


class Corpus:
    """Text that can be read in order any number of times, however large it is.

    Made by :func:`open_corpus`.

    Attributes:
        name: Name for display: ``"book.txt"``, ``"3 files"``, ``"standard input"``.
        sources: Absolute paths from which it can be opened again; empty for the built-in
            corpus, ``("-",)`` for standard input.
    """

    def __init__(self, name: str, sources: Sequence[str], files: Sequence[_File]) -> None:
        self.name = name
        self.sources = tuple(sources)
        self._files = tuple(files)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, sources={self.sources!r})"

    def pieces(self) -> Iterator[str]:
        """The text from its beginning, with a blank line between documents.

        The pieces depend only on the text, not on the files' blocks or encodings.

        Yields:
            Pieces of at most :data:`PIECE` characters, cut at the end of a line if possible.

        Raises:
            CorpusError: If a file can no longer be read, is not text, or is all white space.
        """
        blank = True
        for piece in _cut(self._text()):
            blank = blank and piece.isspace()
            yield piece
        if blank:
            raise CorpusError(f"{self.name} holds no text, only white space: give another text")

    def _text(self) -> Iterator[str]:
        end = ""  # the last two characters of the previous document
        for file in self._files:
            for document in file.documents():
                if end:
                    yield "\n" * (2 - len(end) + len(end.rstrip("\n")))
                    end = ""
                for block in document:
                    end = (end + block)[-2:]
                    yield block


def open_corpus(
    sources: Sequence[str | Path] | str | Path = (),
    *,
    column: str | None = None,
    encoding: str | None = None,
) -> Corpus:
    """Open text for reading; unusable text is refused at once, as far as one block shows.

    Args:
        sources: Files, directories (read recursively, sorted, by their suffixes), tables
            (.csv, .tsv), or ``"-"`` for standard input. Files may be compressed (.gz, .bz2,
            .xz). None at all means the documentation inside this Python installation.
        column: The column of the tables that holds the text. Directories are then searched
            for tables.
        encoding: The encoding of all files; None: the byte order mark's, or UTF-8.

    Raises:
        CorpusError: If a source is missing, empty, binary, unreadable, or has no such column.
    """
    check_encoding(encoding)
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if not sources:
        if column is not None:
            raise CorpusError(
                f"column {column!r} was given without a table: give a .csv or .tsv file"
            )
        name = f"the documentation of Python {platform.python_version()}"
        return Corpus(name, (), [_File(builtin.text_file(), name, "utf-8", None)])
    if [str(source) for source in sources].count("-") > 1:
        raise CorpusError("standard input ('-') was given twice: it can be read only once")

    files: list[_File] = []
    spools: list[Path] = []
    for source in sources:
        found, spooled = _find(source, column, encoding)
        files += found
        spools += [spooled] if spooled else []
    if column is not None and not any(file.table for file in files):
        raise CorpusError(
            f"column {column!r} was given, but no table is among the sources: "
            f"give a .csv or .tsv file, or leave {spelled('column')} out"
        )
    for file in files:
        _try(file)
    _warn_of_copies(files)
    absolute = ["-" if str(s) == "-" else str(expanded(s).absolute()) for s in sources]
    corpus = Corpus(_name(sources, files), absolute, files)
    for spool in spools:
        weakref.finalize(corpus, spool.unlink, missing_ok=True)
    return corpus


def _warn_of_copies(files: Sequence[_File]) -> None:
    read = Counter(os.path.realpath(file.path) for file in files)
    if copies := [file for file in files if read[os.path.realpath(file.path)] > 1]:
        warnings.warn(
            f"{copies[0].name} is read {read[os.path.realpath(copies[0].path)]} times, so the "
            "held-out part may be trained on too: give each file once",
            BpttWarning,
            stacklevel=3,
        )


def _find(
    source: str | Path, column: str | None, encoding: str | None
) -> tuple[list[_File], Path | None]:
    """The files that a source stands for, and the temporary one made for it, if any."""
    if str(source) == "-":
        spool = _spool(getattr(sys.stdin, "buffer", None), "standard input")
        return [_File(spool, "standard input", encoding, column)], spool
    path = expanded(source)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return [_File(p, str(p), encoding, column) for p in _walk(path, column)], None
        if stat.S_ISFIFO(mode):  # a shell's <(command); can be read only once, like a pipe
            with path.open("rb") as pipe:
                spool = _spool(pipe, str(source))
            return [_File(spool, str(source), encoding, column)], spool
    except FileNotFoundError:
        raise CorpusError(f"there is no file or directory {source}: check the path") from None
    except CorpusError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CorpusError(
            f"cannot read {source} ({reason}): check its path and permissions"
        ) from None
    if not stat.S_ISREG(mode):
        raise CorpusError(f"{source} is a device or socket, not a file: give a file of text")
    return [_File(path, str(source), encoding, column)], None


def _walk(directory: Path, column: str | None) -> list[Path]:
    """The text files of a directory, sorted, without empty and hidden ones."""
    suffixes = TEXT_SUFFIXES if column is None else tables.SUFFIXES

    def refuse(error: OSError) -> None:
        raise error

    found, broken = [], []
    seen = set()  # links may form a cycle
    for folder, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        folders[:] = [] if place in seen else [f for f in folders if not f.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        paths = [] if place in seen else [p for p in paths if _kind(p) in suffixes]
        seen.add(place)
        broken += [p for p in paths if not p.is_file()]
        found += [p for p in paths if p.is_file() and p.stat().st_size]
    if broken:
        warnings.warn(
            f"{directory}: {len(broken):,} entries that are not files, such as broken links, are "
            f"left out; the first is {min(broken)}",
            BpttWarning,
            stacklevel=4,
        )
    if not found:
        raise CorpusError(
            f"directory {directory} holds no text: looked for {' '.join(suffixes)} "
            "(.gz, .bz2 and .xz of these too); give the files by name if they end otherwise"
        )
    return sorted(found, key=lambda path: path.relative_to(directory).parts)


def _kind(path: Path) -> str:
    """The suffix that tells a file's type; for a compressed file the one before .gz."""
    if path.suffix.lower() in _OPENERS:
        path = path.with_suffix("")
    return path.suffix.lower()


def _spool(pipe: io.BufferedIOBase | None, name: str) -> Path:
    """Copy a source that can be read only once into a temporary file, block by block."""
    if pipe is None:
        raise CorpusError(f"there is no {name} to read from: give a file instead")
    handle, path = tempfile.mkstemp(prefix="bptt-", suffix=".txt")
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(pipe, file)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)


def _try(file: _File) -> None:
    """Read a file's beginning, so that an unusable one is refused before any work is done."""
    try:
        empty = file.path.stat().st_size == 0
    except OSError as error:
        raise CorpusError(f"cannot read {file.name} ({error.strerror}): check the path") from None
    if empty:
        raise CorpusError(f"{file.name} is empty: give a text")
    documents = file.documents()
    first = next(documents, None)
    if first is None:
        raise CorpusError(
            f"{file.name} holds no text in column {file.column!r}: all cells are empty"
        )
    next(iter(first), None)


def _name(sources: Sequence[str | Path], files: Sequence[_File]) -> str:
    several = len(files) > 1
    dialects = [f"{file.name} ({file.dialect})" for file in files if several and file.dialect]
    if dialects:
        warnings.warn(
            f"not all tables have the dialect that their names imply: {'; '.join(dialects)}",
            BpttWarning,
            stacklevel=3,
        )
    if len(sources) > 1:
        return f"{len(files)} files"
    if str(sources[0]) == "-":
        return "standard input"
    name = Path(sources[0]).name or str(sources[0])
    if Path(sources[0]).is_dir():
        return f"{len(files)} file{'s' * (len(files) > 1)} in {name}"
    if not files[0].table:
        return name
    how = f" ({files[0].dialect})" if files[0].dialect else ""
    return f"column {files[0].column!r} of {name}{how}"


def _cut(blocks: Iterable[str]) -> Iterator[str]:
    """Recut a text that comes in blocks of any size into pieces, at line ends if possible."""
    parts: list[str] = []
    size = 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size <= PIECE:
            continue
        text, start = "".join(parts), 0
        while len(text) - start > PIECE:
            end = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            yield text[start:end]
            start = end
        parts, size = [text[start:]], len(text) - start
    if size:
        yield "".join(parts)
