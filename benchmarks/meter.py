"""What sight costs in training: the share of a language model's training time.

    python benchmarks/meter.py [--threads 1] [--repeats 40] [--every 100]

Updates without sight, with it, and with it listening to the kernels, take turns, and after every
fourth comes a look at how far the gradient reaches, on the text in the Python installation. The
times are the processor's, and the least of many, because what else the machine does only adds to
them. The share is what ``--flow-every`` adds to the time of its updates: it is told of each,
listens to one in ten, and looks once.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

import bptt
from bptt.flow.meter import LISTENS_EVERY
from bptt.language_model import Config, Training, start

MODELS = {
    "RNN 8000/100/20/35": {"cell": "rnn", "vocabulary": 8000, "hidden": 100, "steps": 35},
    "RNN 8000/100/1/20": {
        "cell": "rnn", "vocabulary": 8000, "hidden": 100, "batch_size": 1, "steps": 20,
    },
    "LSTM 8000/200/20/35": {"vocabulary": 8000, "hidden": 200, "steps": 35},
    "LSTM 2 layers 10000/200/20/20": {
        "vocabulary": 10_000, "hidden": 200, "layers": 2, "steps": 20,
    },
    "LSTM 2 layers 10000/650/20/35": {
        "vocabulary": 10_000, "hidden": 650, "layers": 2, "steps": 35,
    },
}  # fmt: skip
KINDS = ("plain", "told", "heard")


class Times(NamedTuple):
    """Seconds."""

    update: float
    told: float
    """What being told of an update adds to it,"""
    heard: float
    """and listening to its backward pass."""
    look: float

    def share(self, every: int) -> float:
        each = self.told + self.heard / LISTENS_EVERY
        return (each + self.look / every) / self.update


def measure(training: Training, repeats: int) -> Times:
    times: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "look")}
    sight = training.sight
    with torch.random.fork_rng():
        for repeat in range(len(KINDS) * (repeats + 2)):
            kind = KINDS[repeat % len(KINDS)]
            batch = next(iter(training.reader))
            sight.meter._updates = int(kind != "heard")  # it listens to the first
            sight.config = training.config.changed(flow_every=0 if kind == "plain" else 10**9)
            begun = time.process_time()
            training.update(batch)
            times[kind].append(time.process_time() - begun)
            if repeat % 4 == 0:
                begun = time.process_time()
                sight._look(repeat, training._reach)
                times["look"].append(time.process_time() - begun)
    plain, told, heard, look = (min(found) for found in times.values())
    return Times(plain, max(0.0, told - plain), max(0.0, heard - told), look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--every", type=int, default=100, help="as --flow-every")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, "
        f"{bptt.kernels.backend()}; milliseconds"
    )
    print(f"{'V/H/B/T':32} {'update':>8} {'told':>7} {'listening':>10} {'a look':>8} {'share':>7}")
    for name, options in MODELS.items():
        config = Config(flow_every=10**9, threads=args.threads, **options)
        with (
            tempfile.TemporaryDirectory() as directory,
            closing(start(config, Path(directory) / "run")) as training,
        ):
            found = measure(training, args.repeats)
        print(
            f"{name:32} {1000 * found.update:8.2f} {1000 * found.told:7.3f} "
            f"{1000 * found.heard:10.3f} {1000 * found.look:8.2f} {found.share(args.every):7.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
