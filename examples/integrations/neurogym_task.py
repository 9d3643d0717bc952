"""A rate network with Dale's law on neurogym's PerceptualDecisionMaking, along a stream of trials.

A window of its Dataset may end within a trial, so the state is carried on. Beside it the same
network as a loop in plain torch, which begins each window in the state where the last one ended.
"""

import warnings

import neurogym
import torch
from torch import nn

import bptt

T, B, H, ALPHA = 50, 16, 50, 20 / 100  # steps of 20 ms, a time constant of 100 ms
warnings.filterwarnings("ignore", module="gymnasium")
torch.manual_seed(0)
timing = {"fixation": 100, "stimulus": 500, "delay": 0, "decision": 100}  # ms: 35 steps
task = {"dt": 20, "timing": timing, "cohs": [25.6, 51.2]}
trials = neurogym.Dataset("PerceptualDecisionMaking-v0", task, batch_size=B, seq_len=T)
network = bptt.Recurrent(bptt.cells.make_rate(alpha=ALPHA), 3, H)
network = bptt.cells.dales_law(network, excitatory=0.8)
readout, weight = nn.Linear(H, 3), torch.tensor([0.2, 1, 1])  # fixate, left, right
projects = torch.arange(H) < 0.8 * H  # only excitatory units project out of the circuit


def in_plain_torch(x, state):
    W = network.weight_hh_l0
    (rate, current), rates = (part[0] for part in state), []
    for of_x in nn.functional.linear(x, network.weight_ih_l0, network.bias_ih_l0):
        drive = of_x + rate @ W.t() + network.bias_hh_l0
        current = (1 - ALPHA) * current + ALPHA * drive
        rate = current.relu()
        rates.append(rate)
    return torch.stack(rates), (rate[None].detach(), current[None].detach())


optimizer = torch.optim.Adam([*network.parameters(), *readout.parameters()], lr=0.01)
stream, state, right = bptt.Stream(), (torch.zeros(1, B, H),) * 2, []
for update in range(300):
    x, target = (torch.from_numpy(a.copy()) for a in trials())  # [T, B, 3], [T, B]
    if update < 5:
        expected, state = in_plain_torch(x, state)
    rates, stream = stream.advance(network, x, credit=bptt.Truncated(T))
    if update < 5:
        torch.testing.assert_close(rates, expected, rtol=1e-4, atol=1e-5)
    logits = readout(rates * projects)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
    optimizer.zero_grad()
    (loss + 0.001 * rates.square().mean()).backward()
    optimizer.step()
    right.append((logits.argmax(-1) == target)[target > 0].float().mean().item())

assert sum(right[-20:]) / 20 > 0.9
W = network.weight_hh_l0
assert (W[:, projects] >= 0).all()
assert (W[:, ~projects] <= 0).all()
print(f"right when asked {right[0]:.2f} at first, {sum(right[-20:]) / 20:.2f} at the end")
