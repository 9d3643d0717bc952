"""``bptt doctor``."""

from __future__ import annotations

import json
from contextlib import nullcontext

import typer
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bptt._src.atomic import write_whole
from bptt._src.cli.places import STANDARD_OUTPUT, Json, check_places
from bptt._src.cli.terminal import Console, echo, shares_terminal
from bptt._src.doctor import Checkup, examine

STYLES = {"ok": "green", "note": "cyan", "missing": "yellow", "broken": "bold red"}


def doctor(json_: Json = None) -> None:
    """Show what runs on this machine, what is missing and what it costs, and what to do.

    \b
    It takes some seconds: torch and the native kernels are loaded, checked
    against plain PyTorch, and timed. The status is 1 if something that is
    installed does not work; what is only missing leaves it 0.

    \b
    bptt doctor
    bptt doctor --json -
    """
    check_places(json=json_)
    console = Console()
    is_read = console.is_terminal and str(json_) != STANDARD_OUTPUT
    with waiting(console) if is_read else nullcontext():
        found = examine()
    document = json.dumps(found.to_dict(), allow_nan=False, indent=1) + "\n"
    if str(json_) == STANDARD_OUTPUT:
        echo(document, end="")
    elif is_read:
        console.print(drawn(found))
    else:
        echo(str(found))
    if json_ is not None and str(json_) != STANDARD_OUTPUT:
        write_whole(json_, document)
    if found.state == "broken":
        raise typer.Exit(1)


def waiting(console: Console) -> Live:
    """Show, within a ``with`` block, that something is being done."""
    return Live(
        Spinner("dots", "looking at what runs here"),
        console=console,
        transient=True,
        redirect_stderr=shares_terminal(),
    )


def drawn(found: Checkup) -> Table:
    """Draw it for a terminal: colours, and long texts within their column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for f in found.findings:
        said = Text("\n").join(
            Text(line, style="" if n == 0 else "dim" if not line.startswith("To do") else "italic")
            for n, line in enumerate(f.lines())
        )
        table.add_row(Text(f.state, style=STYLES[f.state]), f.name, said)
    table.add_row("", "", "")
    state = "ok" if found.state == "note" else found.state
    table.add_row(Text(state, style=STYLES[state]), "", found.verdict())
    return table


command = doctor
