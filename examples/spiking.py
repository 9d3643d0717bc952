"""Spiking neurons through bptt.unroll: a step in plain torch, and the same as bptt.cells.LIF.

The gradient of a spike is a surrogate's (Neftci, Mostafa and Zenke 2019).
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

import bptt

T, B, INPUTS, H, CLASSES = 30, 32, 10, 32, 3
torch.manual_seed(0)
lif, readout = bptt.Recurrent(bptt.cells.LIF, INPUTS, H), nn.Linear(H, CLASSES)
nn.init.normal_(lif.weight_ih_l0, std=1.0)  # strong enough for spikes
patterns = torch.rand(CLASSES, T, INPUTS) < 0.15


class Step(nn.Module):
    """One step, (x_t, state) -> (output, state), on the weights of ``lif``."""

    def forward(self, x, state):
        s, v = state
        drive = linear(x, lif.weight_ih_l0, lif.bias_ih_l0)
        drive = drive + linear(s, lif.weight_hh_l0, lif.bias_hh_l0)
        v = 0.9 * v + drive - s.detach()  # a spike lowers the potential by the threshold, 1
        smooth = (v - 1) / (1 + 10 * (v - 1).abs())
        s = (v > 1).float() + (smooth - smooth.detach())  # a spike's value, smooth's gradient
        return s, (s, v)


def batch():
    label = torch.randint(CLASSES, (B,))
    kept = torch.rand(T, B, INPUTS) < 0.8  # some spikes fail to come
    return (patterns[label].transpose(0, 1) & kept).float(), label


def run(network, x, state=None):
    credit = bptt.Truncated(every=10, reach=20)
    spikes, _ = bptt.unroll(network, x, state, credit=credit)
    return spikes, torch.autograd.grad(spikes.mean(0).square().sum(), lif.weight_ih_l0)


x, _ = batch()
by_step, by_cell = run(bptt.Stepwise(Step()), x, (torch.zeros(B, H),) * 2), run(lif, x)
assert by_cell[0].any()
torch.testing.assert_close(by_step, by_cell, rtol=1e-3, atol=1e-4)

optimizer, right = torch.optim.Adam([*lif.parameters(), *readout.parameters()], lr=0.005), []
for _ in range(100):
    x, label = batch()
    guess = readout(bptt.unroll(lif, x, credit="truncated:every=10,reach=20")[0].mean(0))
    optimizer.zero_grad()
    cross_entropy(guess, label).backward()
    optimizer.step()
    right.append((guess.argmax(-1) == label).float().mean().item())
assert sum(right[-10:]) / 10 > 0.9
print(f"right {right[0]:.2f} at first, {sum(right[-10:]) / 10:.2f} at the end")
