"""The gradient flow of a language model on a text: how far back each prediction's loss reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt._src.language_model.model import LanguageModel
from bptt.data import Tokenizer, Tokens
from bptt.errors import CorpusError
from bptt.flow import GradientFlow, gradient_flow


def flow_of(
    model: LanguageModel, text: Tokens, *, tokens: int | None = 100, name: str | None = None
) -> GradientFlow:
    """Measure how far back the loss of each token reaches.

    L_t is the cross-entropy of the token after the t-th; losses are attributed to the tokens'
    embeddings. The state before the first token is zero.

    Args:
        model: the model; it is in evaluation mode for the duration of the call.
        text: the text; of a stream the beginning is measured, of sentences or lines the longest.
        tokens: the largest number of tokens to predict; None: all.
        name: the flow's name in a report.

    Raises:
        CorpusError: there is no token to predict.
    """
    ids = _stretch(text, tokens)
    excerpt = text.offsets is None and len(ids) < len(text.ids)
    where = model.embedding.weight.device
    given = torch.from_numpy(ids[:-1]).to(where).unsqueeze(1)
    targets = torch.from_numpy(ids[1:]).to(where).unsqueeze(1)

    def losses(hidden: Tensor) -> Tensor:
        logits: Tensor = model.readout(hidden)
        return cross_entropy(logits.movedim(2, 1), targets, reduction="none")

    words = tuple(_words(model.tokenizer, ids.tolist()))
    training = model.training
    model.eval()
    try:
        x = model.embedding(given).detach()
        return gradient_flow(
            model.recurrent,
            x,
            losses,
            excerpt=excerpt,
            tokens=words[:-1],
            targets=words[1:],
            name=name,
        )
    finally:
        model.train(training)


def _stretch(text: Tokens, most: int | None) -> NDArray[np.int64]:
    ids = text.ids
    if text.offsets is not None:
        longest = int(np.argmax(np.diff(text.offsets)))
        ids = ids[text.offsets[longest] : text.offsets[longest + 1]]
    if len(ids) < 2:
        raise CorpusError(
            f"the text has {len(ids)} token{'s' * (len(ids) != 1)}; at least 2 are needed, "
            "because the first is not predicted"
        )
    found: NDArray[np.int64] = ids[: None if most is None else most + 1].astype(np.int64)
    return found


def _words(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    """Yield each token as it reads, or as the vocabulary spells it if it reads as nothing."""
    if tokenizer.level in ("word", "whitespace"):
        yield from map(tokenizer.token, ids)
    else:
        for token, piece in zip(ids, tokenizer.decode_stream(ids), strict=False):
            yield piece or tokenizer.token(token)
