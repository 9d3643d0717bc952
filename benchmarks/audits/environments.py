"""Environments whose observations say which one they are, which step it is and of which episode."""

from __future__ import annotations

import gymnasium
import numpy as np

PADDING = 0
"""The number of no environment: zeros that a library pads with."""


class Numbered(gymnasium.Env):
    """Episodes of ``length`` steps. An observation is (number, step, episode, two random numbers).

    The number is at least 1; the step is counted over all episodes.
    """

    def __init__(self, number: int = 1, length: int = 5) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.number, self.length = number, length
        self.random = np.random.default_rng(number)
        self.step_number, self.episode, self.t = -1, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        done = self.t == self.length
        reward = float(np.cos(self.t + 2 * int(np.argmax(action)) if np.ndim(action) else self.t))
        return self._next(done), reward, done, False, {}

    def _next(self, done):
        # The last observation of an episode is not fed to the network: it has no number.
        return np.zeros(5, np.float32) if done else self._observe()

    def _observe(self):
        self.step_number += 1
        head = [self.number, self.step_number, self.episode]
        return np.array([*head, *self.random.standard_normal(2)], np.float32)


def label(x):
    """(the environment, the step) of each observation in x, [T, B, ...]; padding is of PADDING."""
    return x[..., 0].long(), x[..., 1].long()


def episode(x):
    """The episode of each observation in x, [T, B, ...]."""
    return x[..., 2].long()
