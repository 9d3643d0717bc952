"""The decay of the state's gradient, measured on the text that a model is trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt.credit import Decay, measure_decay
from bptt.data import Tokens
from bptt.language_model.config import Config
from bptt.language_model.model import LanguageModel

WARM_UP = 20  # steps before those that are looked at
LEAST = 64  # sequences


class Probe:
    """Measures ‖∂L_t/∂h_{t-k}‖ at random places of the training text.

    Sentences and lines are looked at from their beginnings to their ends, streams anywhere.

    Args:
        model: as it is now.
        tokens: the training text.
        config: the seed, and how the text is read.
        updates: how many there have been; with the seed it says which places are looked at.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens, config: Config, updates: int) -> None:
        self.model, self.tokens, self.config, self.updates = model, tokens, config, updates

    def __call__(self, lags: int) -> Decay:
        """Measure the decay over so many lags, or as many as the text has."""
        ids = torch.from_numpy(self._places(lags)).to(next(self.model.parameters()).device)
        inputs, targets = ids[:-1], ids[-1]

        def loss(logits: Tensor) -> Tensor:
            return cross_entropy(logits[-1], targets)

        device = inputs.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return measure_decay(self.model, inputs, loss, lags=lags)

    def _places(self, lags: int) -> NDArray[np.int64]:
        count = max(LEAST, self.config.batch_size)
        return places(self.tokens, [self.config.seed, self.updates], lags, count)


def places(tokens: Tokens, seed: list[int], lags: int, count: int) -> NDArray[np.int64]:
    """Draw stretches of a text: the inputs of so many lags and of those that warm the state up.

    Sentences and lines are given from their beginnings, of the longest ones, as much of them as
    has so many lags; streams from anywhere.

    Args:
        tokens: the text.
        seed: says which stretches.
        lags: how many are to be looked at, from the last input on back.
        count: how many stretches.

    Returns:
        The inputs, and below them the last target, [steps + 1, count].
    """
    ids, offsets = tokens.ids, tokens.offsets
    random = np.random.default_rng(seed)
    if offsets is None:
        length = min(lags + WARM_UP + 1, len(ids))
        starts = random.integers(0, len(ids) - length + 1, count)
    else:  # of the longest sequences, so that there are lags to look at
        sizes = np.diff(offsets)
        length = int(min(lags + 1, np.sort(sizes)[-min(count, len(sizes))]))
        fitting = offsets[:-1][sizes >= length]
        starts = fitting[random.integers(0, len(fitting), count)]
    return np.stack([ids[s : s + length] for s in starts], axis=1).astype(np.int64)


class Drawn(NamedTuple):
    """Losses of a text, each with the tokens before it; they are those after the last step."""

    inputs: NDArray[np.int64]
    """[steps, count]."""
    targets: NDArray[np.int64]
    """[count]."""
    resets: NDArray[np.bool_] | None
    """Where a sequence begins: what stands before it does not belong to it, [steps, count]. None:
    all goes on from before."""


def draw_losses(tokens: Tokens, seed: list[int], lags: int, count: int) -> Drawn:
    """Draw losses of a text, any of them as likely as any other.

    Each has so many lags, and in streams some steps before them to warm the state up; in
    sentences and lines as many as there are from its sequence's beginning.

    Args:
        tokens: the text.
        seed: says which losses.
        lags: how many are to be looked at.
        count: how many losses.
    """
    if tokens.offsets is None:
        found = places(tokens, seed, lags, count)
        return Drawn(found[:-1], found[-1], None)
    ids, offsets = tokens.ids, tokens.offsets
    most = np.maximum(np.diff(offsets) - 1, 0)  # losses of each sequence
    before = np.cumsum(most)
    drawn = np.random.default_rng(seed).integers(0, before[-1], count)
    sequence = np.searchsorted(before, drawn, side="right")
    at = drawn - (before - most)[sequence]  # the loss after this many tokens of its sequence
    steps = int(min(at.max() + 1, lags + WARM_UP))
    inputs = np.zeros((steps, count), np.int64)
    resets = np.zeros((steps, count), np.bool_)
    targets = np.zeros(count, np.int64)
    for b, (i, t) in enumerate(zip(sequence, at, strict=True)):
        n = min(int(t) + 1, steps)
        end = int(offsets[i] + t + 1)
        inputs[steps - n :, b], targets[b] = ids[end - n : end], ids[end]
        resets[steps - n, b] = True
    return Drawn(inputs, targets, resets)
