"""``bptt``: what every command shares."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, Any

import typer

import bptt
from bptt.cli.bench import bench_
from bptt.cli.compare import SeveralCredits, compare_
from bptt.cli.evaluate import evaluate
from bptt.cli.flow import flow
from bptt.cli.sample import sample
from bptt.cli.train import train
from bptt.errors import BpttError, BpttWarning

app = typer.Typer(
    name="bptt",
    help="Train recurrent networks through time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(evaluate)
app.command()(sample)
app.command()(flow)
app.command("compare", cls=SeveralCredits)(compare_)
app.command("bench")(bench_)


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


def main() -> None:
    """Run the command line; what the user did wrong is one line and a status of 1."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what the terminal cannot show is a ?
    try:
        app()
    except BpttError as e:
        _fail(f"error: {e}")
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        _fail(f"error: {where}{e.strerror or e}")


def _fail(message: str) -> None:
    print(" ".join(message.splitlines()), file=sys.stderr)
    sys.exit(1)


def _show_warning(message: Any, category: type[Warning], *where: Any, **how: Any) -> None:
    """Show our own warnings as one line; others as Python does."""
    if issubclass(category, BpttWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *where[:2]))
