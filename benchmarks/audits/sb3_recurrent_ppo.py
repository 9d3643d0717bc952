"""sb3-contrib's RecurrentPPO, on environments whose episodes end within a rollout.

The policy's LSTM sees the observations as they are. A minibatch is a part of the rollout, from a
random step on, one environment after the other; its sequences are padded with zeros.
"""

from __future__ import annotations

import numpy as np
from environments import PADDING, Numbered, episode, label
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv
from table import told

import bptt


def audited(batch: int):
    env = DummyVecEnv([lambda n=n: Numbered(n) for n in (1, 2)])
    model = RecurrentPPO(
        "MlpLstmPolicy", env, n_steps=12, batch_size=batch, n_epochs=1, seed=0, device="cpu",
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [8]},
    )  # fmt: skip
    return bptt.audit(
        lambda: model.learn(48), model.policy, "lstm_actor", label=label, episodes=episode
    )


def is_full_in_minibatches(report) -> bool:
    """Whether each loss is credited, with weight 1, to all steps from one of its episode on."""
    for q, W in enumerate(report.credits):
        for t in np.flatnonzero(report.has_loss[q]):
            since = int(np.flatnonzero(W[t])[0])
            if not (W[t, since : t + 1] == 1).all():
                return False
            if report.episodes[q, since] != report.episodes[q, t]:
                return False
    return True


def main() -> None:
    for batch, which in ((24, "one minibatch a rollout"), (8, "three minibatches a rollout")):
        told(
            "sb3-contrib",
            f"RecurrentPPO, rollouts of 12 steps, {which}; lstm_actor",
            "states are reset where an episode starts, stored states begin each sequence",
            audited(batch),
            {
                "full within an episode of a rollout": bptt.Truncated(12),
                "full within an episode of a minibatch": is_full_in_minibatches,
            },
            PADDING,
        )


if __name__ == "__main__":
    main()
