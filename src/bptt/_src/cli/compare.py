"""``bptt compare``."""

# No `from __future__ import annotations`: as in train.py.

import inspect
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bptt._src.atomic import write_whole
from bptt._src.cli.commands import Command
from bptt._src.cli.display import Display
from bptt._src.cli.options import with_options
from bptt._src.cli.running import Signals, first_free
from bptt._src.cli.terminal import shares_terminal
from bptt._src.networks import NAMES
from bptt._src.shell import quoted
from bptt.comparison import Comparison, ComparisonWatch, Trial, compare, print_comparison
from bptt.data import TASKS
from bptt.errors import ConfigError, require

RESULT, PICTURE = "comparison.json", "comparison.png"
OF_TASKS, OF_TEXTS = "Tasks", "Texts"
_SEVERAL = "--credit"


class SeveralCredits(Command):
    """A command whose ``--credit A B C`` means ``--credit A --credit B --credit C``.

    It takes no arguments, so whatever follows a credit and is no option is another one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write it out, then do what any command does."""
        return list(super().parse_args(ctx, _one_by_one(args)))


def _one_by_one(arguments: Sequence[str]) -> list[str]:
    written: list[str] = []
    among_credits = False  # whether what comes next, if it is no option, is another credit
    after_option = False  # whether it belongs to the option before it
    for argument in arguments:
        is_option = argument.startswith("-") and argument != "-"
        if among_credits and not is_option and not after_option:
            written.append(_SEVERAL)
        after_option = False
        if is_option:
            among_credits = argument.partition("=")[0] == _SEVERAL
            after_option = argument == _SEVERAL
        written.append(argument)
    return written


_HELP = {
    "batch_size": "sequences in a batch",
    "lag": "steps from a symbol to its repetition",
    "symbols": "how many symbols are to be remembered",
    "alphabet": "how many symbols there are",
    "masked": "only the answer is asked, not the blanks before it",
    "shortest": "the least steps between a symbol and its repetition",
    "longest": "the most",
    "steps": "the length of a window",
    "length": "the length of a sequence",
    "marks": "where the two numbers are: early (both in the first half) or halves (one in each)",
    "spread": "so many steps more, at random, before the end",
    "level": "what a token is: word, char, byte or bpe",
    "vocabulary": "tokens to know",
    "lowercase": "turn the text into lower case",
    "max_tokens": "use only the first tokens",
}


def _offered() -> list[inspect.Parameter]:
    """The options of tasks and texts, None where they are not given, each once."""
    from bptt._src.comparison.texts import DEFAULTS, OPTIONS
    from bptt.language_model import Config

    found: dict[str, tuple[Any, list[str]]] = {}
    for owner, kind in (*TASKS.items(), ("a text", Config)):
        hints = get_type_hints(kind)
        for f in fields(kind):  # type: ignore[arg-type]
            if (f.name not in OPTIONS) if kind is Config else (f.name == "seed"):
                continue
            default = DEFAULTS.get(f.name, f.default) if kind is Config else f.default
            assert default is not MISSING
            said = f"{owner} {default}" if default not in (None, False) else owner
            found.setdefault(f.name, (hints[f.name], []))[1].append(said)
    return [_parameter(name, hint, owners) for name, (hint, owners) in found.items()]


def _parameter(name: str, hint: Any, owners: list[str]) -> inspect.Parameter:
    is_choice = get_origin(hint) is Literal
    kinds = [k for k in (get_args(hint) or (hint,)) if k is not type(None)]
    kind: Any = hint if is_choice else kinds[0] if isinstance(kinds[0], type) else str
    flag = "--" + name.replace("_", "-")
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{_HELP[name]} ({', '.join(owners)})",
        metavar=name.upper() if is_choice else None,
        show_default=False,
        rich_help_panel=OF_TEXTS if owners == [o for o in owners if "a text" in o] else OF_TASKS,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


@with_options(_offered())
def compare_(
    task: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(TASKS)}; or a text: a file, a folder, or python for the one inside "
            "this Python installation"
        ),
    ] = "copy",
    credit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A B C...",
            help="full, truncated:10, truncated:every=5,reach=20, randomized:10, adaptive:0.5, or "
            "your own as module.Class:arguments (default: full, truncated to half of the "
            "lag, randomized to the lag, adaptive:0.5)",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        str, typer.Option(help=f"{', '.join(NAMES)}, or your own as module.CELL")
    ] = "lstm",
    seeds: Annotated[int, typer.Option(help="runs of each credit")] = 3,
    hidden: Annotated[int, typer.Option(help="hidden units of each layer")] = 64,
    layers: Annotated[int, typer.Option(help="recurrent layers")] = 1,
    lr: Annotated[float, typer.Option("--learning-rate", "--lr", help="of Adam")] = 0.01,
    updates: Annotated[
        int | None,
        typer.Option(help="of a run, at most (default: 3000, of a text 400)", show_default=False),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="the loss to reach, of a text the perplexity (default: a tenth of what a model "
            "without memory has; of a text 5 % above what the exact credit ends with)",
            show_default=False,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="for all; each run may take an equal share of what is left", show_default=False
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="what a backward pass keeps: store, recompute:64MB or recompute:8 (states); the "
            "gradient is the same (default: everything)",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="processor threads")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="where comparison.json and comparison.png are put (default: "
            "runs/compare-TASK-1, -2...)",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the comparison that is in --out")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Compare ways of assigning credit: same task, weights and batches, trained with each.

    \b
    A task asks for what was a known number of steps ago; a credit that does
    not reach so far stays at the loss of a model without memory. On a text
    small language models are compared. Ctrl-C ends it with the runs that are
    finished.

    \b
    bptt compare
    bptt compare --task adding --length 40 --credit full truncated:10
    bptt compare --cell gru --credit full truncated:every=5,reach=30 --seeds 5
    bptt compare --task book.txt --credit full truncated:5 mine.Fading:0.9
    """
    require("matplotlib", "plot")
    if overwrite and not out:
        raise ConfigError("--overwrite has no effect without --out: leave it out")
    show = CompareDisplay(quiet)
    with Signals() as signals, _directory(out, task, overwrite) as where:
        with show.progress():
            found = compare(
                task,
                credit or (),
                seeds=seeds,
                cell=cell,
                hidden=hidden,
                layers=layers,
                learning_rate=lr,
                updates=updates,
                max_minutes=max_minutes,
                memory=memory,
                threads=threads,
                target=target,
                watch=show,
                stop=lambda: signals.received,
                **options,
            )
        if not found.credits:
            show.say("Interrupted before a run was finished; nothing is written.")
            raise typer.Exit(_status(signals.received))
        show.conclude(found)
        save_comparison(found, where)
    show.written(where)
    if found.interrupted:
        raise typer.Exit(_status(signals.received))


def _status(received: str | None) -> int:
    return 128 + (signal.SIGTERM if received == "SIGTERM" else signal.SIGINT)


def save_comparison(found: Comparison, where: Path) -> None:
    """Write comparison.json and comparison.png."""
    from bptt._src.report.style import as_picture

    text = json.dumps(found.to_dict(), allow_nan=False)
    write_whole(where / RESULT, text + "\n")
    write_whole(where / PICTURE, as_picture(found.figure(), "png", dpi=130))


class CompareDisplay(ComparisonWatch):
    """Shows a comparison on standard output: a bar that moves, elsewhere a line a run."""

    def __init__(self, quiet: bool) -> None:
        self.display = Display(quiet)
        self.console = self.display.console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.number = self.runs = self.updates = 0
        self.started = 0.0

    def say(self, text: str) -> None:
        """Print a line of plain text."""
        self.display.say(text)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a bar over all runs."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[loss]}", markup=False),
            TimeRemainingColumn(),
        )
        shown = self.console.is_terminal and not self.console.quiet
        with Progress(
            *columns,
            console=self.console,
            transient=True,
            disable=not shown,
            redirect_stderr=shares_terminal(),
        ) as self.bar:
            self.task = self.bar.add_task("", total=1.0, loss="")
            yield

    def begun(self, credit: str, seed: int, number: int, runs: int, updates: int) -> None:
        """Name the run."""
        self.number, self.runs, self.updates = number, runs, updates
        self.started = time.monotonic()
        if self.bar is not None:
            what = f"run {number + 1} of {runs}: {credit}, seed {seed}"
            self.bar.update(self.task, description=what, completed=number / runs, loss="")

    def updated(self, update: int, loss: float) -> None:
        """Move the bar."""
        if self.bar is None or self.bar.disable:
            return
        done = (self.number + update / self.updates) / self.runs
        self.bar.update(self.task, completed=done, loss=f"update {update:,}  loss {loss:.4g}")

    def finished(self, credit: str, trial: Trial) -> None:
        """Print a line for the run, with or without a terminal."""
        took = time.monotonic() - self.started
        how = {
            "solved": f"solved, {trial.made:,} updates",
            "updates": f"{trial.made:,} updates",
            "time": f"stopped by --max-minutes after {trial.made:,} updates",
            "diverged": f"diverged after {trial.made:,} updates",
        }[trial.ended]
        loss = trial.smoothed(50)[-1] if trial.losses else math.nan
        self.say(
            f"run {self.number + 1:>{len(str(self.runs))}} of {self.runs}: {credit}, seed "
            f"{trial.seed}: {how}, loss {loss:.3g}, {took:.1f} s"
        )

    def conclude(self, found: Comparison) -> None:
        """Print the table."""
        if found.interrupted:
            self.say("Interrupted; the runs that were finished:")
        self.say("")
        print_comparison(found, self.console)

    def written(self, where: Path) -> None:
        """Print where the files are."""
        self.say(f"\nWritten: {quoted(where / RESULT)} and {quoted(where / PICTURE)}.")


@contextmanager
def _directory(out: Path | None, task: str, overwrite: bool) -> Iterator[Path]:
    """Where the result goes; where nothing is named, the first free number is taken at once."""
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; choose a directory")
        if (out / RESULT).exists() and not overwrite:
            raise ConfigError(
                f"there is a comparison in {out} already: replace it by --overwrite, or choose "
                "another --out"
            )
        made = [p for p in (out, *out.parents) if not p.exists()]
        out.mkdir(parents=True, exist_ok=True)
        path = out
    else:
        made = [p for p in (Path("runs"),) if not p.exists()]
        Path("runs").mkdir(exist_ok=True)
        path = first_free(Path("runs"), f"compare-{Path(task).stem or 'text'}")
        made.insert(0, path)
    try:
        yield path
    except BaseException:
        for p in made:
            with suppress(OSError):  # there is something in it
                p.rmdir()
        raise


command, COMMAND = compare_, SeveralCredits
