"""A whole training step of a language model: bptt's own, and the same written plainly in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bptt import Stream
from bptt._src.bench.layers import autocast
from bptt._src.bench.result import IN_BF16, OURS, TORCH, Row
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace, take_turns, timed
from bptt._src.language_model.gradient_sum import Share
from bptt._src.language_model.job import Job
from bptt._src.language_model.setup import make_optimizer
from bptt._src.language_model.step import TrainingStep
from bptt.data import Tokenizer
from bptt.language_model import Config, LanguageModel

BATCHES = 16  # that are trained on in turn
AGREES = 1e-4
"""How far the losses may be apart after the first updates, relatively."""
AGREES_BF16 = 1e-3
"""The same in bfloat16."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, both [T, B]."""
Update = Callable[[Tensor, Tensor], float]
"""Trains on inputs and targets; gives the loss in nats a token."""


class Ours:
    """bptt's language model in training.

    Args:
        shape: of the model and its windows.
        carried: whether each update goes on from the state where the one before it ended.
        job: the processes that share each batch; alone by default.
        bf16: whether products are of bfloat16, as by ``bptt train --precision bf16``.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        carried: bool = True,
        job: Job | None = None,
        bf16: bool = False,
    ) -> None:
        config = Config(
            cell=shape.cell,
            layers=shape.layers,
            hidden=shape.hidden,
            optimizer="sgd",
            learning_rate=shape.rate,
            clip=shape.clip or 0.0,
        )
        self.model = LanguageModel(tokenizer_of(shape.vocabulary), config)
        optimizer = make_optimizer(config, list(self.model.parameters()))
        self.step = TrainingStep(self.model, optimizer, config.clip, job)
        self.rate, self.carried, self.bf16 = shape.rate, carried, bf16
        self.stream = Stream()

    def __call__(self, inputs: Tensor, targets: Tensor, share: Share | None = None) -> float:
        """Make an update, the one that ``bptt train`` makes; give its loss."""
        taken = self.step(inputs, targets, self.stream, self.rate, share, bf16=self.bf16)
        self.stream = taken.stream if self.carried else Stream()
        return taken.loss


class PlainModel(nn.Module):
    """The same model in torch alone; its output is the loss, and the state after it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        V, H = shape.vocabulary, shape.hidden
        kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[shape.cell]
        self.embedding = nn.Embedding(V, H)
        self.recurrent = kind(H, H, num_layers=shape.layers)
        self.readout = nn.Linear(H, V)

    def forward(self, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Compute the mean loss of windows that begin with a state."""
        h, state = self.recurrent(self.embedding(inputs), state)
        return cross_entropy(self.readout(h).flatten(0, 1), targets.flatten()), state


class Plain:
    """That model in training.

    Args:
        like: whose initial weights it takes.
        shape: as for :class:`Ours`.
        carried: as for :class:`Ours`.
        wrap: makes of the model the module that is called.
        bf16: whether the forward pass runs under autocast to bfloat16.
    """

    def __init__(
        self,
        like: LanguageModel,
        shape: ModelShape,
        *,
        carried: bool = True,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        bf16: bool = False,
    ) -> None:
        model = PlainModel(shape)
        model.load_state_dict(like.state_dict())
        self.model = wrap(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=shape.rate, fused=True)
        self.clip, self.carried, self.bf16 = shape.clip, carried, bf16
        self.state: Any = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> float:
        """Make an update; give its loss."""
        self.optimizer.zero_grad()
        with autocast(self.bf16):
            loss, state = self.model(inputs, targets, self.state)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.state = detached(state) if self.carried else None
        return float(loss.detach())


def measure_model(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time a whole training step of a language model.

    The first updates are not timed: after them the losses of both have to agree.

    Args:
        shape: of the model and its windows.
        effort: how much.
        pace: how to stop.
    """
    torch.manual_seed(0)
    ours = Ours(shape)
    updates: dict[str, Update] = {OURS: ours, TORCH: Plain(ours.model, shape)}
    return _measure("model", shape, updates, effort, pace, reference=TORCH, within=AGREES)


def measure_model_in_bf16(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time a training step whose products are of bfloat16, and ours in float32 beside it.

    The arguments are those of :func:`measure_model`.
    """
    torch.manual_seed(0)
    ours, in_bf16 = Ours(shape), Ours(shape, bf16=True)
    in_bf16.model.load_state_dict(ours.model.state_dict())
    plain = Plain(ours.model, shape, bf16=True)
    updates: dict[str, Update] = {IN_BF16[OURS]: in_bf16, IN_BF16[TORCH]: plain, OURS: ours}
    row = _measure("bf16", shape, updates, effort, pace, reference=OURS, within=AGREES_BF16)
    return replace(row, base=IN_BF16[OURS])


def _measure(
    section: str,
    shape: ModelShape,
    updates: Mapping[str, Update],
    effort: Effort,
    pace: Pace,
    *,
    reference: str,
    within: float,
) -> Row:
    """Time updates; before, let each make some, after which the losses have to be near enough."""
    batches = list(synthetic_batches(shape, BATCHES))
    rounds = {name: cycle(batches) for name in updates}
    losses = {n: _loss_after(effort.steps, u, rounds[n], pace) for n, u in updates.items()}
    steps = {n: _timed_updates(u, rounds[n]) for n, u in updates.items()}
    times = take_turns(steps, effort, pace)
    agree = all(math.isclose(a, losses[reference], rel_tol=within) for a in losses.values())
    first, *others = (f"{loss:.5f} in {name}" for name, loss in losses.items())
    note = (
        f"{shape.name} {shape}: after {effort.steps} updates the loss is {first}, "
        f"{' and '.join(others)}: they {'agree' if agree else 'DO NOT AGREE'}"
    )
    tokens = shape.steps * shape.batch
    return Row(section, shape.name, str(shape), shape.flop(), times, [note], tokens, losses)


def _loss_after(count: int, update: Update, batches: Iterator[Batch], pace: Pace) -> float:
    loss = math.nan
    for _ in range(count):
        pace.check()
        loss = update(*next(batches))
    return loss


def _timed_updates(update: Update, batches: Iterator[Batch]) -> Callable[[], float]:
    def step() -> float:
        inputs, targets = next(batches)
        return timed(lambda: update(inputs, targets))

    return step


def synthetic_batches(shape: ModelShape, count: int) -> Iterator[Batch]:
    """Draw windows of a made-up text, the targets one step ahead of the inputs."""
    random = np.random.default_rng(0)
    for _ in range(count):
        ids = torch.from_numpy(words(random, shape.vocabulary, (shape.steps + 1, shape.batch)))
        yield ids[:-1].contiguous(), ids[1:].contiguous()


def words(random: np.random.Generator, vocabulary: int, size: Any) -> Any:
    """Draw words as often as texts have them: the r-th most frequent one 1/r as often."""
    chances = 1 / np.arange(1, vocabulary + 1)
    return random.choice(vocabulary, size, p=chances / chances.sum())


def tokenizer_of(size: int) -> Tokenizer:
    """Make a vocabulary of so many entries; what they are does not matter."""
    letters = "abcdefghij"
    names = ("".join(letters[int(digit)] for digit in str(n)) for n in range(size - 1))
    return Tokenizer.train([" ".join(names)], level="word", vocabulary=size)


def detached(state: Any) -> Any:
    """Cut a state off from its past."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
