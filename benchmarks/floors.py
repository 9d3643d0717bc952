"""Measure what bounds the cases in which bptt is not far ahead.

    python benchmarks/floors.py [--threads 1] [--rounds 300]

Small training steps: the time of a forward and a backward pass, beside torch.nn's layer and cell,
and beside an autograd function in Python that has as many inputs, outputs and gradients and
computes nothing. The update of a language model with a large vocabulary and few tokens: its time,
and that of its readout, loss and Adam's pass over the readout alone, which no gain in the embedding
shortens. The gradient flow of a long excerpt: its seconds, and those that the products of its step
matrices take at the processor's peak.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt._src.bench.models import tokenizer_of
from bptt._src.bench.processor import measure_limits
from bptt._src.language_model.setup import make_optimizer
from bptt._src.language_model.step import TrainingStep
from bptt.language_model import Config, LanguageModel

SMALL = ("RNN 20/1/100/100", "LSTM 20/1/100/100", "RNN 1/1/104/167", "LSTM 1/1/64/64")


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(of[len(of) // 10 :]) for name, of in seconds.items()}


class Nothing(torch.autograd.Function):
    """As many inputs, outputs and gradients as a layer has, and no computation."""

    @staticmethod
    def forward(ctx: Any, steps: int, size: int, *given: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*given)
        return torch.empty(steps, 1, size), torch.empty(1, size)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        return None, None, *(torch.empty_like(given) for given in ctx.saved_tensors)


def small(case: str, rounds: int) -> str:
    name, sizes = case.split()
    steps, batch, inputs, hidden = (int(n) for n in sizes.split("/"))
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    ours, torchs = (getattr(of, name)(inputs, hidden) for of in (bptt, nn))
    cell = getattr(nn, f"{name}Cell")(inputs, hidden)
    grad = torch.randn(steps, batch, hidden)

    def step(of: Callable[[], Tensor], *parameters: Tensor) -> Callable[[], None]:
        def run() -> None:
            for p in (x, *parameters):
                p.grad = None
            out = of()
            out.backward(grad if out.dim() == 3 else grad[0])

        return run

    calls = {
        "ours": step(lambda: ours(x)[0], *ours.parameters()),
        "torch": step(lambda: torchs(x)[0], *torchs.parameters()),
        "empty": step(lambda: Nothing.apply(steps, hidden, x, *cell.parameters())[0],
                      *cell.parameters()),
    }  # fmt: skip
    if steps == 1:
        calls["cell"] = step(
            lambda: cell(x[0])[0] if name == "LSTM" else cell(x[0]), *cell.parameters()
        )
    found = medians(calls, rounds)
    return ", ".join(f"{who} {1e6 * s:.0f} us" for who, s in found.items())


def few_tokens(rounds: int, words: int = 10_000, hidden: int = 200) -> str:
    """Updates with Adam of a language model at B = 1, T = 10."""
    config = Config(cell="lstm", layers=1, hidden=hidden, optimizer="adam")
    batches = [torch.randint(words, (2, 10, 1)) for _ in range(16)]
    calls: dict[str, Callable[[], Any]] = {}
    for rows in ("all", "used"):
        model = LanguageModel(tokenizer_of(words), replace(config, embedding_rows=rows))
        step = TrainingStep(model, make_optimizer(config, list(model.parameters())), 1.0, None)
        calls[f"rows={rows}"] = partial(_update, step, cycle(batches))
    table, layer, readout = (
        nn.Embedding(words, hidden), nn.LSTM(hidden, hidden), nn.Linear(hidden, words)
    )  # fmt: skip
    parameters = [p for part in (table, layer, readout) for p in part.parameters()]
    plain = torch.optim.Adam(parameters, fused=True)
    alone = torch.optim.Adam(readout.parameters(), fused=True)
    h = torch.randn(10, 1, hidden, requires_grad=True)
    given = cycle(batches)

    def torchs() -> None:
        inputs, targets = next(given)
        plain.zero_grad()
        logits = readout(layer(table(inputs))[0])
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        plain.step()

    def readout_alone() -> None:
        alone.zero_grad()
        bptt.losses.linear_cross_entropy(h, readout.weight, readout.bias, batches[0][1]).backward()
        alone.step()

    found = medians({**calls, "torch": torchs, "readout alone": readout_alone}, rounds)
    return ", ".join(f"{who} {1e3 * s:.2f} ms" for who, s in found.items())


def _update(step: TrainingStep, batches: Iterator[Tensor]) -> None:
    step(*next(batches), bptt.Stream(), 1e-3)


def long_flow(steps: int = 500, batch: int = 8, hidden: int = 512) -> str:
    """All pairs of an LSTM: a gradient goes back from h to h and to c, by two matrices [H, H]."""
    lstm, x = bptt.LSTM(hidden, hidden), torch.randn(steps, batch, hidden)
    begun = time.perf_counter()
    bptt.gradient_flow(lstm, x)
    took = time.perf_counter() - begun
    flop = 2 * 2 * batch * (steps * (steps + 1) // 2) * hidden**2
    peak = measure_limits(0.5).peak
    least = "" if peak is None else f", at the processor's peak {flop / peak / 1e9:.1f} s"
    return f"{took:.1f} s, of {flop / 1e12:.2f} TFLOP in products{least}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for case in SMALL:
        print(f"{case}: {small(case, args.rounds)}", flush=True)
    print(f"10000/200/1/10, Adam: {few_tokens(args.rounds)}", flush=True)
    print(f"gradient_flow LSTM 500/8/512/512: {long_flow()}", flush=True)


if __name__ == "__main__":
    main()
