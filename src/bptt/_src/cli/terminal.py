"""What the commands print: nothing that a terminal would take for anything but text.

Texts, vocabularies and names may hold escape sequences, or characters that turn the direction of
what follows. Everything that a command prints goes through :func:`visible`, here, and nowhere else:
by :class:`Console` what rich draws, by :func:`echo` and :func:`complain` the rest.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import rich.console
from rich.segment import Segment

from bptt._src.cli.running import rank_here
from bptt._src.controls import on_one_line, visible
from bptt.errors import BpttWarning

LONGEST = 1000  # characters of an error's message; of a longer one both ends are shown


class Console(rich.console.Console):
    """A console on standard output that shows texts as they are, without markup or controls.

    Its reader may go away, or its disk be full: the work goes on, which is said once.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, highlight=False, emoji=False, markup=False)
        # Where there is no terminal, or none whose width is known, a line is a line.
        self.soft_wrap = not self.is_terminal or self.is_dumb_terminal

    def render_str(self, text: str, **how: Any) -> Any:
        """Make visible what a table holds before its width is measured."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render, with the controls that rich itself makes, and no others."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print; what cannot be written is given up, and so is all that comes after it."""
        try:
            super().print(*objects, **how)
        except OSError as e:
            self.quiet = True
            warnings.warn(
                f"standard output cannot be written ({e.strerror or e}): nothing more is printed",
                BpttWarning,
                stacklevel=2,
            )

    def on_broken_pipe(self) -> None:
        """Go on in silence: whoever read has seen enough."""
        self.quiet = True
        discard(sys.stdout)


def echo(text: str, *, end: str = "\n", raw: bool = False) -> None:
    """Print a text, at once; ``raw`` leaves it as it is."""
    print(text if raw else visible(text), end=end, flush=True)


def complain(text: str) -> None:
    """Print one line on standard error; of several processes, the others than rank 0 say which."""
    text = on_one_line(f"rank {rank_here()}: {text}" if rank_here() else text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # there is no one to be told
        discard(sys.stderr)


def show_traceback(error: BaseException) -> None:
    """Show what a user's code has raised as Python does, from where that code begins."""
    own = str(files("bptt"))
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(
        (own, "<frozen importlib")
    ):
        frames = frames.tb_next
    sys.stderr.write(visible("".join(traceback.format_exception(type(error), error, frames))))


def show_warning(message: Any, category: type[Warning], *where: Any, **how: Any) -> None:
    """Show our own warnings as one line; others as Python does."""
    if issubclass(category, BpttWarning):
        complain(f"warning: {message}")
    else:
        sys.stderr.write(visible(warnings.formatwarning(message, category, *where[:2])))


def shares_terminal() -> bool:
    """Whether standard error and standard output are the same terminal.

    Only then may a moving display redirect standard error, so that its lines appear above the
    display; anywhere else this would send them to standard output.
    """
    try:
        out, err = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
    except (OSError, ValueError):  # it is no file
        return False
    return sys.stderr.isatty() and os.path.samestat(out, err)


def set_up_streams() -> None:
    """Make the standard streams take any text, whatever the locale and wherever they lead."""
    for descriptor in (0, 1, 2):  # one that was closed, as by >&-, is not to be a file's
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: Any) -> None:
    """Discard what is still to be written to a stream, so that leaving is quiet."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # it is no file
        pass
