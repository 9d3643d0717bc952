"""The cost of each credit: a training step of a layer, forward and backward, all gradients.

    python benchmarks/credits.py [--shape 35/20/200/200] [--cell lstm] [--repeats 30]

Every credit is compared with the exact gradient of the same module, in alternation, so that other
load on the machine affects all alike; medians. The window column is how often each step is passed
backwards, which is the least that any implementation has to do.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

import bptt
from bptt.credit import parse

CREDITS = (
    "full",
    "truncated:10",
    "randomized:10",
    "truncated:every=10,reach=20",
    "truncated:every=10,reach=35",
    "truncated:every=1,reach=5",
)


def modules(cell: str, inputs: int, hidden: int) -> dict[str, torch.nn.Module]:
    ours = {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM}[cell]
    layer = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    single = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[cell]
    return {
        f"bptt.{ours.__name__}": ours(inputs, hidden),
        f"torch.nn.{layer.__name__}": layer(inputs, hidden),
        f"Stepwise({single.__name__})": bptt.Stepwise(single(inputs, hidden)),
    }


def step(module: torch.nn.Module, x: torch.Tensor, credit: str) -> Callable[[], float]:
    made = parse(credit)

    def run() -> float:
        x.grad = None
        module.zero_grad()
        started = time.perf_counter()
        y, _ = bptt.unroll(module, x, credit=made)
        y.backward(torch.ones_like(y))
        return time.perf_counter() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="35/20/200/200", help="T/B/I/H")
    parser.add_argument("--cell", default="lstm", choices=["rnn", "gru", "lstm"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    T, B, I, H = map(int, args.shape.split("/"))  # noqa: E741
    x = torch.randn(T, B, I, requires_grad=True)
    print(
        f"{args.cell} {args.shape}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}; milliseconds, and times the exact gradient"
    )
    runs = {
        (name, credit): step(module, x, credit)
        for name, module in modules(args.cell, I, H).items()
        for credit in CREDITS
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for repeat in range(args.repeats + 2):
        for key, run in runs.items():
            found = run()
            if repeat >= 2:
                times[key].append(found)
    median = {key: 1000 * statistics.median(found) for key, found in times.items()}
    names = list(dict.fromkeys(name for name, _ in runs))
    print(f"{'credit':30} {'windows':>7} " + " ".join(f"{n:>22}" for n in names))
    for credit in CREDITS:
        plan = parse(credit).plan(T)
        cells = (
            f"{median[n, credit]:12.2f} ({median[n, credit] / median[n, 'full']:4.2f} x)"
            for n in names
        )
        print(f"{credit:30} {plan.backward_steps / T:7.2f} " + " ".join(f"{c:>22}" for c in cells))


if __name__ == "__main__":
    main()
