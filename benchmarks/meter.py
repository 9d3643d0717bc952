"""What sight costs in training: the share of a language model's training time.

    python benchmarks/meter.py [--threads 1] [--repeats 40] [--every 100]

Updates that are listened to and updates that are not take turns, and after every fourth comes a
look at how far the gradient reaches, on the text in the Python installation. Medians, so that what
else the machine does falls on all alike. The share is what ``--flow-every`` adds to the time of
its updates: what listening takes in each, and a look among so many.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

import bptt
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
FOURTH = 4


def measure(training: Training, repeats: int) -> tuple[float, float, float]:
    """Give the seconds of an update, what listening adds to it, and those of a look; medians."""
    times: dict[str, list[float]] = {"plain": [], "heard": [], "look": []}
    sight = training.sight
    with torch.random.fork_rng():
        for repeat in range(2 * repeats + 4):
            kind = ("plain", "heard")[repeat % 2]
            batch = next(iter(training.reader))
            sight.config = training.config.changed(flow_every=10**9 if kind == "heard" else 0)
            begun = time.perf_counter()
            training.update(batch)
            if repeat >= 4:
                times[kind].append(time.perf_counter() - begun)
            if repeat % FOURTH == 0:
                begun = time.perf_counter()
                sight._look(repeat, training._reach)
                if repeat >= 4:
                    times["look"].append(time.perf_counter() - begun)
    plain, heard, look = (statistics.median(times[k]) for k in ("plain", "heard", "look"))
    return plain, heard - plain, look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--every", type=int, default=100, help="as --flow-every")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, "
        f"{bptt.kernels.backend()}; milliseconds"
    )
    print(f"{'V/H/B/T':32} {'update':>8} {'listening':>10} {'a look':>8} {'share':>7}")
    for name, options in MODELS.items():
        config = Config(flow_every=10**9, threads=args.threads, **options)
        with tempfile.TemporaryDirectory() as directory:
            training = start(config, Path(directory) / "run")
            training.sight.meter.every = 10**9
            with closing(training):
                update, listening, look = measure(training, args.repeats)
        share = (listening + look / args.every) / update
        print(
            f"{name:32} {1000 * update:8.2f} {1000 * listening:10.3f} {1000 * look:8.2f} "
            f"{share:7.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
