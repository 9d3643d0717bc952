"""``bptt train``."""

# No `from __future__ import annotations`: the options are made from the annotations themselves,
# which Python 3.10 changes on the way from strings.

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from bptt._src.cli.display import Display
from bptt._src.cli.live import display_for
from bptt._src.cli.options import with_config_options
from bptt._src.cli.running import Signals
from bptt._src.cli.several import check_restarts, heard_from_all
from bptt._src.language_model.consent import names_code, refuse_cell, refuse_credit
from bptt._src.language_model.job import Job, joined
from bptt._src.language_model.lock import Lock, was_made_by_this_job
from bptt._src.language_model.making import claim_first_free, give_up
from bptt._src.language_model.options_file import read_options
from bptt._src.shell import quoted
from bptt.errors import ConfigError
from bptt.language_model import Config, Training, resume, start


@with_config_options("corpus", "reading")
def train(
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            help="text files, folders, a CSV or TSV file with --column, or - for standard input; "
            "nothing: the documentation inside this Python installation",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="the run's directory (default: runs/NAME-1, -2...)", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run that is in --out")
    ] = False,
    resume_: Annotated[
        Path | None,
        typer.Option("--resume", help="go on with a run from where it stopped", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="a JSON file of options, such as a run's config.json; those given here win",
            show_default=False,
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="read as one long text, the state carried (default)")
    ] = False,
    sentences: Annotated[
        bool,
        typer.Option("--sentences", help="read sentence by sentence, each a sequence of its own"),
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="read line by line, each a sequence of its own")
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="let the file of --resume or --config name a credit module.Class or a cell "
            "module.CELL, which runs the module's code",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a recurrent language model on a text.

    Ctrl-C saves, evaluates and leaves; --resume goes on from there.

    \b
    bptt train book.txt --cell lstm --hidden 200 --layers 2 --out runs/book
    bptt train comments.csv --column body --vocabulary 8000 --sentences
    """
    readings = {"stream": stream, "sentences": sentences, "lines": lines}
    chosen = [name for name, wanted in readings.items() if wanted]
    if len(chosen) > 1:
        raise ConfigError("--stream, --sentences and --lines exclude each other: give one of them")
    if chosen:
        options["reading"] = chosen[0]
    if corpus:
        options["corpus"] = tuple(corpus)
    if resume_ and (out or config or overwrite):
        raise ConfigError(
            "--resume goes on in the run's own directory: leave out --out, --overwrite and --config"
        )
    if resume_ and (corpus or chosen):
        raise ConfigError(
            "--resume goes on with the run's own text, read as it was: leave out the text, "
            "--stream, --sentences and --lines"
        )
    if overwrite and not out:
        raise ConfigError("--overwrite has no effect without --out: leave it out")
    if allow_code and not (resume_ or config):
        raise ConfigError("--allow-code has no effect without --resume or --config: leave it out")
    with joined() as job:
        display = display_for(quiet or not job.is_first)
        with display.preparing() as progress, heard_from_all(job):
            how: dict[str, Any] = {"watch": display, "progress": progress, "job": job}
            again = out is not None and job.lead(lambda: was_made_by_this_job(out))
            going_on = out if again else resume_
            if going_on is not None:  # torchrun starts a job again with the options that it had
                changes = {} if again else options
                training = resume(going_on, changes, allow_code=allow_code or again, **how)
            else:
                job.together(lambda: check_restarts(out))
                settled = job.together(lambda: _settled(config, options, allow_code=allow_code))
                training = _begin(out, settled, overwrite=overwrite, **how)
        display.begin(training, resumed=going_on is not None)
        reason = _fit(training, display)
    _end(training, display, reason)


def _settled(config: Path | None, options: dict[str, Any], *, allow_code: bool) -> Config:
    """The options from the file and from the command line."""
    given = read_options(config) if config else {}
    if config and not allow_code:
        if "credit" not in options:
            refuse_credit(given.get("credit", "full"), config)
        if "cell" not in options:
            refuse_cell(given.get("cell", "lstm"), config)
    settled = Config(**given).changed(**options)
    settled.check_together(options)
    return settled


def _begin(out: Path | None, config: Config, *, overwrite: bool, job: Job, **how: Any) -> Training:
    """Make a new run, in the directory that is named or in the first that is free."""
    with ExitStack() as stack:
        locks: list[Lock | None] = [None]

        def claim() -> Path:
            path, locks[0] = stack.enter_context(_directory(out, config))
            return path

        where = job.lead(claim)
        return start(config, where, overwrite=overwrite, lock=locks[0], job=job, **how)


def _fit(training: Training, display: Display) -> str:
    """Train; everything is saved in any case. Return why it ended."""
    if training.reader.epoch >= training.config.epochs:
        display.say(
            f"It has been trained for all its epochs, {training.reader.epoch}; ask for more with "
            "--epochs."
        )
    limit = training.config.max_minutes
    deadline = math.inf if limit is None else time.monotonic() + 60 * limit
    if training.config.tensorboard and training.job.is_first:
        display.open_tensorboard(training.run.path / "tensorboard")
    with Signals() as signals:

        def stop() -> str | None:
            return "time" if time.monotonic() >= deadline else signals.received

        with display.training(training):
            reason = training.fit(stop)
    go_on = f"go on with: bptt train --resume {quoted(training.run.path)}"
    if names_code(training.config):
        go_on += " --allow-code"
    if reason in ("SIGTERM", "SIGHUP"):
        display.say(f"{reason} came, all is saved; {go_on}")
        return reason
    if reason == "Ctrl-C":
        display.say(f"Interrupted and saved; {go_on}")
    elif reason == "time":
        display.say(f"Stopped after {limit:g} minutes, saved; {go_on}")
    elif reason == "patience":
        display.say(f"Stopped: {training.progress.worse} evaluations brought nothing better.")
    with display.waiting("evaluating"):
        training.evaluate_unsaved()
    return reason


def _end(training: Training, display: Display, reason: str) -> None:
    """Show how good the model is, and leave with the status that shells expect."""
    if reason in ("SIGTERM", "SIGHUP"):
        raise typer.Exit(128 + signal.Signals[reason])
    if training.job.is_first:
        display.conclude(training)
    if reason == "Ctrl-C":
        raise typer.Exit(128 + signal.SIGINT)


command = train


@contextmanager
def _directory(out: Path | None, config: Config) -> Iterator[tuple[Path, Lock | None]]:
    """The run's directory; where none is named, one of its text's name and the first free number.

    That one is locked at once, so that two trainings begun together do not choose the same one.
    """
    if out is not None:
        yield out, None
        return
    name = "python" if not config.corpus else Path(config.corpus[0]).stem
    name = "stdin" if name == "-" else name or "text"
    Path("runs").mkdir(exist_ok=True)
    path, lock = claim_first_free(Path("runs"), name)
    try:
        yield path, lock
    except BaseException:
        give_up(path, lock)
        with suppress(OSError):  # there is something in it
            Path("runs").rmdir()
        raise
