"""Everything that makes a run what it is: one record, which config.json holds."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from bptt.credit import Credit
from bptt.credit import parse as parse_credit
from bptt.credit.spelling import is_own
from bptt.documents import MOST, SEAL, parse, unseal
from bptt.errors import BpttWarning, ConfigError, spelled
from bptt.files import read_whole
from bptt.memory import parse as parse_memory
from bptt.together import Only, Table, With, Without, check_together

TEXT, MODEL, TRAINING, RUNNING = "Text", "Model", "Training", "Running"

TOGETHER: Table = {
    "column": With(("corpus",)),
    "encoding": With(("corpus", "valid")),
    "vocabulary": Only("level", ("word", "char", "bpe")),
    "sampling": Only("reading", ("stream",)),
    "valid_fraction": Without("valid"),
    "nonlinearity": Only("cell", ("rnn",)),
    "steps": Only("reading", ("stream",)),
    "momentum": Only("optimizer", ("sgd",)),
    "most_rewinds": Only("on_divergence", ("rewind",)),
}
"""Options that mean something only with others, as :mod:`bptt.together` reads it."""


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    flag: str | None = None,
    least: Any = None,
    most: Any = None,
) -> Any:
    """Declare an option: its default, the panel it belongs to, what it does, its bounds."""
    about = {"group": group, "help": help, "flag": flag, "least": least, "most": most}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    """The options of a language model's training.

    The command line's options, config.json and the keyword arguments of this class are the same
    names with the same meanings. Raises :class:`bptt.errors.ConfigError` if they do not fit
    together.

    >>> Config(cell="gru", hidden=64).embedding_size
    64
    """

    corpus: tuple[str, ...] = _option(
        (),
        TEXT,
        "text files, folders, a CSV or TSV file, or - for standard input; nothing: the "
        "documentation inside this Python installation",
    )
    column: str | None = _option(None, TEXT, "the column of a CSV or TSV file that holds the text")
    encoding: str | None = _option(
        None, TEXT, "the text's encoding, where it is not UTF-8 or marked"
    )
    level: Literal["word", "char", "byte", "bpe"] = _option("word", TEXT, "what a token is")
    vocabulary: int | None = _option(
        None,
        TEXT,
        "tokens to know: the most frequent ones (default: 8000; every one at char level)",
        least=2,
        most=10**9,
    )
    lowercase: bool = _option(False, TEXT, "turn the text into lower case")
    reading: Literal["stream", "sentences", "lines"] = _option(
        "stream",
        TEXT,
        "stream: one long text, the state carried from window to window; sentences, lines: each a "
        "sequence of its own",
    )
    sampling: Literal["sequential", "random"] = _option(
        "sequential",
        TEXT,
        "the windows of a stream: one after another, or shuffled, each from a zero state",
    )
    valid: tuple[str, ...] = _option((), TEXT, "a text to validate on, in place of the corpus' end")
    valid_fraction: float = _option(
        0.1, TEXT, "the share of the corpus, its end, that is held out to validate on", least=0
    )
    max_tokens: int | None = _option(None, TEXT, "use only the corpus' first tokens", least=1)

    cell: Literal["rnn", "gru", "lstm"] = _option("lstm", MODEL, "the recurrent network")
    nonlinearity: Literal["tanh", "relu", "sigmoid"] = _option("tanh", MODEL, "of the rnn cell")
    hidden: int = _option(200, MODEL, "hidden units of each layer", least=1)
    layers: int = _option(1, MODEL, "recurrent layers", least=1, most=1000)
    embedding: int | None = _option(
        None, MODEL, "the embedding's size (default: that of the hidden layer)", least=1
    )
    tied: bool = _option(False, MODEL, "let embedding and readout share their weights")
    dropout: float = _option(
        0.0, MODEL, "of the embedding, between the layers, and before the readout", least=0
    )

    credit: str = _option(
        "full",
        TRAINING,
        "how far back the losses are credited: full (to the window's, or sentence's, beginning), "
        "truncated:35, truncated:every=10,reach=35, randomized:35, adaptive:0.1, or your own as "
        "module.Class:arguments",
    )
    steps: int | None = _option(
        None,
        TRAINING,
        "steps of a stream's window, after which the parameters are updated and, unless the "
        "credit reaches beyond it, the gradient is cut (default: what suits the credit, or 35)",
        least=1,
    )
    batch_size: int = _option(20, TRAINING, "streams, or sentences, side by side", least=1)
    epochs: int = _option(10, TRAINING, "times that the text is read", least=0)
    optimizer: Literal["sgd", "adam", "adamw"] = _option("adam", TRAINING, "the method of descent")
    learning_rate: float | None = _option(
        None,
        TRAINING,
        "the optimizer's step size (default: 1 for sgd, 0.003 for adam and adamw)",
        flag="--lr",
        least=0,
        most=1e38,  # a number of float32
    )
    momentum: float = _option(0.0, TRAINING, "of sgd", least=0, most=1)
    weight_decay: float = _option(
        0.0, TRAINING, "L2 penalty; decoupled for adamw", least=0, most=1e38
    )
    clip: float = _option(
        1.0, TRAINING, "scale the gradient down to this norm; 0: never", least=0, most=1e38
    )
    schedule: Literal["halve", "constant", "linear", "cosine"] = _option(
        "halve",
        TRAINING,
        "the learning rate: halved when the validation loss rises, or as named, to 0 at the end",
    )
    warmup: int = _option(0, TRAINING, "updates over which the rate rises from 0", least=0)
    patience: int | None = _option(
        None, TRAINING, "stop after so many evaluations without a better one", least=1
    )
    eval_every: int | None = _option(
        None, TRAINING, "updates between evaluations (default: an epoch)", least=1
    )
    on_divergence: Literal["stop", "rewind"] = _option(
        "stop",
        TRAINING,
        "what to do when the loss or the gradient is not a number: stop, or go back to the last "
        "checkpoint with half the learning rate",
    )
    most_rewinds: int = _option(
        5, TRAINING, "how often to go back with --on-divergence rewind, then stop", least=1
    )
    seed: int = _option(
        0,
        TRAINING,
        "of the initial weights, dropout and the order of the text",
        least=0,
        most=2**63 - 1,
    )

    device: str = _option("cpu", RUNNING, "where to compute: cpu, cuda, cuda:1...")
    memory: str | None = _option(
        None,
        RUNNING,
        "what a backward pass keeps: store, recompute:64MB or recompute:8 (states); the gradient "
        "is the same (default: everything)",
    )
    threads: int | None = _option(
        None, RUNNING, "processor threads (default: torch's)", least=1, most=1024
    )
    flow_every: int | None = _option(
        None,
        RUNNING,
        "updates between two looks at how far the gradient reaches; 0: never (default: 100, or as "
        "many as read 10,000 tokens)",
        least=0,
    )
    save_every: float = _option(60.0, RUNNING, "seconds between checkpoints", least=0)
    max_minutes: float | None = _option(
        None, RUNNING, "stop, as if by Ctrl-C, after this time", least=0
    )
    tensorboard: bool = _option(False, RUNNING, "write TensorBoard files into the run as well")

    def __post_init__(self) -> None:
        """Check each option, and those that depend on each other."""
        for f in fields(self):
            _check(f.name, getattr(self, f.name))
        for name in ("dropout", "valid_fraction"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ConfigError(f"{spelled(name)} must be at least 0 and below 1, got {share}")
        object.__setattr__(self, "corpus", tuple(self.corpus))
        object.__setattr__(self, "valid", tuple(self.valid))
        self.check_together(f.name for f in fields(self) if getattr(self, f.name) != f.default)
        if self.tied and self.embedding not in (None, self.hidden):
            raise ConfigError(
                f"{spelled('tied')} needs an embedding of the hidden layer's size {self.hidden}, "
                f"got {self.embedding}: leave {spelled('embedding')} out"
            )
        if not is_own(self.credit):
            self.make_credit()
        if self.memory is not None:
            parse_memory(self.memory)

    def check_together(self, given: Iterable[str]) -> None:
        """Refuse options that have no effect beside the others.

        Args:
            given: the names of the options that were given, if only at their defaults.

        Raises:
            ConfigError: one of them has no effect.
        """
        check_together(TOGETHER, given, lambda name: getattr(self, name))

    def make_credit(self) -> Credit:
        """Make the credit, and refuse what does not suit it.

        A class of the user's is imported for that: only when training begins, so that a model can
        be read without it.
        """
        credit = parse_credit(self.credit)
        self._check_credit(credit)
        return credit

    def _check_credit(self, credit: Credit) -> None:
        if not self.is_carried:
            return
        given = spelled("credit", self.credit)
        anywhere = f"use {spelled('sampling', 'random')}"
        if credit.adapt_every is not None:
            raise ConfigError(
                f"{given} is measured between two epochs on a stream, where windows follow each "
                f"other: leave adapt_every out, or {anywhere}"
            )
        if self.steps is None or credit.window is None:
            return
        steps = spelled("steps", self.steps)
        if type(credit).adapt is not Credit.adapt:
            raise ConfigError(
                f"{given} chooses the windows itself, and anew after each epoch: leave {steps} "
                f"out, or {anywhere}"
            )
        if credit.history and self.steps != credit.window:
            raise ConfigError(
                f"{given} reaches beyond its block of losses, so on a stream there is one update "
                f"for each: leave {steps} out, or {anywhere}"
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
        """E: that of the hidden layer unless another is given."""
        return self.embedding or self.hidden

    @property
    def base_rate(self) -> float:
        """The learning rate before its schedule."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "sgd" else 0.003

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def changed(self, **options: Any) -> Config:
        """Return a copy with other options.

        Options that these leave without effect, and that are not among them, go back to their
        defaults.

        >>> Config(steps=20).changed(reading="lines").steps is None
        True
        """
        after = {**{f.name: getattr(self, f.name) for f in fields(self)}, **options}
        idle = [n for n, rule in TOGETHER.items() if n not in options and not rule.holds(after.get)]
        defaults: dict[str, Any] = {n: fields_by_name()[n].default for n in idle}
        return replace(self, **options, **defaults)


def fields_by_name() -> dict[str, Field[Any]]:
    """The options as they are declared, by name."""
    return {f.name: f for f in fields(Config)}


def read_options(path: Path) -> dict[str, Any]:
    """Read options from a JSON file of the user's: any of them, or a run's config.json.

    Raises:
        ConfigError: it is missing, not JSON, or names an option that there is not.
    """
    try:
        found = parse(read_whole(path, MOST))
    except OSError as e:
        raise ConfigError(f"cannot read the configuration {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise ConfigError(f"{path} is not a JSON file of options: {e}") from None
    if isinstance(found, dict) and SEAL in found:
        try:
            unseal(found)
        except ValueError:
            warnings.warn(
                f"{path} is not as bptt wrote it: it is taken as it is (leave out its line {SEAL} "
                "to say that you have edited it)",
                BpttWarning,
                stacklevel=2,
            )
        del found[SEAL]
    return as_options(found, path)


def as_options(found: Any, path: Path) -> dict[str, Any]:
    """Check what a JSON file of options holds.

    Raises:
        ConfigError: it is no object, names an option that there is not, or a value does not suit.
    """
    if not isinstance(found, dict):
        raise ConfigError(f'{path} must hold an object, {{"option": value}}')
    unknown = sorted(found.keys() - _TYPES.keys())
    if unknown:
        raise ConfigError(
            f"{path}: there is no option {', '.join(unknown)}; there are {', '.join(_TYPES)}"
        )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    for name, value in options.items():
        _check(name, value)
    return options


def _check(name: str, value: Any) -> None:
    """Refuse a value of another type than the option's, or out of its bounds."""
    hint, about = _TYPES[name], fields_by_name()[name].metadata
    flag = spelled(name)
    if get_args(hint) and isinstance(get_args(hint)[0], str):  # Literal
        if not isinstance(value, str) or value not in get_args(hint):
            raise ConfigError(f"{flag} must be one of {', '.join(get_args(hint))}, got {value!r}")
        return
    kinds = tuple(t for t in (get_args(hint) or (hint,)) if t is not Ellipsis)
    if hint == tuple[str, ...]:
        right = isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)
    elif float in kinds:
        right = isinstance(value, (*kinds, int)) and not isinstance(value, bool)
        right = right and (not isinstance(value, float) or math.isfinite(value))
    else:
        right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not right:
        words = {float: "a finite number", int: "a whole number", type(None): "null"}
        names = " or ".join(words.get(k, k.__name__) for k in kinds)
        names = "a list of str" if hint == tuple[str, ...] else names
        raise ConfigError(f"{flag} must be {names}, got {value!r}")
    if isinstance(value, int | float):
        _check_bounds(flag, value, about["least"], about["most"])
    for text in value if isinstance(value, tuple | list) else [value]:
        if isinstance(text, str):
            _check_text(flag, text)


def _check_bounds(flag: str, value: float, least: float | None, most: float | None) -> None:
    most = _LARGEST if most is None else most  # what floats and torch can hold
    if least is not None and value < least:
        raise ConfigError(f"{flag} must be at least {least}, got {value}")
    if value > most:
        raise ConfigError(f"{flag} must be at most {most}, got {value}")


def _check_text(flag: str, text: str) -> None:
    """Refuse what no system can take as the name of a file."""
    try:
        os.fsencode(text)
        is_right = "\0" not in text
    except UnicodeEncodeError:
        is_right = False
    if not is_right:
        raise ConfigError(f"{flag} must be text without null and lone surrogates, got {text!r}")


_LARGEST = 2**63 - 1
_TYPES = get_type_hints(Config)
