"""Text drawn from a model, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.data.decoding import as_read
from bptt._src.data.tokens import as_encoded
from bptt.errors import BpttWarning, ConfigError, spelled

if TYPE_CHECKING:
    from bptt._src.language_model.model import LanguageModel


def sample_stream(
    model: LanguageModel,
    prompt: str = "",
    *,
    length: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Continue a prompt piece by piece; see :meth:`LanguageModel.sample`.

    Raises:
        ConfigError: an option is out of range; raised at once, not at the first piece.
    """
    if length < 0:
        raise ConfigError(f"{spelled('length')} must be at least 0, got {length}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"{spelled('temperature')} must be at least 0 and finite, got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ConfigError(f"{spelled('top_k')} must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"{spelled('top_p')} must be above 0 and at most 1, got {top_p}")
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"{spelled('seed')} must be at least 0 and below 2**63, got {seed}")
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None and temperature == 0:
            raise ConfigError(
                f"{spelled(name, value)} has no effect with {spelled('temperature', 0)}, which "
                f"always takes the likeliest token: leave {spelled(name)} out"
            )
    given = model.tokenizer.encode(_prepared(prompt, model.config.reading))
    if model.tokenizer.unknown in given:
        warnings.warn(
            f"{given.count(model.tokenizer.unknown)} of the prompt's {len(given)} tokens are not "
            "in the vocabulary: the model reads <unk> there",
            BpttWarning,
            stacklevel=3,
        )
    drawn = _draw(model, given, length, temperature, top_k, top_p, seed)

    def ids() -> Iterator[int]:
        yield from given
        yield from drawn

    return _readable(model, ids())


def _prepared(prompt: str, reading: str) -> str:
    """Prepare a prompt as the text of a file is, except for a space at its end."""
    prompt = as_read(prompt)
    if reading != "sentences":
        return prompt
    prompt = prompt.lstrip()
    return as_encoded(prompt, reading) + " " * prompt[-1:].isspace()


def _readable(model: LanguageModel, ids: Iterator[int]) -> Iterator[str]:
    """Decode; each sentence that ends is followed by a line end and the next sentence."""
    for is_end, part in groupby(ids, lambda i: i == model.tokenizer.end):
        if is_end:
            yield "\n" * sum(1 for _ in part)
        else:
            yield from model.tokenizer.decode_stream(part)


def _draw(
    model: LanguageModel,
    given: list[int],
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> Iterator[int]:
    tokenizer = model.tokenizer
    device = model.embedding.weight.device
    generator = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    never = [i for i in (tokenizer.unknown, tokenizer.start) if i is not None]
    first = [first_token(model)]
    # A stream's prompt follows a line end; a sentence's its start.
    tokens, state = [*first, *given], None
    training = model.training
    model.eval()
    try:
        for _ in range(length):
            with torch.inference_mode():
                inputs = torch.tensor(tokens, device=device).unsqueeze(1)
                h, state = model.hidden(inputs, state)
                logits = model.readout(h[-1, 0]).float()
                logits[never] = -torch.inf
                chosen = choose(logits, temperature, top_k, top_p, generator)
            yield chosen
            tokens = [chosen]
            if chosen == tokenizer.end:
                tokens, state = first, None
    finally:
        model.train(training)


def first_token(model: LanguageModel) -> int:
    """Return the token before a text: the start of a sentence, or the end of a line."""
    if model.tokenizer.start is not None:
        return model.tokenizer.start
    found = [i for i in model.tokenizer.encode("\n") if i != model.tokenizer.unknown]
    return found[0] if found else 0


def choose(
    logits: Float[Tensor, " vocabulary"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Draw a token number, on the CPU and by its generator, whatever the logits' device.

    Top-p keeps the smallest set of likeliest tokens whose probabilities reach p: A. Holtzman et
    al., "The curious case of neural text degeneration", ICLR 2020.

    >>> choose(torch.tensor([0.0, 2.0, 1.0]), temperature=0)
    1
    """
    if temperature == 0:
        return int(logits.argmax())
    # Relative to the largest logit, and in double precision like the temperature, so that the
    # smallest temperature gives 0 and -inf, and the largest zeros. Not all devices have doubles.
    logits = logits.detach().cpu().double()
    logits = (logits - logits.max()) / temperature
    values, order = logits.sort(descending=True, stable=True)
    p = values.softmax(-1)
    if top_k is not None:
        p[top_k:] = 0
    if top_p is not None:
        p /= p.sum()
        before = p.cumsum(-1) - p
        p[before >= top_p] = 0
    return int(order[torch.multinomial(p, 1, generator=generator)])
