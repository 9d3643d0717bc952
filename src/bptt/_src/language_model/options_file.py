"""Options from a JSON file: a user's own, or a run's config.json."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

from bptt._src.atomic import read_whole
from bptt._src.documents import MOST, SEAL, parse_json, unseal
from bptt._src.language_model.config import check_option, fields_by_name
from bptt.errors import BpttWarning, ConfigError


def read_options(path: Path) -> dict[str, Any]:
    """Read options from a user's JSON file: some of them, or a run's whole config.json.

    Raises:
        ConfigError: the file is missing, is not JSON, or names an unknown option.
    """
    try:
        found = parse_json(read_whole(path, MOST))
    except OSError as e:
        raise ConfigError(f"cannot read the configuration {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise ConfigError(f"{path} is not a JSON file of options: {e}") from None
    if isinstance(found, dict) and SEAL in found:
        try:
            unseal(found)
        except ValueError:
            warnings.warn(
                f"{path} was edited since bptt wrote it; it is used as it is (remove its line "
                f"{SEAL} to confirm the edit)",
                BpttWarning,
                stacklevel=2,
            )
        del found[SEAL]
    return as_options(found, path)


def as_options(found: Any, path: Path) -> dict[str, Any]:
    """Check the contents of a JSON file of options.

    Raises:
        ConfigError: it is not an object, names an unknown option, or has an unsuitable value.
    """
    if not isinstance(found, dict):
        raise ConfigError(f'{path} must hold an object, {{"option": value}}')
    names = list(fields_by_name())
    for name in sorted(found.keys() - {*names}):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)
        raise ConfigError(f"{path}: unknown option {name}; the nearest is {near[0]}")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    for name, value in options.items():
        check_option(name, value)
    return options
