"""Decay of the state's gradient, measured on the training text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt._src.language_model.config import Config
from bptt._src.language_model.model import LanguageModel
from bptt.credit import Decay, measure_decay
from bptt.data import Tokens

WARM_UP = 20  # steps before those that are measured
LEAST = 64  # sequences


class TextProbe:
    """Measures ‖∂L_t/∂h_{t-k}‖ at random places of the training text.

    Sentences and lines are measured from beginning to end, streams anywhere.

    Args:
        model: the model in its present state.
        tokens: the training text.
        config: the options: the seed, and how the text is read.
        updates: number of updates so far; with the seed it determines the places.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens, config: Config, updates: int) -> None:
        self.model, self.tokens, self.config, self.updates = model, tokens, config, updates

    def __call__(self, lags: int) -> Decay:
        """Measure the decay over this many lags, or as many as the text has."""
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
    """Draw stretches of a text: the inputs for the lags, after those that warm the state up.

    Streams are drawn from anywhere. Of sentences and lines the longest are drawn, from their
    beginnings, as far as the number of lags needs.

    Args:
        tokens: the text.
        seed: determines the stretches.
        lags: number of lags to measure, back from the last input.
        count: number of stretches.

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
    """Losses drawn from a text, each with the tokens before it; the loss is after the last step."""

    inputs: NDArray[np.int64]
    """[steps, count]."""
    targets: NDArray[np.int64]
    """[count]."""
    resets: NDArray[np.bool_] | None
    """Whether a sequence begins at this step, so that nothing before it counts, [steps, count];
    None: no sequence begins anywhere."""


def draw_losses(tokens: Tokens, seed: list[int], lags: int, count: int) -> Drawn:
    """Draw losses of a text, all with equal probability.

    In a stream, each has the given number of lags, and some steps before them to warm the state up;
    in sentences and lines, as many as lie between it and the sequence's beginning.

    Args:
        tokens: the text.
        seed: determines the losses.
        lags: number of lags to measure.
        count: number of losses.
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
