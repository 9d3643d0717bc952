"""Train on the copy stream with fixed and adaptive truncation: the published table and ours.

    python benchmarks/copy_table.py [--seeds 0 1 2] [--methods 5 10 0.5 ...] [--epochs 210]
                                    [--minutes M] [--torch] [--out runs/copy_table.json]
    python benchmarks/copy_table.py --resume [--epochs 210] [--minutes M] [--out ...]
    python benchmarks/copy_table.py --show FILE...

C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control
gradient bias", UAI 2019, arXiv:1905.07473: their "fixed" copy task, an answer exactly 10 steps
back. A method is a whole number K, fixed, or a tolerance below 1, adaptive from K = 15 on. What is
as theirs:

- 64 streams of 4,000 steps to train on, again and again, from a zero state each time; 1,000 steps
  to choose by, 1,000 to report: exp(loss per step), from a zero state
- Linear(6, 50), LSTM(50, 50) of two layers, Linear(50, 6); the same initial weights, of uniform
  ±sqrt(3 / the longer side) and no bias, for all methods of a seed
- SGD, rate sqrt(K), weight decay 1e-5, the gradient's norm clipped to 1 / K; an update every K
  steps, whose losses reach back 2K - 1 steps from the last one (adaptive: 2K, ``bptt.Adaptive``),
  run again from the state stored there
- after each 1.25 epochs a test, and the adaptive ones measure: 64 pieces of 120 steps, 100 lags

What is not: their generator repeats parts of the streams, ours does not; which test their table
gives is not said, ours gives the one whose validation loss is least. Seconds are those of training
and measuring, of one core's time.

All of it takes hours. The runs take turns, 1.25 epochs each, so that all have gone equally far
whenever it is enough: after ``--epochs``, or ``--minutes``, or when it is stopped. The curves so
far are in ``--out``, and beside it in a pickle the runs themselves, so that ``--resume`` goes on.
``--torch`` takes torch.nn.LSTM for the layers, which is the same network.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import statistics
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bptt
from bptt.credit import Decay, measure_decay
from bptt.data import CopyStream, TaskBatch

PUBLISHED = {
    "5": 1.646, "10": 1.036, "15": 1.039, "20": 1.040, "30": 1.043,
    "0.9": 1.022, "0.5": 1.027, "0.1": 1.030,
}  # fmt: skip
TRAIN, HELD_OUT, TEST_EVERY = 4_000, 1_000, 5_000  # steps
PIECE = 120  # steps of a measurement, of which the last 100 are looked at
GOAL = 1.1  # the perplexity to which the time is given


class Model(nn.Module):
    """Two layers of 50 between two linear maps; the state is that of the layers."""

    def __init__(self, task: CopyStream, layers: Any) -> None:
        super().__init__()
        self.into = nn.Linear(task.inputs, 50)
        self.layers = layers(50, 50, num_layers=2)
        self.out = nn.Linear(50, task.outputs)
        for p in self.parameters():
            bound = math.sqrt(3 / max(p.shape)) if p.dim() > 1 else 0.0
            nn.init.uniform_(p, -bound, bound)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.layers(self.into(x), state)
        return self.out(y), state


class Run:
    """One method of one seed."""

    def __init__(self, method: str, seed: int, layers: Any) -> None:
        task = CopyStream(seed=seed)  # m = 10, 64 streams
        self.task, self.method, self.seed = task, method, seed
        self.draw()
        torch.manual_seed(seed)
        self.model = Model(task, layers)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1.0, weight_decay=1e-5)
        if float(method) < 1:
            self.credit: Any = bptt.Adaptive(float(method), start=15, least=2, most=100, tau=80)
        else:
            K = int(method)
            self.credit = bptt.Truncated(every=K, reach=2 * K - 1)
        self.places = torch.Generator().manual_seed(seed)
        self.at, self.stream = 0, bptt.Stream()
        self.steps, self.seconds = 0, 0.0
        self.curve = [self.tested()]

    def draw(self) -> None:
        """Draw the streams, which are the seed's."""
        self.train = window(self.task, TRAIN, 3 * self.seed)
        self.valid, self.test = (window(self.task, HELD_OUT, 3 * self.seed + n) for n in (1, 2))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("train", "valid", "test")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.draw()

    def go_on(self, steps: int) -> None:
        """Train for so many steps, measure, test."""
        begun = time.process_time()
        until = self.steps + steps
        while self.steps < until:
            self.update()
        self.credit.adapt(self.probe)
        self.seconds += time.process_time() - begun
        self.curve.append(self.tested())

    def update(self) -> None:
        """One window, and a step of SGD; the steps before it are run again by the stream."""
        K = self.credit.window
        if self.at + K > TRAIN:
            self.at, self.stream = 0, bptt.Stream()
        here = slice(self.at, self.at + K)
        logits, self.stream = self.stream.advance(
            self.model, self.train.inputs[here], credit=self.credit
        )
        loss = cross_entropy(logits.flatten(0, 1), self.train.targets[here].flatten())
        self.sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1 / K)
        self.sgd.param_groups[0]["lr"] = math.sqrt(K)
        self.sgd.step()
        self.at, self.steps = self.at + K, self.steps + K

    def probe(self, lags: int) -> Decay:
        """Measure the decay on pieces from anywhere in the streams."""
        x, y = self.train.inputs, self.train.targets
        B = x.shape[1]
        first = torch.randint(TRAIN - PIECE, (B,), generator=self.places)
        t = first + torch.arange(PIECE).unsqueeze(1)  # [T, B]
        b = torch.arange(B)
        wanted = y[t[-1], b]
        return measure_decay(
            self.model, x[t, b], lambda logits: cross_entropy(logits[-1], wanted), lags=lags
        )

    def tested(self) -> dict[str, Any]:
        found = {
            "epochs": self.steps / TRAIN,
            "seconds": round(self.seconds, 2),
            "valid": self.loss(self.valid),
            "test": self.loss(self.test),
            "K": self.credit.window,
        }
        if isinstance(self.credit, bptt.Adaptive) and self.credit.measurements:
            bias = self.credit.relative_bias
            found |= {"beta": self.credit.beta, "bias": bias if math.isfinite(bias) else None}
        return found

    def loss(self, batch: TaskBatch) -> float:
        with torch.no_grad():
            logits, _ = self.model(batch.inputs)
        return float(self.task.loss(logits, batch))

    def result(self) -> dict[str, Any]:
        best = min(self.curve, key=lambda found: found["valid"])
        reached = next((f for f in self.curve if math.exp(f["test"]) <= GOAL), {})
        return {
            "method": self.method,
            "seed": self.seed,
            "perplexity": math.exp(best["test"]),
            "best_epoch": best["epochs"],
            "epochs": self.curve[-1]["epochs"],
            "seconds": self.curve[-1]["seconds"],
            "goal_epochs": reached.get("epochs"),
            "goal_seconds": reached.get("seconds"),
            "curve": self.curve,
        }


def window(task: CopyStream, steps: int, seed: int) -> TaskBatch:
    """One window of streams of its own."""
    return next(iter(replace(task, steps=steps, seed=seed)))


def keep(runs: list[Run], out: Path) -> None:
    """Write the curves and the runs; a stop in between leaves the files of the round before."""
    for file, content in (
        (out, json.dumps([run.result() for run in runs]).encode()),
        (out.with_suffix(".pickle"), pickle.dumps(runs)),
    ):
        beside = file.with_name(file.name + ".new")
        beside.write_bytes(content)
        beside.replace(file)


def show(results: list[dict[str, Any]]) -> None:
    """Print the table, and how the adaptive K went."""
    seeds = len({r["seed"] for r in results})
    epochs = sorted({round(r["epochs"]) for r in results})
    print(
        f"seeds: {seeds}, {' to '.join(map(str, epochs[:: len(epochs) - 1 or 1]))} epochs "
        "(theirs: 210); perplexity: mean, least to greatest"
    )
    print(
        f"{'method':>10}{'published':>11}{'ours':>8}{'':>16}{'best at epoch':>15}"
        f"{f'to {GOAL}: seeds, epochs, s':>28}{'s/epoch':>9}"
    )
    for method in PUBLISHED:
        mine = [r for r in results if r["method"] == method]
        if not mine:
            continue
        found = [r["perplexity"] for r in mine]
        there = [r for r in mine if r["goal_epochs"] is not None]
        goal = "none"
        if there:
            goal = f"{len(there)}, " + ", ".join(
                f"{statistics.mean(r[what] for r in there):.0f}"
                for what in ("goal_epochs", "goal_seconds")
            )
        name = f"δ = {method}" if float(method) < 1 else f"K = {method}"
        speed = sum(r["seconds"] for r in mine) / sum(r["epochs"] for r in mine)
        print(
            f"{name:>10}{PUBLISHED[method]:11.3f}{statistics.mean(found):8.3f}"
            f"{f'{min(found):.3f} to {max(found):.3f}':>16}"
            f"{statistics.mean(r['best_epoch'] for r in mine):15.0f}{goal:>28}{speed:9.1f}"
        )
    for r in results:
        if float(r["method"]) < 1:
            K = [f["K"] for f in r["curve"]]
            print(f"K of δ = {r['method']}, seed {r['seed']}: {' '.join(map(str, K))}")


def main() -> None:
    """Train, write, print."""
    parser = argparse.ArgumentParser(description="The copy table of Aicher, Foti and Fox.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--epochs", type=float, default=210)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--resume", action="store_true", help="go on with the runs of --out")
    parser.add_argument("--out", type=Path, default=Path("runs/copy_table.json"))
    parser.add_argument("--show", type=Path, nargs="+")
    args = parser.parse_args()
    if args.show:
        show([r for file in args.show for r in json.loads(file.read_text())])
        return
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    layers = torch.nn.LSTM if args.torch else bptt.LSTM
    if args.resume:
        runs: list[Run] = pickle.loads(args.out.with_suffix(".pickle").read_bytes())
    else:
        runs = [Run(method, seed, layers) for seed, method in product(args.seeds, args.methods)]
    while runs[0].steps < args.epochs * TRAIN and time.monotonic() < begun + 60 * args.minutes:
        for run in runs:
            run.go_on(TEST_EVERY)
            now = run.curve[-1]
            print(
                f"seed {run.seed}, {run.method:>4}: epoch {now['epochs']:6.2f}, "
                f"{math.exp(now['valid']):.4f} {math.exp(now['test']):.4f}, next K {now['K']}",
                flush=True,
            )
        keep(runs, args.out)
    show([run.result() for run in runs])


if __name__ == "__main__":
    main()
