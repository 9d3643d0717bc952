"""Atomic writing: a file is written beside its place and renamed, so it is whole, old or new."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, *content: bytes | memoryview | str, follow_links: bool = True) -> None:
    """Write a file under a temporary name beside its place, then move it there.

    Args:
        path: the file; an existing one is replaced, and something that is not a file, such as a
            pipe, is written to.
        content: its parts, one after another; text is written as UTF-8.
        follow_links: whether to follow a symbolic link; otherwise the file replaces it.

    Raises:
        OSError: it could not be written; the previous file is still there.
    """
    parts = [part.encode() if isinstance(part, str) else part for part in content]
    with named(path):
        if not follow_links:
            _replace(path, parts)
        elif path.exists() and not path.is_file():
            with path.open("wb") as file:
                _write(file.fileno(), parts)
        else:
            _replace(Path(os.path.realpath(path)), parts)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, all of it or nothing.

    Args:
        path: the file; made if there is none. A symbolic link is not followed.
        line: the line without its end.

    Raises:
        OSError: it could not be written; the previous content is still there.
    """
    with named(path):
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINKS | _BINARY, 0o666
        )
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write(descriptor, [(line + "\n").encode()])
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def read_whole(path: Path, most: int) -> bytes:
    """Read a file.

    Args:
        path: the file.
        most: its largest size in bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a plain file, or larger; nothing has been read then.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, but at most {most:,} are allowed")
        return file.read(most)


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, but no device, and no pipe, which would wait for a writer.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a plain file")
    return os.fdopen(descriptor, "rb")


def sync_directory(path: Path) -> None:
    """Make sure that a rename in a directory survives a power failure."""
    if os.name == "nt":
        return  # a directory cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system supports it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(path: Path) -> None:
    """Set the default permissions of a new file or directory on a private one."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Make errors name the requested file, not the temporary one."""
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        if e.errno == errno.ELOOP and path.is_symlink():
            reason = "it is a symbolic link, which is not written through: put the file itself here"
            raise OSError(e.errno, reason, str(path)) from None
        raise OSError(e.errno, e.strerror, str(path)) from None


_BINARY = getattr(os, "O_BINARY", 0)  # on Windows
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def _replace(path: Path, parts: list[bytes | memoryview]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    beside = Path(name)
    try:
        try:
            _write(descriptor, parts)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        share(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _write(descriptor: int, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            written = os.write(descriptor, rest)
            rest = rest[written:]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def expanded(path: str | Path) -> Path:
    """Replace a leading ``~`` by the user's home directory, unless it is part of a name.

    Args:
        path: the path as given; one that begins with ``~name`` may also be a file of that name.
    """
    path = Path(path)
    first = path.parts[0] if path.parts else ""
    if first.startswith("~") and (first == "~" or not os.path.lexists(path)):
        try:
            return path.expanduser()
        except RuntimeError:  # no such user
            pass
    return path
