"""The directory in which prepared texts are cached."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bptt.errors import ConfigError, needs

with needs("lm"):
    import platformdirs

from bptt._src.atomic import expanded


def cache_place() -> Path:
    """The directory of everything that can be computed again, for look-up; it may not exist.

    Returns:
        ``$BPTT_CACHE`` if set, otherwise the user's cache directory of this platform.

    Raises:
        ConfigError: If it is in the home directory of a user who has none.
    """
    chosen = os.environ.get("BPTT_CACHE")
    path = expanded(chosen) if chosen else platformdirs.user_cache_path("bptt")
    if path.parts[0].startswith("~") and not path.exists():
        raise ConfigError(
            f"the cache directory {path} is in a home directory that does not exist: "
            "set the environment variable BPTT_CACHE to a directory that does"
        )
    return path.absolute()


def cache_directory() -> Path:
    """The directory :func:`cache_place` for writing; made if it does not exist.

    Returns:
        An absolute path.

    Raises:
        ConfigError: If the directory cannot be made or written to.
    """
    path = cache_place()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A trial is the only reliable test: access bits say nothing about read-only mounts.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"the cache directory {path} cannot be written ({error.strerror or error}): "
            "set the environment variable BPTT_CACHE to a directory that can"
        ) from None
    return path
