"""Consent to code: options may name a credit or a cell of a module, which runs when imported.

A run may come from a stranger. What is the user's own is imported from its options only where the
user says so, or names it, or has imported the module.
"""

from __future__ import annotations

from pathlib import Path

from bptt._src.language_model.config import Config
from bptt._src.networks import cell_of, is_own_cell, runs_code
from bptt.credit import is_own
from bptt.errors import ConfigError, spelled


def names_code(config: Config) -> bool:
    """Whether the credit or the cell is one of the user's own."""
    return is_own(config.credit) or is_own_cell(config.cell)


def refuse_credit(credit: str, path: Path) -> None:
    """Refuse a credit that would import a class, in a file that may come from a stranger.

    Raises:
        ConfigError: it is such a credit.
    """
    if is_own(credit):
        raise _refusal("credit", credit, path)


def refuse_cell(cell: str, path: Path) -> None:
    """Refuse a cell whose module is not imported yet, in a file that may come from a stranger.

    Raises:
        ConfigError: it is such a cell.
    """
    if runs_code(cell):
        raise _refusal("cell", cell, path)


def allow_cell(cell: str) -> None:
    """Import the module of a cell, so that it is not refused.

    Raises:
        ConfigError: it cannot be imported, or has no such cell.
    """
    if runs_code(cell):
        cell_of(cell)


def _refusal(what: str, name: str, path: Path) -> ConfigError:
    return ConfigError(
        f"{path} names the {what} {name!r}, which runs code of a module: use "
        f"{spelled('allow_code')} if you trust it"
    )
