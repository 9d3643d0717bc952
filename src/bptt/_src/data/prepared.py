"""A text prepared for training: vocabulary, token ids and held-out part, kept in a cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bptt._src.data.cache import cache_directory, cache_place
from bptt._src.data.corpora import Corpus
from bptt._src.data.counting import counting_tokenizer
from bptt._src.data.entries import PreparedText, find, publish, remove_stale, write_meta
from bptt._src.data.splitting import Split, split
from bptt._src.data.steady import Watched
from bptt._src.data.tokenizer import Tokenizer
from bptt._src.data.tokens import TokenWriter, as_encoded, check_reading, units
from bptt.errors import BpttWarning, ConfigError, CorpusError, spelled

Progress = Callable[[str, "float | None"], None]
"""Called with the current activity and the share of it that is done, None if unknown."""

FORMAT = 3
"""Version of the cache's content, and of how text is cut."""

LEAST = 10
"""The least number of tokens in the training part, and in the held-out part."""


@dataclass(frozen=True)
class _Settings:
    level: str
    vocabulary: int | None
    lowercase: bool
    reading: str
    valid_fraction: float  # 0 if another corpus is held out
    max_tokens: int | None


def prepare(
    corpus: Corpus,
    *,
    level: str = "word",
    vocabulary: int | None = None,
    lowercase: bool = False,
    reading: str = "stream",
    valid_fraction: float = 0.1,
    valid_corpus: Corpus | None = None,
    max_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PreparedText:
    """Prepare a text for training, or find it in the cache.

    The text is read in pieces, several times, and is never in memory as a whole. The held-out part
    is the end of the text: the last ``valid_fraction`` of its characters, beginning at the
    next line's end if there is one within 1000 characters, otherwise at white space if there is
    some as near; or at the beginning of a sequence.

    Args:
        corpus: The text.
        level: ``"word"``, ``"char"``, ``"byte"`` or ``"bpe"``; see :meth:`Tokenizer.train`.
        vocabulary: The largest number of entries; None for the level's default.
        lowercase: Whether to convert the text to lower case.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        valid_fraction: Share of the text that is held out, above 0 and below 1.
        valid_corpus: Another text to hold out instead; all of ``corpus`` is then trained on.
        max_tokens: Use only this many tokens from the beginning of ``corpus``, both parts
            together, start and end tokens included; sequences that do not fit as a whole are left
            out. At the level ``"bpe"``, whose tokens depend on a vocabulary yet to be made, it
            counts the words and marks that BPE tokens are made of, unless a tokenizer is given.
        tokenizer: A vocabulary to use; level, vocabulary and lowercase are then ignored.
        cache: The cache's directory; None for :func:`cache_directory`.
        progress: Called from time to time with the current activity and the share done.

    Returns:
        The text's tokens, mapped from files of the cache.

    Raises:
        CorpusError: If the text cannot be read, or is too short to be split.
        ConfigError: If the settings contradict each other, or the text is not in the cache and
            the cache cannot be written.
    """
    held_out = 0.0 if valid_corpus is not None else valid_fraction
    settings = _Settings(level, vocabulary, lowercase, reading, held_out, max_tokens)
    _check(settings, tokenizer, valid_corpus is not None)
    report = progress or (lambda message, share: None)
    watched = Watched(corpus, report)
    held_out_text = None if valid_corpus is None else Watched(valid_corpus, report)
    contents = [watched.digest] + ([held_out_text.digest] if held_out_text else [])
    if len(set(contents)) < len(contents):
        warnings.warn(
            f"{valid_corpus.name if valid_corpus else ''} holds the same text as {corpus.name}: "
            "a loss on the training text does not show what is learnt; validate on another text",
            BpttWarning,
            stacklevel=2,
        )
    fingerprint = _fingerprint(contents, settings, tokenizer)

    found = find(_place(cache) / fingerprint)
    if found is None:
        found = _build(
            _entries(cache),
            fingerprint,
            watched,
            held_out_text,
            settings,
            tokenizer,
            report,
        )
    # The same text may have been prepared under another name.
    return replace(found, name=corpus.name)


def load_prepared(fingerprint: str, cache: Path | None = None) -> PreparedText | None:
    """Find a prepared text in the cache alone; its source may no longer exist.

    Args:
        fingerprint: The fingerprint of the :class:`PreparedText`.
        cache: The cache's directory; None for :func:`cache_directory`.

    Returns:
        The text, under the name with which it entered the cache; or None if the cache does
        not hold all of it.
    """
    if not re.fullmatch("[0-9a-f]{64}", fingerprint):
        return None
    return find(_place(cache) / fingerprint)


# The fingerprint


def _check(settings: _Settings, tokenizer: Tokenizer | None, other_valid: bool) -> None:
    check_reading(settings.reading, tokenizer)
    fraction, limit = settings.valid_fraction, settings.max_tokens
    if not other_valid and not 0 < fraction < 1:
        raise ConfigError(
            f"{spelled('valid_fraction')} must be above 0 and below 1, such as 0.1, got "
            f"{fraction}: change it, or give another text to hold out, {spelled('valid')}"
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"{spelled('max_tokens')} must be at least 1, got {limit}")
    if tokenizer is None:  # before the text is read, not after
        Tokenizer.check_options(
            settings.level, settings.vocabulary, sentences=settings.reading != "stream"
        )


def _fingerprint(contents: list[str], settings: _Settings, tokenizer: Tokenizer | None) -> str:
    given = tokenizer and hashlib.sha256(tokenizer.to_json().encode("utf-8")).hexdigest()
    splitter = importlib.metadata.version("sentencex") if settings.reading == "sentences" else None
    options = vars(settings).copy()
    if tokenizer is not None:
        options.update(level=None, vocabulary=None, lowercase=None)
    everything = [FORMAT, contents, options, given, splitter]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode("utf-8")).hexdigest()


# Building an entry of the cache


def _place(cache: Path | None) -> Path:
    """The directory of the entries, for look-up."""
    return (cache or cache_place()) / "texts"


def _entries(cache: Path | None) -> Path:
    """The directory of the entries, for writing."""
    path = (cache or cache_directory()) / "texts"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache directory {path} cannot be made ({error.strerror}): "
            "give another (the environment variable BPTT_CACHE)"
        ) from None
    return path


def _build(
    entries: Path,
    fingerprint: str,
    corpus: Watched,
    valid_corpus: Watched | None,
    settings: _Settings,
    tokenizer: Tokenizer | None,
    report: Progress,
) -> PreparedText:
    remove_stale(entries)
    place = Path(tempfile.mkdtemp(prefix=".building-", dir=entries))
    try:
        sequences, characters = settings.reading != "stream", corpus.characters
        report("splitting the text", None)
        counter = tokenizer or counting_tokenizer(
            settings.level, sentences=sequences, lowercase=settings.lowercase
        )
        where = split(
            corpus, settings.reading, settings.valid_fraction, counter, settings.max_tokens
        )
        if tokenizer is None:
            texts = _watched(where.train(), "making the vocabulary", characters, report)
            tokenizer = Tokenizer.train(
                (as_encoded(text, settings.reading) for text in texts),
                level=settings.level,
                vocabulary=settings.vocabulary,
                sentences=sequences,
                lowercase=settings.lowercase,
            )
        parts = _write_parts(place, where, valid_corpus, tokenizer, characters, report)
        _check_lengths(parts, corpus, valid_corpus)
        write_meta(place, fingerprint, corpus.name, tokenizer, parts)
        return publish(place, entries / fingerprint)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_parts(
    place: Path,
    where: Split,
    valid_corpus: Watched | None,
    tokenizer: Tokenizer,
    characters: int,
    report: Progress,
) -> dict[str, TokenWriter]:
    if valid_corpus is None:
        held_out = where.valid()
    else:
        held_out = units(valid_corpus.pieces(), where.reading)
    texts = {
        "train": _watched(where.train(), "encoding", characters, report),
        "valid": _watched(held_out, "encoding what is held out", None, report),
    }
    writers = {}
    for part, text in texts.items():
        with (place / f"{part}.ids").open("wb") as ids, (place / f"{part}.offsets").open("wb") as o:
            writers[part] = TokenWriter(tokenizer, where.reading, ids, o)
            writers[part].write(text)
    return writers


def _watched(
    texts: Iterable[str], message: str, characters: int | None, report: Progress
) -> Iterator[str]:
    done = 0
    for text in texts:
        yield text
        done += len(text)
        report(message, min(done / characters, 1.0) if characters else None)


def _check_lengths(
    parts: dict[str, TokenWriter], corpus: Watched, valid_corpus: Watched | None
) -> None:
    train, valid = parts["train"].tokens, parts["valid"].tokens
    if train >= LEAST and valid >= LEAST:
        return
    name = corpus.name if valid_corpus is None else f"{corpus.name} or {valid_corpus.name}"
    raise CorpusError(
        f"{name} is too short: {train:,} tokens to train on and {valid:,} held out, but "
        f"at least {LEAST} of each are needed; give more text, or hold out another share of it, "
        f"{spelled('valid_fraction')}"
    )
