"""A policy gradient (REINFORCE) with an LSTM, on rollouts in which episodes end anywhere.

An episode shows a cue at its first step and asks for it at its last, two to five steps later.
"""

import torch
from torch import nn
from torch.distributions import Categorical

import bptt

T, B, H = 20, 32, 32
torch.manual_seed(0)
lstm, head, theirs = bptt.LSTM(3, H), nn.Linear(H, 2), nn.LSTM(3, H)
optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.01)
cue, clock, length = torch.zeros(B, dtype=torch.long), torch.zeros(B), torch.zeros(B)


def observe(begins):  # where an episode begins; what is seen: cue 0, cue 1, the question
    cue[begins], clock[begins] = torch.randint(2, (B,))[begins], 0
    length[begins] = torch.randint(2, 6, (B,)).float()[begins]
    shown = (clock == 0)[:, None] * nn.functional.one_hot(cue, 2)
    return torch.cat([shown, (clock == length)[:, None]], -1).float()


def loss_of(y):
    return -(Categorical(logits=head(y)).log_prob(actions) * returns).mean()


start, state, rewards = torch.ones(B, dtype=torch.bool), (torch.zeros(1, B, H),) * 2, []
for _update in range(150):
    initial, kept = state, []
    with torch.no_grad():
        for _ in range(T):  # single steps: resets has the shape [1, B]
            x = observe(start)
            y, state = lstm(x[None], state, resets=start[None])
            action, done = Categorical(logits=head(y[0])).sample(), clock == length
            kept.append((x, start, action, done * (2.0 * (action == cue) - 1), done, y[0]))
            clock, start = clock + 1, done  # the step after an episode's last begins the next one
    x, starts, actions, reward, dones, seen = (torch.stack(k) for k in zip(*kept, strict=True))
    returns = reward.clone()
    for t in reversed(range(T - 1)):
        returns[t] += 0.9 * returns[t + 1] * ~dones[t]
    y, _ = lstm(x, initial, resets=starts)  # the whole rollout in one call
    assert torch.allclose(y, seen, atol=1e-5)  # sees what the single steps saw
    optimizer.zero_grad()
    loss_of(y).backward()
    optimizer.step()
    rewards.append((reward.sum() / dones.sum()).item())

theirs.load_state_dict(lstm.state_dict())  # the same in plain torch.nn: a loop with masks
state, outputs = initial, []
for x_t, start in zip(x, starts, strict=True):
    y_t, state = theirs(x_t[None], tuple(s * ~start[:, None] for s in state))
    outputs.append(y_t)
expected = torch.autograd.grad(loss_of(torch.cat(outputs)), theirs.parameters())
ours = torch.autograd.grad(loss_of(lstm(x, initial, resets=starts)[0]), lstm.parameters())
torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
assert sum(rewards[-10:]) / 10 > 0.9
print(f"reward of an episode: {rewards[0]:.2f} at first, {sum(rewards[-10:]) / 10:.2f} at the end")
