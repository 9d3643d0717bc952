"""What can go wrong by the user's hand; each message is one line that says what to do.

Everything here derives from :class:`BpttError`, so that the command line can print the
line and leave with a non-zero status, while a programming error keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

_as_options = False
_ARGUMENTS = {"corpus": "a text"}  # given without the name of an option
_FLAGS = {"reading"}  # options that the command line spells as their value: --lines


class BpttError(Exception):
    """Something that was given cannot be used. The message is one line and names the remedy."""


class CorpusError(BpttError, ValueError):
    """A text cannot be read: missing, empty, binary, badly encoded, or without the column."""


class ConfigError(BpttError, ValueError):
    """Options that do not fit together, or a configuration file that cannot be read."""


class ZeroGradientError(ConfigError):
    """The exact gradient is zero, so that there is nothing to compare an estimate with."""


class CheckpointError(BpttError):
    """A run directory, model or checkpoint is missing, damaged, or of another kind."""


class KernelError(BpttError, RuntimeError):
    """The kernels that were asked for by name are not to be had here."""


class FuseError(BpttError, ValueError):
    """A cell in plain PyTorch does something that :func:`bptt.fuse` cannot make native."""


class MissingExtraError(BpttError, ImportError):
    """A package is needed that only an extra installs.

    Args:
        package: what is missing.
        extra: the extra, as ``"plot"``.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'bptt[{extra}]'", name=package)


class DivergedError(BpttError, ArithmeticError):
    """Training met a loss, a gradient or a weight that is not a finite number.

    Args:
        what: what happened, and where.
        remedy: what is kept, and what to do.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what


class RanksError(BpttError, RuntimeError):
    """The processes of a job have lost each other, or do not have the same."""


class ElsewhereError(RanksError):
    """Another process of the job has failed, and has reported that itself."""


class BpttWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def spelled(name: str, value: object = None) -> str:
    """Spell an argument as whoever reads the message gave it, with its value if there is one.

    >>> print(spelled("batch_size"), spelled("batch_size", 0))
    batch_size batch_size=0
    >>> with spell_options():
    ...     print(spelled("batch_size"), spelled("batch_size", 0))
    --batch-size --batch-size 0
    """
    if _as_options:
        if name in _ARGUMENTS:
            return _ARGUMENTS[name]
        if name in _FLAGS and value is not None:
            return f"--{value}"
        option = "--" + name.replace("_", "-")
        return option if value is None else f"{option} {value}"
    return name if value is None else f"{name}={value!r}"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Name the extra to install where an import finds no package.

    >>> with needs("plot"):
    ...     import no_such_package
    Traceback (most recent call last):
    bptt.errors.MissingExtraError: no_such_package is not installed: pip install 'bptt[plot]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name).partition(".")[0], extra) from error


def require(package: str, extra: str) -> None:
    """Refuse what will need a package, before the work; the package is not loaded yet.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


@contextmanager
def spell_options() -> Iterator[None]:
    """Make messages speak of options, as on the command line, rather than of arguments."""
    global _as_options
    before, _as_options = _as_options, True
    try:
        yield
    finally:
        _as_options = before
