"""Audits of a small loop, whose reports are drawn."""

from __future__ import annotations

import numpy as np
import torch

import bptt

EPISODES = np.zeros((12, 2), int)
EPISODES[5:, 0] = EPISODES[8:, 1] = 1


def audited(steps=12, window=4, batch=2, episodes=None, twice=False, **options):
    """Audit a stream that is cut into windows: no episode is reset."""
    torch.manual_seed(0)
    rnn, head = torch.nn.LSTM(3, 4), torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.1)

    def run():
        state = None
        for x in torch.randn(steps, batch, 3).split(window):
            y, (h, c) = rnn(x, state)
            loss = head(y).square().mean()
            optimizer.zero_grad()
            if twice:
                loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
            state = h.detach(), c.detach()

    return bptt.audit(run, rnn, episodes=episodes, **options)


def by_cells(steps=5, batch=2):
    """Audit a loop of cells: every call is a step."""
    cell = torch.nn.GRUCell(3, 4)

    def run():
        h = torch.zeros(batch, 4)
        for x in torch.randn(steps, batch, 3):
            h = cell(x, h)
        h.sum().backward()

    return bptt.audit(run, cell)
