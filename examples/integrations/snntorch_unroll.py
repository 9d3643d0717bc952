"""snnTorch's RLeaky in a loop, through bptt.unroll, and as bptt.cells.LIF: the same gradients."""

import time
from functools import partial

import torch
from snntorch import RLeaky
from snntorch.surrogate import fast_sigmoid
from torch import nn

import bptt

torch.manual_seed(0)
T, B, INPUTS, H, CLASSES = 60, 32, 10, 64, 3
inputs, readout, zero = nn.Linear(INPUTS, H), nn.Linear(H, CLASSES), torch.zeros(B, H)
neurons = RLeaky(0.9, linear_features=H, spike_grad=fast_sigmoid(slope=10))
nn.init.normal_(inputs.weight)  # strong enough for spikes
patterns = torch.rand(CLASSES, T, INPUTS) < 0.15
lif = bptt.Recurrent(bptt.cells.make_lif(beta=0.9, slope=10), INPUTS, H)
lif.weight_ih_l0, lif.bias_ih_l0 = inputs.weight, inputs.bias
lif.weight_hh_l0, lif.bias_hh_l0 = neurons.recurrent.weight, neurons.recurrent.bias


def step(x, state):
    s, v = neurons(inputs(x), *state)
    return s, (s, v)


def by_loop(x):
    state, spikes = (zero, zero), []
    for x_t in x:
        s, state = step(x_t, state)
        spikes.append(s)
    return torch.stack(spikes)


def batch():
    label, kept = torch.randint(CLASSES, (B,)), torch.rand(T, B, INPUTS) < 0.8
    return (patterns[label].transpose(0, 1) & kept).float(), label


unroll = partial(bptt.unroll, bptt.Stepwise(step), state=(zero, zero))
ways = {"the loop": by_loop, "unroll": lambda x: unroll(x)[0], "LIF": lambda x: lif(x)[0]}
(x, _), found, times = batch(), {}, {}
for name in 3 * list(ways):
    began = time.perf_counter()
    spikes = ways[name](x)
    found[name] = spikes, *torch.autograd.grad(spikes.mean(0).square().sum(), lif.parameters())
    times[name] = f"{1000 * (time.perf_counter() - began):.1f} ms by {name}"
torch.testing.assert_close([*found.values()], 3 * [found["the loop"]], rtol=1e-4, atol=1e-3)
print("the same in", ", ".join(times.values()))

optimizer = torch.optim.Adam([*lif.parameters(), *readout.parameters()], lr=0.005)
for _ in range(80):
    x, label = batch()
    guess = readout(unroll(x, credit=bptt.Truncated(every=20, reach=30))[0].mean(0))
    optimizer.zero_grad()
    nn.functional.cross_entropy(guess, label).backward()
    optimizer.step()
assert (guess.argmax(-1) == label).float().mean() > 0.8
