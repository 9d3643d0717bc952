"""Starting a training from options, and resuming one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bptt._src.atomic import expanded, named
from bptt._src.data.readers import check_share
from bptt._src.data.rules import check_rules
from bptt._src.language_model.checkpoint import read_about
from bptt._src.language_model.config import RUNNING, Config, fields_by_name
from bptt._src.language_model.consent import allow_cell, refuse_cell, refuse_credit
from bptt._src.language_model.initialising import check_initial
from bptt._src.language_model.job import Job, threads_here
from bptt._src.language_model.lock import Lock
from bptt._src.language_model.making import check_free, refuse_links, remove_leavings
from bptt._src.language_model.run import Run
from bptt._src.language_model.score import warn_of_unknown
from bptt._src.language_model.training import Training
from bptt._src.language_model.watch import Watch
from bptt.data import (
    PreparedText,
    Tokenizer,
    load_prepared,
    open_corpus,
    prepare,
    unigram_perplexity,
)
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
    job: Job | None = None,
) -> Training:
    """Prepare the text and make a new run, saved before its first update.

    Where torch.distributed is initialised, all processes call this with the same arguments.

    Args:
        config: the options.
        out: the run's directory; it may exist, but not hold a run.
        overwrite: whether to replace an existing run.
        lock: the directory's lock, if it is held already.
        watch: callbacks for the training.
        progress: callback for the preparation of the text.
        job: the processes that train together; by default those of torch.distributed.

    Raises:
        ConfigError: there is a run already, another process trains it, or options contradict
            each other.
        CorpusError: the text cannot be used.
        KernelError: the kernels that the environment asks for are not available.
        OSError: a file cannot be written.
        ElsewhereError: one of these was raised on another process.
    """
    run, job = Run(out), job or Job()
    job.lead(lambda: check_free(run.path, overwrite=overwrite))
    job.together(lambda: _check_here(config, job, config.threads))
    text = _shared_text(job, lambda: _prepare(config, progress))
    if job.is_first:
        name = f"the held-out part of {text.name}"
        warn_of_unknown(text.valid.unknown_share, name, text.tokenizer.level)
    # So that the run can be resumed, and its config.json used, from another directory.
    config = config.changed(
        corpus=_absolute(config.corpus),
        valid=_absolute(config.valid),
        tokenizer=config.tokenizer and str(expanded(config.tokenizer).absolute()),
    )
    training = job.together(lambda: Training(config, run, text, watch or Watch(), job=job))
    about, checkpoint = describe_text(text), training.checkpoint()

    def make() -> None:
        with named(out):
            training.lock = run.create(
                config, text.tokenizer, about, checkpoint, overwrite=overwrite, lock=lock
            )
            training.lock.sign(out)

    job.lead(make)
    return training


def resume(
    path: Path,
    changes: dict[str, Any] | None = None,
    *,
    allow_code: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
) -> Training:
    """Continue a run from its last checkpoint, with any number of processes.

    Where torch.distributed is initialised, all processes call this with the same arguments; only
    rank 0 needs the run.

    Args:
        path: the run's directory.
        changes: options to change; only those of :data:`MAY_CHANGE` can.
        allow_code: whether the run may name a credit ``module.Class`` or a cell ``module.CELL``,
            which is imported and so runs code. Naming the same in ``changes`` allows it too.
        watch: callbacks for the training.
        progress: callback for the preparation of the text.
        job: the processes that train together; by default those of torch.distributed.

    Raises:
        CheckpointError: the run is damaged, or its text has changed.
        ConfigError: an option cannot change, or another process trains the run.
        OSError: a file cannot be written.
        ElsewhereError: one of these was raised on another process.
    """
    run, changes, job = Run(path), changes or {}, job or Job()
    was, config = job.lead(lambda: _changed(run, changes, allow_code=allow_code))
    held: list[Lock] = []

    def take() -> None:
        refuse_links(path)
        held.append(Lock(path))
        remove_leavings(path)

    try:
        job.lead(take)
        training = _resumed(run, config, watch or Watch(), progress, job)
        if config != was:
            job.lead(lambda: run.save_config(config))
    except BaseException:
        for lock in held:
            lock.release()
        raise
    training.lock = held[0] if held else None
    return training


def _changed(run: Run, changes: dict[str, Any], *, allow_code: bool) -> tuple[Config, Config]:
    """The options of a run as they were, and as they are to be."""
    was = run.config()
    config = was.changed(**changes)
    config.check_together(changes)
    for name in fields_by_name():
        if name not in MAY_CHANGE and getattr(config, name) != getattr(was, name):
            raise ConfigError(
                f"{spelled(name)} cannot change when a run is resumed; these can: "
                + ", ".join(map(spelled, sorted(MAY_CHANGE)))
            )
    if "credit" not in changes and not allow_code:
        refuse_credit(was.credit, run.path / "config.json")
    if "cell" in changes or allow_code:
        allow_cell(was.cell)
    refuse_cell(was.cell, run.path / "config.json")
    return was, config


def _check_here(config: Config, job: Job, threads: int | None) -> None:
    """Refuse what this process cannot do, before the text is prepared; set its threads."""
    check_share(config.batch_size, job.ranks)
    check_initial(config.cell, config.nonlinearity, config.init, config.radius)
    config.make_credit()  # imports a user's own class, which was not needed until now
    kernels = backend()  # refuses unavailable kernels before a run is made
    if config.precision == "bf16" and not kernels.bf16:
        warnings.warn(
            f"{spelled('precision', 'bf16')} is computed in float32 here: no products of bfloat16 "
            f"in the kernels ({kernels})",
            BpttWarning,
            stacklevel=3,
        )
    threads = threads or threads_here()
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _resumed(
    run: Run, config: Config, watch: Watch, progress: Progress | None, job: Job
) -> Training:
    tokenizer, checkpoint, fingerprint = job.lead(
        lambda: (run.tokenizer().to_json(), run.load_checkpoint(), run.text()["fingerprint"])
    )
    about = read_about(checkpoint[1], run.path / "checkpoint.safetensors")
    if about.torch != torch.__version__:
        warnings.warn(
            f"{run.path} was trained with torch {about.torch}, this is "
            f"{torch.__version__}: it continues, but perhaps not to the same bits",
            BpttWarning,
            stacklevel=3,
        )
    # In one process the same number of threads, because sums are split between threads.
    threads = config.threads or (about.threads if job.is_alone else None)
    job.together(lambda: _check_here(config, job, threads))
    text = _shared_text(job, lambda: _text_of(run.path, config, fingerprint, progress))

    def restored() -> Training:
        if tokenizer != text.tokenizer.to_json():
            raise CheckpointError(
                f"{run.path / 'tokenizer.json'} is not the one the run was trained with"
            )
        return Training(config, run, text, watch, job=job)

    training = job.together(restored)
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


def _absolute(sources: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(s if s == "-" else str(expanded(s).absolute()) for s in sources)


def _prepare(
    config: Config, progress: Progress | None, tokenizer: Tokenizer | None = None
) -> PreparedText:
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = _tokenizer_of(config.tokenizer)

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
        tokenizer=tokenizer,
        progress=progress,
    )


def _tokenizer_of(path: str) -> Tokenizer:
    """The tokenizer that a user names."""
    given = spelled("tokenizer", path)
    try:
        return Tokenizer.load(expanded(path), check_rules)
    except (CheckpointError, ValueError) as e:
        raise ConfigError(f"{given} cannot be used: {e}") from None


def _shared_text(job: Job, prepare: Callable[[], PreparedText]) -> PreparedText:
    """The text, prepared by one process of each machine; its others find it in the cache."""
    if job.is_alone:
        return prepare()
    own = job.together(prepare if job.leads_machine else lambda: None)
    fingerprint, name = job.lead(lambda: (own.fingerprint, own.name))  # type: ignore[union-attr]

    def found() -> PreparedText:
        text = own or load_prepared(fingerprint)
        if text is None:
            raise CorpusError(
                "this process does not see the cache in which another one of its machine has "
                "prepared the text: give both the same (the environment variable BPTT_CACHE)"
            )
        if text.fingerprint != fingerprint:
            raise CorpusError(f"{text.name} is not the same text as on the machine of rank 0")
        return replace(text, name=name)

    text = job.together(found)
    job.prepared()
    return text


def _text_of(
    path: Path, config: Config, fingerprint: str, progress: Progress | None
) -> PreparedText:
    """The text that a run was trained on: from the cache, or read again if it is unchanged."""
    found = load_prepared(fingerprint)
    if found is not None:
        return found
    if "-" in config.corpus or "-" in config.valid:
        raise CheckpointError(
            f"the text of {path} came from standard input and is no longer in the cache; "
            "train again from a file"
        )
    text = _prepare(config, progress, Run(path).tokenizer() if config.tokenizer else None)
    if text.fingerprint != fingerprint:
        raise CheckpointError(
            f"the text of {path} has changed since it was trained; train again, or restore the text"
        )
    return text


def text_of_run(run: Run) -> PreparedText:
    """Find the text that a run was trained and validated on."""
    return _text_of(run.path, run.config(), run.text()["fingerprint"], None)
