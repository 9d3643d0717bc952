"""Files are written beside and renamed: there is a whole old one or a whole new one, always."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, then move it there.

    Args:
        path: where; an existing file is replaced, a link is followed, and what is no file, such
            as a pipe, is written to.
        content: text is written as UTF-8.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    with named(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.write(data)
        else:
            _replace(Path(os.path.realpath(path)), data)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, all of it or nothing.

    Args:
        path: the file; made if there is none.
        line: without its end.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    data = (line + "\n").encode()
    with named(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            file.truncate(before)
            raise


def share(path: Path) -> None:
    """Give a file or directory that only its owner may use the permissions of any new one."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _replace(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        share(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let errors name what was asked for, and not what is beside it."""
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
