"""What the commands show where there is no terminal: a line a measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bptt._src.cli.terminal import Console
from bptt._src.controls import visible
from bptt._src.language_model.readout import AdaptiveReadout
from bptt._src.language_model.score import beside, perplexity
from bptt._src.networks import title
from bptt._src.shell import quoted
from bptt.data import Streams
from bptt.errors import needs
from bptt.kernels import backend
from bptt.language_model import Score, Training, Watch, evaluate

SECONDS_BETWEEN_LINES = 10.0
FEW_UPDATES = 100, 1000
"""With fewer in an epoch than the first, and in all epochs than the second, a line says so."""


class Display(Watch):
    """Shows training on standard output, in lines; :class:`LiveDisplay` does on a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet)
        self.line_shown = time.monotonic()
        self.tensorboard: Any = None
        self.average = math.nan
        self.epoch_loss: float | None = None
        self.horizon = ""
        self.begun = (0.0, 0.0, 0)
        self.unknown = ""  # of what is trained on

    def say(self, text: str) -> None:
        """Print a line of plain text."""
        self.console.print(visible(text))  # before rich drops what it knows to be a control

    # ------------------------------------------------------------------ before training

    @contextmanager
    def preparing(self) -> Iterator[Callable[[str, float | None], None]]:
        """Show how the text is prepared."""
        yield lambda what, share: None

    def begin(self, training: Training, *, resumed: bool) -> None:
        """Print what is going to be trained, on what, and where."""
        config, text = training.config, training.text
        self.unknown = beside(text.train.unknown_share)
        parameters = sum(p.numel() for p in training.model.parameters())
        V = text.tokenizer.size
        cell = title(config.cell) + (f" ({config.nonlinearity})" if config.cell == "rnn" else "")
        self.say(
            f"Text: {text.name}; {len(text.train.ids):,} {text.tokenizer.level} tokens to train "
            "on, "
            f"{len(text.valid.ids):,} held out{beside(text.valid.unknown_share)}; vocabulary {V:,}."
        )
        self.say(
            f"Model: {config.layers} × {cell} of {config.hidden}, {parameters:,} parameters; "
            f"{_readout(training)}."
        )
        if config.credit != "full":
            again = training.reach_back
            back = f"; each update runs the {again} steps before its window again" if again else ""
            self.say(f"Credit: {training.credit!r}{back}.")
        if config.precision == "bf16" and backend().bf16:
            self.say("Precision: training's products in bf16, all else and evaluation in float32.")
        if not training.job.is_alone:
            self.say(_processes(training))
        verb = f"going on after update {training.progress.updates:,}" if resumed else "new"
        self.say(f"Run: {training.run.path} ({verb}).")
        if not resumed and (line := few_updates(training)) is not None:
            self.say(line)

    # ------------------------------------------------------------------ during training

    @contextmanager
    def training(self, training: Training) -> Iterator[None]:
        """Show it while it goes on."""
        p = training.progress
        self.line_shown = time.monotonic()
        self.begun = (self.line_shown, p.seconds, p.tokens)
        try:
            yield
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()

    def updated(self, training: Training, loss: float) -> None:
        """Print the first loss, and average the later ones."""
        if training.progress.updates == 1 and not training.progress.rewinds:
            self.say(f"{'update 1':<13} loss {loss:.3f} before anything is learnt")
        self.average = loss if math.isnan(self.average) else 0.98 * self.average + 0.02 * loss

    def rate(self, training: Training) -> float:
        """Tokens a second since training began, or went on; evaluations not counted."""
        _, seconds, tokens = self.begun
        p = training.progress
        return (p.tokens - tokens) / max(p.seconds - seconds, 1e-9)

    def evaluated(self, training: Training, score: Score, is_best: bool) -> None:
        """Print a line for the evaluation."""
        learnt = ""
        if self.epoch_loss is not None:
            learnt = f"training perplexity {shown(perplexity(self.epoch_loss))}{self.unknown}  "
        best = "" if is_best else " (not the best)"
        self.say(
            f"{when(training):<13} {learnt}validation perplexity {shown(score.perplexity)}"
            f"{beside(score.unknown_share)}, "
            f"{bits(score.bits_per_character)} bits per character{best}{self.horizon}  "
            f"{self.rate(training):,.0f} tokens/s"
        )
        self.epoch_loss = None

    def measured(self, line: dict[str, Any]) -> None:
        """Print what has happened, and a line now and then; write it for TensorBoard if wanted."""
        self.horizon = horizon_of(line) if "horizon" in line else self.horizon
        if "loss" in line:
            self.passed(line)
        at = f"{'update ' + format(line['update'], ','):<13}"
        if "credit" in line:
            self.say(f"{at} credit {line['credit']}")
        for kind in ("alarm", "alarm_over"):
            if kind in line:
                self.say(f"{at} {kind.replace('_', ' ')}: {line[kind]}")
        self.epoch_loss = line.get("epoch_loss", self.epoch_loss)
        if self.tensorboard is not None:
            for name, value in line.items():
                if name not in ("update", "tokens") and isinstance(value, int | float):
                    self.tensorboard.add_scalar(name, value, line["update"])

    def passed(self, line: dict[str, Any]) -> None:
        """Print how far it has come, now and then."""
        now = time.monotonic()
        if now - self.line_shown > SECONDS_BETWEEN_LINES:
            self.line_shown = now
            self.say(
                f"{'update ' + format(line['update'], ','):<13} loss {line['loss']:.3f}  "
                f"perplexity {shown(line['perplexity'])}{self.unknown}{self.horizon}"
            )

    def rewound(self, training: Training, reason: str) -> None:
        """Print that training diverged and goes on from the last checkpoint."""
        p = training.progress
        self.average = math.nan
        self.say(
            f"{'update ' + format(p.updates, ','):<13} back here with half the learning rate "
            f"({p.rewinds} of at most {training.config.most_rewinds} times), because {reason}"
        )

    def open_tensorboard(self, path: Path) -> None:
        """Write TensorBoard files as well.

        Raises:
            MissingExtraError: it is not installed.
        """
        with needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.tensorboard = SummaryWriter(str(path))

    # ------------------------------------------------------------------- after training

    def conclude(self, training: Training) -> None:
        """Print how good the best model is, compared with token frequencies alone, and a sample."""
        best = training.run.load_model(training.config.device)
        with self.waiting("evaluating the best model"):
            score = evaluate(best, training.text.valid, batch_size=training.config.batch_size)
        unigram = training.run.text()["unigram_perplexity"]
        self.say(
            f"Validation perplexity {shown(score.perplexity)}{beside(score.unknown_share)}, "
            f"{score.bits_per_character:.3f} bits per character; a unigram model's is "
            f"{unigram:,.2f}."
        )
        if training.progress.rewinds:
            times = f"{training.progress.rewinds} time{'s' * (training.progress.rewinds > 1)}"
            self.say(
                f"Training diverged and went back {times}; the learning rate is "
                f"{0.5**training.progress.rewinds:g} of --lr since."
            )
        if training.monitor.remark is not None:
            self.say(f"How far the gradient reaches: {training.monitor.remark}.")
        length = 80 if training.text.tokenizer.level in ("word", "whitespace", "bpe") else 300
        self.show_sample(best.sample(length=length, temperature=0.7, seed=0).strip())
        self.say(f"The run is in {quoted(training.run.path)}.")

    def show_sample(self, text: str) -> None:
        """Print what the model writes."""
        self.say("A sample:")
        self.say("  " + text.replace("\n", "\n  "))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show what is being done that takes its time."""
        yield


def _readout(training: Training) -> str:
    """What an untrained model's loss is, or what there is in place of one softmax."""
    readout, V = training.model.readout, training.text.tokenizer.size
    if isinstance(readout, AdaptiveReadout):
        first, *_ = cutoffs = readout.softmax.cutoffs
        return f"an adaptive softmax of {first:,} tokens and {len(cutoffs) - 1} clusters of others"
    return f"an untrained one's loss is ln {V} = {math.log(V):.3f}"


def few_updates(training: Training) -> str | None:
    """Say that the text makes few updates, and which option to change; None where it does not."""
    config, reader = training.config, training.reader
    n, B = len(reader), config.batch_size
    an_epoch, in_all = FEW_UPDATES
    if n >= an_epoch or not 0 < n * config.epochs < in_all:
        return None
    if isinstance(reader, Streams):
        each, rows = f"{B} × {reader.steps} tokens", len(reader.tokens.ids) // reader.steps
        is_free = not config.is_carried or training.credit.window is None
        steps = ["lower --steps"] * (is_free and reader.steps > 1)
    else:
        each, rows, steps = f"up to {B} sequences", n * B, []
    size = max(training.job.ranks.world_size, rows // an_epoch)
    batch = [f"lower --batch-size ({size} makes about {rows // size:,})"] * (size < B)
    text = "give more text" if config.max_tokens is None else "raise --max-tokens"
    remedies = ", or ".join([*batch, *steps, text])
    return f"Updates: only {n} an epoch, of {each} each. For more, {remedies}."


def _processes(training: Training) -> str:
    """How many processes there are, and what each has."""
    ranks, B = training.job.ranks, training.config.batch_size
    most, least = ranks.share(B, 0), ranks.share(B, ranks.world_size - 1)
    each = f"{most}" if most == least else f"{least} or {most}"
    what = "streams" if training.config.is_carried else "sequences of a batch"
    threads = torch.get_num_threads()
    return (
        f"Processes: {ranks.world_size}, of {threads} thread{'s' * (threads > 1)} each; each has "
        f"{each} of the {B} {what}."
    )


def horizon_of(line: dict[str, Any]) -> str:
    """How far the gradient reaches, to be put beside the loss."""
    lag = line["horizon"]
    if lag is None:
        return "  no horizon"
    return f"  horizon {'' if line['horizon_settled'] else '≥ '}{lag}"


def shown(perplexity: float) -> str:
    """Write a perplexity; of one that is beyond all sense the magnitude.

    >>> shown(66.083), shown(2e9)
    ('66.08', '2e+09')
    """
    return f"{perplexity:,.2f}" if perplexity < 1e7 else f"{perplexity:.3g}"


def bits(bits: float) -> str:
    """Write bits per character, likewise.

    >>> bits(1.4412), bits(2.8e31)
    ('1.441', '2.8e+31')
    """
    return f"{bits:.3f}" if bits < 1e4 else f"{bits:.3g}"


def when(training: Training) -> str:
    """Return after which epoch or update it is."""
    if training.reader.position == 0 and training.reader.epoch:
        return f"epoch {training.reader.epoch}/{training.config.epochs}"
    return f"update {training.progress.updates:,}"
