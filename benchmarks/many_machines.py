"""Compute where the sum of the gradients bounds training on many machines, for four models.

    python benchmarks/many_machines.py [--threads 1] [--latency 90] [--updates 60]

The sizes and the time of an update in one process, the fastest, are measured; the rest is a model
on paper. N machines sum G bytes in a ring at W bytes/s, with L seconds for each message:

    T(N) = 2 (N - 1) / N * G / W  +  2 (N - 1) * L

after the backward pass: nothing overlaps. What the processors do for the sum, copies and additions,
is left out, so the truth is slower. G holds the rows of the embedding that the whole batch uses, as
many as are expected of words with the frequencies of natural text.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache, partial
from itertools import cycle

import numpy as np
import torch

from bptt._src.bench.models import BATCHES, Ours, synthetic_batches
from bptt._src.bench.shapes import MODELS, ModelShape
from bptt._src.bench.timing import timed

RANKS = [2**n for n in range(1, 11)]
RATES = (10, 100)  # Gbit/s


def size(shape: ModelShape, batch: int) -> float:
    """The bytes of a sum for a batch of so many sequences."""
    table = shape.vocabulary * shape.hidden
    return 4.0 * (numbers(shape) - table + rows(shape, batch) * shape.hidden)


@cache
def numbers(shape: ModelShape) -> int:
    """The parameters of a model."""
    return sum(p.numel() for p in Ours(shape).model.parameters())


def rows(shape: ModelShape, batch: int) -> float:
    """The rows of the embedding that are sent: those expected in the batch, or all."""
    tokens, V = batch * shape.steps, shape.vocabulary
    if tokens >= V:  # bptt train then sends the table, without counting
        return V
    chances = 1 / np.arange(1, V + 1)
    chances /= chances.sum()
    return float((1 - (1 - chances) ** tokens).sum())


def update_seconds(shape: ModelShape, batch: int, updates: int) -> float:
    """The time of the fastest update in one process, on so many sequences."""
    torch.manual_seed(0)
    shape = replace(shape, batch=batch)
    ours, batches = Ours(shape), cycle(list(synthetic_batches(shape, BATCHES)))
    return min(timed(partial(ours, *next(batches))) for _ in range(1 + updates))


def sum_seconds(n: int, size: float, rate: float, latency: float) -> float:
    return 2 * (n - 1) / n * size / (rate * 1e9 / 8) + 2 * (n - 1) * latency


def per_rank(shape: ModelShape, n: int) -> int:
    """The most sequences that one of n ranks has of the model's batch."""
    return -(-shape.batch // n)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of the update that is measured")
    parser.add_argument("--latency", type=float, default=90.0, help="of a message, microseconds")
    parser.add_argument("--updates", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    latency = 1e-6 * given.latency
    alone = {shape: update_seconds(shape, shape.batch, given.updates) for shape in MODELS}

    print("One process; what it would send\n")
    print("| V/H/B/T | update | weights | of them the embedding | a sum |\n|---|---|---|---|---|")
    for shape, seconds in alone.items():
        total, table = size(shape, 10**9), 4 * shape.vocabulary * shape.hidden
        print(
            f"| {shape.name} {shape} | {1e3 * seconds:.1f} ms | {total / 1e6:.1f} MB "
            f"| {table / 1e6:.1f} MB | {size(shape, shape.batch) / 1e6:.2f} MB |"
        )

    print("\nThe same batch for all (strong scaling): how many times as fast as one process\n")
    counts = [n for n in RANKS if n <= max(shape.batch for shape in MODELS)]
    print("| V/H/B/T | Gbit/s | " + " | ".join(map(str, counts)) + " |")
    print("|---|---|" + "---|" * len(counts))
    for shape, seconds in alone.items():
        shares = [per_rank(shape, n) if n <= shape.batch else None for n in counts]
        own = {b: update_seconds(shape, b, given.updates) for b in {*shares} - {None}}
        for rate in RATES:
            cells = []
            for n, b in zip(counts, shares, strict=True):
                if b is None:
                    cells.append("–")
                    continue
                summed = sum_seconds(n, size(shape, shape.batch), rate, latency)
                cells.append(f"{seconds / (own[b] + summed):.1f}")
            print(f"| {shape.name} {shape} | {rate} | " + " | ".join(cells) + " |")

    print("\nThe model's batch for each (weak scaling): the share of time in the sum\n")
    print("| V/H/B/T | Gbit/s | " + " | ".join(f"{n:,}" for n in RANKS) + " | half from |")
    print("|---|---|" + "---|" * (len(RANKS) + 1))
    for shape, seconds in alone.items():
        for rate in RATES:
            of = {
                n: sum_seconds(n, size(shape, n * shape.batch), rate, latency)
                for n in range(2, RANKS[-1] + 1)
            }
            shares = [f"{of[n] / (of[n] + seconds):.0%}".replace("%", " %") for n in RANKS]
            half = next((f"{n:,}" for n, t in of.items() if t >= seconds), "–")
            print(f"| {shape.name} {shape} | {rate} | " + " | ".join(shares) + f" | {half} |")


if __name__ == "__main__":
    main()
