"""Check the reach that a gradient flow suggests against the true one, on trained networks.

    python benchmarks/suggested_reach.py [--tasks text copy ...] [--cells RNN LSTM ...] [--seeds 0]
                                         [--biases 0.3 0.1 0.03] [--updates N]

Trains small networks, of each kind of cell, on text and on tasks that ask for something seen long
ago: copies, an addition, an echo, lines that end with a name from their beginning. Measures the
gradient flow of a fresh batch with ``bptt.gradient_flow``, asks for a truncation of each bias, and
measures by ``bptt.estimator_error`` the bias of ``Truncated(every=K, reach=2K)``: at the K that
the norms alone would suggest (``flow.truncation.estimate``), at the suggested K, which was
checked on the same batch, and once more on another batch of the same kind. "least K" is the first
K that keeps the bias. It takes about ten minutes on one core.

"ratio" is the measured bias divided by the requested one. "solved" is the loss relative to that of
a model that remembers nothing; well below 1 the network remembers.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import random
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import bptt
from bptt._src.flow.truncation import estimate
from bptt.data import IGNORED, make_task

LENGTH, BATCH, HIDDEN = 80, 16, 48
KINDS = {"RNN": ("RNN", 1), "GRU": ("GRU", 1), "LSTM": ("LSTM", 1), "LSTM2": ("LSTM", 2)}


class Model(nn.Module):
    """A recurrent layer, or two, and a readout."""

    takes_carry = True

    def __init__(self, cell: str, inputs: int, outputs: int, layers: int, longest: int) -> None:
        super().__init__()
        self.recurrent = getattr(bptt, cell)(inputs, HIDDEN, layers)
        self.readout = nn.Linear(HIDDEN, outputs)
        if cell == "RNN":
            bptt.init.orthogonal_(self.recurrent)
        elif longest:
            bptt.init.chrono_(self.recurrent, longest=longest)
        else:
            bptt.init.forget_bias_(self.recurrent)

    def forward(self, x: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Any]:
        h, state = self.recurrent(x, state, **how)
        return self.readout(h), state


class Symbols:
    """What all data here have in common: one-hot symbols, or inputs as they are."""

    rate, updates, baseline, longest, looks = 0.005, 1000, 1.0, LENGTH, 1

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        """The loss of each step and sequence, [T, B]; 0 where nothing is asked."""
        found = cross_entropy(
            y.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        return found.view_as(targets)


class Text(Symbols):
    """Characters of Python's own documentation."""

    inputs = outputs = 128
    updates, baseline, longest = 300, 3.1, 0

    def __init__(self) -> None:
        text = "".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore")
        self.text = torch.tensor(list(text))

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(len(self.text) - LENGTH - 1, (BATCH,), generator=generator)
        symbols = self.text[at + torch.arange(LENGTH + 1).unsqueeze(1)]
        return one_hot(symbols[:-1], 128).float(), symbols[1:]


class Echo(Symbols):
    """Echo random symbols, each a certain number of steps later."""

    inputs = outputs = 4
    lag, baseline, updates = 8, 1.386, 2000

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(4, (LENGTH, BATCH), generator=generator)
        targets = torch.full_like(symbols, IGNORED)
        targets[self.lag :] = symbols[: -self.lag]
        return one_hot(symbols, 4).float(), targets


class Lines(Symbols):
    """Lines of words whose last one is a name from their beginning; every word is predicted."""

    names, words = 10, 30
    inputs = outputs = names + words + 9
    updates, rate, baseline, longest, looks = 9000, 0.003, 2.303, 0, 5

    def line(self, rng: random.Random, fill: int) -> list[int]:
        a, b = rng.sample(range(self.names), 2)
        opened, came, smiled = (
            [self.names + self.words + i + k for k in range(3)] for i in (0, 3, 6)
        )
        filler = [self.names + i for i in range(fill)]
        return [a, *opened, b, *came, *filler, a, *smiled, b]

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        fill = rng.choice([0, 3, 6, 10, 15, 20, 25, 30])
        return self.of([self.line(rng, fill) for _ in range(BATCH)])

    def look(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One of the longest lines."""
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        return self.of([self.line(rng, 30)])

    def of(self, lines: list[list[int]]) -> tuple[Tensor, Tensor]:
        symbols = torch.tensor(lines).t()
        return one_hot(symbols[:-1], self.inputs).float(), symbols[1:]

    def asked(self, y: Tensor, targets: Tensor) -> Tensor:
        """The loss of the name at the end."""
        return self.losses(y, targets)[-1, 0]


class Task(Symbols):
    """A task of :data:`bptt.data.TASKS`."""

    def __init__(
        self, name: str, updates: int = 1500, longest: int = LENGTH, **options: Any
    ) -> None:
        self.task = make_task(name, batch_size=BATCH, **options)
        self.inputs, self.outputs = self.task.inputs, self.task.outputs
        self.updates, self.longest, self.baseline = updates, longest, self.task.baseline

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = self.task.batch(generator)
        return batch.inputs, batch.targets

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            return super().losses(y, targets)
        asked = targets != IGNORED
        return torch.where(asked, (y.squeeze(2) - targets).square(), 0.0)


PROBLEMS = {
    "text": Text,
    "copy stream": lambda: Task("copy-stream", longest=0),
    "copy": lambda: Task("copy", lag=25, symbols=2),
    "adding": lambda: Task("adding", length=50, updates=2500),
    "echo": Echo,
    "lines": Lines,
}


def train(data: Any, cell: str, layers: int, updates: int, seed: int) -> Model:
    torch.manual_seed(seed)
    model = Model(cell, data.inputs, data.outputs, layers, data.longest)
    optimizer = torch.optim.Adam(model.parameters(), lr=data.rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        x, targets = data.batch(generator)
        optimizer.zero_grad()
        mean(data.losses(model(x)[0], targets), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def mean(losses: Tensor, targets: Tensor) -> Tensor:
    return losses.sum() / (targets != IGNORED).sum()


def look(
    model: Model, data: Any, biases: list[float], generator: torch.Generator
) -> list[tuple[Any, ...]]:
    """For each bias: K estimated, its bias, K suggested, its bias here and elsewhere, least K."""
    draw = getattr(data, "look", data.batch)
    batches = [draw(generator), draw(generator)]
    known: dict[tuple[int, int], float] = {}

    def measured(which: int, K: int) -> float:
        if (which, K) not in known:
            x, targets = batches[which]
            known[which, K] = bptt.estimator_error(
                model.recurrent,
                x,
                lambda h: data.losses(model.readout(h), targets).sum(),
                bptt.Truncated(every=K, reach=2 * K),
            ).total.bias
        return known[which, K]

    x, targets = batches[0]
    flow = bptt.gradient_flow(
        model.recurrent,
        x,
        lambda h: data.losses(model.readout(h), targets),
        attribution=False,
        dynamics=False,
    )
    found = []
    for bias in biases:
        guess = estimate(flow, bias) or len(x)
        K = flow.suggest_truncation(bias) or len(x)
        least = next(k for k in range(1, len(x) + 1) if measured(0, k) <= bias)
        found.append((bias, guess, measured(0, guess), K, measured(0, K), measured(1, K), least))
    return found


def solved(model: Model, data: Any) -> float:
    with torch.no_grad():
        if hasattr(data, "asked"):
            generator = torch.Generator().manual_seed(7)
            lines = [data.look(generator) for _ in range(50)]
            return sum(float(data.asked(model(x)[0], t)) for x, t in lines) / 50 / data.baseline
        x, targets = data.batch(torch.Generator().manual_seed(7))
        return float(mean(data.losses(model(x)[0], targets), targets)) / data.baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--cells", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--biases", type=float, nargs="+", default=[0.3, 0.1, 0.03])
    parser.add_argument("--updates", type=int, help="of training (default: the task's own)")
    given = parser.parse_args()
    print(
        f"{'':28} {'solved':>6} {'bias':>5} | {'est.':>4} {'bias':>6} | {'K':>3} {'bias':>6} "
        f"{'ratio':>5} | {'other':>6} {'ratio':>5} | {'least K':>7}"
    )
    worst = {"estimated": 0.0, "suggested": 0.0, "suggested, on another batch": 0.0}
    for name, kind, seed in product(given.tasks, given.cells, given.seeds):
        data, (cell, layers) = PROBLEMS[name](), KINDS[kind]
        model = train(data, cell, layers, given.updates or data.updates, seed)
        share, what = solved(model, data), f"{name}, {layers} × {cell}, seed {seed}"
        generator = torch.Generator().manual_seed(99)
        rows = [look(model, data, given.biases, generator) for _ in range(data.looks)]
        for bias, guess, of_guess, K, here, other, least in (
            row for found in rows for row in found
        ):
            for key, value in zip(worst, (of_guess, here, other), strict=True):
                worst[key] = max(worst[key], value / bias)
            print(
                f"{what:28} {share:6.2f} {bias:5} | {guess:4} {of_guess:6.3f} | {K:3} {here:6.3f} "
                f"{here / bias:5.2f} | {other:6.3f} {other / bias:5.2f} | {least:7}",
                flush=True,
            )
    for key, value in worst.items():
        print(f"The largest ratio of the bias measured to the one asked for, {key}: {value:.2f}")


if __name__ == "__main__":
    main()
