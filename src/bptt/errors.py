"""What can go wrong by the user's hand; each message is one line that says what to do.

Everything here derives from :class:`BpttError`, so that the command line can print the
line and leave with a non-zero status, while a programming error keeps its traceback.
"""


class BpttError(Exception):
    """Something that was given cannot be used. The message is one line and names the remedy."""


class CorpusError(BpttError, ValueError):
    """A text cannot be read: missing, empty, binary, badly encoded, or without the column."""


class ConfigError(BpttError, ValueError):
    """Options that do not fit together, or a configuration file that cannot be read."""


class CheckpointError(BpttError):
    """A run directory, model or checkpoint is missing, damaged, or of another kind."""


class KernelError(BpttError, RuntimeError):
    """The kernels that were asked for by name are not to be had here."""


class DivergedError(BpttError, ArithmeticError):
    """Training met a loss, a gradient or a weight that is not a finite number.

    Args:
        what: what happened, and where.
        remedy: what is kept, and what to do.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what


class BpttWarning(UserWarning):
    """Something the user should know that does not stop the work."""
