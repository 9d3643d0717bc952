"""Where prepared texts are kept, and how a file is written so that it is never half there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from bptt.errors import ConfigError


def cache_directory() -> Path:
    """The directory for everything that can be computed again, made if it is not there.

    Returns:
        ``$BPTT_CACHE`` where that is set, else the user's cache directory of this platform.

    Raises:
        ConfigError: If the directory cannot be made or not be written to.
    """
    chosen = os.environ.get("BPTT_CACHE")
    path = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("bptt")
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A trial is the only sure test: access bits say nothing about read-only mounts.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"the cache directory {path} cannot be written ({error.strerror or error}): "
            "set the environment variable BPTT_CACHE to a directory that can"
        ) from None
    return path.absolute()


@contextlib.contextmanager
def renamed_into_place(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside ``path``, which takes its place when all went well.

    Readers see the old file or the whole new one. After an exception the new one is removed.

    Args:
        path: The file to be made or replaced; its directory must be there.

    Yields:
        The path to write to.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # mkstemp makes private files; what is kept gets the permissions any new file gets.
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file beside ``path`` and rename it into place.

    Args:
        path: The file to be made or replaced.
        text: What it will hold; newlines are written as they are.
    """
    with renamed_into_place(path) as part:
        part.write_bytes(text.encode("utf-8"))


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
