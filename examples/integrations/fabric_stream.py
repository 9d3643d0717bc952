"""Fabric along one endless stream, whose position is part of the checkpoint."""

import tempfile
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

import bptt

CREDIT = bptt.Truncated(every=5, reach=15)
series = torch.randn(401, 4, 3, generator=torch.Generator().manual_seed(1)).cumsum(0).sin()
windows = list(zip(series[:-1].split(5), series[1:].split(5), strict=True))


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.readout = bptt.GRU(3, 16), nn.Linear(16, 3)

    def forward(self, x, stream):  # a wrapper sees what goes through forward alone
        y, stream = stream.advance(self.gru, x, credit=CREDIT)
        return self.readout(y), stream


fabric = Fabric(accelerator="cpu", devices=1)


def made():
    model = Forecaster()
    return fabric.setup(model, torch.optim.Adam(model.parameters(), lr=0.01))


def train(model, optimizer, stream, windows):
    losses = []
    for x, target in windows:
        y, stream = model(x, stream)
        loss = nn.functional.mse_loss(y, target)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, stream


whole, _ = train(*made(), bptt.Stream(), windows)
model, optimizer = made()
first, stream = train(model, optimizer, bptt.Stream(), windows[:40])
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "half.ckpt")
    fabric.save(file, {"model": model, "optimizer": optimizer, "stream": stream})
    model, optimizer = made()
    fabric.load(file, {"model": model, "optimizer": optimizer, "stream": (stream := bptt.Stream())})
second, _ = train(model, optimizer, stream, windows[40:])
assert first + second == whole  # to the bit
assert sum(whole[-10:]) < sum(whole[:10])
print(f"loss {whole[0]:.3f} at first, {whole[-1]:.3f} at the end, saved and resumed in between")
