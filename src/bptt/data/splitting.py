"""Which part of a text is trained on and which is held out, without holding any of it in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bptt.data.chunks import between, chunks
from bptt.data.corpora import Corpus
from bptt.data.tokenizer import Tokenizer
from bptt.data.tokens import as_encoded, units

LINE = 1000
"""Characters after the intended place within which a line's end is waited for."""

_BATCH = 512


@dataclass(frozen=True)
class Split:
    """Two places in a text: characters of a stream, or numbers of sequences.

    Attributes:
        corpus: The text.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        middle: Where the training part ends and the held-out part begins.
        stop: Where the held-out part ends.
    """

    corpus: Corpus
    reading: str
    middle: int
    stop: int

    def train(self) -> Iterator[str]:
        """The units of the training part."""
        return self._part(0, self.middle)

    def valid(self) -> Iterator[str]:
        """The units of the held-out part."""
        return self._part(self.middle, self.stop)

    def _part(self, start: int, stop: int) -> Iterator[str]:
        if self.reading == "stream":
            return chunks(between(self.corpus.pieces(), start, stop))
        return itertools.islice(units(self.corpus.pieces(), self.reading), start, stop)


def split(
    corpus: Corpus,
    reading: str,
    valid_fraction: float,
    counter: Tokenizer,
    max_tokens: int | None,
) -> Split:
    """Find where to cut a text; reads it two or three times.

    Args:
        corpus: The text.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        valid_fraction: Share of the characters that is held out, at the end.
        counter: Whose tokens ``max_tokens`` counts.
        max_tokens: The text ends after that many tokens (start and end tokens count too);
            a sequence that does not fit whole is left out.

    Returns:
        The places.
    """
    if reading == "stream":
        stop = _place_of_token(corpus.pieces(), counter, max_tokens)
        target = stop - int(stop * valid_fraction)
        middle = _line_end(corpus.pieces(), target, stop) if valid_fraction else stop
        return Split(corpus, reading, middle, stop)
    stop, characters = _fitting_sequences(corpus, reading, counter, max_tokens)
    target = characters - int(characters * valid_fraction)
    found = itertools.islice(units(corpus.pieces(), reading), stop)
    ends = itertools.accumulate(len(sequence) for sequence in found)
    middle = sum(1 for end in ends if end <= target)
    return Split(corpus, reading, middle, stop)


def _place_of_token(pieces: Iterable[str], counter: Tokenizer, tokens: int | None) -> int:
    """The number of characters that the first ``tokens`` tokens cover; None: all."""
    place = 0
    for chunk in chunks(pieces):
        if tokens is not None:
            here = len(counter.encode_batch([chunk])[0])
            if here >= tokens:
                return place + counter.prefix(chunk, tokens)
            tokens -= here
        place += len(chunk)
    return place


def _line_end(pieces: Iterable[str], target: int, stop: int) -> int:
    """The place after the first line's end from ``target`` on, if there is one nearby."""
    # Never more than half of what is held out: a short text would keep nothing.
    nearby = min(LINE, (stop - target) // 2)
    after = "".join(between(pieces, target - 1, target + nearby))
    return target + max(after.find("\n"), 0)


def _fitting_sequences(
    corpus: Corpus, reading: str, counter: Tokenizer, max_tokens: int | None
) -> tuple[int, int]:
    """How many sequences ``max_tokens`` tokens hold, and their characters."""
    number = characters = tokens = 0
    sequences = units(corpus.pieces(), reading)
    while batch := list(itertools.islice(sequences, _BATCH)):
        if max_tokens is None:
            number += len(batch)
            characters += sum(map(len, batch))
            continue
        encoded = counter.encode_batch([as_encoded(sequence, reading) for sequence in batch])
        for sequence, ids in zip(batch, encoded, strict=True):
            tokens += len(ids) + 2
            if tokens > max_tokens:
                return number, characters
            number += 1
            characters += len(sequence)
    return number, characters
