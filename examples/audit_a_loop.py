"""Audit a training loop: an agent's update whose masks come one step late, and the right one.

From the command line, with a page to look at:
    bptt audit examples/audit_a_loop.py:late --module agent.core --episodes starts --html audit.html
"""

from functools import partial

import numpy as np
import torch
from torch import nn

import bptt

T, B = 16, 4
torch.manual_seed(0)
observations = torch.randn(T, B, 3)
starts = np.zeros((T, B), bool)  # where an episode starts
starts[0] = starts[5, 0] = starts[6, 1] = starts[9] = True
done = torch.from_numpy(np.roll(starts, -1, axis=0)).float()  # the last step of an episode


class Agent(nn.Module):
    """A policy and a value on one recurrent core."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTMCell(3, 16)
        self.policy, self.value = nn.Linear(16, 2), nn.Linear(16, 1)


agent = Agent()
optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)


def update(delay):
    """One update on a rollout; the state is reset so many steps after an episode's end."""
    h = c = torch.zeros(B, 16)
    loss = 0
    for t in range(T):
        ended = t - 1 - delay
        mask = 1 - done[ended, :, None] if ended >= 0 else torch.ones(B, 1)
        h, c = agent.core(observations[t], (h * mask, c * mask))
        loss = loss - agent.policy(h).log_softmax(-1)[:, 0].mean() + agent.value(h).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


late, right = partial(update, 1), partial(update, 0)


def test_no_gradient_crosses_an_episode():
    """As it would stand in your test suite."""
    bptt.assert_credit(right, agent, "core", "full", episodes=starts)


if __name__ == "__main__":
    report = bptt.audit(late, agent, "core", episodes=starts)
    print(report)
    report.save_html("audit.html")
    test_no_gradient_crosses_an_episode()
    print("\nwithout the delay: no gradient crosses an episode")
