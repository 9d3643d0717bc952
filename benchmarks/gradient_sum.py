"""Time ways to sum the gradients of two processes, for the language models of ``bptt bench``.

    PYTHONPATH=tests python benchmarks/gradient_sum.py [--rates none 10gbit 1gbit] [--rounds 15]

``flat, rows`` is what ``bptt train`` does: one message, with only those rows of the embedding that
the batch uses. ``flat, table`` sends the whole embedding. ``overlap, rows`` starts with the
readout's gradients while the backward pass goes on. The three take turns. Each process is a machine
of its own, a network namespace, and ``tc`` limits the rate of the cable between them; that needs
Linux, root and iproute2. ``--rates none`` is the cable without a limit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bptt._src.bench.models import BATCHES, Ours, synthetic_batches
from bptt._src.bench.shapes import MODELS
from bptt._src.bench.timing import timed
from bptt._src.language_model.gradient_sum import GradientSum, Share
from bptt._src.language_model.job import Job
from bptt._src.ranks import sharing

UPDATES = 5  # of a turn
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # it says that the hosts have no names


class Overlapped(GradientSum):
    """Starts to sum the readout's gradients as soon as they are there."""

    def __init__(self, job: Job, ours: Ours) -> None:
        super().__init__(job, ours.step.parameters, ours.model.embedding)
        early = list(ours.model.readout.parameters())
        self.parameters = [p for p in self.parameters if all(p is not q for q in early)]
        self.is_on = False
        self.begun: list[Any] = []
        for p in early:
            p.register_post_accumulate_grad_hook(self._begin)

    def _begin(self, p: Tensor) -> None:
        if self.is_on:
            self.begun.append(dist.all_reduce(p.grad, async_op=True))

    def __call__(self, loss: Tensor, share: Share) -> Any:
        found = super().__call__(loss, share)
        while self.begun:
            self.begun.pop().wait()
        return found


class Timed:
    """Notes the seconds that a sum takes."""

    def __init__(self, inner: GradientSum) -> None:
        self.inner, self.seconds = inner, 0.0

    def __call__(self, loss: Tensor, share: Share) -> Any:
        begun = time.perf_counter()
        found = self.inner(loss, share)
        self.seconds = time.perf_counter() - begun
        return found


def work(rounds: int) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    job = Job()
    number = torch.zeros(1)
    messages = [timed(partial(dist.all_reduce, number)) / 2 for _ in range(1000)]
    if job.is_first:
        print(f"a message takes {1e6 * statistics.median(messages):.0f} microseconds")
    for shape in MODELS:
        torch.manual_seed(0)
        ours = Ours(shape, job=job)
        flat = GradientSum(job, ours.step.parameters, ours.model.embedding)
        overlapped = Overlapped(job, ours)
        ways = {
            "flat, rows": (flat, True),
            "flat, table": (flat, False),
            "overlap, rows": (overlapped, True),
        }
        batches = cycle(list(synthetic_batches(shape, BATCHES)))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(-1, rounds):
            for name, (way, by_rows) in ways.items():
                overlapped.is_on = way is overlapped
                ours.step.sum = summing = Timed(way)
                turn = []
                for inputs, targets in (next(batches) for _ in range(UPDATES)):
                    own = job.ranks.own()
                    rows = inputs.unique() if by_rows else None
                    share = Share(targets.numel(), rows, [0.0, 0.0])
                    mine = inputs[:, own].contiguous(), targets[:, own].contiguous()
                    dist.barrier()
                    with sharing(job.ranks, shape.batch):
                        turn.append((timed(partial(ours, *mine, share)), summing.seconds))
                if number >= 0:
                    times[name].append(tuple(map(statistics.median, zip(*turn, strict=True))))
        if job.is_first:
            report(f"{shape.name} {shape}", ours, times)
    dist.destroy_process_group()


def report(name: str, ours: Ours, times: dict[str, list[tuple[float, float]]]) -> None:
    total = 4e-6 * sum(p.numel() for p in ours.step.parameters)
    table = 4e-6 * ours.model.embedding.weight.numel()
    print(f"{name}: {total:.1f} MB, {table:.1f} of them the embedding")
    base = [update for update, _ in times["flat, rows"]]
    for way, pairs in times.items():
        update, summed = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(u / b for (u, _), b in zip(pairs, base, strict=True))
        print(f"  {way:14} {update:8.2f} ms, in the sum {summed:8.2f} ms, ratio {ratio:.3f}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", nargs="+", default=["none", "10gbit", "1gbit"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.rounds)
        return
    from ranks.hosts import two_hosts

    for rate in given.rates:
        with tempfile.TemporaryDirectory() as directory:
            places = [Path(directory) / name for name in ("first", "second")]
            for place in places:
                place.mkdir()
            with two_hosts(places) as hosts:
                for host in hosts if rate != "none" else ():
                    limit = ("root", "tbf", "rate", rate, "burst", "1mb", "latency", "50ms")
                    inside = ("ip", "netns", "exec", host.namespace)
                    command = [*inside, "tc", "qdisc", "add", "dev", host.link, *limit]
                    subprocess.run(command, check=True)
                arguments = (str(Path(__file__).resolve()), "--work", "--rounds", given.rounds)
                processes = [host.torchrun(*map(str, arguments), **QUIET) for host in hosts]
                statuses = [process.wait() for process in processes]
                print(f"rate: {rate}\n{hosts[0].printed}", flush=True)
                if any(statuses):
                    sys.exit("it has failed")


if __name__ == "__main__":
    main()
