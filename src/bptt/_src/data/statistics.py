"""The perplexity of a model that knows only token frequencies."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bptt._src.data.tokens import Tokens
from bptt.errors import CorpusError

_BLOCK = 1 << 22  # ids counted at a time


def unigram_perplexity(train: Tokens, valid: Tokens, size: int) -> float:
    """The perplexity of a unigram model, which a language model must beat.

    Each token's probability is its share of the training targets, one added to every count.
    Targets are all tokens but the first of the stream, or of each sequence.

    Args:
        train: The tokens that are counted.
        valid: The tokens that are scored.
        size: The vocabulary's size, V.

    Returns:
        exp of the mean negative log probability of the validation targets.

    Raises:
        CorpusError: If there is no target to score.
    """
    seen, scored = _target_counts(train, size), _target_counts(valid, size)
    if scored.sum() == 0:
        raise CorpusError("there is no target to score: give a text of at least two tokens")
    log_probability = np.log((seen + 1) / (seen.sum() + size))
    return math.exp(-float(scored @ log_probability) / int(scored.sum()))


def _target_counts(tokens: Tokens, size: int) -> NDArray[np.int64]:
    counts = np.zeros(size, np.int64)
    for first in range(0, len(tokens.ids), _BLOCK):
        counts += np.bincount(tokens.ids[first : first + _BLOCK], minlength=size)
    firsts = tokens.ids[:1] if tokens.offsets is None else tokens.ids[tokens.offsets[:-1]]
    return counts - np.bincount(firsts, minlength=size)
