"""Starting a training from options, and resuming one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from bptt._src.atomic import expanded, named
from bptt._src.language_model.checkpoint import read_about
from bptt._src.language_model.config import RUNNING, Config, fields_by_name
from bptt._src.language_model.lock import Lock
from bptt._src.language_model.making import check_free, refuse_links, remove_leavings
from bptt._src.language_model.run import Run
from bptt._src.language_model.score import warn_of_unknown
from bptt._src.language_model.training import Training, Watch
from bptt.credit import is_own
from bptt.data import PreparedText, load_prepared, open_corpus, prepare, unigram_perplexity
from bptt.errors import BpttWarning, CheckpointError, ConfigError, CorpusError, spelled
from bptt.kernels import backend

MAY_CHANGE = {
    *("epochs", "patience", "eval_every", "learning_rate", "clip"),
    *("on_divergence", "most_rewinds"),
    *(name for name, f in fields_by_name().items() if f.metadata["group"] == RUNNING),
}
"""Options that may change when a run is resumed."""

Progress = Callable[[str, float | None], None]


def start(
    config: Config,
    out: Path,
    *,
    overwrite: bool = False,
    lock: Lock | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Training:
    """Prepare the text and make a new run, saved before its first update.

    Args:
        config: the options.
        out: the run's directory; it may exist, but not hold a run.
        overwrite: whether to replace an existing run.
        lock: the directory's lock, if it is held already.
        watch: callbacks for the training.
        progress: callback for the preparation of the text.

    Raises:
        ConfigError: there is a run already, another process trains it, or options contradict
            each other.
        CorpusError: the text cannot be used.
        KernelError: the kernels that the environment asks for are not available.
        OSError: a file cannot be written.
    """
    run = Run(out)
    check_free(run.path, overwrite=overwrite)
    config.make_credit()  # imports a user's own class, which was not needed until now
    backend()  # refuses unavailable kernels before a run is made
    _use_threads(config.threads)
    text = _prepare(config, progress)
    name = f"the held-out part of {text.name}"
    warn_of_unknown(text.valid.unknown_share, name, config.level)
    # So that the run can be resumed, and its config.json used, from another directory.
    config = config.changed(corpus=_absolute(config.corpus), valid=_absolute(config.valid))
    training = Training(config, run, text, watch or Watch())
    about, checkpoint = describe_text(text), training.checkpoint()
    with named(out):
        training.lock = run.create(
            config, text.tokenizer, about, checkpoint, overwrite=overwrite, lock=lock
        )
    return training


def resume(
    path: Path,
    changes: dict[str, Any] | None = None,
    *,
    allow_code: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Training:
    """Continue a run from its last checkpoint.

    Args:
        path: the run's directory.
        changes: options to change; only those of :data:`MAY_CHANGE` can.
        allow_code: whether the run may name a credit ``module.Class``, which is imported and so
            runs code. Naming the same credit in ``changes`` allows it too.
        watch: callbacks for the training.
        progress: callback for the preparation of the text.

    Raises:
        CheckpointError: the run is damaged, or its text has changed.
        ConfigError: an option cannot change, or another process trains the run.
        OSError: a file cannot be written.
    """
    run = Run(path)
    was, changes = run.config(), changes or {}
    config = was.changed(**changes)
    config.check_together(changes)
    for name in fields_by_name():
        if name not in MAY_CHANGE and getattr(config, name) != getattr(was, name):
            raise ConfigError(
                f"{spelled(name)} cannot change when a run is resumed; these can: "
                + ", ".join(map(spelled, sorted(MAY_CHANGE)))
            )
    if "credit" not in changes and not allow_code:
        refuse_code(was.credit, path / "config.json")
    refuse_links(path)
    lock = Lock(path)
    try:
        remove_leavings(path)
        training = _resumed(run, config, watch or Watch(), progress)
        if config != was:
            run.save_config(config)
    except BaseException:
        lock.release()
        raise
    training.lock = lock
    return training


def refuse_code(credit: str, path: Path) -> None:
    """Refuse a credit that would import a class, in a file that may come from a stranger.

    Raises:
        ConfigError: it is such a credit.
    """
    if is_own(credit):
        raise ConfigError(
            f"{path} names the credit {credit!r}, which runs code of a module: use "
            f"{spelled('allow_code')} if you trust it"
        )


def _resumed(run: Run, config: Config, watch: Watch, progress: Progress | None) -> Training:
    tokenizer, checkpoint = run.tokenizer(), run.load_checkpoint()
    about = read_about(checkpoint[1], run.path / "checkpoint.safetensors")
    if about.torch != torch.__version__:
        warnings.warn(
            f"{run.path} was trained with torch {about.torch}, this is "
            f"{torch.__version__}: it continues, but perhaps not to the same bits",
            BpttWarning,
            stacklevel=3,
        )
    # The same number of threads, because sums are split between threads.
    _use_threads(config.threads or about.threads)
    text = _text_of(run, config, progress)
    if tokenizer.to_json() != text.tokenizer.to_json():
        raise CheckpointError(
            f"{run.path / 'tokenizer.json'} is not the one the run was trained with"
        )
    training = Training(config, run, text, watch)
    training.resume(checkpoint)
    return training


def train(config: Config, out: str | Path, *, overwrite: bool = False) -> Run:
    """Train a language model to the end without printing anything; for use from Python.

    >>> from bptt.language_model import Config, train
    >>> run = train(Config(corpus=("book.txt",)), "runs/book")      # doctest: +SKIP
    >>> run.load_model().sample("Once")                             # doctest: +SKIP
    """
    with closing(start(config, Path(out), overwrite=overwrite)) as training:
        training.fit()
    return training.run


def describe_text(text: PreparedText) -> dict[str, Any]:
    """Describe a text: its origin, its size, and the perplexity of a unigram model."""
    return {
        "name": text.name,
        "fingerprint": text.fingerprint,
        "vocabulary": text.tokenizer.size,
        "train_tokens": len(text.train.ids),
        "valid_tokens": len(text.valid.ids),
        "valid_characters": text.valid.characters,
        "valid_words": text.valid.words,
        "valid_unknown": text.valid.unknown,
        "valid_unknown_share": text.valid.unknown_share,
        "unigram_perplexity": unigram_perplexity(text.train, text.valid, text.tokenizer.size),
    }


def _use_threads(threads: int | None) -> None:
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _absolute(sources: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(s if s == "-" else str(expanded(s).absolute()) for s in sources)


def _prepare(config: Config, progress: Progress | None) -> PreparedText:
    def corpus(option: str) -> Any:
        sources = getattr(config, option)
        try:
            return open_corpus(sources, column=config.column, encoding=config.encoding)
        except CorpusError as e:
            raise (e if option == "corpus" else CorpusError(f"{spelled(option)}: {e}")) from None

    return prepare(
        corpus("corpus"),
        level=config.level,
        vocabulary=config.vocabulary,
        lowercase=config.lowercase,
        reading=config.reading,
        valid_fraction=config.valid_fraction,
        valid_corpus=corpus("valid") if config.valid else None,
        max_tokens=config.max_tokens,
        progress=progress,
    )


def _text_of(run: Run, config: Config, progress: Progress | None) -> PreparedText:
    """The text that a run was trained on: from the cache, or read again if it is unchanged."""
    fingerprint = run.text()["fingerprint"]
    found = load_prepared(fingerprint)
    if found is not None:
        return found
    if "-" in config.corpus or "-" in config.valid:
        raise CheckpointError(
            f"the text of {run.path} came from standard input and is no longer in the cache; "
            "train again from a file"
        )
    text = _prepare(config, progress)
    if text.fingerprint != fingerprint:
        raise CheckpointError(
            f"the text of {run.path} has changed since it was trained; train again, or restore "
            "the text"
        )
    return text


def text_of_run(run: Run) -> PreparedText:
    """Find the text that a run was trained and validated on."""
    return _text_of(run, run.config(), None)
