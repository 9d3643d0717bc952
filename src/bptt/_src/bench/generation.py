"""Language models that write and that read a text, beside the same in torch alone."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bptt._src.bench.models import AGREES, Ours, PlainModel, words
from bptt._src.bench.result import OURS, TORCH, Row
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace, take_turns, timed
from bptt._src.language_model.evaluation import evaluate
from bptt._src.language_model.sampling import first_token
from bptt.data import Tokens
from bptt.language_model import LanguageModel

READ = 4000  # tokens of a text


class CellWriter(nn.Module):
    """A loop over nn.LSTMCell that writes: one token a time, from its own output.

    Args:
        like: the model whose weights it takes.
        shape: of that model.
    """

    def __init__(self, like: LanguageModel, shape: ModelShape) -> None:
        super().__init__()
        V, H = shape.vocabulary, shape.hidden
        self.embedding, self.readout = nn.Embedding(V, H), nn.Linear(H, V)
        self.cells = nn.ModuleList(nn.LSTMCell(H, H) for _ in range(shape.layers))
        layer = re.compile(r"recurrent\.(.+)_l(\d+)")
        weights = like.state_dict().items()
        self.load_state_dict({layer.sub(r"cells.\2.\1", name): w for name, w in weights})
        self.first = first_token(like)
        tokenizer = like.tokenizer
        self.never = [i for i in (tokenizer.unknown, tokenizer.start) if i is not None]

    @torch.inference_mode()
    def write(self, length: int, *, draws: bool = True) -> list[int]:
        """Return the numbers of so many tokens, drawn, or the likeliest ones that are words."""
        token = torch.tensor([self.first])
        states: list[Any] = [None] * len(self.cells)
        found = []
        for _ in range(length):
            h = self.embedding(token)
            for number, cell in enumerate(self.cells):
                states[number] = cell(h, states[number])
                h = states[number][0]
            token = self._draw(self.readout(h), draws)
            found.append(int(token))
        return found

    def _draw(self, logits: Tensor, draws: bool) -> Tensor:
        if draws:
            return torch.multinomial(logits.softmax(-1), 1).squeeze(1)
        logits[:, self.never] = -math.inf
        return logits.argmax(-1)


def measure_writing(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time a model that writes, beside a loop over nn.LSTMCell with its weights.

    Before, both write their likeliest tokens, which have to be the same.

    Args:
        shape: of the model, and how many tokens it writes a time.
        effort: how much.
        pace: how to stop.
    """
    torch.manual_seed(0)
    model = Ours(shape).model
    loop = CellWriter(model, shape)

    def write(**options: Any) -> str:
        return "".join(model.sample_stream(length=shape.steps, **options))

    likeliest = model.tokenizer.decode(loop.write(shape.steps, draws=False))
    notes = []
    if write(temperature=0).strip() != likeliest.strip():
        notes.append(f"{shape.name} {shape}: bptt and torch.nn DO NOT WRITE THE SAME")
    steps = {
        OURS: lambda: timed(write),
        TORCH: lambda: timed(lambda: loop.write(shape.steps)),
    }
    times = take_turns(steps, effort, pace)
    return Row("sampling", shape.name, str(shape), None, times, notes, shape.steps)


def measure_reading(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time the evaluation of a model, beside the same in torch alone.

    Args:
        shape: of the model, into how many streams the text is cut, and the windows of each.
        effort: how much.
        pace: how to stop.
    """
    torch.manual_seed(0)
    model = Ours(shape).model
    plain = PlainModel(shape)
    plain.load_state_dict(model.state_dict())
    ids = words(np.random.default_rng(1), shape.vocabulary, READ + 1).astype(np.uint32)
    text = Tokens(ids, None, len(ids), len(ids), 0)
    losses: dict[str, float] = {}

    def ours() -> None:
        losses[OURS] = evaluate(model, text, steps=shape.steps, streams=shape.batch).loss

    def torchs() -> None:
        losses[TORCH] = _read(plain, torch.from_numpy(ids.astype(np.int64)), shape)

    times = take_turns({OURS: lambda: timed(ours), TORCH: lambda: timed(torchs)}, effort, pace)
    agree = math.isclose(losses[OURS], losses[TORCH], rel_tol=AGREES)
    note = (
        f"{shape.name} {shape}: the loss of {READ:,} tokens is {losses[OURS]:.5f}, in torch.nn "
        f"{losses[TORCH]:.5f}: they {'agree' if agree else 'DO NOT AGREE'}"
    )
    return Row("evaluation", shape.name, str(shape), None, times, [note], READ, losses)


@torch.inference_mode()
def _read(model: PlainModel, ids: Tensor, shape: ModelShape) -> float:
    """Return the mean loss of streams side by side, their states carried from window to window."""
    inputs, targets = (part.view(shape.batch, -1).t() for part in (ids[:-1], ids[1:]))
    nats, state = 0.0, None
    for window, following in zip(
        inputs.split(shape.steps), targets.split(shape.steps), strict=True
    ):
        h, state = model.recurrent(model.embedding(window), state)
        logits = model.readout(h).flatten(0, 1)
        nats += float(cross_entropy(logits, following.flatten(), reduction="sum"))
    return nats / inputs.numel()
