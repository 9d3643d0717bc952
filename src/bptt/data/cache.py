"""Where prepared texts are kept."""

from __future__ import annotations

import os
import tempfile
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
