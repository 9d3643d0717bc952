"""How well a model predicts a text, by a protocol that fits in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.data.readers import IGNORED
from bptt._src.language_model.score import Score
from bptt.data import Tokens
from bptt.errors import CorpusError
from bptt.losses import linear_cross_entropy

WINDOW = 1000
"""Steps of a sequence computed at a time; the state is carried from chunk to chunk."""

if TYPE_CHECKING:
    from bptt._src.language_model.model import LanguageModel


@torch.inference_mode()
def evaluate(
    model: LanguageModel, tokens: Tokens, *, batch_size: int = 20, steps: int = 500
) -> Score:
    """Measure a model's loss on a text.

    A stream is read once from beginning to end, and the state is carried all the way; each
    sentence or line starts from a zero state. The result does not depend on ``batch_size`` or
    ``steps``, which only set how much is computed at a time.

    Args:
        model: the model; it is in evaluation mode for the duration of the call.
        tokens: the text.
        batch_size: sentences side by side.
        steps: steps of a stream computed at a time.

    Raises:
        CorpusError: there is no token to predict.
    """
    training = model.training
    model.eval()
    unknown = tokens.unknown
    try:
        if tokens.offsets is None:
            nats, count = _stream(model, tokens.ids, steps)
            unknown -= int(tokens.ids[0]) == model.tokenizer.unknown
            protocol = (
                "one stream, the state carried from the first token to the last; the first token "
                "is not predicted"
            )
        else:
            nats, count = _sequences(model, tokens.ids, tokens.offsets, batch_size)
            protocol = (
                f"{len(tokens.offsets) - 1:,} sequences, each from a zero state; its end is "
                "predicted too"
            )
    finally:
        model.train(training)
    return Score(
        nats=nats,
        tokens=count,
        words=tokens.words - tokens.first_words,
        characters=tokens.characters - tokens.first_characters,
        unknown=unknown,
        protocol=protocol,
    )


def _stream(model: LanguageModel, ids: NDArray[Any], steps: int) -> tuple[float, int]:
    if len(ids) < 2:
        raise CorpusError(
            f"the text has {len(ids)} token{'s' * (len(ids) != 1)}; at least 2 are needed, "
            "because the first is not predicted"
        )
    device = model.embedding.weight.device
    nats, state = 0.0, None
    for start in range(0, len(ids) - 1, steps):
        window = torch.from_numpy(ids[start : start + steps + 1].astype(np.int64)).to(device)
        hidden, state = model.hidden(window[:-1].unsqueeze(1), state)
        nats += _summed_loss(model, hidden, window[1:].unsqueeze(1))
    return nats, len(ids) - 1


def _sequences(
    model: LanguageModel,
    ids: NDArray[Any],
    offsets: NDArray[Any],
    batch_size: int,
) -> tuple[float, int]:
    device = model.embedding.weight.device
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    nats, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        state = None
        for first in range(0, int(lengths[chosen].max()) - 1, WINDOW):
            starts = offsets[chosen] + first
            ends = np.minimum(offsets[chosen + 1], starts + WINDOW + 1)
            batch = np.full((int((ends - starts).max()), len(chosen)), IGNORED, dtype=np.int64)
            for column, (s, e) in enumerate(zip(starts, ends, strict=True)):
                batch[: max(0, e - s), column] = ids[s:e]
            targets = torch.from_numpy(batch[1:]).to(device)
            inputs = torch.from_numpy(np.maximum(batch[:-1], 0)).to(device)
            hidden, state = model.hidden(inputs, state)
            nats += _summed_loss(model, hidden, targets)
        count += int((lengths[chosen] - 1).sum())
    if not count:
        raise CorpusError("the text has no sentence to predict")
    return nats, count


def _summed_loss(model: LanguageModel, hidden: Tensor, targets: Tensor) -> float:
    """Compute each token's loss in the model's precision and sum in double precision.

    The sum is on the CPU because not every device has doubles.
    """
    losses = linear_cross_entropy(
        hidden,
        model.readout.weight,
        model.readout.bias,
        targets,
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.cpu().double().sum().item()
