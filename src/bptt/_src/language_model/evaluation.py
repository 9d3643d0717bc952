"""How well a model predicts a text, by a protocol that fits in one sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.data.readers import IGNORED
from bptt._src.language_model.job import Job
from bptt._src.language_model.readout import loss_of
from bptt._src.language_model.score import Score
from bptt.data import Tokens
from bptt.errors import ConfigError, CorpusError, spelled

WINDOW = 1000
"""Steps of a sequence computed at a time; the state is carried from chunk to chunk."""

if TYPE_CHECKING:
    from bptt._src.language_model.model import LanguageModel


def evaluate(
    model: LanguageModel,
    tokens: Tokens,
    *,
    batch_size: int = 20,
    steps: int = 500,
    streams: int = 1,
    per_token: bool = False,
) -> Score:
    """Measure a model's loss on a text.

    A stream is read once from beginning to end, and the state is carried all the way; each
    sentence or line starts from a zero state. The result does not depend on ``batch_size`` or
    ``steps``, which only set how much is computed at a time. It does depend on ``streams``, which
    are faster than one: a step of a single sequence is a product with a vector, for which all the
    weights are read.

    Args:
        model: the model; it is in evaluation mode for the duration of the call.
        tokens: the text.
        batch_size: sentences side by side.
        steps: steps of a stream computed at a time.
        streams: the number of parts into which a stream is cut, read side by side. The same tokens
            are predicted, but each part begins from a zero state, so that what is near its
            beginning is predicted from less.
        per_token: whether the score also has the loss of each token, which takes 16 bytes each.

    Raises:
        CorpusError: there is no token to predict.
        ConfigError: there are more streams than tokens to predict, or the text is no stream.
    """
    losses = np.full(len(tokens.ids), np.nan) if per_token else None
    how = {"batch_size": batch_size, "steps": steps, "streams": streams}
    score = evaluate_shared(model, tokens, None, **how, losses=losses)
    if losses is None:
        return score
    predicted = np.ones(len(losses), bool)
    predicted[0 if tokens.offsets is None else tokens.offsets[:-1]] = False
    return replace(score, losses=losses[predicted], targets=tokens.ids[predicted].astype(np.int64))


@torch.inference_mode()
def evaluate_shared(
    model: LanguageModel,
    tokens: Tokens,
    job: Job | None,
    *,
    batch_size: int,
    steps: int = 500,
    streams: int = 1,
    losses: NDArray[np.float64] | None = None,
) -> Score:
    """Measure a model's loss as :func:`evaluate` does, on all processes of a job.

    Sequences are shared out. Of a stream the recurrent layers are run by each process, because a
    step needs the state before it, and the readout is shared out. All get the same result, that of
    one process to the bit: the chunks' losses are added in the order of the text. ``losses``,
    [tokens], takes the loss of each token that this process predicts.
    """
    training = model.training
    _check_streams(tokens, streams)
    chunks = _Chunks(job, losses)
    model.eval()
    unknown = tokens.unknown
    try:
        if tokens.offsets is None:
            nats, count = _stream(model, tokens.ids, steps, streams, chunks)
            unknown -= int(tokens.ids[0]) == model.tokenizer.unknown
            protocol = _protocol(streams)
        else:
            nats, count = _sequences(
                model, tokens.ids, tokens.offsets, batch_size, _Chunks(job, losses)
            )
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


class _Chunks:
    """The losses of the chunks of a text, which the processes of a job compute in turn."""

    def __init__(self, job: Job | None, of_tokens: NDArray[np.float64] | None = None) -> None:
        self.job, self.losses, self.of_tokens = job, [0.0], of_tokens

    def is_own(self, number: int) -> bool:
        """Whether this process computes the chunk of this number."""
        if self.job is None:
            return True
        rank, size = self.job.ranks
        return number % size == rank

    def add(self, found: Tensor, starts: NDArray[Any], ends: NDArray[Any]) -> None:
        """Note the losses of the next chunk.

        Args:
            found: those of each target, [T, B]; 0 where there is none.
            starts: the place in the text of each column's first input, [B].
            ends: the place after its last target, [B].
        """
        # Summed on the CPU because not every device has doubles.
        found = found.cpu().double()
        self.losses.append(found.sum().item())
        if self.of_tokens is not None:
            for column, (s, e) in enumerate(zip(starts, ends, strict=True)):
                if e > s + 1:
                    self.of_tokens[s + 1 : e] = found[: e - s - 1, column].numpy()

    def skip(self, count: int = 1) -> None:
        """Leave the next chunks to another process."""
        self.losses += [0.0] * count

    def sum(self) -> float:
        """Add up the losses of all chunks exactly, in whatever order they were computed."""
        found = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        if self.job is not None:
            self.job.sum(found)
        return math.fsum(found.tolist())


def _check_streams(tokens: Tokens, streams: int) -> None:
    if tokens.offsets is not None:
        if streams != 1:
            raise ConfigError(
                f"{spelled('streams', streams)} is for a text that is read as a stream, and this "
                f"one has sentences or lines, which are read side by side anyway: leave "
                f"{spelled('streams')} out"
            )
        return
    count = len(tokens.ids) - 1
    if count < 1:
        raise CorpusError(
            f"the text has {count + 1} token{'s' * (count != 0)}; at least 2 are needed, "
            "because the first is not predicted"
        )
    if not 1 <= streams <= count:
        raise ConfigError(
            f"{spelled('streams')} must be from 1 to {count:,}, the number of tokens that are "
            f"predicted, got {streams}"
        )


def _protocol(streams: int) -> str:
    if streams == 1:
        return (
            "one stream, the state carried from the first token to the last; the first token "
            "is not predicted"
        )
    return (
        f"{streams:,} streams of equal length, one after the other in the text, each from a zero "
        "state, which is carried to its end; the text's first token is not predicted"
    )


def _stream(
    model: LanguageModel, ids: NDArray[Any], steps: int, streams: int, chunks: _Chunks
) -> tuple[float, int]:
    count = len(ids) - 1
    edges = np.arange(streams + 1) * count // streams
    state = None
    for number, first in enumerate(range(0, int(np.diff(edges).max()), steps)):
        starts = edges[:-1] + first
        ends = np.minimum(edges[1:] + 1, starts + steps + 1)
        inputs, targets = _batch(model, ids, starts, ends)
        hidden, state = model.hidden(inputs, state)
        if chunks.is_own(number):
            chunks.add(_losses(model, hidden, targets), starts, ends)
        else:
            chunks.skip()
    return chunks.sum(), count


def _sequences(
    model: LanguageModel,
    ids: NDArray[Any],
    offsets: NDArray[Any],
    batch_size: int,
    chunks: _Chunks,
) -> tuple[float, int]:
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    count = 0
    for number, start in enumerate(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        count += int((lengths[chosen] - 1).sum())
        windows = range(0, int(lengths[chosen].max()) - 1, WINDOW)
        if not chunks.is_own(number):
            chunks.skip(len(windows))
            continue
        state = None
        for first in windows:
            starts = offsets[chosen] + first
            ends = np.minimum(offsets[chosen + 1], starts + WINDOW + 1)
            inputs, targets = _batch(model, ids, starts, ends)
            hidden, state = model.hidden(inputs, state)
            chunks.add(_losses(model, hidden, targets), starts, ends)
    if not count:
        raise CorpusError("the text has no sentence to predict")
    return chunks.sum(), count


def _batch(
    model: LanguageModel, ids: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any]
) -> tuple[Tensor, Tensor]:
    """Lay parts of a text side by side: the inputs, and the token after each, both [T, B]."""
    device = model.embedding.weight.device
    batch = np.full((int((ends - starts).max()), len(starts)), IGNORED, dtype=np.int64)
    for column, (s, e) in enumerate(zip(starts, ends, strict=True)):
        batch[: max(0, e - s), column] = ids[s:e]
    targets = torch.from_numpy(batch[1:]).to(device)
    return torch.from_numpy(np.maximum(batch[:-1], 0)).to(device), targets


def _losses(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Compute each token's loss, [T, B], in the model's precision."""
    return loss_of(model.readout, hidden, targets, reduction="none")
