"""The decay of the state's gradient, measured on the text that a model is trained on."""

from __future__ import annotations

import numpy as np
import torch
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
        self.model, self.tokens, self.config = model, tokens, config
        self.random = np.random.default_rng([config.seed, updates])

    def __call__(self, lags: int) -> Decay:
        """Measure the decay over so many lags, or as many as the text has."""
        ids = torch.from_numpy(self._places(lags)).to(next(self.model.parameters()).device)
        inputs, targets = ids[:-1], ids[-1]

        def loss(logits: Tensor) -> Tensor:
            return cross_entropy(logits[-1], targets)

        device = inputs.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return measure_decay(self.model, inputs, loss, lags=lags)

    def _places(self, lags: int) -> np.ndarray:
        """Draw stretches of the text, [steps + 1, B]."""
        ids, offsets = self.tokens.ids, self.tokens.offsets
        count = max(LEAST, self.config.batch_size)
        if offsets is None:
            length = min(lags + WARM_UP + 1, len(ids))
            starts = self.random.integers(0, len(ids) - length + 1, count)
        else:  # of the longest sequences, so that there are lags to look at
            sizes = np.diff(offsets)
            length = int(min(lags + 1, np.sort(sizes)[-min(count, len(sizes))]))
            fitting = offsets[:-1][sizes >= length]
            starts = fitting[self.random.integers(0, len(fitting), count)]
        return np.stack([ids[s : s + length] for s in starts], axis=1).astype(np.int64)
