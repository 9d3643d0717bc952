"""Text drawn from a model, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from bptt._src.data.decoding import as_read
from bptt._src.data.tokens import as_encoded
from bptt._src.stepping import SingleSteps, has_hooks, takes
from bptt.errors import BpttWarning, ConfigError, spelled

AT_ONCE = 64  # random numbers drawn in one call

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
    generator = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    never = np.array([i for i in (tokenizer.unknown, tokenizer.start) if i is not None], np.intp)
    first = [first_token(model)]
    # A stream's prompt follows a line end; a sentence's its start.
    tokens, chosen, after = [*first, *given], 0, _after(model)
    numbers: list[float] = []
    training = model.training
    model.eval()
    try:
        for left in range(length, 0, -1):
            logits = after.text(tokens) if tokens else after.token(chosen)
            logits[never] = -np.inf
            if temperature and not numbers:
                numbers = torch.rand(
                    min(left, AT_ONCE), dtype=torch.float64, generator=generator, device="cpu"
                ).tolist()[::-1]
            number = numbers.pop() if temperature else 0.0
            chosen = choose(logits, number, temperature, top_k, top_p)
            yield chosen
            tokens = first if chosen == tokenizer.end else []
    finally:
        model.train(training)


class _After:
    """The logits of the token after a text, which grows token by token; on the CPU, float32."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: Any = None

    def text(self, tokens: list[int]) -> NDArray[np.float32]:
        """Read a text from its beginning."""
        self.state = None
        return self._by_modules(tokens)

    def token(self, token: int) -> NDArray[np.float32]:
        """Read one token more; may overwrite what was returned before."""
        return self._by_modules([token])

    @torch.inference_mode()
    def _by_modules(self, tokens: list[int]) -> NDArray[np.float32]:
        inputs = torch.tensor(tokens, device=self.model.embedding.weight.device).unsqueeze(1)
        h, self.state = self.model.hidden(inputs, self.state)
        logits: Tensor = self.model.readout(h[-1, 0])
        return logits.float().cpu().numpy()


class _Quickly(_After):
    """The same, up to rounding in the readout, for modules that are no more than parameters."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        table, readout = model.embedding.weight.detach(), cast(nn.Linear, model.readout)
        self.rows = table.view(len(table), 1, 1, -1)
        self.weight, self.bias = readout.weight.detach(), readout.bias.detach()
        self.logits = torch.empty_like(self.bias)
        self.found = self.logits.numpy()

    def text(self, tokens: list[int]) -> NDArray[np.float32]:
        logits = super().text(tokens)
        self.step = SingleSteps(self.model.recurrent, self.state)
        self.hidden = self.step.output.view(-1)
        return logits

    def token(self, token: int) -> NDArray[np.float32]:
        self.step(self.rows[token])
        torch.addmv(self.bias, self.weight, self.hidden, out=self.logits)
        return self.found


def _after(model: LanguageModel) -> _After:
    """Choose what computes the logits."""
    parts = model.embedding, model.readout
    is_plain = tuple(map(type, parts)) == (nn.Embedding, nn.Linear)
    is_plain = is_plain and model.embedding.weight.dtype is torch.float32
    is_plain = is_plain and takes(model.recurrent) and not any(map(has_hooks, parts))
    return _Quickly(model) if is_plain else _After(model)


def first_token(model: LanguageModel) -> int:
    """Return the token before a text: the start of a sentence, or the end of a line."""
    if model.tokenizer.start is not None and model.config.reading != "stream":
        return model.tokenizer.start
    found = [i for i in model.tokenizer.encode("\n") if i != model.tokenizer.unknown]
    return found[0] if found else 0


def choose(
    logits: Float32[np.ndarray, " vocabulary"],
    number: float,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Choose a token by a random number: the first one up to which there is more probability.

    Top-p keeps the smallest set of likeliest tokens whose probabilities reach p: A. Holtzman et
    al., "The curious case of neural text degeneration", ICLR 2020.

    Args:
        logits: of each token, [V].
        number: drawn uniformly from [0, 1).
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_k: choose from the k likeliest tokens.
        top_p: choose from the likeliest tokens whose probabilities sum to p.

    Raises:
        RuntimeError: a logit is nan or inf, or all are -inf.

    >>> choose(np.array([0, 2, 1], np.float32), 0.5)
    1
    """
    most = logits.max()
    if not -np.inf < most < np.inf:
        raise RuntimeError(
            f"the largest logit of the next token is {most}: no token can be drawn; the model's "
            "weights, or what it computed from them, are not finite"
        )
    if temperature == 0:
        return int(logits.argmax())
    # Relative to the largest logit, and in double precision like the temperature, so that the
    # smallest temperature gives 0 and -inf, and the largest zeros.
    p = logits.astype(np.float64)
    p -= most
    if temperature != 1:
        with np.errstate(over="ignore"):
            p /= temperature
    if top_k is not None and top_k < len(p):
        _keep_largest(p, top_k)
    np.exp(p, out=p)
    if top_p is not None:
        order = (-p).argsort(kind="stable")
        within = p[order].cumsum()
        p[order[1:][within[:-1] >= top_p * within[-1]]] = 0
    below = p.cumsum()
    return int(below.searchsorted(number * below[-1], side="right"))


def _keep_largest(x: NDArray[np.float64], k: int) -> None:
    """Set all but the k largest values to -inf; of equal ones the first count as larger."""
    least = np.partition(x, -k)[-k]
    equal = np.flatnonzero(x == least)
    x[equal[k - int((x > least).sum()) :]] = -np.inf
    x[x < least] = -np.inf
