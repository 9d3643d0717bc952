"""Text to token ids and back: words, characters, bytes, or byte-level BPE."""

from __future__ import annotations

import codecs
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.data.chunks import chunks
from bptt._src.data.decoding import well_formed
from bptt._src.data.described import in_order, level_of, marks_of, unknown_of
from bptt._src.data.remembered import EncodedPieces, is_divisible
from bptt._src.data.vocabulary import (
    backend_of,
    byte_characters,
    byte_model,
    frequent_characters,
    frequent_words,
    train_bpe,
    word_model,
)
from bptt._src.data.words import END, START, UNKNOWN, Joiner, Spacer
from bptt.errors import CheckpointError, ConfigError, CorpusError, needs, spelled

with needs("lm"):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders

from bptt._src.atomic import write_whole

LEVELS = ("word", "whitespace", "char", "byte", "bpe")
"""What a token can be."""

DEFAULT_VOCABULARY = 8000
"""Default number of entries of a word or BPE vocabulary."""


class Tokenizer:
    """A vocabulary and the rules that divide text into its entries.

    A thin layer over ``tokenizers.Tokenizer``: its JSON holds everything, and files that other
    programs made can be loaded. Start and end tokens are entries of the vocabulary that
    no text can produce, so a literal ``<s>`` in a text remains three characters.

    Attributes:
        level: One of :data:`LEVELS`; ``"bpe"`` includes any other subword model of a loaded file.
        size: Number of ids, V; ids are below it.
        unknown: Id of tokens outside the vocabulary, or None if there are none.
        start: Id of the token before a sentence, or None.
        end: Id of the token after a sentence, or None.
    """

    level: str
    size: int
    unknown: int | None
    start: int | None
    end: int | None

    def __init__(self, backend: Backend) -> None:
        """Wrap a tokenizer of the library; :meth:`train` and :meth:`load` are the usual ways."""
        # The library's threads warn, and can hang, in a process that forks after they were used.
        # One thread encodes megabytes a second; who wants more sets this variable to "true".
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # text never turns into a special token
        self._backend = backend
        description = json.loads(backend.to_str())
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._tokens = in_order(vocabulary)
        self._added = {entry["id"] for entry in description["added_tokens"]}
        self._byte_level = '"ByteLevel"' in json.dumps(description["decoder"])
        self.level = level_of(description)
        self.size = len(self._tokens)
        self.unknown = unknown_of(description["model"], vocabulary)
        self.start, self.end = marks_of(vocabulary)
        self._pieces = EncodedPieces(backend) if is_divisible(description, _rules()) else None
        self._identity_bytes = self.level == "byte" and all(
            self._tokens[i] == character for i, character in enumerate(byte_characters())
        )

    def __repr__(self) -> str:
        return f"Tokenizer(level={self.level!r}, size={self.size})"

    # Making, loading and saving

    @classmethod
    def train(
        cls,
        pieces: Iterable[str],
        *,
        level: str,
        vocabulary: int | None = None,
        sentences: bool = False,
        lowercase: bool = False,
    ) -> Tokenizer:
        """Make the vocabulary for a text.

        The same text gives the same vocabulary, however it is cut into pieces.

        Args:
            pieces: The text in order; with ``sentences``, its sentences or lines, and no entry
                of the vocabulary reaches from one into the next.
            level: ``"word"``: the most frequent words, punctuation apart, and ``<unk>``.
                ``"whitespace"``: what stands between white space, and ``<unk>``.
                ``"char"``: the characters and ``<unk>``. ``"byte"``: the 256 bytes, which need
                no text. ``"bpe"``: byte-level byte-pair encoding, which loses nothing.
            vocabulary: The largest number of entries, special ones included. None: 8000 words
                or BPE entries, and all that occurs at the levels whitespace and char.
            sentences: Whether to add ``<s>`` and ``</s>``, and to take newlines between words
                as white space. Otherwise a newline is a word of its own.
            lowercase: Whether to convert all text to lower case before it is encoded.

        Raises:
            ConfigError: If there is no such level, or the vocabulary's size does not suit it.
            CorpusError: If there is no text.
        """
        cls.check_options(level, vocabulary, sentences=sentences)
        special = [UNKNOWN] * (level not in ("byte", "bpe")) + [START, END] * sentences
        if level == "byte":
            return cls(backend_of(level, byte_model([*byte_characters(), *special]), lowercase))
        skeleton = backend_of(level, word_model([UNKNOWN]), lowercase, sentences)
        parts = chunks(pieces)
        if sentences:
            parts = (chunk for sequence in pieces for chunk in chunks([sequence]))
        texts = (well_formed(text) for text in parts)
        if level == "bpe":
            model = train_bpe(skeleton, texts, vocabulary or DEFAULT_VOCABULARY, special)
            return cls(backend_of(level, model, lowercase))
        if level in ("word", "whitespace"):
            size = vocabulary or (DEFAULT_VOCABULARY if level == "word" else None)
            entries = frequent_words(skeleton, texts, size, special)
        else:
            entries = frequent_characters(skeleton, texts, vocabulary, special)
        if len(entries) == len(special):
            raise CorpusError("there is no text to make a vocabulary of: give a longer text")
        return cls(backend_of(level, word_model(entries), lowercase, sentences))

    @staticmethod
    def check_options(level: str, vocabulary: int | None, *, sentences: bool) -> None:
        """Refuse options that :meth:`train` would refuse, before any text is read.

        Args:
            level: As for :meth:`train`.
            vocabulary: As for :meth:`train`.
            sentences: As for :meth:`train`.

        Raises:
            ConfigError: If there is no such level, or the vocabulary's size does not suit it.
        """
        if level not in LEVELS:
            raise ConfigError(
                f"{spelled('level')} must be one of {', '.join(LEVELS)}, got {level!r}"
            )
        if vocabulary is None:
            return
        if level == "byte":
            raise ConfigError(
                f"{spelled('vocabulary', vocabulary)} was given at {spelled('level', level)}, "
                f"whose vocabulary is the 256 bytes: leave it out, or use {spelled('level', 'bpe')}"
            )
        least = (257 if level == "bpe" else 2) + 2 * sentences
        if vocabulary < least:
            raise ConfigError(
                f"{spelled('vocabulary')} must be at least {least} at {spelled('level', level)}, "
                f"got {vocabulary}"
            )

    @classmethod
    def load(cls, path: str | Path, check: Callable[[str], object] = str) -> Tokenizer:
        """Read a tokenizer from the library's JSON file.

        Args:
            path: The file, such as a run's tokenizer.json.
            check: Called with its text first, to refuse it.

        Raises:
            CheckpointError: If the file is missing, damaged, or not a tokenizer.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            why = getattr(e, "strerror", None) or e
            raise CheckpointError(f"cannot read tokenizer {path} ({why}): check the path") from None
        check(text)
        return cls.from_json(text, name=str(path))

    @classmethod
    def from_json(cls, text: str, *, name: str = "this JSON") -> Tokenizer:
        """Make a tokenizer from the library's JSON.

        Args:
            text: A result of :meth:`to_json`, or another program's tokenizer.json.
            name: What to call it in an error message.

        Raises:
            CheckpointError: If it is damaged or not a tokenizer.
        """
        try:
            return cls(Backend.from_str(text))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are not Exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{name} is no complete tokenizer ({reason}): give a file written by `tokenizers`"
            ) from None

    def to_json(self) -> str:
        """Return the library's JSON; equal tokenizers give equal text."""
        return self._backend.to_str()

    def save(self, path: str | Path) -> None:
        """Write the library's JSON beside ``path`` and rename it into place.

        Args:
            path: The file to make or replace.
        """
        write_whole(Path(path), self.to_json())

    # Encoding

    def encode(self, text: str) -> list[int]:
        """Encode a text as ids, without start and end tokens.

        Args:
            text: Any text; lone surrogates count as U+FFFD.

        Returns:
            Ids below :attr:`size`.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """Encode several texts as ids, without start and end tokens.

        Args:
            texts: Any texts.

        Returns:
            The ids of each text, uint32 [tokens].
        """
        texts = [well_formed(text) for text in texts]
        if self.level == "char":
            return [self._encode_characters(self._normalized(text)) for text in texts]
        if self._identity_bytes:
            return [_bytes_as_ids(self._normalized(text)) for text in texts]
        if self._pieces is not None:
            return self._pieces.encode(texts)
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def prefix(self, text: str, tokens: int) -> int:
        """The part of a text that its first tokens cover; a character may take several tokens.

        Args:
            text: Any text.
            tokens: Number of tokens.

        Returns:
            Number of characters, all of them if the text has fewer tokens.
        """
        if tokens <= 0:
            return 0
        offsets = self._backend.encode(well_formed(text), add_special_tokens=False).offsets
        if tokens > len(offsets):
            return len(text)
        end = int(offsets[tokens - 1][1])
        return end if tokens == len(offsets) else min(end, int(offsets[tokens][0]))

    def _normalized(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _encode_characters(self, text: str) -> NDArray[np.uint32]:
        # The same as the library's Split and WordLevel, a hundred times faster; tests compare them.
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids: NDArray[np.uint32] = self._id_of_character[codes]
        return ids

    @functools.cached_property
    def _id_of_character(self) -> NDArray[np.uint32]:
        table = np.full(0x110000, self.unknown, np.uint32)
        for token, entry in enumerate(self._tokens):
            if len(entry) == 1:
                table[ord(entry)] = token
        return table

    # Decoding

    def token(self, token_id: int) -> str:
        """Return an entry of the vocabulary as it is stored (BPE spells a space as ``Ġ``).

        Args:
            token_id: An id below :attr:`size`.

        Raises:
            IndexError: If there is no such id.
        """
        if not 0 <= token_id < self.size:
            raise IndexError(f"token id {token_id} is not below the vocabulary's size {self.size}")
        return self._tokens[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; start and end tokens give no text.

        At the word level spaces are put where a reader expects them, which may differ from the
        original. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Ids below :attr:`size`.
        """
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode token ids one by one.

        Args:
            ids: Ids below :attr:`size`; may be a generator.

        Yields:
            For each id the text that is certain by then, ``""`` while a UTF-8 sequence is
            incomplete; and at the end the remaining text, if any. Joined, they are
            :meth:`decode` of the ids.
        """
        if self._byte_level:
            yield from self._stream_bytes(ids)
        elif self.level == "char":
            silent = (self.start, self.end)
            for token_id in ids:
                text = self.token(token_id)
                yield "" if token_id in silent else "\ufffd" if token_id == self.unknown else text
        elif self.level in ("word", "whitespace"):
            yield from self._stream_words(ids)
        else:
            yield from self._stream_foreign(ids)

    def _stream_words(self, ids: Iterable[int]) -> Iterator[str]:
        joiner = Joiner() if self.level == "word" else Spacer()
        for token_id in ids:
            word = self.token(token_id)
            yield "" if token_id in (self.start, self.end) else joiner.add(word)

    def _stream_bytes(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in ids:
            self.token(token_id)  # refuses invalid ids
            yield decoder.decode(self._bytes[token_id])
        if rest := decoder.decode(b"", final=True):
            yield rest

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes that each id adds to the text, if tokens are made of bytes."""
        alphabet = {character: b for b, character in enumerate(byte_characters())}
        found = []
        for i, token in enumerate(self._tokens):
            if i in (self.start, self.end):
                found.append(b"")
            elif i in self._added or not alphabet.keys() >= set(token):
                found.append(token.encode("utf-8"))
            else:
                found.append(bytes(alphabet[character] for character in token))
        return found

    def _stream_foreign(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode other programs' models by the library: a text is certain once it continues."""
        stream = decoders.DecodeStream(skip_special_tokens=True)
        seen, given = [], ""
        for token_id in ids:
            self.token(token_id)  # refuses invalid ids
            seen.append(token_id)
            text = stream.step(self._backend, token_id) or ""
            given += text
            yield text
        whole = str(self._backend.decode(seen, skip_special_tokens=True))
        if whole.startswith(given) and whole != given:
            yield whole[len(given) :]


@functools.cache
def _rules() -> list[Any]:
    """How the texts of words and of byte pairs are divided, in the library's JSON."""
    kinds = [(level, marks) for level in ("word", "whitespace") for marks in (False, True)]
    kinds.append(("bpe", False))
    made = [backend_of(level, word_model([UNKNOWN]), False, marks) for level, marks in kinds]
    return [json.loads(backend.to_str())["pre_tokenizer"] for backend in made]


def _bytes_as_ids(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint32)
