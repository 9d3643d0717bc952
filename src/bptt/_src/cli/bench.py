"""``bptt bench``."""

# No `from __future__ import annotations`: as in train.py.

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bptt._src.atomic import write_whole
from bptt._src.bench.jobs import check_used
from bptt._src.cli.display import Display
from bptt._src.cli.places import check_places
from bptt._src.cli.running import Signals
from bptt._src.cli.terminal import shares_terminal
from bptt._src.shell import quoted
from bptt.bench import SECTIONS, Bench, BenchWatch, Effort, Shape, bench, print_bench


def bench_(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T/B/I/H",
            help="steps, batch, inputs and hidden units of a layer; may be given several times "
            "(default: six usual ones)",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="rnn, gru or lstm; may be given several times (default: all)", show_default=False
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="; ".join(f"{k}: {v}" for k, v in SECTIONS.items())
            + "; may be given several times (default: all, but with --search that, with --shape or "
            "--cell kernels)",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="processor threads, of everyone (default: torch's)", show_default=False),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="in each, every contender has a turn (default: 15, with --quick 3)",
            show_default=False,
        ),
    ] = None,
    sentences: Annotated[
        int | None,
        typer.Option(
            help="of the seed's epoch, how many are run, the rest extrapolated; 79000 is all of "
            "it (default: 2000, with --quick 200)",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="so many layers of random shapes, training and forward, and the worst of them "
            "(default: 100, with --quick 20); alone it measures nothing else",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="of the random shapes (default: 0)", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="fewer rounds, shorter turns: a first look")
    ] = False,
    json_: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="write all of it there, every round"),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw it: a .png, .svg or .pdf")
    ] = None,
) -> None:
    """Measure training: ours, torch.nn, JAX if it is installed, and the processor's own limits.

    \b
    The contenders take turns in each round. Ctrl-C ends it with what is
    measured. On a machine that does something else the figures are worth
    little.

    \b
    bptt bench
    bptt bench --quick --only kernels --cell lstm
    bptt bench --shape 50/16/128/256 --threads 1
    bptt bench --search 500 --threads 1
    bptt bench --json bench.json --figure bench.svg
    """
    shapes = [Shape.parse(s) for s in shape or ()]
    sections = only or _implied(shape=shape, cell=cell, search=search)
    asked = {"rounds": rounds, "sentences": sentences, "search": search, "seed": seed}
    given = {name: value for name, value in asked.items() if value is not None}
    effort = replace(Effort.quick() if quick else Effort(), **given)
    check_places(json=json_, figure=figure)
    check_used([*given, *["figure"] * (figure is not None)], sections)
    show = BenchDisplay()
    with Signals() as signals:
        with show.progress():
            found = bench(
                shapes=shapes,
                cells=cell or (),
                only=sections,
                threads=threads,
                effort=effort,
                watch=show,
                stop=lambda: signals.received,
            )
        show.conclude(found)
    # Outside of Signals: a pipe may wait for its reader, and Ctrl-C is to be heard at once.
    show.written(save_bench(found, json_, figure))
    if found.interrupted:
        is_term = signals.received == "SIGTERM"
        raise typer.Exit(128 + (signal.SIGTERM if is_term else signal.SIGINT))


def _implied(*, shape: object, cell: object, search: object) -> list[str]:
    """Return the parts that options ask for, without --only; none: all."""
    if search is not None:
        return ["search"]
    return ["kernels"] if shape or cell else []


def save_bench(found: Bench, json_: Path | None, figure: Path | None) -> list[Path]:
    """Write the files that are asked for; give those that there is something for."""
    written = []
    if json_ is not None:
        text = json.dumps(found.to_dict(), indent=1, allow_nan=False)
        write_whole(json_, text + "\n")
        written.append(json_)
    if figure is not None and found.has_steps:
        from bptt._src.bench.figure import draw_bench
        from bptt._src.report.style import as_picture

        write_whole(figure, as_picture(draw_bench(found), figure.suffix.lower()[1:], dpi=130))
        written.append(figure)
    return written


class BenchDisplay(BenchWatch):
    """Shows a run on standard output: a bar where there is a terminal, then the tables."""

    def __init__(self) -> None:
        self.display = Display()
        self.console = self.display.console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.number = self.jobs = 0

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a bar over all measurements."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
        )
        shown = self.console.is_terminal
        # It is drawn between the turns only: a thread that draws would be in their way.
        with Progress(
            *columns,
            console=self.console,
            transient=True,
            disable=not shown,
            auto_refresh=False,
            redirect_stderr=shares_terminal(),
        ) as self.bar:
            self.task = self.bar.add_task("", total=1.0)
            yield

    def begun(self, what: str, number: int, jobs: int) -> None:
        """Name the measurement."""
        self.number, self.jobs = number, jobs
        if self.bar is not None:
            self.bar.update(self.task, description=f"{number + 1} of {jobs}: {what}")
        self.done(0.0)

    def done(self, share: float) -> None:
        """Move the bar."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(self.task, completed=(self.number + share) / self.jobs, refresh=True)

    def conclude(self, found: Bench) -> None:
        """Print the tables."""
        if found.interrupted:
            self.display.say("Interrupted; what was measured until then:\n")
        print_bench(found, self.console)

    def written(self, files: list[Path]) -> None:
        """Print where the files are."""
        if files:
            self.display.say(f"\nWritten: {' and '.join(map(quoted, files))}.")


command = bench_
