"""Division of a text into a training and a held-out part, without holding it in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bptt._src.data.chunks import BEGINNING_OF_SPACE, before_space, between, chunks
from bptt._src.data.corpora import Corpus
from bptt._src.data.sequences import Unfinished
from bptt._src.data.steady import Watched
from bptt._src.data.tokenizer import Tokenizer
from bptt._src.data.tokens import as_encoded, batches, units
from bptt.errors import CorpusError, spelled

LINE = 1000
"""Characters around the intended place within which to look for a line end or white space."""

_ONE = {"sentences": "sentence", "lines": "line"}


@dataclass(frozen=True)
class Split:
    """Two places in a text: in characters for a stream, otherwise in sequences.

    Attributes:
        corpus: The text.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        middle: The end of the training part, where the held-out part begins.
        stop: The end of the held-out part.
    """

    corpus: Corpus | Watched
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
    corpus: Corpus | Watched,
    reading: str,
    valid_fraction: float,
    counter: Tokenizer,
    max_tokens: int | None,
) -> Split:
    """Find where to divide a text; reads it two to four times.

    Args:
        corpus: The text.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        valid_fraction: Share of the characters that is held out, at the end.
        counter: The tokenizer whose tokens ``max_tokens`` counts.
        max_tokens: The text ends after this many tokens (start and end tokens count too);
            a sequence that does not fit as a whole is left out.

    Raises:
        CorpusError: If there are too few sequences for two parts.
    """
    if reading == "stream":
        return _split_stream(corpus, valid_fraction, counter, max_tokens)
    found = _fitting_sequences(corpus, reading, counter, max_tokens)
    if found.sequences < (2 if valid_fraction else 1):
        raise CorpusError(_too_few(corpus.name, found.sequences, _ONE[reading], max_tokens))
    if not valid_fraction:
        return Split(corpus, reading, found.stop, found.stop)
    target = found.characters - int(found.characters * valid_fraction)
    middle = characters = 0
    parts = itertools.islice(units(corpus.pieces(), reading), found.last)
    for place, part in enumerate(parts, 1):
        characters += len(part)
        if characters > target and middle:
            break
        if not isinstance(part, Unfinished):
            middle = place
    return Split(corpus, reading, middle, found.stop)


def _split_stream(
    corpus: Corpus | Watched, valid_fraction: float, counter: Tokenizer, max_tokens: int | None
) -> Split:
    stop = _place_of_token(corpus.pieces(), counter, max_tokens)
    if not valid_fraction:
        return Split(corpus, "stream", stop, stop)
    middle = _good_place(corpus.pieces(), stop - int(stop * valid_fraction), stop)
    if max_tokens is not None:
        # The cut may have split a token into several.
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
    """The characters of a text's first tokens, provided that they have no more tokens alone."""
    end = counter.prefix(text, tokens)
    while end and len(counter.encode(text[:end])) > tokens:
        end = min(counter.prefix(text[:end], tokens), end - 1)
    return end


def _good_place(pieces: Iterable[str], target: int, stop: int) -> int:
    """A nearby place where a line ends, or one where white space begins, or ``target``."""
    # Never more than half of a part, or a short text would lose all of it.
    begin = max(target - min(LINE, target // 2), 0)
    near = "".join(between(pieces, begin, target + min(LINE, (stop - target) // 2)))
    here = target - begin
    line = near.find("\n", max(here - 1, 0))
    if line >= 0:
        return begin + line + 1
    space = BEGINNING_OF_SPACE.search(near, here)
    return begin + (space.start() if space else before_space(near, here))


@dataclass
class _Fitting:
    """The sequences that fit into ``max_tokens``."""

    sequences: int = 0
    characters: int = 0
    stop: int = 0  # end of the last of them, in units
    last: int = 0  # its beginning


def _fitting_sequences(
    corpus: Corpus | Watched, reading: str, counter: Tokenizer, max_tokens: int | None
) -> _Fitting:
    """The sequences that ``max_tokens`` tokens hold; None: all."""
    found = _Fitting()
    place = tokens = characters = 0  # so far; of the current sequence
    total = 0
    for batch in batches(units(corpus.pieces(), reading)):
        lengths = [0] * len(batch)
        if max_tokens is not None:
            texts = [as_encoded(part, reading) for part in batch]
            lengths = [len(ids) for ids in counter.encode_batch(texts)]
        for part, length in zip(batch, lengths, strict=True):
            place, tokens, characters = place + 1, tokens + length, characters + len(part)
            if max_tokens is not None and total + tokens + 2 * bool(tokens) > max_tokens:
                return found
            if not isinstance(part, Unfinished):
                total += tokens + 2 * bool(tokens)  # start and end; none if it is left out
                found.last, found.stop = found.stop, place
                found.sequences, found.characters = (
                    found.sequences + 1,
                    found.characters + characters,
                )
                tokens = characters = 0
    return found


def _too_few(name: str, number: int, one: str, max_tokens: int | None) -> str:
    """The message for a text that cannot be divided."""
    found = f"only one {one}" if number else f"no whole {one}"
    if max_tokens is not None:
        found += f" within its first {max_tokens:,} tokens"
    more = "a longer text" if max_tokens is None else f"a higher {spelled('max_tokens')}"
    return (
        f"{name} has {found}, but both training and validation need some: "
        f"give {more}, a text to validate on, {spelled('valid')}, or read it as a stream, "
        f"{spelled('reading', 'stream')}"
    )
