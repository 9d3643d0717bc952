"""Training on a terminal: a line that moves, and a table with a row for each evaluation."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import ConsoleOptions
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from bptt._src.cli.display import Display, bits, shown, when
from bptt._src.cli.terminal import shares_terminal
from bptt._src.controls import visible
from bptt._src.language_model.score import perplexity
from bptt.language_model import Score, Training

FRAMES = 5.0
"""Drawings in a second."""
UNUSED = 3
"""Columns that stay free at the right, for the ^C that a terminal writes there."""
BAR = (8, 40)
"""The least and the most columns of the bar."""
_LEADS = re.compile(r"[A-Z][A-Za-z ]*:|Validation perplexity [\d.,e+]*\d")
_ALERTS = re.compile(r"update [\d,]+ +(?:alarm:|back here|credit )")


def display_for(quiet: bool) -> Display:
    """Return what shows training on this standard output: live on a terminal, else in lines."""
    display = Display(quiet)
    console = display.console
    is_live = console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
    return LiveDisplay(quiet) if is_live and not quiet else display


@dataclass(frozen=True)
class Now:
    """How far training is."""

    epoch: str
    done: float
    update: int
    loss: float
    rate: float
    left: float | None
    """Seconds to the end, once there is something to judge by."""
    is_evaluating: bool

    def parts(self) -> list[tuple[int, str, str]]:
        """Return what the line says, in order: rank, text, style; a low rank stays longest."""
        left = "evaluating" if self.is_evaluating else f"{clock(self.left)} left"
        return [
            (0, f"epoch {self.epoch}", "bold"),
            (2, f"{100 * self.done:.0f} %", ""),
            (4, f"update {self.update:,}", "dim"),
            (1, f"loss {self.loss:.3f}", "cyan"),
            (5, f"{self.rate:,.0f} tokens/s", "dim"),
            (3, left, "dim"),
        ]

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> Iterator[Any]:
        """Draw as much of it as fits on one line; the bar takes what is left."""
        room = options.max_width - UNUSED
        parts = fitting(self.parts(), room)
        bar = min(BAR[1], room - 2 - sum(len(text) + 2 for _, text, _ in parts))
        for n, (_, text, style) in enumerate(parts):
            yield Text("  " * bool(n) + text, style, end="", no_wrap=True)
            if n == 0 and bar >= BAR[0]:
                yield Segment("  ")
                yield ProgressBar(total=1.0, completed=self.done, width=bar)


def fitting(parts: list[tuple[int, str, str]], room: int) -> list[tuple[int, str, str]]:
    """Leave out those of the highest ranks until the others, two columns apart, have room."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(text) + 2 for _, text, _ in kept) - 2 > room:
        kept.remove(max(kept))
    return kept


def clock(seconds: float | None) -> str:
    """Write a duration.

    >>> clock(5.2), clock(83), clock(7390), clock(None)
    ('0:05', '1:23', '2:03:10', '-:--')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


COLUMNS = {
    "epoch": (0, 13),
    "train ppl": (2, 10),
    "valid ppl": (1, 11),
    "bits/char": (4, 11),
    "horizon": (6, 9),
    "tokens/s": (7, 10),
    "time": (5, 9),
    "best": (3, 6),
}
"""The columns of the table: rank, width; low ranks stay on a narrow terminal."""


class EpochTable:
    """A table that grows by a row; what is printed between its rows does not disturb it."""

    def __init__(self) -> None:
        self.headed: list[str] = []
        self.under: dict[str, str] = {}
        """What stands below the names of columns."""

    def rows(self, values: dict[str, str], width: int) -> Iterator[Text]:
        """Yield the row, after the header where that is not above it in this form."""
        kept = list(COLUMNS)
        while len(kept) > 1 and sum(COLUMNS[n][1] for n in kept) > width:
            kept.remove(max(kept, key=lambda n: COLUMNS[n][0]))
        if kept != self.headed:
            self.headed = kept
            yield Text()
            yield self._line({n: n for n in kept if n != "best"}, "bold")
            if any(self.under.values()):
                yield self._line({n: self.under.get(n, "") for n in kept}, "dim")
            yield Text("─" * sum(COLUMNS[n][1] for n in kept), "dim")
        yield self._line({n: values.get(n, "") for n in kept}, "")

    @staticmethod
    def _line(values: dict[str, str], style: str) -> Text:
        line = Text(style=style, no_wrap=True)
        for name, value in values.items():
            size = COLUMNS[name][1]
            cell = f"{value:<{size}}" if name == "epoch" else f"{value:>{size}}"
            line.append(cell, "green" if value == "best" else "")
        return line


class LiveDisplay(Display):
    """Shows training on a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self.table = EpochTable()
        self.now: Now | None = None
        self.first = 0.0

    def say(self, text: str) -> None:
        """Print a line; what it begins with is set off."""
        line = Text(visible(text))
        if found := _LEADS.match(text):
            line.stylize("bold", *found.span())
        if found := _ALERTS.match(text):
            line.stylize("yellow", *found.span())
        self.console.print(line)

    def _live(self, get: Callable[[], Any]) -> Live:
        """Draw something again and again, until it is left; what is printed goes above it."""
        return Live(
            get_renderable=get,
            console=self.console,
            transient=True,
            refresh_per_second=FRAMES,
            redirect_stderr=shares_terminal(),
        )

    @contextmanager
    def preparing(self) -> Iterator[Callable[[str, float | None], None]]:
        """Show what is being prepared, and how much of it."""
        spinner = Spinner("dots", "reading the text")

        def show(what: str, share: float | None) -> None:
            so_far = "" if share is None else f"  {100 * share:.0f} %"
            spinner.update(text=Text(visible(what) + so_far))

        with self._live(lambda: spinner):
            yield show

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show what is being done that takes its time."""
        spinner = Spinner("dots", what)
        with self._live(lambda: spinner):
            yield

    @contextmanager
    def training(self, training: Training) -> Iterator[None]:
        """Draw the line while training goes on, below what is printed."""
        self.first = self._epochs_done(training)
        known = {"train ppl": training.text.train, "valid ppl": training.text.valid}
        self.table.under = {n: _unknown(text.unknown_share) for n, text in known.items()}
        with super().training(training):
            try:
                with self._live(lambda: self.now or ""):
                    yield
            finally:
                self.now = None

    def updated(self, training: Training, loss: float) -> None:
        """Move the line."""
        super().updated(training, loss)
        config, reader, p = training.config, training.reader, training.progress
        spent, done = time.monotonic() - self.begun[0], self._epochs_done(training)
        left = (config.epochs - done) * spent / (done - self.first) if done > self.first else None
        if spent < 1:  # too little to judge by
            left = None
        share = done / config.epochs
        if config.max_minutes:
            share = max(share, spent / (60 * config.max_minutes))
            left = min(60 * config.max_minutes - spent, math.inf if left is None else left)
        is_due = config.eval_every and p.updates % config.eval_every == 0
        self.now = Now(
            epoch=f"{reader.epoch + 1}/{config.epochs}",
            done=min(share, 1.0),
            update=p.updates,
            loss=self.average,
            rate=self.rate(training),
            left=None if left is None else max(left, 0.0),
            is_evaluating=bool(is_due) or reader.position >= len(reader),
        )

    @staticmethod
    def _epochs_done(training: Training) -> float:
        return training.reader.epoch + training.reader.position / len(training.reader)

    def evaluated(self, training: Training, score: Score, is_best: bool) -> None:
        """Print a row for the evaluation."""
        learnt = "" if self.epoch_loss is None else shown(perplexity(self.epoch_loss))
        self.epoch_loss = None
        row = {
            "epoch": when(training).removeprefix("epoch "),
            "train ppl": learnt,
            "valid ppl": shown(score.perplexity),
            "bits/char": bits(score.bits_per_character),
            "horizon": _lag(self.horizon),
            "tokens/s": f"{self.rate(training):,.0f}",
            "time": clock(training.progress.seconds),
            "best": "best" if is_best else "",
        }
        for line in self.table.rows(row, self.console.width):
            self.console.print(line, overflow="ellipsis")

    def passed(self, line: dict[str, Any]) -> None:
        """Do nothing: the line that moves shows it."""

    def conclude(self, training: Training) -> None:
        """Leave the table behind, then print how good the best model is."""
        self.say("")
        super().conclude(training)

    def show_sample(self, text: str) -> None:
        """Print what the model writes, set off."""
        self.say("A sample:")
        self.console.print(Padding(Text(visible(text), "italic"), (0, 2)))


def _unknown(share: float) -> str:
    """Write the share of unknown tokens, if there are any."""
    return f"{100 * share:.1f} % unk" if share else ""


def _lag(horizon: str) -> str:
    """Write a horizon for the table.

    >>> _lag("  horizon ≥ 93"), _lag("  horizon 71"), _lag("  no horizon"), _lag("")
    ('≥ 93', '71', '-', '')
    """
    return "-" if horizon.strip() == "no horizon" else horizon.replace("horizon", "").strip()
