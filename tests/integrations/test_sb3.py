"""RecurrentPPO of sb3-contrib, whose policies hold torch.nn.LSTM, converted."""

from __future__ import annotations

import pytest
import torch
from sb3_contrib import RecurrentPPO

import bptt


def learned(is_converted):
    model = RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=2, seed=0,
        device="cpu", policy_kwargs={"lstm_hidden_size": 16, "net_arch": [8]},
    )  # fmt: skip
    if is_converted:
        bptt.convert(model.policy)
        assert type(model.policy.lstm_actor) is bptt.LSTM
        assert type(model.policy.lstm_critic) is bptt.LSTM
    model.learn(128)
    return model


def test_it_learns_the_same(tmp_path):
    theirs, ours = learned(False), learned(True)
    for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ours.save(tmp_path / "policy.zip")
    again = RecurrentPPO.load(tmp_path / "policy.zip", device="cpu")
    observed = torch.zeros(4).numpy()
    assert again.predict(observed, deterministic=True)[0] == pytest.approx(
        theirs.predict(observed, deterministic=True)[0]
    )
