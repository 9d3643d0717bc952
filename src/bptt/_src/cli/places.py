"""Options that commands share; where they write, looked at before the work, not in vain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bptt.errors import ConfigError, require

PICTURES = (".png", ".svg", ".pdf")
STANDARD_OUTPUT = "-"
_ARGUMENTS = {"file": "FILE"}

Page = Annotated[Path | None, typer.Option(help="write a page to look at", show_default=False)]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="write all of it as JSON; - prints nothing else", show_default=False
    ),
]
Picture = Annotated[
    Path | None, typer.Option(help="write a picture: .png, .svg or .pdf", show_default=False)
]
"""Options of what a command writes."""

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="let the run name a cell module.CELL, which runs the module's code"
    ),
]
"""The option of what loads a run."""


def check_places(**places: Path | None) -> None:
    """See to it that each file can be written, and has its own place.

    Args:
        places: where, by the option that names it; ``json`` may be ``-``, ``figure`` is a picture.

    Raises:
        ConfigError: a place cannot be written, or two are the same file.
        MissingExtraError: there is nothing to draw a picture with.
    """
    taken: dict[Path, str] = {}
    for name, path in places.items():
        if path is None or (name == "json" and str(path) == STANDARD_OUTPUT):
            continue
        option = _ARGUMENTS.get(name, f"--{name}")
        if str(path) == STANDARD_OUTPUT:
            raise ConfigError(f"{option} -: only --json writes to the standard output; give a file")
        if name == "figure" and path.suffix.lower() not in PICTURES:
            *some, last = PICTURES
            raise ConfigError(
                f"{option} {path}: expected a name that ends in {', '.join(some)} or {last}"
            )
        if name == "figure":
            require("matplotlib", "plot")
        _check_writable(option, path)
        other = taken.setdefault(Path(os.path.realpath(path)), option)
        if other != option:
            raise ConfigError(f"{other} and {option} are the same file, {path}: give two")


def _check_writable(option: str, path: Path) -> None:
    try:
        if path.is_dir():
            raise ConfigError(f"{option} {path} is a directory: give a file in it")
        path.parent.stat()
        exists, within = _exists(path), Path(os.path.realpath(path)).parent
        if not within.is_dir():
            raise ConfigError(f"{option} {path}: make the directory {path.parent} first")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{option} {path}: make the directory {path.parent} first") from None
    except OSError as e:
        raise ConfigError(
            f"{option} {path} cannot be written ({e.strerror}): choose another place"
        ) from None
    replaced = not exists or path.is_file()  # what is no file, as a pipe, is written to
    writable = os.access(within, os.W_OK) if replaced else os.access(path, os.W_OK)
    if not writable or (exists and not os.access(path, os.W_OK)):
        raise ConfigError(f"{option} {path} cannot be written: choose a place that can be")
    if len(os.fsencode(path.name)) > 200:  # the file beside it has a longer name
        raise ConfigError(f"{option} {path.name} is too long a name: choose a shorter one")


def _exists(path: Path) -> bool:
    """Whether there is a file; a loop of symbolic links is an error, unlike in pathlib."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
