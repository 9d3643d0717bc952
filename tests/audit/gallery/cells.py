"""Loops over time by hand: cells, modules that keep their state, and a scan."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from torch import Tensor, nn

import bptt


@loop("state-parts-differ", t=1, s=0)
def lstm_cell_without_its_c(is_wrong):
    """Wrong: each step starts from the c of the first."""

    class Sequence(nn.Module):
        """The sine wave predictor of PyTorch's time_sequence_prediction example."""

        def __init__(self):
            super().__init__()
            self.lstm1 = nn.LSTMCell(1, 8)
            self.linear = nn.Linear(8, 1)

        def forward(self, input):
            outputs = []
            h_t = torch.zeros(input.size(0), 8)
            c_t = torch.zeros(input.size(0), 8)
            for input_t in input.split(1, dim=1):
                if is_wrong:
                    h_t, _ = self.lstm1(input_t, (h_t, c_t))
                else:
                    h_t, c_t = self.lstm1(input_t, (h_t, c_t))
                outputs += [self.linear(h_t)]
            return torch.cat(outputs, dim=1)

    seq = Sequence()
    data = torch.sin(torch.arange(9.0) / 2 + torch.tensor([[0.0], [1.0]]))

    def run():
        optimizer = torch.optim.LBFGS(seq.parameters(), lr=0.8, max_iter=1)

        def closure():
            optimizer.zero_grad()
            loss = F.mse_loss(seq(data[:, :-1]), data[:, 1:])
            loss.backward()
            return loss

        optimizer.step(closure)

    return Training(run, seq, "lstm1", credit=bptt.Full())


@loop("state-parts-differ", t=3, s=2)
def only_h_detached(is_wrong):
    """Wrong: c is not cut at the windows' borders, where h is."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList([nn.LSTMCell(4, 6)])
            self.out = nn.Linear(6, 5)

        def forward(self, xs, truncate):
            h = c = xs.new_zeros(xs.size(1), 6)
            scores = []
            for t, x in enumerate(xs):
                if t and t % truncate == 0:
                    h = h.detach()
                    if not is_wrong:
                        c = c.detach()
                h, c = self.cells[0](x, (h, c))
                scores.append(self.out(h))
            return torch.stack(scores)

    tagger = Tagger()
    xs, tags = torch.randn(9, 2, 4), torch.randint(0, 5, (9, 2))

    def run():
        F.cross_entropy(tagger(xs, 3).flatten(0, 1), tags.flatten()).backward()

    return Training(run, tagger, "cells.0", credit=bptt.Truncated(3))


@loop("not-carried", t=1, s=0)
def decoder_with_teacher_forcing(is_wrong):
    """Wrong: each word is decoded from the context, not from the state of the word before."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.cell = nn.GRUCell(4, 6)
            self.out = nn.Linear(6, 7)

        def forward(self, context, target):
            hidden, loss = context, 0.0
            for t in range(target.size(1) - 1):
                embedded = F.relu(self.embedding(target[:, t]))
                if is_wrong:
                    output = self.cell(embedded, context)
                else:
                    output = hidden = self.cell(embedded, hidden)
                loss = loss + F.cross_entropy(self.out(output), target[:, t + 1])
            return loss / (target.size(1) - 1)

    encoder, decoder = nn.Linear(3, 6), Decoder()
    image, caption = torch.randn(2, 3), torch.randint(0, 7, (2, 7))

    def run():
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
        optimizer.zero_grad()
        decoder(torch.tanh(encoder(image)), caption).backward()
        optimizer.step()

    return Training(run, decoder, "cell", {"episodes": [0] * 6}, credit=bptt.Full())


class Carry(NamedTuple):
    """The carry of :func:`scan`."""

    v: Tensor
    count: Tensor


def scan(f, init, xs):
    """``jax.lax.scan`` in torch."""
    carry, ys = init, []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


class Leaky(nn.Module):
    """A leaky integrator as a function of its carry and an input."""

    def __init__(self):
        super().__init__()
        self.w_in, self.w_rec = nn.Linear(3, 6), nn.Linear(6, 6, bias=False)
        self.decay = nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x, state):
        v = self.decay * state.v + torch.tanh(self.w_in(x) + self.w_rec(state.v))
        return v, Carry(v, state.count + 1)


@loop("not-carried", t=4, s=3)
def scan_of_segments(is_wrong):
    """Wrong: each segment of the long sequence starts from ``init``, not from the last carry."""
    core, readout = Leaky(), nn.Linear(6, 1)
    xs, targets = torch.randn(12, 2, 3), torch.randn(12, 2, 1)

    def step(carry, x):
        v, carry = core(x, carry)
        return carry, readout(v)

    def stop_gradient(tree):
        return Carry(*(leaf.detach() for leaf in tree))

    def run():
        params = [*core.parameters(), *readout.parameters()]
        init = Carry(torch.zeros(2, 6), torch.zeros(2, 1))
        carry = init
        for x, y in zip(xs.split(4), targets.split(4), strict=True):
            last, ys = scan(step, init if is_wrong else carry, x)
            carry = stop_gradient(last)
            grads = torch.autograd.grad((ys - y).square().mean(), params)
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p -= 0.1 * g

    options = {"episodes": [0] * 12}
    return Training(run, core, Leaky, options, credit=bptt.Truncated(4))


class Keeping(nn.Module):
    """A recurrent layer that keeps its state itself, as spiking networks' do."""

    def __init__(self):
        super().__init__()
        self.fc, self.rec = nn.Linear(4, 6), nn.Linear(6, 6)
        self.hidden = torch.zeros(2, 6)

    def reset(self):
        self.hidden = torch.zeros(2, 6)

    def forward(self, x):
        self.hidden = torch.tanh(self.fc(x) + self.rec(self.hidden))
        return self.hidden


@loop("memory-crosses-episode", t=4, s=3, also=("rollout-differs", "credit-crosses-episode"))
def reset_in_eval_only(is_wrong):
    """Wrong: the evaluation resets the layer before each sample, the training does not."""
    net = nn.Sequential(Keeping(), nn.Linear(6, 2))
    samples, labels = torch.randn(3, 4, 2, 4), torch.randint(0, 2, (3, 2))

    def run():
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        net.train()
        net[0].reset()
        for sample, label in zip(samples[:2], labels, strict=False):
            if is_wrong:
                net[0].hidden = net[0].hidden.detach()
            else:
                net[0].reset()
            loss = sum(F.cross_entropy(net(x), label) for x in sample)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            net[0].reset()
            for x in samples[2]:
                net(x)

    options = {"state": ("hidden",), "episodes": [0] * 4 + [1] * 4 + [2] * 4}
    return Training(run, net, "0", options, credit=bptt.Full())


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons with recurrent weights: spikes out, (spikes, v) as state."""

    def __init__(self, inputs, neurons):
        super().__init__()
        self.inputs, self.recurrent = nn.Linear(inputs, neurons), nn.Linear(neurons, neurons)

    def forward(self, x, state=None):
        z, v = state if state is not None else x.new_zeros(2, x.shape[1], 8)
        spikes = []
        for current in self.inputs(x):
            v = 0.9 * v * (1 - z) + current + 0.3 * self.recurrent(z)
            surrogate = torch.sigmoid(4 * v)
            z = (v > 0).float().detach() + (surrogate - surrogate.detach())
            spikes.append(z)
        return torch.stack(spikes), (z, v)


@loop("state-parts-differ", t=3, s=2)
def spiking_windows(is_wrong):
    """Spikes are zeros and ones, the same at many steps. Wrong: only the voltage is detached."""
    layer, readout = Spiking(3, 8), nn.Linear(8, 2)
    x, y = torch.rand(9, 2, 3), torch.randint(0, 2, (3, 2))

    def run():
        state, loss = None, 0.0
        for window, target in zip(x.split(3), y, strict=True):
            spikes, (z, v) = layer(window, state)
            loss = loss + F.cross_entropy(readout(spikes.mean(0)), target)
            state = (z if is_wrong else z.detach()), v.detach()
        loss.backward()

    return Training(run, layer, None, credit=bptt.Truncated(3))


@loop("credits-nothing", t=0, s=0, also=("not-carried",))
def padded_steps(is_wrong):
    """Padding is kept out of the state by a mask, and the last state is classified. Wrong: the mask
    multiplies the new state alone, which is lost at the first step of the padding."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell, self.out = nn.Linear(3, 4), nn.GRUCell(4, 6), nn.Linear(6, 2)

        def forward(self, x, lengths):
            h = x.new_zeros(x.size(1), 6)
            for t, x_t in enumerate(x):
                m = (t < lengths).float()[:, None]
                new = self.cell(torch.tanh(self.embed(x_t)), h)
                h = m * new if is_wrong else m * new + (1 - m) * h
            return self.out(h)

    net = Net()
    x, lengths, labels = torch.randn(6, 3, 3), torch.tensor([4, 6, 3]), torch.tensor([0, 1, 1])

    def run():
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(net(x, lengths), labels).backward()
            optimizer.step()

    episodes = [0] * 6 + [1] * 6
    return Training(run, net, "cell", {"episodes": episodes}, credit=bptt.Full())
