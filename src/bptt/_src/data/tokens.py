"""Token ids of a text: encoded piece by piece into a file, and mapped into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bptt._src.data.chunks import BEGINNING_OF_SPACE, chunks
from bptt._src.data.corpora import Corpus
from bptt._src.data.decoding import as_read
from bptt._src.data.sequences import Unfinished, lines, sentences
from bptt._src.data.tokenizer import Tokenizer
from bptt.errors import ConfigError, CorpusError, spelled

READINGS = ("stream", "sentences", "lines")
"""How a text is read: as one stream, or as separate sequences."""

_BATCH = 512  # sequences encoded at a time, within the limit on characters
_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text.

    Attributes:
        ids: uint16 or uint32 [tokens], usually mapped from a file.
        offsets: int64 [sequences + 1]: sequence i is ``ids[offsets[i]:offsets[i+1]]``, its start
            and end tokens included. None for a stream.
        characters: The number of characters of the text that the tokens cover; start and end
            tokens, and what is between sequences, have none.
        words: The number of words of that text, separated by white space.
        unknown: The number of unknown tokens.
        first_characters: For a stream, the characters complete with its first token, white space
            before it included; predicting all tokens but the first does not predict these. 0 for
            sequences, whose first token is their start.
        first_words: The words complete with the first token of a stream, 1 or 0.
    """

    ids: NDArray[Any]
    offsets: NDArray[np.int64] | None
    characters: int
    words: int
    unknown: int
    first_characters: int = 0
    first_words: int = 0

    @property
    def unknown_share(self) -> float:
        """The share of unknown tokens, start tokens not counted."""
        starts = 0 if self.offsets is None else len(self.offsets) - 1
        return self.unknown / max(1, len(self.ids) - starts)


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, *, reading: str) -> Tokens:
    """Encode a corpus into a temporary file, for example for evaluation.

    Args:
        corpus: The text.
        tokenizer: Its tokenizer.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.

    Returns:
        All tokens of the text.

    Raises:
        CorpusError: If the text cannot be read or has no token.
        ConfigError: If sequences are wanted and the tokenizer has no start and end tokens.
    """
    return _encode(corpus.pieces(), tokenizer, reading, corpus.name)


def encode_text(text: str, tokenizer: Tokenizer, *, reading: str) -> Tokens:
    """Encode a text, as :func:`encode_corpus` encodes a file that holds it.

    Args:
        text: The text; line ends and byte order marks are treated as those of a file.
        tokenizer: Its tokenizer.
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.

    Returns:
        All tokens of the text.

    Raises:
        CorpusError: If the text has no token.
        ConfigError: If sequences are wanted and the tokenizer has no start and end tokens.
    """
    return _encode([as_read(text)], tokenizer, reading, "the text")


def check_reading(reading: str, tokenizer: Tokenizer | None = None) -> None:
    """Refuse an unknown way of reading, or one for which a tokenizer is not made.

    Args:
        reading: ``"stream"``, ``"sentences"`` or ``"lines"``.
        tokenizer: The tokenizer, if there is one already.

    Raises:
        ConfigError: If it is unknown or unsuitable.
    """
    if reading not in READINGS:
        raise ConfigError(
            f"{spelled('reading')} must be one of {', '.join(READINGS)}, got {reading!r}"
        )
    if reading != "stream" and tokenizer is not None and tokenizer.start is None:
        raise ConfigError(
            f"{spelled('reading', reading)} needs a tokenizer with start and end tokens, but this "
            f"one has none: use {spelled('reading', 'stream')}, or a tokenizer that was trained "
            "with sentences"
        )


def units(pieces: Iterable[str], reading: str) -> Iterator[str]:
    """Divide a text into the parts that are encoded one by one.

    Args:
        pieces: The text in order.
        reading: ``"stream"``: chunks that no token spans. Otherwise the sequences.

    Returns:
        The parts in order; those of a stream, joined, are the text.
    """
    split: dict[str, Callable[[Iterable[str]], Iterator[str]]]
    split = {"stream": chunks, "sentences": sentences, "lines": lines}
    return split[reading](pieces)


def as_encoded(unit: str, reading: str) -> str:
    """The text passed to the tokenizer; in sentences, white space becomes single spaces."""
    if reading != "sentences":
        return unit
    # Only the continuation of a sentence begins with white space.
    return " " * unit[:1].isspace() + " ".join(unit.split())


def batches(parts: Iterable[str]) -> Iterator[list[str]]:
    """Group the units of a text so that encoding a group takes little memory.

    Args:
        parts: The units.

    Yields:
        Lists of them, in order.
    """
    batch: list[str] = []
    size = 0
    for part in parts:
        if batch and (len(batch) == _BATCH or size + len(part) > _CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += len(part)
    if batch:
        yield batch


class TokenWriter:
    """Writes the ids of a text to one file, and the offsets of its sequences to another."""

    def __init__(
        self, tokenizer: Tokenizer, reading: str, ids: BinaryIO, offsets: BinaryIO
    ) -> None:
        self.dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
        self.tokens = self.sequences = self.characters = self.words = self.unknown = 0
        self.first_characters = self.first_words = 0
        self._tokenizer, self._reading = tokenizer, reading
        self._ids, self._offsets = ids, offsets
        self._begun = False  # a sequence's start token is written, its end token is not
        self._inside_word = False  # the previous part was cut inside a word

    def write(self, parts: Iterable[str]) -> None:
        """Encode and write all :func:`units` of a text.

        Args:
            parts: The units.
        """
        if self._reading == "stream":
            self._write_stream(parts)
            return
        self._offsets.write(np.zeros(1, "<i8").tobytes())
        for batch in batches(parts):
            self._write_sequences(batch)

    def _write_stream(self, parts: Iterable[str]) -> None:
        for part in parts:
            ids = self._tokenizer.encode_batch([part])[0]
            goes_on = self._inside_word and not part[0].isspace()
            if self.tokens == 0 and len(ids):
                self._count_first(part)
            elif self.characters == self.first_characters and goes_on:
                self.first_words = 0  # the chunk ended with the first token, the word did not
            self._write_ids(ids)
            self._count_text(part)

    def _count_text(self, part: str) -> None:
        self.characters += len(part)
        self.words += len(part.split()) - (self._inside_word and not part[:1].isspace())
        self._inside_word = not part[-1:].isspace()

    def _count_first(self, part: str) -> None:
        space = BEGINNING_OF_SPACE.search(part)  # no token spans it
        end = self._tokenizer.prefix(part[: space.start()] if space else part, 1)
        first, after = part[:end], part[end : end + 1]
        inside_word = bool(first and after) and not (first[-1].isspace() or after.isspace())
        self.first_characters = self.characters + end
        self.first_words = len(first.split()) - inside_word

    def _write_sequences(self, batch: list[str]) -> None:
        texts = [as_encoded(part, self._reading) for part in batch]
        written: list[NDArray[Any]] = []
        ends: list[int] = []
        tokens = self.tokens
        for part, ids in zip(batch, self._tokenizer.encode_batch(texts), strict=True):
            marked = self._marked(part, ids)
            written += marked
            tokens += sum(map(len, marked))
            if marked and not self._begun:
                ends.append(tokens)
        if written:
            self._offsets.write(np.array(ends, "<i8").tobytes())
            self.sequences += len(ends)
            self._write_ids(np.concatenate(written))

    def _marked(self, part: str, ids: NDArray[Any]) -> list[NDArray[Any]]:
        """The ids of a part with the start and end tokens that belong there, if any."""
        unfinished = isinstance(part, Unfinished)
        if len(ids) == 0 and not self._begun:
            return []
        marked = [ids]
        if not self._begun:
            marked.insert(0, np.array([self._tokenizer.start]))
            self._inside_word = False
        if part:
            self._count_text(part)
        self._begun = unfinished
        if not unfinished:
            marked.append(np.array([self._tokenizer.end]))
        return marked

    def _write_ids(self, ids: NDArray[Any]) -> None:
        self._ids.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        if self._tokenizer.unknown is not None:
            self.unknown += int(np.count_nonzero(ids == self._tokenizer.unknown))


def _encode(pieces: Iterable[str], tokenizer: Tokenizer, reading: str, name: str) -> Tokens:
    check_reading(reading, tokenizer)
    with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as offsets:
        writer = TokenWriter(tokenizer, reading, ids, offsets)
        writer.write(units(pieces, reading))
        ids.flush()
        offsets.flush()
        if writer.tokens == 0:
            raise CorpusError(f"{name} has no token: give a text with more than white space")
        return Tokens(
            ids=np.memmap(ids, writer.dtype, "r"),
            offsets=None if reading == "stream" else np.memmap(offsets, "<i8", "r"),
            characters=writer.characters,
            words=writer.words,
            unknown=writer.unknown,
            first_characters=writer.first_characters,
            first_words=writer.first_words,
        )
