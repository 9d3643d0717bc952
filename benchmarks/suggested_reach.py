"""Is the reach that a gradient flow suggests the right one? On trained models, beside the truth.

    python benchmarks/suggested_reach.py [--seeds 0 1] [--updates 30 300] [--biases 0.3 0.1 0.03]

Trains small networks, of each kind of cell, on text and on synthetic tasks; follows the gradient of
a fresh batch with ``bptt.gradient_flow``, asks ``suggest_truncation(bias)`` for K, and measures by
``bptt.estimator_error`` the bias that ``Truncated(every=K, reach=2K)`` really has there, and the
least K that keeps it. It takes about two minutes on one core.

"ratio" is the bias measured divided by the one asked for: below 1 the suggestion is on the safe
side, from 1 to 2 it is within a factor of two.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import bptt
from bptt.data.tasks import make_task

LENGTH, BATCH = 80, 16


class Model(nn.Module):
    """A recurrent layer, or two, and a readout."""

    takes_carry = True

    def __init__(self, cell: str, inputs: int, hidden: int, outputs: int, layers: int = 1) -> None:
        super().__init__()
        self.recurrent = getattr(bptt, cell)(inputs, hidden, layers)
        self.readout = nn.Linear(hidden, outputs)
        if cell != "RNN":
            bptt.init.forget_bias_(self.recurrent)

    def forward(self, x: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Any]:
        h, state = self.recurrent(x, state, **how)
        return self.readout(h), state


class Text:
    """Characters of Python's own documentation."""

    inputs = outputs = 128
    rate = 0.005

    def __init__(self) -> None:
        text = "".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore")
        self.text = torch.tensor(list(text))

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(len(self.text) - LENGTH - 1, (BATCH,), generator=generator)
        symbols = self.text[at + torch.arange(LENGTH + 1).unsqueeze(1)]
        return one_hot(symbols[:-1], 128).float(), symbols[1:]


class Synthetic:
    """A task of :mod:`bptt.data.tasks`."""

    rate = 0.01

    def __init__(self, name: str, **options: Any) -> None:
        self.task = make_task(name, **options)
        self.inputs, self.outputs = self.task.inputs, self.task.outputs

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = self.task.batch(generator)
        return batch.inputs, batch.targets


def losses(y: Tensor, targets: Tensor) -> Tensor:
    """The loss of each step and sequence, [T, B]; 0 where nothing is asked."""
    return cross_entropy(y.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def train(data: Any, cell: str, layers: int, updates: int, seed: int) -> Model:
    torch.manual_seed(seed)
    model = Model(cell, data.inputs, 48, data.outputs, layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=data.rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        x, targets = data.batch(generator)
        optimizer.zero_grad()
        losses(model(x)[0], targets).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def look(model: Model, data: Any, biases: list[float]) -> list[tuple[float, int, float, int]]:
    """For each bias: asked for, K suggested, measured there, and the least K that keeps it."""
    x, targets = data.batch(torch.Generator().manual_seed(99))
    readout = model.readout
    flow = bptt.gradient_flow(
        model.recurrent, x, lambda h: losses(readout(h), targets), credit=False, dynamics=False
    )
    parameters = {"recurrent." + k: p for k, p in model.recurrent.named_parameters()}
    known: dict[int, float] = {}

    def measured(K: int) -> float:
        if K not in known:
            known[K] = bptt.estimator_error(
                model,
                x,
                lambda y: losses(y, targets).mean(),
                bptt.Truncated(every=K, reach=2 * K),
                parameters=parameters,
            ).total.bias
        return known[K]

    found = []
    for bias in biases:
        K = flow.suggest_truncation(bias) or len(x)
        least = next(k for k in range(1, len(x) + 1) if measured(k) <= bias)
        found.append((bias, K, measured(K), least))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--updates", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--biases", type=float, nargs="+", default=[0.3, 0.1, 0.03])
    given = parser.parse_args()
    problems = {
        "text": Text(),
        "copy stream": Synthetic("copy-stream"),
        "copy": Synthetic("copy", lag=15, symbols=2),
    }
    print(f"{'':36} {'bias':>5} {'K':>4} {'measured':>9} {'ratio':>6} {'least K':>8}")
    worst = 0.0
    kinds = [("RNN", 1), ("GRU", 1), ("LSTM", 1), ("LSTM", 2)]
    for (name, data), (cell, layers), updates, seed in product(
        problems.items(), kinds, given.updates, given.seeds
    ):
        model = train(data, cell, layers, updates, seed)
        for bias, K, measured, least in look(model, data, given.biases):
            worst = max(worst, measured / bias)
            what = f"{name}, {layers} × {cell}, {updates} updates, {seed}"
            ratio = measured / bias
            print(f"{what:36} {bias:5} {K:4} {measured:9.4f} {ratio:6.2f} {least:8}", flush=True)
    print(f"The largest ratio is {worst:.2f}.")


if __name__ == "__main__":
    main()
