"""RecurrentPPO of sb3-contrib with bptt.LSTM: an episode's end needs no loop over the steps.

Its policy calls the LSTM step by step as soon as an episode begins within a batch of sequences.
With resets= it is one call. The policy learns the same.
"""

import time

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

import bptt


class Policy(RecurrentActorCriticPolicy):
    """MlpLstmPolicy with bptt's LSTM, in which episode starts are resets."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        bptt.convert(self)  # in place: the optimizer keeps its parameters

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        sequences = lstm_states[0].shape[1]
        x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)  # [T, B, I]
        starts = episode_starts.reshape(sequences, -1).transpose(0, 1) != 0
        y, lstm_states = lstm(x, lstm_states, resets=starts)
        return y.transpose(0, 1).flatten(0, 1), lstm_states


def learned(policy):
    model = RecurrentPPO(
        policy, "CartPole-v1", n_steps=128, batch_size=128, n_epochs=4, seed=0, device="cpu",
        policy_kwargs={"lstm_hidden_size": 32},
    )  # fmt: skip
    began = time.perf_counter()
    model.learn(512)
    return model, time.perf_counter() - began


torch.set_num_threads(1)
(theirs, slow), (ours, quick) = learned("MlpLstmPolicy"), learned(Policy)
for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
print(f"the same policy in {quick:.1f} s, with torch.nn.LSTM in {slow:.1f} s")
