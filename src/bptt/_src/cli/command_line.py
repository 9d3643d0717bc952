"""``bptt``: what every command shares."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.completion import get_completion_inspect_parameters

import bptt
from bptt._src.cli.commands import Group
from bptt._src.cli.interrupts import Interrupts
from bptt._src.cli.running import rank_here
from bptt._src.cli.terminal import (
    complain,
    discard,
    set_up_streams,
    show_warning,
)
from bptt.errors import BpttError, DivergedError, ElsewhereError, spell_options

# The class is typer's own in new versions and click's in old ones.
ClickException: Any = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")

app = typer.Typer(
    name="bptt",
    cls=Group,
    help="Train recurrent networks through time.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"bptt {bptt.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="say which it is"),
    ] = False,
) -> None:
    """Train recurrent networks through time."""


def run(interrupts: Interrupts) -> int:
    """Run the command line; return the status. What goes wrong is one line on standard error."""
    warnings.showwarning = show_warning
    set_up_streams()
    try:
        with spell_options():
            status = _run(interrupts)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if not rank_here():
            complain(interrupts.words)
        return interrupts.status
    except ElsewhereError:  # which has said so itself
        return 1
    except BpttError as e:
        if not (isinstance(e, DivergedError) and rank_here()):  # all find that together
            complain(f"error: {e}")
        return 1
    except OSError as e:
        return _failed(e)


def _run(interrupts: Interrupts) -> int:
    """Parse and call; return the status."""
    command = typer.main.get_group(app)
    arguments = sys.argv[1:] or ["--help"]
    if "_BPTT_COMPLETE" in os.environ:  # a shell asks what could be typed next
        get_completion_inspect_parameters()  # which is how Typer registers its shells
        return int(command.main(arguments, "bptt", standalone_mode=False) or 0)
    try:
        with command.make_context("bptt", arguments, obj=interrupts) as context:
            command.invoke(context)
    except typer.Exit as e:
        return e.exit_code
    except ClickException as e:
        if not rank_here():  # the others were given the same
            complain(f"error: {e.format_message()}")
        return int(e.exit_code)
    return 0


def _failed(error: OSError) -> int:
    """Report what the system refused; a reader that went away is no error to report."""
    if error.errno == errno.EPIPE:
        discard(sys.stdout)
        return 128 + signal.SIGPIPE
    where = f"{error.filename}: " if error.filename else ""
    complain(f"error: {where}{error.strerror or error}")
    discard(sys.stdout)
    return 1
