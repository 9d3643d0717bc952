"""A tokenizer that only counts, for cutting a text before its vocabulary is made."""

from __future__ import annotations

from bptt._src.data.tokenizer import Tokenizer
from bptt._src.data.vocabulary import backend_of, word_model
from bptt._src.data.words import UNKNOWN


def counting_tokenizer(level: str, *, sentences: bool, lowercase: bool) -> Tokenizer:
    """Make a tokenizer that knows no token, but cuts text where a trained one would.

    Args:
        level: As for :meth:`Tokenizer.train`. At the level ``"bpe"``, whose tokens depend on
            the vocabulary, it counts the words that BPE tokens are made of.
        sentences: As for :meth:`Tokenizer.train`.
        lowercase: As for :meth:`Tokenizer.train`.

    Returns:
        A tokenizer of whose tokens only the number and the places are meaningful.
    """
    if level == "byte":
        return Tokenizer.train([], level="byte", sentences=sentences, lowercase=lowercase)
    return Tokenizer(backend_of(level, word_model([UNKNOWN]), lowercase, sentences))
