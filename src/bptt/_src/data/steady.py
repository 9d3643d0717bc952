"""Check that a text that is read several times is the same each time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from bptt._src.data.corpora import Corpus
from bptt.errors import CorpusError


class Watched:
    """A corpus that is read once as a whole, and compared with that at each further reading.

    Attributes:
        name: What it is, for display.
        digest: SHA-256, in hexadecimal, of its text as UTF-8.
        characters: Its length.
    """

    def __init__(self, corpus: Corpus, report: Callable[[str, float | None], None]) -> None:
        """Read the corpus.

        Args:
            corpus: The text.
            report: Called with the current activity.

        Raises:
            CorpusError: If it cannot be read.
        """
        self.name, self._corpus = corpus.name, corpus
        whole = hashlib.sha256()
        self.characters = 0
        self._pieces: list[bytes] = []  # a short digest of each piece
        for piece in corpus.pieces():
            report("reading the text", None)
            data = piece.encode("utf-8")
            whole.update(data)
            self.characters += len(piece)
            self._pieces.append(_short(data))
        self.digest = whole.hexdigest()

    def pieces(self) -> Iterator[str]:
        """The text again, as from :meth:`Corpus.pieces`.

        Raises:
            CorpusError: If it has changed.
        """
        number = 0
        for number, piece in enumerate(self._corpus.pieces(), 1):
            if number > len(self._pieces) or _short(piece.encode()) != self._pieces[number - 1]:
                raise self._changed()
            yield piece
        if number != len(self._pieces):
            raise self._changed()

    def _changed(self) -> CorpusError:
        return CorpusError(
            f"{self.name} changed while it was read: wait until it is complete, or train on a copy"
        )


def _short(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
