"""What an evaluation found."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from bptt.errors import BpttWarning

MANY = 0.1
"""The share of unknown tokens from which a perplexity is warned of."""


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
    """Predicted tokens that are the unknown token: what they hid was not predicted."""
    protocol: str
    """What was done, in words."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def unknown_share(self) -> float:
        """Unknown tokens over all: the larger it is, the less the perplexity says."""
        return self.unknown / self.tokens

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
            "unknown_share": self.unknown_share,
            "protocol": self.protocol,
        }


def perplexity(nats: float) -> float:
    """exp(nats per token), or inf where that is too large for a number."""
    return math.exp(nats) if nats < 700 else math.inf


def beside(unknown_share: float) -> str:
    """Write the share of unknown tokens, to stand beside a perplexity; nothing if there is none.

    >>> beside(0.0531), beside(0.0)
    (' (5.3 % unknown)', '')
    """
    return f" ({100 * unknown_share:.1f} % unknown)" if unknown_share else ""


def warn_of_unknown(share: float, name: str, level: str) -> None:
    """Warn where so much of a text is unknown that its perplexity says little.

    Args:
        share: the share of its tokens that are unknown.
        name: what to call the text.
        level: what a token is, which says what would know them.
    """
    if share >= MANY:
        larger = ", or a larger --vocabulary" if level == "word" else ""
        warnings.warn(
            f"{100 * share:.0f} % of the tokens of {name} are unknown, and what they hide is "
            f"not predicted: the perplexity says little; --level bpe knows every word{larger}",
            BpttWarning,
            stacklevel=3,
        )
