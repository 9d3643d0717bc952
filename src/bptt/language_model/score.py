"""What an evaluation found."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """The loss on a text, summed; everything else follows from it and the counts."""

    nats: float
    """-log p(text), natural logarithm, over the tokens that were predicted."""
    tokens: int
    """Tokens that were predicted."""
    words: int
    """White-space separated words that were predicted, so not a stream's first token."""
    characters: int
    """Characters that were predicted, so not those of a stream's first token."""
    unknown: int
    """Tokens of the text that are the unknown token: what they hid was not predicted."""
    protocol: str
    """What was done, in words."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens): per token."""
        return perplexity(self.loss)

    @property
    def word_perplexity(self) -> float:
        """exp(nats / words): comparable between tokenizers."""
        return perplexity(self.nats / max(1, self.words))

    @property
    def bits_per_character(self) -> float:
        """Nats over ln 2 and characters: comparable between tokenizers."""
        return self.nats / math.log(2) / max(1, self.characters)

    def to_dict(self) -> dict[str, float | int | str]:
        """All of it, by name."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_character": self.bits_per_character,
            "nats": self.nats,
            "tokens": self.tokens,
            "words": self.words,
            "characters": self.characters,
            "unknown": self.unknown,
            "protocol": self.protocol,
        }


def perplexity(nats: float) -> float:
    """exp(nats per token), or inf where that is too large for a number."""
    return math.exp(nats) if nats < 700 else math.inf
