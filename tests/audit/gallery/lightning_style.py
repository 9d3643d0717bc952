"""Hooks of a module and a trainer that calls them, in Lightning's style."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from audit.gallery.streams import numbered, of_features
from torch import nn

import bptt


class Trainer:
    """Cuts each batch into windows and hands what a step returns as ``hiddens`` to the next."""

    def __init__(self, truncated_bptt_steps, *, keeps_hiddens=False):
        self.steps, self.keeps_hiddens = truncated_bptt_steps, keeps_hiddens

    def fit(self, module, loader):
        optimizer = module.configure_optimizers()
        hiddens = None
        for batch_idx, batch in enumerate(loader):
            if not self.keeps_hiddens:
                hiddens = None
            for start in range(0, len(batch) - 1, self.steps):
                split = batch[start : start + self.steps + 1]
                returned = module.training_step(split, batch_idx, hiddens)
                optimizer.zero_grad()
                returned["loss"].backward()
                optimizer.step()
                hiddens = returned["hiddens"]
                if hiddens is not None:
                    hiddens = tuple(h.detach() for h in hiddens)


class LitForecaster(nn.Module):
    """A module in Lightning's style."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"lstm": nn.LSTM(3, 6), "head": nn.Linear(6, 3)})

    def training_step(self, batch, batch_idx, hiddens):
        out, hiddens = self.model["lstm"](batch[:-1], hiddens)
        loss = F.l1_loss(self.model["head"](out), batch[1:])
        return {"loss": loss, "hiddens": hiddens}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@loop("shuffled-batches", t=0, s=7, also=("other-sequence",))
def hiddens_of_the_batch_before(is_wrong):
    """Wrong: the trainer starts a batch of other sequences with the hiddens of the last one."""
    module = LitForecaster()
    batches = [
        numbered(torch.randn(9, 2, 3), streams=torch.arange(first, first + 2.0)) for first in (0, 2)
    ]

    def run():
        Trainer(truncated_bptt_steps=4, keeps_hiddens=is_wrong).fit(module, batches)

    return Training(run, module, "model.lstm", {"label": of_features}, credit=bptt.Truncated(4))


class LitSpeaker(nn.Module):
    """The same with two parts of a state that the module treats itself."""

    def __init__(self, is_wrong):
        super().__init__()
        self.is_wrong = is_wrong
        self.layers = nn.ModuleList([nn.LSTM(3, 6, bias=False), nn.Linear(6, 3)])

    def training_step(self, batch, batch_idx, hiddens):
        if self.is_wrong and hiddens is not None:
            hiddens = (hiddens[0], torch.zeros_like(hiddens[1]))
        out, hiddens = self.layers[0](batch[:-1], hiddens)
        return {"loss": F.mse_loss(self.layers[1](out), batch[1:]), "hiddens": hiddens}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@loop("state-parts-differ", t=3, s=2, also=("not-carried",))
def hiddens_without_c(is_wrong):
    """Wrong: of the hiddens only h goes on into the next window."""
    module = LitSpeaker(is_wrong)
    batch = torch.randn(10, 2, 3)

    def run():
        Trainer(truncated_bptt_steps=3).fit(module, [batch])

    return Training(run, module, "layers.0", {"episodes": [0] * 9}, credit=bptt.Truncated(3))
