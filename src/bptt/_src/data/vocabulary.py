"""The entries of a vocabulary, learnt from a text by the tokenizers library."""

from __future__ import annotations

import functools
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bptt._src.data.described import CHARACTER
from bptt._src.data.remembered import count_words
from bptt._src.data.words import PATTERN, SPACED, STREAM_PATTERN, STREAM_SPACED, UNKNOWN
from bptt.errors import BpttWarning, needs

with needs("lm"):
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

_RUN = 256
_UNBROKEN = re.compile(rf"\S{{{_RUN}}}|\s{{{_RUN}}}")
_SECONDS = 5e-6  # trainer's time per character of such text


def backend_of(level: str, model: Any, lowercase: bool, sentences: bool = False) -> Backend:
    """Make a tokenizer of the library for a level, around a model."""
    backend = Backend(model)
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    if level in ("byte", "bpe"):
        regex = level == "bpe"  # words, numbers, punctuation and white space never merge
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        backend.decoder = decoders.ByteLevel()
    elif level == "char":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        kinds = (SPACED, STREAM_SPACED) if level == "whitespace" else (PATTERN, STREAM_PATTERN)
        pattern = Regex(kinds[0 if sentences else 1])
        # Inverted, because the pattern defines words; the text between words is dropped.
        backend.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    return backend


def word_model(entries: list[str]) -> Any:
    """Make a model of whole entries, the unknown one among them."""
    return models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=UNKNOWN)


def byte_model(entries: list[str]) -> Any:
    """Make a model of bytes."""
    return models.BPE({entry: i for i, entry in enumerate(entries)}, [])


def train_bpe(skeleton: Backend, texts: Iterable[str], size: int, special: list[str]) -> Any:
    """Learn byte pairs: a model of ``size`` entries."""
    backend = Backend(models.BPE())
    backend.normalizer, backend.pre_tokenizer = skeleton.normalizer, skeleton.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    feed = _Feed(texts)
    _interruptibly(lambda: backend.train_from_iterator(feed, trainer), feed)
    # Taken out of its tokenizer, which would search all text for the special tokens.
    return backend.model


class _Feed:
    """Text for the trainer, without long runs of characters that it would take for one word.

    A merge goes through all words in which it occurs, so a megabyte without white space took
    20 seconds. Cut into parts of :data:`_RUN` characters it takes one or two.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts
        self.cut = 0  # characters of text without white space
        self.is_read = self.is_stopped = False

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if self.is_stopped:
                return
            start = 0
            for run in _UNBROKEN.finditer(text):
                yield text[start : run.end()]
                start = run.end()
                self.cut += _RUN
            yield text[start:]
        self.is_read = True


def _interruptibly(work: Callable[[], None], feed: _Feed) -> None:
    """Run a call of the library that cannot be interrupted, but react to Ctrl-C meanwhile."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again below, in the waiting thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    told = False
    try:
        while thread.is_alive():
            thread.join(0.05)
            seconds = feed.cut * _SECONDS
            if feed.is_read and seconds > 5 and not told:
                told = True
                warnings.warn(
                    f"{feed.cut:,} characters without white space: to make their BPE vocabulary "
                    f"may take {seconds:,.0f} seconds; the levels char and byte take none",
                    BpttWarning,
                    stacklevel=5,
                )
    finally:
        feed.is_stopped = True
    if failed:
        raise failed[0]


def frequent_words(
    skeleton: Backend, texts: Iterable[str], size: int | None, special: list[str]
) -> list[str]:
    """Return the most frequent words, or all of them, after the special tokens."""
    counts = count_words(skeleton, texts)
    words = sorted(counts.keys() - set(special), key=lambda word: (-counts[word], word))
    return special + (words if size is None else words[: size - len(special)])


def frequent_characters(
    skeleton: Backend, texts: Iterable[str], size: int | None, special: list[str]
) -> list[str]:
    """Return the most frequent characters, or all of them, after the special tokens."""
    counts: Counter[str] = Counter()
    for text in texts:
        normalizer = skeleton.normalizer
        counts.update(text if normalizer is None else normalizer.normalize_str(text))
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    return special + (ordered if size is None else ordered[: size - len(special)])


@functools.cache
def byte_characters() -> list[str]:
    """The character that represents each byte 0..255, in GPT-2's spelling."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in visible)
    spelled = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [spelled[b] for b in range(256)]
