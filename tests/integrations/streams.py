"""A training along streams by Lightning's Trainer or Fabric: ``streams.py LIBRARY PROCESSES FILE``.

Started as a script, since Lightning starts the other processes by running it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
import torch
from lightning.fabric import Fabric
from torch import nn

import bptt

BATCH, STEPS, TOKENS = 5, 6, 16


class Model(nn.Module):
    """The stream goes along, so that a wrapper sees the whole update."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.readout = bptt.LSTM(TOKENS, 8), nn.Linear(8, TOKENS)
        self.plans = torch.Generator().manual_seed(0)
        self.double()

    def forward(self, x, y, stream):
        x = nn.functional.one_hot(x, TOKENS).double()
        how = {"credit": bptt.Randomized(mean=3), "generator": self.plans}
        h, stream = stream.advance(self.lstm, x, **how)
        given = h, self.readout.weight, self.readout.bias, y
        loss = bptt.losses.linear_cross_entropy(*given, reduction="sum")
        return loss / (BATCH * len(x)), stream


def windows():
    steps = torch.randint(2, (200,), generator=torch.Generator().manual_seed(3))
    return bptt.data.streams(2 * steps.cumsum(0) % TOKENS, batch=BATCH, steps=STEPS)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.losses = Model(), []

    def on_train_epoch_start(self):
        self.stream = bptt.Stream(batch=BATCH)

    def training_step(self, batch, _):
        loss, self.stream = self.model(*batch, self.stream)
        self.losses.append(loss.detach())
        return loss * self.trainer.world_size  # the mean over processes is taken of the gradients

    def train_dataloader(self):
        return windows()  # called in each process, which has joined the others

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def by_lightning(processes):
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=processes, logger=False,
        strategy="ddp" if processes > 1 else "auto", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    losses = trainer.strategy.reduce(torch.stack(module.losses), reduce_op="sum")
    return trainer.is_global_zero, losses, module.model


def by_fabric(processes):
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    fabric.launch()
    inner = Model()
    model, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), lr=0.5))
    stream, losses = bptt.Stream(batch=BATCH), []
    for x, y in windows():
        loss, stream = model(x, y, stream)
        optimizer.zero_grad()
        fabric.backward(loss * fabric.world_size)
        optimizer.step()
        losses.append(loss.detach())
    losses = fabric.all_reduce(torch.stack(losses), reduce_op="sum")
    return fabric.is_global_zero, losses, inner


if __name__ == "__main__":
    library, processes, file = sys.argv[1:]
    run = {"lightning": by_lightning, "fabric": by_fabric}[library]
    is_first, losses, model = run(int(processes))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if is_first:
        torch.save({"losses": losses, **model.state_dict()}, Path(file))
