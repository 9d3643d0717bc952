"""The result of an evaluation."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bptt.errors import BpttWarning, spelled

MANY = 0.1
"""From this share of unknown tokens on, a perplexity comes with a warning."""


@dataclass(frozen=True)
class Score:
    """The summed loss on a text; everything else follows from it and the counts."""

    nats: float
    """-log p(text) in nats, over the predicted tokens."""
    tokens: int
    """Number of predicted tokens."""
    words: int
    """Number of predicted words (separated by white space), without a stream's first token."""
    characters: int
    """Number of predicted characters, without those of a stream's first token."""
    unknown: int
    """Number of predicted tokens that are the unknown token, whose words were not predicted."""
    protocol: str
    """The protocol, in words."""
    losses: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """-log p of each predicted token in nats, float64 [tokens], in the order of the text; None
    where they were not asked for."""
    targets: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """The ids of these tokens, int64 [tokens]; likewise."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def unknown_share(self) -> float:
        """Unknown tokens over all tokens: the larger it is, the less the perplexity means."""
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
        """Return all values by name, but for those of each token."""
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
    """exp(nats per token), or inf on overflow."""
    return math.exp(nats) if nats < 700 else math.inf


def beside(unknown_share: float) -> str:
    """Format the share of unknown tokens to follow a perplexity; empty if it is zero.

    >>> beside(0.0531), beside(0.0)
    (' (5.3 % unknown)', '')
    """
    return f" ({100 * unknown_share:.1f} % unknown)" if unknown_share else ""


def warn_of_unknown(share: float, name: str, level: str) -> None:
    """Warn if so much of a text is unknown that its perplexity means little.

    Args:
        share: the share of unknown tokens.
        name: what to call the text.
        level: the tokens' level, which determines the advice.
    """
    if share >= MANY:
        larger = f", or a larger {spelled('vocabulary')}" if level == "word" else ""
        warnings.warn(
            f"{100 * share:.0f} % of the tokens of {name} are unknown, and their words are "
            "not predicted: the perplexity means little; "
            f"{spelled('level', 'bpe')} knows every word{larger}",
            BpttWarning,
            stacklevel=3,
        )
