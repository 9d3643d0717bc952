"""The suggested truncation on networks trained until they remember, beside the bias it has."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import bptt
from bptt.data import IGNORED, make_task

pytestmark = pytest.mark.long


class Echo:
    """Each symbol is asked again eight steps later."""

    inputs = outputs = 4
    updates, rate, longest, solved = 1500, 0.005, 40, 0.3

    def batch(self, generator, size=16):
        symbols = torch.randint(4, (50, size), generator=generator)
        targets = torch.full_like(symbols, IGNORED)
        targets[8:] = symbols[:-8]
        return one_hot(symbols, 4).float(), targets

    look = batch

    def losses(self, y, targets):
        found = cross_entropy(
            y.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        return found.view_as(targets)


class Task(Echo):
    def __init__(self, name, **options):
        self.task = make_task(name, batch_size=16, **options)
        self.inputs, self.outputs = self.task.inputs, self.task.outputs
        self.solved = self.task.baseline / 3

    def batch(self, generator):
        batch = self.task.batch(generator)
        return batch.inputs, batch.targets

    look = batch

    def losses(self, y, targets):
        if not targets.is_floating_point():
            return super().losses(y, targets)
        return torch.where(targets != IGNORED, (y.squeeze(2) - targets).square(), 0.0)


class Lines(Echo):
    """Lines that end with a name from their beginning; a single long one is looked at."""

    inputs = outputs = 49
    updates, rate, longest, solved = 9000, 0.003, 0, 1.0

    def line(self, rng, fill):
        a, b = rng.sample(range(10), 2)
        filler = range(10, 10 + fill)
        return [a, 40, 41, 42, b, 43, 44, 45, *filler, a, 46, 47, 48, b]

    def batch(self, generator, size=16, fill=None):
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        fill = rng.choice([0, 3, 6, 10, 15, 20, 25, 30]) if fill is None else fill
        symbols = torch.tensor([self.line(rng, fill) for _ in range(size)]).t()
        return one_hot(symbols[:-1], 49).float(), symbols[1:]

    def look(self, generator):
        return self.batch(generator, 1, 30)


def trained(cell, data):
    torch.manual_seed(0)
    rnn, readout = getattr(bptt, cell)(data.inputs, 48), nn.Linear(48, data.outputs)
    if cell == "RNN":
        bptt.init.orthogonal_(rnn)
    elif data.longest:
        bptt.init.chrono_(rnn, longest=data.longest)
    else:
        bptt.init.forget_bias_(rnn)
    parameters = [*rnn.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=data.rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(data.updates):
        x, targets = data.batch(generator)
        optimizer.zero_grad()
        asked = data.losses(readout(rnn(x)[0]), targets).sum() / (targets != IGNORED).sum()
        asked.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    if isinstance(data, Lines):  # of the name at the end alone: the others cannot be known
        lines = [data.look(generator) for _ in range(50)]
        return (
            rnn,
            readout,
            sum(float(data.losses(readout(rnn(x)[0]), t)[-1].detach()) for x, t in lines) / 50,
        )
    return rnn, readout, float(asked.detach())


@pytest.mark.parametrize(
    ("cell", "data"),
    [
        ("RNN", Echo()),
        ("GRU", Echo()),
        ("LSTM", Echo()),
        ("GRU", Task("copy", lag=20, symbols=1)),
        ("LSTM", Task("copy", lag=20, symbols=1)),
        ("GRU", Task("adding", length=40)),
        ("LSTM", Task("adding", length=40)),
        ("LSTM", Lines()),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_the_bias_on_a_network_that_remembers_is_what_was_asked_for(cell, data, survived):
    rnn, readout, loss = trained(cell, data)
    assert loss < data.solved, "it has not learnt to remember, so there is nothing to test"
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        x, targets = data.look(generator)

        def losses(h, targets=targets):
            return data.losses(readout(h), targets)

        flow = bptt.gradient_flow(rnn, x, losses, attribution=False, dynamics=False)
        for bias, every in ((0.3, None), (0.1, None), (0.1, 10), (0.03, None)):
            found = flow.suggestion(bias, every)
            credit = bptt.Truncated(every=found.every, reach=found.every + found.reach)
            error = bptt.estimator_error(rnn, x, lambda h: losses(h).mean(), credit)
            assert error.total.bias <= bias
            assert error.total.bias == pytest.approx(found.measured, rel=0.02, abs=1e-5)
            survived("suggested truncation", 1)
