"""A rate network that obeys Dale's law decides which way noisy evidence points.

After Song, Yang and Wang (2016): 80 % of the units excite, the others inhibit, and training keeps
it so. Beside it the same network, step by step in plain torch.
"""

import torch
from torch import nn

import bptt

T, B, H, COHERENCE = 25, 64, 40, 0.4
torch.manual_seed(0)
network = bptt.cells.dales_law(bptt.Recurrent(bptt.cells.RATE, 2, H), excitatory=0.8)
readout = nn.Linear(H, 2)
readout_from = torch.arange(H) < 0.8 * H  # only excitatory units project out of the circuit


def trial():
    """Two inputs of evidence, of which one is a little stronger: which?"""
    side = torch.randint(2, (B,))
    x = 0.5 + 0.5 * torch.randn(T, B, 2)
    return x + COHERENCE * nn.functional.one_hot(side, 2), side


def in_plain_torch(x, alpha=0.2):
    W = network.weight_hh_l0
    rate = current = torch.zeros(B, H)
    rates = []
    for of_x in nn.functional.linear(x, network.weight_ih_l0, network.bias_ih_l0):
        drive = of_x + rate @ W.t() + network.bias_hh_l0
        current = (1 - alpha) * current + alpha * drive
        rate = current.relu()
        rates.append(rate)
    return torch.stack(rates)


x, _ = trial()
torch.testing.assert_close(network(x)[0], in_plain_torch(x), rtol=1e-4, atol=1e-5)

parameters = [*network.parameters(), *readout.parameters()]
optimizer, losses, right = torch.optim.Adam(parameters, lr=0.01), [], []
for _ in range(200):
    x, side = trial()
    rates, _ = network(x)
    choice = readout(rates[-1] * readout_from)
    loss = nn.functional.cross_entropy(choice, side) + 0.01 * rates.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    right.append((choice.argmax(-1) == side).float().mean().item())

W = network.weight_hh_l0
assert (W[:, readout_from] >= 0).all()
assert (W[:, ~readout_from] <= 0).all()
assert sum(right[-20:]) / 20 > 0.9
print(f"right {sum(right[:5]) / 5:.2f} at first, {sum(right[-20:]) / 20:.2f} at the end")
