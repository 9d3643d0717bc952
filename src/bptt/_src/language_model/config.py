"""The options that define a run, as one record; config.json holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from bptt._src.language_model.initialising import parse_init
from bptt._src.language_model.requirements import TOGETHER
from bptt._src.language_model.schedule import parse_schedule
from bptt._src.language_model.values import check_value
from bptt._src.networks import NAMES, NONLINEARITIES, check_cell, zoneout_of
from bptt._src.together import check_together
from bptt.credit import Credit, is_own
from bptt.credit import parse as parse_credit
from bptt.errors import ConfigError, spelled
from bptt.memory import parse as parse_memory

if TYPE_CHECKING:
    Nonlinearity = str
else:
    Nonlinearity = Literal[NONLINEARITIES]

TEXT, MODEL, TRAINING, RUNNING = "Text", "Model", "Training", "Running"


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    flag: str | None = None,
    least: Any = None,
    most: Any = None,
) -> Any:
    """Declare an option: its default, its panel in the help, its help text, its bounds."""
    about = {"group": group, "help": help, "flag": flag, "least": least, "most": most}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    """The options for training a language model.

    The options of the command line, the entries of config.json and the keyword arguments of this
    class have the same names and meanings. Raises :class:`bptt.errors.ConfigError` if they
    contradict each other.

    >>> Config(cell="gru", hidden=64).embedding_size
    64
    """

    corpus: tuple[str, ...] = _option(
        (),
        TEXT,
        "text files, folders, a CSV or TSV file, or - for standard input (default: the "
        "documentation inside this Python installation)",
    )
    column: str | None = _option(None, TEXT, "the column of a CSV or TSV file that holds the text")
    encoding: str | None = _option(
        None, TEXT, "the text's encoding, if it is neither UTF-8 nor given by a byte order mark"
    )
    level: Literal["word", "whitespace", "char", "byte", "bpe"] = _option(
        "word", TEXT, "what a token is; whitespace: for a text whose tokens were divided before"
    )
    tokenizer: str | None = _option(
        None, TEXT, "a file of the tokenizers library (JSON) that says what a token is"
    )
    vocabulary: int | None = _option(
        None,
        TEXT,
        "vocabulary size; the most frequent tokens are kept (default: 8000; all at the levels "
        "whitespace and char)",
        least=2,
        most=10**9,
    )
    lowercase: bool = _option(False, TEXT, "convert the text to lower case")
    reading: Literal["stream", "sentences", "lines"] = _option(
        "stream",
        TEXT,
        "stream: one long text, the state carried from window to window; sentences, lines: each "
        "one a sequence of its own",
    )
    sampling: Literal["sequential", "random"] = _option(
        "sequential",
        TEXT,
        "order of a stream's windows: sequential, or shuffled, each starting from a zero state",
    )
    valid: tuple[str, ...] = _option((), TEXT, "validate on this text, not on the corpus's end")
    valid_fraction: float = _option(
        0.1, TEXT, "share of the corpus, at its end, held out for validation", least=0
    )
    max_tokens: int | None = _option(None, TEXT, "use only the first tokens of the corpus", least=1)

    cell: str = _option(
        "lstm", MODEL, f"type of recurrent network: {', '.join(NAMES)}, or your own as module.CELL"
    )
    nonlinearity: Nonlinearity = _option("tanh", MODEL, "for the rnn cell")  # noqa: RUF009  # it is frozen
    hidden: int = _option(200, MODEL, "hidden units per layer", least=1)
    layers: int = _option(1, MODEL, "number of recurrent layers", least=1, most=1000)
    embedding: int | None = _option(
        None, MODEL, "embedding size (default: that of the hidden layer)", least=1
    )
    tied: bool = _option(False, MODEL, "share the weights of embedding and readout")
    softmax: Literal["full", "adaptive"] = _option(
        "full",
        MODEL,
        "the readout: adaptive has fewer parameters for rare tokens, and takes less time",
    )
    dropout: float = _option(
        0.0, MODEL, "dropout of the embedding, between layers, and before the readout", least=0
    )
    zoneout: float | tuple[float, ...] = _option(
        0.0,
        MODEL,
        "probability that a unit keeps its previous state; repeat for one per tensor of the state",
        least=0,
    )

    init: str | None = _option(
        None,
        MODEL,
        "initial recurrent weights (bptt.init): chrono:99 (the longest dependency), forget:1 (the "
        "bias), orthogonal or identity, with a factor as orthogonal:0.9",
    )
    radius: float | None = _option(
        None, MODEL, "spectral radius of the initial recurrent weights", least=0, most=1e38
    )
    init_range: float | None = _option(
        None,
        MODEL,
        "draw all initial weights and biases uniformly from -R to R, before --init changes the "
        "recurrent ones (default: as torch.nn, and 0.1 for embedding and readout)",
        most=1e38,
    )

    credit: str = _option(
        "full",
        TRAINING,
        "how far back losses are credited: full (to the start of the window or sentence), "
        "truncated:35, truncated:every=10,reach=35, randomized:35, adaptive:0.1, or your own as "
        "module.Class:arguments",
    )
    steps: int | None = _option(
        None,
        TRAINING,
        "steps in a stream's window; the parameters are updated after each window, and the "
        "gradient is cut there unless the credit reaches further (default: set by --credit, or 35)",
        least=1,
    )
    epoch_start: Literal["random", "first"] = _option(
        "random",
        TRAINING,
        "where a stream's windows begin in each epoch: at a random token below --steps, so that "
        "they are cut elsewhere, or at the first",
    )
    batch_size: int = _option(20, TRAINING, "streams, or sentences, side by side", least=1)
    epochs: int = _option(10, TRAINING, "passes over the text", least=0)
    optimizer: Literal["sgd", "adam", "adamw"] = _option("adam", TRAINING, "the optimizer")
    learning_rate: float | None = _option(
        None,
        TRAINING,
        "learning rate (default: 1 for sgd, 0.003 for adam and adamw)",
        flag="--lr",
        least=0,
        most=1e38,  # a number of float32
    )
    momentum: float = _option(0.0, TRAINING, "momentum of sgd", least=0, most=1)
    weight_decay: float = _option(
        0.0, TRAINING, "L2 penalty; decoupled with adamw", least=0, most=1e38
    )
    embedding_rows: Literal["all", "used"] = _option(
        "all",
        TRAINING,
        "rows of the embedding that an update changes: all, or those of the batch's tokens, while "
        "the moments of the others stand still, which is faster for a large vocabulary",
    )
    clip: float = _option(
        1.0, TRAINING, "clip the gradient to this norm; 0: no clipping", least=0, most=1e38
    )
    loss_sum: bool = _option(
        False,
        TRAINING,
        "differentiate the loss summed over the steps and averaged over the sequences, not over "
        "all tokens: learning rate and clip are then those of papers that do so",
    )
    schedule: str = _option(
        "halve",
        TRAINING,
        "learning rate schedule: halve (when the validation loss rises), constant, linear or "
        "cosine (down to 0), or decay:1/2,after=4,every=1 (times 1/2 after epoch 4 and each later "
        "one)",
    )
    warmup: int = _option(0, TRAINING, "updates over which the learning rate rises from 0", least=0)
    patience: int | None = _option(
        None, TRAINING, "stop after this many evaluations without improvement", least=1
    )
    eval_every: int | None = _option(
        None, TRAINING, "updates between evaluations (default: an epoch)", least=1
    )
    keep: Literal["best", "last"] = _option(
        "best", TRAINING, "the model that is kept: the one that validates best, or the last one"
    )
    on_divergence: Literal["stop", "rewind"] = _option(
        "stop",
        TRAINING,
        "what to do if the loss or the gradient is not finite: stop, or return to the last "
        "checkpoint with half the learning rate",
    )
    most_rewinds: int = _option(
        5, TRAINING, "with --on-divergence rewind: stop after this many returns", least=1
    )
    seed: int = _option(
        0,
        TRAINING,
        "seed of the initial weights, dropout, zoneout and the order of the text",
        least=0,
        most=2**63 - 1,
    )

    device: str = _option("cpu", RUNNING, "device to compute on: cpu, cuda, cuda:1...")
    precision: Literal["float32", "bf16"] = _option(
        "float32",
        RUNNING,
        "precision of the products in training, on a CPU; all else is float32, evaluations too",
    )
    memory: str | None = _option(
        None,
        RUNNING,
        "what the backward pass keeps: store, recompute:64MB or recompute:8 (states); the gradient "
        "is the same (default: everything)",
    )
    threads: int | None = _option(
        None, RUNNING, "CPU threads (default: torch's setting)", least=1, most=1024
    )
    flow_every: int | None = _option(
        None,
        RUNNING,
        "updates between two measurements of how far the gradient reaches; 0: never (default: 100, "
        "or as many as read 10,000 tokens)",
        least=0,
    )
    save_every: float = _option(60.0, RUNNING, "seconds between checkpoints", least=0)
    max_minutes: float | None = _option(
        None, RUNNING, "stop after this time, as if by Ctrl-C", least=0
    )
    tensorboard: bool = _option(False, RUNNING, "also write TensorBoard files into the run")

    def __post_init__(self) -> None:
        """Check each option, and those that depend on each other."""
        for f in fields(self):
            check_option(f.name, getattr(self, f.name))
        for name in ("dropout", "valid_fraction"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ConfigError(f"{spelled(name)} must be at least 0 and below 1, got {share}")
        object.__setattr__(self, "zoneout", zoneout_of(self.cell, self.nonlinearity, self.zoneout))
        object.__setattr__(self, "corpus", tuple(self.corpus))
        object.__setattr__(self, "valid", tuple(self.valid))
        self.check_together(f.name for f in fields(self) if getattr(self, f.name) != f.default)
        if self.tied and self.embedding not in (None, self.hidden):
            raise ConfigError(
                f"{spelled('tied')} needs an embedding of the hidden layer's size {self.hidden}, "
                f"got {self.embedding}: leave {spelled('embedding')} out"
            )
        if self.tied and self.softmax == "adaptive":
            raise ConfigError(
                f"{spelled('tied')} shares one matrix of all tokens, which "
                f"{spelled('softmax', 'adaptive')} has not: leave {spelled('tied')} out"
            )
        if self.precision == "bf16" and not self.device.startswith("cpu"):
            raise ConfigError(
                f"{spelled('precision', 'bf16')} is for {spelled('device', 'cpu')}, got "
                f"{spelled('device', self.device)}: leave {spelled('precision')} out"
            )
        if self.tied and self.embedding_rows == "used":
            raise ConfigError(
                f"{spelled('embedding_rows', 'used')} is for an embedding of its own: with "
                f"{spelled('tied')} all rows have a gradient, that of the readout; leave one out"
            )
        if self.init_range is not None and self.init_range <= 0:
            raise ConfigError(f"{spelled('init_range')} must be above 0, got {self.init_range}")
        if self.loss_sum and self.optimizer != "sgd" and not self.clip:
            raise ConfigError(
                f"{spelled('loss_sum')} has no effect with {spelled('optimizer', self.optimizer)} "
                f"and {spelled('clip', 0)}, whose updates do not depend on the loss's scale: leave "
                "it out"
            )
        parse_schedule(self.schedule)
        if self.init is not None:
            parse_init(self.init)
        if not is_own(self.credit):
            self.make_credit()
        if self.memory is not None:
            parse_memory(self.memory)

    def check_together(self, given: Iterable[str]) -> None:
        """Refuse options that have no effect beside the others.

        Args:
            given: the names of the options that were given explicitly, even at their defaults.

        Raises:
            ConfigError: one of them has no effect.
        """
        check_together(TOGETHER, given, lambda name: getattr(self, name))

    def make_credit(self) -> Credit:
        """Make the credit; refuse one that does not suit the other options.

        A user's own class is imported here, when training begins, so that a model can be loaded
        without it.
        """
        credit = parse_credit(self.credit)
        self._check_credit(credit)
        return credit

    def _check_credit(self, credit: Credit) -> None:
        if credit.is_online:
            raise ConfigError("credit online leaves the embedding without the past: use full")
        if not self.is_carried:
            return
        given = spelled("credit", self.credit)
        anywhere = f"use {spelled('sampling', 'random')}"
        if credit.adapt_every is not None:
            raise ConfigError(
                f"{given} is measured between epochs on a stream, where windows follow each "
                f"other: leave adapt_every out, or {anywhere}"
            )
        if self.steps is None or credit.window is None:
            return
        steps = spelled("steps", self.steps)
        if type(credit).adapt is not Credit.adapt:
            raise ConfigError(
                f"{given} chooses the windows itself, anew after each epoch: leave {steps} "
                f"out, or {anywhere}"
            )
        if credit.history and self.steps != credit.window:
            raise ConfigError(
                f"{given} reaches beyond its block of losses, so on a stream each block is one "
                f"update: leave {steps} out, or {anywhere}"
            )
        if self.steps < credit.window:
            whole = f"truncated:every={self.steps},reach={credit.window}"
            raise ConfigError(
                f"{given} reaches beyond {steps}, where a stream's window begins: leave "
                f"{spelled('steps')} out, or use {spelled('credit', whole)}"
            )

    @property
    def is_carried(self) -> bool:
        """Whether the text is read as streams whose state is carried from window to window."""
        return self.reading == "stream" and self.sampling == "sequential"

    @property
    def embedding_size(self) -> int:
        """E, the embedding's size: that of the hidden layer unless another is given."""
        return self.embedding or self.hidden

    @property
    def base_rate(self) -> float:
        """The learning rate before the schedule is applied."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "sgd" else 0.003

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, as values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def changed(self, **options: Any) -> Config:
        """Return a copy with some options changed.

        Options that lose their effect by this, and are not among those given, go back to their
        defaults.

        >>> Config(steps=20).changed(reading="lines").steps is None
        True
        """
        after = {**{f.name: getattr(self, f.name) for f in fields(self)}, **options}
        idle = [n for n, rule in TOGETHER.items() if n not in options and not rule.holds(after.get)]
        defaults: dict[str, Any] = {n: fields_by_name()[n].default for n in idle}
        return replace(self, **options, **defaults)


def fields_by_name() -> dict[str, Field[Any]]:
    """The declared options by name."""
    return {f.name: f for f in fields(Config)}


def check_option(name: str, value: Any) -> None:
    """Refuse a value of the wrong type or out of bounds."""
    about = fields_by_name()[name].metadata
    check_value(name, value, _TYPES[name], least=about["least"], most=about["most"])
    if name == "cell":
        check_cell(value)


_TYPES = get_type_hints(Config)
