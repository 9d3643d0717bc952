"""What runs in the processes that train a language model together, to time it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bptt._src.bench.models import BATCHES, Batch, Ours, Plain, synthetic_batches
from bptt._src.bench.ranks import APART, ONE, PROCESSES, SEVERAL, THREADS, how
from bptt._src.bench.result import OURS, TORCH
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace, take_turns, timed
from bptt._src.language_model.gradient_sum import Share
from bptt._src.language_model.job import Job
from bptt._src.ranks import sharing

Update = Callable[[Tensor, Tensor], float]
"""Trains on a whole batch, of which this process may have a part; gives the loss."""


def main(rank: int, directory: str, shape: dict[str, Any], effort: dict[str, Any]) -> None:
    """Be one of the processes; rank 0 writes what it finds to a file.

    Args:
        rank: 0 or 1.
        directory: where the processes find each other, and the file, ``found.json``.
        shape: of the model.
        effort: how much.
    """
    where = Path(directory)
    dist.init_process_group(
        "gloo", init_method=(where / "store").as_uri(), rank=rank, world_size=PROCESSES
    )
    found = in_turns(ModelShape(**shape), Effort(**effort))
    if rank == 0:
        (where / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def in_turns(shape: ModelShape, effort: Effort) -> dict[str, Any]:
    """Let rank 0 time everyone's updates, and the others do their part of them.

    Returns:
        The seconds of each contender, and their losses after the first updates.
    """
    updates = contenders(shape)
    made = list(synthetic_batches(shape, BATCHES))
    # Those that are trained alike have a model together.
    losses = {
        name: _loss_after(effort.steps, name, update, cycle(made))
        for name, update in updates.items()
        if THREADS not in name and APART not in name
    }
    batches = cycle(made)
    if dist.get_rank():
        _follow(list(updates.values()), batches)
        return {}
    steps = {
        name: partial(_lead, number, update, batches)
        for number, (name, update) in enumerate(updates.items())
    }
    seconds = take_turns(steps, effort, Pace())
    _tell(None)
    return {"seconds": seconds, "losses": losses}


def _loss_after(count: int, name: str, update: Update, batches: Iterator[Batch]) -> float:
    """Train so many updates; return the last one's loss on the whole batch."""
    loss = math.nan
    for inputs, targets in islice(batches, count):
        loss = update(inputs, targets)
    if name != how(TORCH, SEVERAL):
        return loss
    whole = torch.tensor(loss)  # DDP leaves each process with the loss of its own sequences
    dist.all_reduce(whole)
    return float(whole) / PROCESSES


def contenders(shape: ModelShape) -> dict[str, Update]:
    """Make the models, all with the same weights."""
    torch.manual_seed(0)
    job = Job()
    ours, shared = Ours(shape), Ours(shape, job=job)
    shared.model.load_state_dict(ours.model.state_dict())
    plain = Plain(ours.model, shape)
    in_ddp = Plain(ours.model, shape, wrap=DistributedDataParallel)
    of_ours, of_torch = partial(_shared, shared, job), partial(_in_ddp, in_ddp, job)
    return {
        how(OURS, ONE): partial(_alone, ours, 1),
        how(OURS, THREADS): partial(_alone, ours, PROCESSES),
        how(OURS, SEVERAL): of_ours,
        how(OURS, APART): partial(of_ours, summed=False),
        how(TORCH, ONE): partial(_alone, plain, 1),
        how(TORCH, THREADS): partial(_alone, plain, PROCESSES),
        how(TORCH, SEVERAL): of_torch,
        how(TORCH, APART): partial(of_torch, summed=False),
    }


def _alone(update: Update, threads: int, inputs: Tensor, targets: Tensor) -> float:
    """Train on rank 0, while the others wait."""
    if dist.get_rank():
        return 0.0
    torch.set_num_threads(threads)
    return update(inputs, targets)


def _shared(ours: Ours, job: Job, inputs: Tensor, targets: Tensor, *, summed: bool = True) -> float:
    """Train on this process's sequences, as ``bptt train`` does."""
    torch.set_num_threads(1)
    own = job.ranks.own()
    batch, entries = inputs.shape[1], ours.model.embedding.num_embeddings
    rows = inputs.unique() if inputs.numel() < entries else None
    summing, ours.step.sum = ours.step.sum, ours.step.sum if summed else None
    with sharing(job.ranks, batch):
        share = Share(targets.numel(), rows, [0.0, 0.0])
        loss = ours(inputs[:, own].contiguous(), targets[:, own].contiguous(), share)
    ours.step.sum = summing
    return loss


def _in_ddp(
    plain: Plain, job: Job, inputs: Tensor, targets: Tensor, *, summed: bool = True
) -> float:
    """Train on this process's sequences under DDP, which sums while gradients are computed."""
    torch.set_num_threads(1)
    own = job.ranks.own()
    inputs, targets = inputs[:, own].contiguous(), targets[:, own].contiguous()
    assert isinstance(plain.model, DistributedDataParallel)
    if not summed:
        with plain.model.no_sync():
            return plain(inputs, targets)
    return plain(inputs, targets)


# --------------------------------------------------------------------------------- rank 0 leads


def _lead(number: int, update: Update, batches: Iterator[Batch]) -> float:
    _tell(number)
    inputs, targets = next(batches)
    dist.barrier()
    seconds = timed(partial(update, inputs, targets))
    dist.barrier()  # not before the others are done
    return seconds


def _follow(updates: list[Update], batches: Iterator[Batch]) -> None:
    while (number := _tell(None)) is not None:
        inputs, targets = next(batches)
        dist.barrier()
        updates[number](inputs, targets)
        dist.barrier()


def _tell(number: int | None) -> int | None:
    """Send from rank 0 which contender is next; None: no more."""
    told = torch.tensor([-1 if number is None else number])
    dist.broadcast(told, 0)
    return None if told.item() < 0 else int(told)
