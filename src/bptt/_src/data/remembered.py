"""Pieces of text that are encoded once: nearly all of a text are words that it has used before.

A piece is white space and what follows it up to the next white space. No token of bptt's tokenizers
reaches from one piece into the next, and none depends on the piece before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.errors import needs

with needs("lm"):
    from tokenizers import PreTokenizedString
    from tokenizers import Tokenizer as Backend

MOST = 1 << 20
"""The number of characters in pieces that are kept before all are forgotten."""

COUNTED = 1 << 26
"""The number of characters whose pieces are counted before the words in them are."""

_SIZE = 4
"""Bytes of an id."""

_PIECE = re.compile(r"\s*\S+|\s+")
# White space for Python, none for Unicode; and signs that make one character with what follows
# them, white space too (UAX 29, Prepend).
_DEPENDENT = (
    "\x1c\x1d\x1e\x1f"
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e"
    "\U000110bd\U000110cd\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a"
    "\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)


def pieces_of(text: str) -> list[str] | None:
    """Divide a text into its pieces; None if it has signs for which they are not independent."""
    if any(sign in text for sign in _DEPENDENT):  # a regular expression takes 25 times as long
        return None
    return _PIECE.findall(text)


def is_divisible(description: dict[str, Any], rules: list[Any]) -> bool:
    """Whether a tokenizer's JSON says that it encodes a piece like one of ours, whatever is around.

    Args:
        description: The tokenizer's JSON.
        rules: The ``pre_tokenizer`` of ours.
    """
    model = description["model"]
    if model["type"] not in ("WordLevel", "BPE") or model.get("dropout"):
        return False
    if description["normalizer"] not in (None, {"type": "Lowercase"}):
        return False
    if description["added_tokens"] or description["post_processor"]:
        return False
    is_ours: bool = description["pre_tokenizer"] in rules
    return is_ours


class _Numbers(dict[str, int]):
    """Numbers pieces as they come, and lists those that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        self[piece] = number = len(self)
        self.new.append(piece)
        return number


class EncodedPieces:
    """Encodes texts piece by piece, each piece once.

    Args:
        backend: A tokenizer that is divisible.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._forget()

    def _forget(self) -> None:
        self._numbers, self._characters = _Numbers(), 0
        self._ids: list[bytes] = []  # of each piece, uint32

    def encode(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """Encode several texts as ids; the result is that of the library.

        Args:
            texts: Well-formed texts.
        """
        if self._characters > MOST:
            self._forget()
        try:
            return self._encode(texts)
        except BaseException:  # as of Ctrl-C: some pieces may have a number and no ids
            self._forget()
            raise

    def _encode(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        numbered = []
        for text in texts:
            pieces = pieces_of(text)
            number = self._numbers.__getitem__
            numbered.append(None if pieces is None else list(map(number, pieces)))
        if self._numbers.new:
            self._learn(self._numbers.new)
            self._numbers.new = []
        of = self._ids.__getitem__
        return [
            self._directly(text)
            if numbers is None
            else np.frombuffer(bytearray().join(map(of, numbers)), np.uint32)
            for text, numbers in zip(texts, numbered, strict=True)
        ]

    def _learn(self, pieces: list[str]) -> None:
        """Encode new pieces, all in one text but those that cannot stand in it."""
        follows = [_can_follow(piece) for piece in pieces]
        together = list(compress(pieces, follows))
        encoding = self._backend.encode("".join(together), add_special_tokens=False)
        starts, ends = (
            [start for start, _ in encoding.offsets],
            list(accumulate(map(len, together))),
        )
        places = np.searchsorted(starts, ends) * _SIZE
        ids = np.array(encoding.ids, np.uint32).tobytes()
        parts = map(ids.__getitem__, map(slice, [0, *places], places))
        self._ids += [
            next(parts) if joins else self._directly(piece).tobytes()
            for piece, joins in zip(pieces, follows, strict=True)
        ]
        self._characters += sum(map(len, pieces))

    def _directly(self, text: str) -> NDArray[np.uint32]:
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.uint32)


def _can_follow(piece: str) -> bool:
    """Whether a piece has white space before it, and ends where white space may begin."""
    return piece[0].isspace() and not piece[-1].isspace()


def count_words(backend: Backend, texts: Iterable[str]) -> Counter[str]:
    """Count the words of a text, those of equal pieces together.

    Args:
        backend: A tokenizer of ours, whose pre-tokenizer says what a word is.
        texts: The text in parts that no word spans.
    """
    words: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    characters = 0
    for text in texts:
        found = pieces_of(text)
        if found is None:
            words.update(word for word, _ in _words(backend, text))
            continue
        pieces.update(found)
        characters += len(text)
        if characters > COUNTED:
            _add_words(backend, pieces, words)
            pieces.clear()
            characters = 0
    _add_words(backend, pieces, words)
    return words


def _add_words(backend: Backend, pieces: Counter[str], words: Counter[str]) -> None:
    """Add the words of pieces, each as often as its piece occurs."""
    together = [piece for piece in pieces if _can_follow(piece)]
    found = _words(backend, "".join(together))
    ends = np.cumsum([len(piece) for piece in together])
    places = np.searchsorted(ends, [start for _, start in found], side="right")
    for (word, _), place in zip(found, places.tolist(), strict=True):
        words[word] += pieces[together[place]]
    for piece in pieces.keys() - set(together):
        for word, _ in _words(backend, piece):
            words[word] += pieces[piece]


def _words(backend: Backend, text: str) -> list[tuple[str, int]]:
    """The words of a text, each with the place in it where it begins."""
    divided = PreTokenizedString(text)
    if backend.normalizer is not None:
        divided.normalize(backend.normalizer.normalize)
    backend.pre_tokenizer.pre_tokenize(divided)
    splits = divided.get_splits(offset_referential="original", offset_type="char")
    return [(word, start) for word, (start, _), _ in splits]
