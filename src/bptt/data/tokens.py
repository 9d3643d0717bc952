"""Token ids of a text: encoded piece by piece into a file, and mapped into memory."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bptt.data.chunks import BEGINNING_OF_SPACE, chunks
from bptt.data.corpora import Corpus
from bptt.data.sequences import lines, sentences
from bptt.data.tokenizer import Tokenizer
from bptt.errors import BpttWarning, ConfigError, CorpusError

READINGS = ("stream", "sentences", "lines")
"""How a text is read: as one stream, or as separate sequences."""

LONGEST = 1000
"""Tokens of the longest sequence, start and end not counted; longer ones are cut in parts."""

_BATCH = 512  # sequences encoded at a time


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text.

    Attributes:
        ids: uint16 or uint32 [tokens], usually mapped from a file.
        offsets: int64 [sequences + 1]: sequence i is ``ids[offsets[i]:offsets[i+1]]``, its start
            and end tokens included. None for a stream.
        characters: Characters of text that the tokens cover, as they are in the text; start
            and end tokens, and what is between sequences, have none.
        words: Words of that text, separated by white space.
        unknown: How many of the ids are the unknown token.
        first_characters: Of a stream, the characters that are complete with its first token,
            white space before it included; what predicts all tokens but the first does not
            predict these. 0 for sequences, whose first token is their start.
        first_words: The words that are complete with the first token of a stream, 1 or 0.
    """

    ids: NDArray[Any]
    offsets: NDArray[np.int64] | None
    characters: int
    words: int
    unknown: int
    first_characters: int = 0
    first_words: int = 0


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, *, reading: str) -> Tokens:
    """Encode a corpus into a temporary file, such as for evaluation.

    Args:
        corpus: The text.
        tokenizer: Its tokenizer.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.

    Returns:
        All tokens of the text.

    Raises:
        CorpusError: If the text cannot be read or has no token.
        ConfigError: If sequences are wanted and the tokenizer has no start and end.
    """
    return _encode(corpus.pieces(), tokenizer, reading, corpus.name)


def encode_text(text: str, tokenizer: Tokenizer, *, reading: str) -> Tokens:
    """Encode a text; as :func:`encode_corpus`.

    Args:
        text: The text.
        tokenizer: Its tokenizer.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.

    Returns:
        All tokens of the text.

    Raises:
        CorpusError: If the text has no token.
        ConfigError: If sequences are wanted and the tokenizer has no start and end.
    """
    return _encode([text], tokenizer, reading, "the text")


def check_reading(reading: str, tokenizer: Tokenizer | None = None) -> None:
    """Refuse a way of reading that is none, or that a tokenizer is not made for.

    Args:
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        tokenizer: The tokenizer, if there is one already.

    Raises:
        ConfigError: If it does not fit.
    """
    if reading not in READINGS:
        raise ConfigError(f"--reading must be one of {', '.join(READINGS)}, got {reading!r}")
    if reading != "stream" and tokenizer is not None and tokenizer.start is None:
        raise ConfigError(
            f"--reading {reading} needs a tokenizer with start and end tokens, this one has none: "
            "use --reading stream, or a tokenizer that was trained with sentences"
        )


def units(pieces: Iterable[str], reading: str) -> Iterator[str]:
    """The parts of a text that are encoded one by one.

    Args:
        pieces: The text in order.
        reading: ``"stream"``: chunks that no token goes across. Else the sequences.

    Returns:
        The parts in order; those of a stream joined are the text.
    """
    split: dict[str, Callable[[Iterable[str]], Iterator[str]]]
    split = {"stream": chunks, "sentences": sentences, "lines": lines}
    return split[reading](pieces)


def as_encoded(unit: str, reading: str) -> str:
    """What of a part is given to the tokenizer: a sentence's white space becomes single spaces."""
    return " ".join(unit.split()) if reading == "sentences" else unit


def marked_length(tokens: int) -> int:
    """How many tokens a sequence has as it is written: in parts, each with its start and end.

    Args:
        tokens: Its tokens, start and end not counted.

    Returns:
        Number of tokens; a sequence without any is left out.
    """
    return tokens + 2 * -(-tokens // LONGEST)


class TokenWriter:
    """Writes the ids of a text to one file, and where its sequences begin to another."""

    def __init__(
        self, tokenizer: Tokenizer, reading: str, ids: BinaryIO, offsets: BinaryIO
    ) -> None:
        self.dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
        self.tokens = self.sequences = self.characters = self.words = self.unknown = 0
        self.first_characters = self.first_words = 0
        self._tokenizer, self._reading = tokenizer, reading
        self._ids, self._offsets = ids, offsets
        self.cut = 0  # sequences that were too long and became several

    def write(self, parts: Iterable[str]) -> None:
        """Encode and write all :func:`units` of a text.

        Args:
            parts: The units.
        """
        if self._reading == "stream":
            self._write_stream(parts)
            return
        self._offsets.write(np.zeros(1, "<i8").tobytes())
        parts = iter(parts)
        while batch := list(itertools.islice(parts, _BATCH)):
            self._write_sequences(batch)

    def _write_stream(self, parts: Iterable[str]) -> None:
        inside_word = False  # the chunk before was cut inside a word
        for part in parts:
            ids = self._tokenizer.encode_batch([part])[0]
            goes_on = inside_word and not part[0].isspace()
            if self.tokens == 0 and len(ids):
                self._count_first(part)
            elif self.characters == self.first_characters and goes_on:
                self.first_words = 0  # the first token ended with the chunk, the word did not
            self._write_ids(ids)
            self.characters += len(part)
            self.words += len(part.split()) - goes_on
            inside_word = not part[-1].isspace()

    def _count_first(self, part: str) -> None:
        space = BEGINNING_OF_SPACE.search(part)  # no token goes across
        end = self._tokenizer.prefix(part[: space.start()] if space else part, 1)
        first, after = part[:end], part[end : end + 1]
        inside_word = bool(first and after) and not (first[-1].isspace() or after.isspace())
        self.first_characters = self.characters + end
        self.first_words = len(first.split()) - inside_word

    def _write_sequences(self, batch: list[str]) -> None:
        start, end = np.array([self._tokenizer.start]), np.array([self._tokenizer.end])
        texts = [as_encoded(sequence, self._reading) for sequence in batch]
        marked: list[NDArray[Any]] = []
        for sequence, ids in zip(batch, self._tokenizer.encode_batch(texts), strict=True):
            if len(ids) == 0:
                continue
            starts = range(0, len(ids), LONGEST)
            marked += [np.concatenate((start, ids[i : i + LONGEST], end)) for i in starts]
            self.cut += len(ids) > LONGEST
            self.characters += len(sequence)
            self.words += len(sequence.split())
        if marked:
            ends = self.tokens + np.cumsum([len(ids) for ids in marked])
            self._offsets.write(ends.astype("<i8").tobytes())
            self.sequences += len(marked)
            self._write_ids(np.concatenate(marked))

    def _write_ids(self, ids: NDArray[Any]) -> None:
        self._ids.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        if self._tokenizer.unknown is not None:
            self.unknown += int(np.count_nonzero(ids == self._tokenizer.unknown))


def warn_of_cut(name: str, cut: int) -> None:
    """Warn that sequences were too long, if some were.

    Args:
        name: What to call the text.
        cut: How many there were.
    """
    if cut:
        warnings.warn(
            f"{name}: {cut:,} sequence{'s' * (cut > 1)} of more than {LONGEST:,} tokens became "
            "several; if there are many, is the text one of sentences or lines?",
            BpttWarning,
            stacklevel=3,
        )


def _encode(pieces: Iterable[str], tokenizer: Tokenizer, reading: str, name: str) -> Tokens:
    check_reading(reading, tokenizer)
    with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as offsets:
        writer = TokenWriter(tokenizer, reading, ids, offsets)
        writer.write(units(pieces, reading))
        warn_of_cut(name, writer.cut)
        ids.flush()
        offsets.flush()
        if writer.tokens == 0:
            raise CorpusError(f"{name} has no token: give a text that is not only white space")
        return Tokens(
            ids=np.memmap(ids, writer.dtype, "r"),
            offsets=None if reading == "stream" else np.memmap(offsets, "<i8", "r"),
            characters=writer.characters,
            words=writer.words,
            unknown=writer.unknown,
            first_characters=writer.first_characters,
            first_words=writer.first_words,
        )
