"""Recurrent agents: episodes end within a rollout, and their states must."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from audit.gallery.streams import of_features
from torch import nn
from torch.distributions import Categorical

import bptt

T, N = 8, 2
STARTS = np.zeros((T, N), bool)  # True where an observation is the first of its episode
STARTS[0] = STARTS[4, 0] = STARTS[5, 1] = True
EPISODES = STARTS.cumsum(0) - 1
DONES = np.vstack([STARTS[1:], np.zeros((1, N), bool)])  # True where a step is its episode's last


class VecEnv:
    """N environments that begin anew by themselves. An observation holds the environment's number
    and the step's."""

    def __init__(self, features=4):
        self.noise = np.random.default_rng(0).standard_normal((T + 1, N, features))
        self.noise[..., 0], self.noise[..., 1] = np.arange(N), np.arange(T + 1)[:, None]
        self.noise = self.noise.astype(np.float32)

    def reset(self):
        self.t = 0
        return self.noise[0]

    def step(self, action):
        reward = np.cos(action + self.t).astype(np.float32)
        done = DONES[self.t]
        self.t += 1
        return self.noise[self.t], reward, done


class ActorCritic(nn.Module):
    """A policy and a value on one recurrent core, which is a step or a sequence long."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.pi, self.v = nn.Linear(6, 3), nn.Linear(6, 1)


def returns_of(rewards, dones, last=0.0, gamma=0.9):
    found, running = [], last
    for reward, done in zip(reversed(rewards), reversed(dones), strict=True):
        running = torch.as_tensor(reward) + gamma * running * (1 - torch.as_tensor(done).float())
        found.insert(0, running)
    return torch.stack(found)


@loop("reset-late", t=4, s=3, also=("credit-crosses-episode", "memory-crosses-episode"))
def mask_before_the_step(is_wrong):
    """A2C, whose loss goes through the rollout. Wrong: the mask is made of ``done`` before the
    environment's step has renewed it."""
    agent = ActorCritic(nn.LSTMCell(4, 6))

    def run():
        env = VecEnv()
        optimizer = torch.optim.RMSprop(agent.parameters(), lr=7e-4, eps=1e-5)
        obs, done = env.reset(), np.zeros(N, bool)
        mask = torch.ones(N, 1)
        hx, cx = torch.zeros(N, 6), torch.zeros(N, 6)
        log_probs, values, rewards, dones = [], [], [], []
        for _ in range(T):
            hx, cx = agent.core(torch.from_numpy(obs), (hx * mask, cx * mask))
            dist = Categorical(logits=agent.pi(hx))
            action = dist.sample()
            if is_wrong:
                mask = torch.from_numpy(1.0 - done[:, None]).float()
            obs, reward, done = env.step(action.numpy())
            if not is_wrong:
                mask = torch.from_numpy(1.0 - done[:, None]).float()
            log_probs.append(dist.log_prob(action))
            values.append(agent.v(hx).squeeze(-1))
            rewards.append(reward)
            dones.append(done)
        advantage = returns_of(rewards, dones) - torch.stack(values)
        policy_loss = -(torch.stack(log_probs) * advantage.detach()).mean()
        optimizer.zero_grad()
        (policy_loss + 0.5 * advantage.square().mean()).backward()
        optimizer.step()

    return Training(run, agent, "core", {"episodes": EPISODES}, credit=bptt.Full())


@loop("reset-early", t=3, s=2, also=("not-carried",))
def dones_for_starts(is_wrong):
    """Behaviour cloning from recorded episodes. Wrong: the state is reset before the last step of
    an episode, which its ``done`` marks, and not after it."""
    policy = nn.ModuleDict({"rnn": nn.GRU(4, 6), "pi": nn.Linear(6, 3)})
    observations = torch.from_numpy(VecEnv().noise[:T])
    actions = torch.randint(0, 3, (T, N))

    def run():
        optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
        resets = torch.from_numpy(DONES if is_wrong else STARTS)
        h, loss = torch.zeros(1, N, 6), 0.0
        for obs, action, reset in zip(observations, actions, resets, strict=True):
            h = torch.where(reset[None, :, None], torch.zeros_like(h), h)
            y, h = policy["rnn"](obs[None], h)
            loss = loss + F.cross_entropy(policy["pi"](y[0]), action)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Training(run, policy, "rnn", {"episodes": EPISODES}, credit=bptt.Full())


class RolloutStorage:
    """PPO's storage, in the style of pytorch-a2c-ppo-acktr-gail."""

    def __init__(self, size):
        self.obs = torch.zeros(T, N, 4)
        self.h = torch.zeros(T + 1, N, size)
        self.masks = torch.ones(T + 1, N, 1)
        self.actions, self.log_probs = torch.zeros(T, N, dtype=torch.long), torch.zeros(T, N)
        self.rewards = torch.zeros(T, N)

    def insert(self, t, obs, h, action, log_prob, reward, done):
        self.obs[t].copy_(obs)
        self.h[t + 1].copy_(h)
        self.actions[t].copy_(action)
        self.log_probs[t].copy_(log_prob)
        self.rewards[t].copy_(torch.from_numpy(reward))
        self.masks[t + 1].copy_(1.0 - torch.from_numpy(done).float()[:, None])


class Base(nn.Module):
    """The recurrent base: one step in a rollout; in training the segments between resets."""

    def __init__(self, *, rolls_masked=True, trains_masked=True):
        super().__init__()
        self.gru = nn.GRU(4, 6)
        self.actor = nn.Linear(6, 3)
        self.rolls_masked, self.trains_masked = rolls_masked, trains_masked

    def act(self, obs, h, mask):
        x, h = self.gru(obs[None], (h * mask)[None] if self.rolls_masked else h[None])
        return self.actor(x[0]), h[0]

    def evaluate(self, obs, h, masks):
        if not self.trains_masked:
            return self.actor(self.gru(obs, h[None])[0])
        has_zeros = (masks[1:] == 0.0).any(-1).any(-1).nonzero().flatten() + 1
        borders = [0, *has_zeros.tolist(), len(obs)]
        outputs = []
        for start, end in pairwise(borders):
            scores, h_last = self.gru(obs[start:end], (h * masks[start])[None])
            outputs.append(scores)
            h = h_last[0]
        return self.actor(torch.cat(outputs))


def ppo(base):
    """Collect one rollout and train on it for two epochs."""
    optimizer = torch.optim.Adam(base.parameters(), lr=2.5e-4, eps=1e-5)
    storage, env = RolloutStorage(6), VecEnv()
    obs = torch.from_numpy(env.reset())
    for t in range(T):
        with torch.no_grad():
            logits, h = base.act(obs, storage.h[t], storage.masks[t])
        dist = Categorical(logits=logits)
        action = dist.sample()
        new_obs, reward, done = env.step(action.numpy())
        storage.insert(t, obs, h, action, dist.log_prob(action), reward, done)
        obs = torch.from_numpy(new_obs)
    advantages = (storage.rewards - storage.rewards.mean()) / storage.rewards.std()
    for _ in range(2):
        dist = Categorical(logits=base.evaluate(storage.obs, storage.h[0], storage.masks[:-1]))
        ratio = torch.exp(dist.log_prob(storage.actions) - storage.log_probs)
        surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = -surrogate.mean() - 0.01 * dist.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(base.parameters(), 0.5)
        optimizer.step()


@loop("rollout-differs", t=4, s=3, also=("credit-crosses-episode", "memory-crosses-episode"))
def resets_in_the_rollout_only(is_wrong):
    """Wrong: training runs over the rollout in one piece, without the masks."""
    base = Base(trains_masked=not is_wrong)
    options = {"label": of_features, "episodes": EPISODES}
    return Training(lambda: ppo(base), base, "gru", options, credit=bptt.Full())


@loop("rollout-differs", t=1, s=0, also=("not-carried",))
def rollout_without_state(is_wrong):
    """Wrong: the policy is asked without its state, so each step of the rollout is a first one; in
    training it runs over the whole of it."""
    policy = nn.ModuleDict({"gru": nn.GRU(4, 6, batch_first=True), "pi": nn.Linear(6, 3)})

    def run():
        env = VecEnv()
        optimizer = torch.optim.Adam(policy.parameters())
        obs, h, seen, actions, rewards = env.reset(), None, [], [], []
        for _ in range(4):
            x = torch.from_numpy(obs)[:, None]
            with torch.no_grad():
                y, h = policy["gru"](x) if is_wrong else policy["gru"](x, h)
            action = Categorical(logits=policy["pi"](y[:, 0])).sample()
            seen.append(x)
            actions.append(action)
            obs, reward, _ = env.step(action.numpy())
            rewards.append(torch.from_numpy(reward))
        scores = policy["pi"](policy["gru"](torch.cat(seen, 1))[0])
        log_probs = Categorical(logits=scores).log_prob(torch.stack(actions, 1))
        optimizer.zero_grad()
        (-log_probs * torch.stack(rewards, 1)).mean().backward()
        optimizer.step()

    options = {"label": of_features, "episodes": EPISODES}
    return Training(run, policy, "gru", options, credit=bptt.Full())


@loop("memory-crosses-episode", t=4, s=3, also=("credit-crosses-episode",))
def never_reset(is_wrong):
    """Wrong: the masks are stored, and neither the rollout nor the training looks at them."""
    base = Base(rolls_masked=not is_wrong, trains_masked=not is_wrong)
    options = {"label": of_features, "episodes": EPISODES}
    return Training(lambda: ppo(base), base, "gru", options, credit=bptt.Full())


@loop("memory-crosses-episode", t=4, s=3, also=("state-parts-differ", "credit-crosses-episode"))
def mask_on_h_alone(is_wrong):
    """Wrong: c goes on into the next episode."""

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.lstm = nn.Linear(4, 5), nn.LSTM(5, 6)
            self.q = nn.Linear(6, 3)

        def unroll(self, obs, starts):
            h = c = obs.new_zeros(1, obs.shape[1], 6)
            for x, start in zip(torch.relu(self.encoder(obs)), starts, strict=True):
                keep = (~start).float().view(1, -1, 1)
                out, (h, c) = self.lstm(x[None], (h * keep, c if is_wrong else c * keep))
                yield self.q(out[0])

    agent = Agent()
    obs = torch.from_numpy(VecEnv().noise[:T])
    targets = torch.randn(T, N, 3)

    def run():
        q = torch.stack(list(agent.unroll(obs, torch.from_numpy(STARTS))))
        F.smooth_l1_loss(q, targets).backward()

    return Training(run, agent, "lstm", {"episodes": EPISODES}, credit=bptt.Full())


@loop("credit-crosses-episode", t=4, s=3)
def reset_through_data(is_wrong):
    """Wrong: ``h.data`` is set to zero, of which the graph knows nothing: the values are reset, the
    gradient goes on."""
    predictor = nn.ModuleDict({"rnn": nn.RNN(4, 6), "reward": nn.Linear(6, 1)})
    observations = torch.from_numpy(VecEnv().noise[:T])
    rewards = torch.randn(T, N)

    def run():
        optimizer = torch.optim.SGD(predictor.parameters(), lr=0.01)
        h, predicted = torch.zeros(1, N, 6), []
        for obs, starts in zip(observations, torch.from_numpy(STARTS), strict=True):
            if is_wrong:
                h = h.clone()
                h.data[:, starts] = 0.0
            else:
                h = h.masked_fill(starts[None, :, None], 0.0)
            y, h = predictor["rnn"](obs[None], h)
            predicted.append(predictor["reward"](y[0]).squeeze(-1))
        optimizer.zero_grad()
        F.mse_loss(torch.stack(predicted), rewards).backward()
        optimizer.step()

    return Training(run, predictor, "rnn", {"episodes": EPISODES}, credit=bptt.Full())


@loop("other-sequence", t=0, s=3, also=("wrong-step", "rollout-differs"))
def states_in_a_numpy_buffer(is_wrong):
    """States are stored before each step as [T, N, H]; training begins at steps 0 and 4. Wrong: the
    buffer is flattened by ``reshape`` alone, as if it were [N, T, H]."""
    model = nn.ModuleDict({"gru": nn.GRU(4, 6), "v": nn.Linear(6, 1)})

    def swap_and_flatten(a):
        if is_wrong:
            return a.reshape(N * T, *a.shape[2:])
        return a.swapaxes(0, 1).reshape(N * T, *a.shape[2:])

    def run():
        env = VecEnv()
        optimizer = torch.optim.Adam(model.parameters())
        observed, states = np.zeros((T, N, 4), np.float32), np.zeros((T, N, 6), np.float32)
        obs, h = env.reset(), torch.zeros(1, N, 6)
        for t in range(T):
            observed[t], states[t] = obs, h[0].numpy()
            with torch.no_grad():
                _, h = model["gru"](torch.from_numpy(obs)[None], h)
            obs, _, _ = env.step(np.zeros(N))
        states = swap_and_flatten(states)
        observed = observed.swapaxes(0, 1).reshape(N * T, 4)
        for first in (0, 4):
            rows = np.arange(N) * T + first
            x = torch.from_numpy(observed[rows[None] + np.arange(4)[:, None]])
            y, _ = model["gru"](x, torch.from_numpy(states[rows])[None])
            optimizer.zero_grad()
            model["v"](y).square().mean().backward()
            optimizer.step()

    options = {"label": of_features}
    return Training(run, model, "gru", options, credit=bptt.Truncated(4))


@loop("memory-crosses-episode", t=4, s=3, also=("credit-crosses-episode", "rollout-differs"))
def replay_with_burn_in(is_wrong):
    """R2D2: windows of six steps from the replay, two of burn-in without gradient, from stored
    states. Wrong: the windows are cut without a look at where episodes end."""

    class RecurrentQ(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.q = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, obs, state):
            y, state = self.lstm(obs, state)
            return self.q(y), state

    online = RecurrentQ()
    length = 12
    ends = [6, 12] if not is_wrong else [4, 12]
    episodes = np.repeat([0, 1], [ends[0], ends[1] - ends[0]])
    record = np.random.default_rng(0).standard_normal((length, 4)).astype(np.float32)
    record[:, 0], record[:, 1] = 0, np.arange(length)

    def run():
        optimizer = torch.optim.Adam(online.parameters(), lr=1e-4)
        replay, state = [], (torch.zeros(1, 1, 6), torch.zeros(1, 1, 6))
        for t in range(length):
            if t in ends:
                state = (torch.zeros(1, 1, 6), torch.zeros(1, 1, 6))
            replay.append((record[t], tuple(s[:, 0].numpy() for s in state)))
            with torch.no_grad():
                _, state = online(torch.from_numpy(record[t])[None, None], state)
        for start in (0, 6):
            obs, stored = zip(*replay[start : start + 6], strict=True)
            obs = torch.from_numpy(np.stack(obs))[None]
            state = tuple(torch.from_numpy(s)[:, None] for s in stored[0])
            with torch.no_grad():
                _, state = online(obs[:, :2], state)
            q, _ = online(obs[:, 2:], state)
            optimizer.zero_grad()
            q.max(-1).values.square().mean().backward()
            optimizer.step()

    options = {"label": of_features, "episodes": episodes}
    return Training(run, online, "lstm", options)


@loop("not-carried", t=1, s=0)
def state_of_the_target_network(is_wrong):
    """DRQN. Wrong: the target network's state takes the place of the online network's, by its
    name."""

    class DRQN(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 5)
            self.gru = nn.GRUCell(5, 6)
            self.q = nn.Linear(6, 3)

        def forward(self, obs, h):
            h = self.gru(F.relu(self.fc(obs)), h)
            return self.q(h), h

    online = DRQN()
    obs = torch.randn(7, 2, 4)
    rewards, actions = torch.randn(6, 2), torch.randint(0, 3, (6, 2))

    def run():
        target = copy.deepcopy(online)
        for p in target.parameters():
            p.data.mul_(0.99)
        optimizer = torch.optim.Adam(online.parameters())
        h, h_target, loss = torch.zeros(2, 6), torch.zeros(2, 6), 0.0
        with torch.no_grad():
            _, h_target = target(obs[0], h_target)
        for t in range(6):
            q, h = online(obs[t], h)
            with torch.no_grad():
                if is_wrong:
                    q_next, h = target(obs[t + 1], h_target)
                    h_target = h
                else:
                    q_next, h_target = target(obs[t + 1], h_target)
            wanted = rewards[t] + 0.9 * q_next.max(-1).values
            chosen = q.gather(-1, actions[t][:, None]).squeeze(-1)
            loss = loss + F.smooth_l1_loss(chosen, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Training(run, online, "gru", {"episodes": [0] * 6}, credit=bptt.Full())


@loop("counted-twice", t=0, s=0)
def two_losses_of_one_core(is_wrong):
    """Actor and critic on one LSTM, updated one after the other. Wrong: the critic's pass is of
    the sum."""
    agent = ActorCritic(nn.LSTM(4, 6))
    obs = torch.from_numpy(VecEnv().noise[:4])
    actions, returns = torch.randint(0, 3, (4, N)), torch.randn(4, N)

    def run():
        optimizer = torch.optim.Adam(agent.parameters())
        for _ in range(2):
            features, _ = agent.core(obs)
            values = agent.v(features).squeeze(-1)
            log_probs = Categorical(logits=agent.pi(features)).log_prob(actions)
            actor_loss = -(log_probs * (returns - values).detach()).mean()
            critic_loss = F.mse_loss(values, returns)
            optimizer.zero_grad()
            actor_loss.backward(retain_graph=True)
            (actor_loss + critic_loss if is_wrong else critic_loss).backward()
            optimizer.step()

    return Training(run, agent, "core")
