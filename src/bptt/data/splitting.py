"""Which part of a text is trained on and which is held out, without holding any of it in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bptt.data.chunks import BEGINNING_OF_SPACE, before_space, between, chunks
from bptt.data.corpora import Corpus
from bptt.data.tokenizer import Tokenizer
from bptt.data.tokens import as_encoded, marked_length, units
from bptt.errors import CorpusError

LINE = 1000
"""Characters around the intended place within which a line's end or white space is looked for."""

_ONE = {"sentences": "sentence", "lines": "line"}

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
    """Find where to cut a text; reads it two to four times.

    Args:
        corpus: The text.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        valid_fraction: Share of the characters that is held out, at the end.
        counter: Whose tokens ``max_tokens`` counts.
        max_tokens: The text ends after that many tokens (start and end tokens count too);
            a sequence that does not fit whole is left out.

    Returns:
        The places.

    Raises:
        CorpusError: If there are too few sequences for two parts.
    """
    if reading == "stream":
        return _split_stream(corpus, valid_fraction, counter, max_tokens)
    stop, characters = _fitting_sequences(corpus, reading, counter, max_tokens)
    if stop < (2 if valid_fraction else 1):
        raise CorpusError(_too_few(corpus.name, stop, _ONE[reading], max_tokens))
    target = characters - int(characters * valid_fraction)
    found = itertools.islice(units(corpus.pieces(), reading), stop)
    ends = itertools.accumulate(len(sequence) for sequence in found)
    middle = sum(1 for end in ends if end <= target)
    if valid_fraction:
        middle = min(max(middle, 1), stop - 1)
    return Split(corpus, reading, middle, stop)


def _split_stream(
    corpus: Corpus, valid_fraction: float, counter: Tokenizer, max_tokens: int | None
) -> Split:
    stop = _place_of_token(corpus.pieces(), counter, max_tokens)
    if not valid_fraction:
        return Split(corpus, "stream", stop, stop)
    middle = _good_place(corpus.pieces(), stop - int(stop * valid_fraction), stop)
    if max_tokens is not None:
        # A token that the cut goes through has become several.
        middle = _place_of_token(between(corpus.pieces(), 0, middle), counter, max_tokens)
        left = max_tokens - _number_of_tokens(between(corpus.pieces(), 0, middle), counter)
        held_out = between(corpus.pieces(), middle, stop)
        stop = middle + _place_of_token(held_out, counter, left)
    return Split(corpus, "stream", middle, stop)


def _number_of_tokens(pieces: Iterable[str], counter: Tokenizer) -> int:
    return sum(len(counter.encode_batch([chunk])[0]) for chunk in chunks(pieces))


def _place_of_token(pieces: Iterable[str], counter: Tokenizer, tokens: int | None) -> int:
    """The number of characters that the first ``tokens`` tokens cover; None: all."""
    place = 0
    for chunk in chunks(pieces):
        if tokens is not None:
            here = len(counter.encode_batch([chunk])[0])
            if here >= tokens:
                return place + _fitting(chunk, counter, tokens)
            tokens -= here
        place += len(chunk)
    return place


def _fitting(text: str, counter: Tokenizer, tokens: int) -> int:
    """The characters of a text's first ``tokens`` tokens, which have no more by themselves."""
    end = counter.prefix(text, tokens)
    while end and len(counter.encode(text[:end])) > tokens:
        end = min(counter.prefix(text[:end], tokens), end - 1)
    return end


def _good_place(pieces: Iterable[str], target: int, stop: int) -> int:
    """The place nearby where a line ends, else one where white space begins, else ``target``."""
    # Never more than half of a part: a short text would keep nothing of it.
    begin = max(target - min(LINE, target // 2), 0)
    near = "".join(between(pieces, begin, target + min(LINE, (stop - target) // 2)))
    here = target - begin
    line = near.find("\n", max(here - 1, 0))
    if line >= 0:
        return begin + line + 1
    space = BEGINNING_OF_SPACE.search(near, here)
    return begin + (space.start() if space else before_space(near, here))


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
            tokens += marked_length(len(ids))
            if tokens > max_tokens:
                return number, characters
            number += 1
            characters += len(sequence)
    return number, characters


def _too_few(name: str, number: int, one: str, max_tokens: int | None) -> str:
    """What to say of a text that cannot be split."""
    found = f"only one {one}" if number else f"no whole {one}"
    if max_tokens is not None:
        found += f" within its first {max_tokens:,} tokens"
    more = "a longer text" if max_tokens is None else "a higher --max-tokens"
    return (
        f"{name} has {found}, but both training and validation need some: "
        f"give {more}, a text to validate on (--valid), or read it as a stream (--reading stream)"
    )
