"""A policy gradient (REINFORCE) with an LSTM, on rollouts in which episodes end anywhere.

An episode shows a cue at its first step and asks for it at its last, two to five steps later.
"""

import torch
from torch import nn

import bptt

T, B, H = 20, 32, 32
torch.manual_seed(0)
lstm, head = bptt.LSTM(3, H), nn.Linear(H, 2)
optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.01)
cue, clock, length = torch.zeros(B, dtype=torch.long), torch.zeros(B), torch.zeros(B)


def observe(begins):
    """Begin an episode where ``begins``; return what is seen: cue 0, cue 1, the question."""
    cue[begins] = torch.randint(2, (B,))[begins]
    length[begins], clock[begins] = torch.randint(2, 6, (B,)).float()[begins], 0
    first = (clock == 0)[:, None] * nn.functional.one_hot(cue, 2)
    return torch.cat([first, (clock == length)[:, None]], -1).float()


def answer(action):
    """Take a step; return the reward, and whether it was the episode's last."""
    done = clock == length
    reward = done * (2.0 * (action == cue) - 1)
    clock.add_(1)
    return reward, done


start, state, rewards = torch.ones(B, dtype=torch.bool), None, []
for _update in range(150):
    initial, kept = state, []
    with torch.no_grad():
        for _ in range(T):  # single steps: resets has the shape [1, B]
            x = observe(start)
            y, state = lstm(x[None], state, resets=start[None])
            action = torch.distributions.Categorical(logits=head(y[0])).sample()
            reward, done = answer(action)
            kept.append((x, start, action, reward, done, y[0]))
            start = done  # the step after an episode's last begins the next one
    x, starts, actions, reward, dones, seen = (torch.stack(k) for k in zip(*kept, strict=True))
    assert torch.equal(starts[1:], dones[:-1])
    returns, later = torch.zeros(T, B), torch.zeros(B)
    for t in reversed(range(T)):
        later = returns[t] = reward[t] + 0.9 * later * ~dones[t]
    y, _ = lstm(x, initial, resets=starts)  # the whole rollout in one call, from the same state
    assert torch.allclose(y, seen, atol=1e-5)  # sees what the single steps saw
    log_p = torch.distributions.Categorical(logits=head(y)).log_prob(actions)
    optimizer.zero_grad()
    (-(log_p * returns).mean()).backward()
    optimizer.step()
    rewards.append((reward.sum() / dones.sum()).item())

assert sum(rewards[-10:]) / 10 > 0.9
print(f"reward of an episode: {rewards[0]:.2f} at first, {sum(rewards[-10:]) / 10:.2f} at the end")
