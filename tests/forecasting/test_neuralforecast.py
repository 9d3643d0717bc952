"""neuralforecast, whose models hold torch.nn.RNN, GRU or LSTM, converted before they are fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, LSTM, RNN

import bptt

MODELS = {
    "LSTM": (LSTM, {"decoder_hidden_size": 8}),
    "LSTM that feeds back": (LSTM, {"recurrent": True}),
    "GRU": (GRU, {"decoder_hidden_size": 8}),
    "RNN": (RNN, {"decoder_hidden_size": 8}),
}


def series():
    t = np.arange(60)
    parts = [
        pd.DataFrame({"unique_id": f"{n}", "ds": t, "y": np.sin(t / (2 + n)).astype(np.float32)})
        for n in range(3)
    ]
    return pd.concat(parts)


def fitted(name, is_converted):
    kind, options = MODELS[name]
    model = kind(
        h=4, input_size=12, encoder_hidden_size=8, max_steps=30, batch_size=2,
        windows_batch_size=16, learning_rate=0.01, random_seed=1, scaler_type="identity",
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    if is_converted:
        bptt.convert(model)
    forecast = NeuralForecast([model], freq=1)
    forecast.fit(series())
    return forecast


@pytest.mark.parametrize("name", MODELS)
def test_losses_forecasts_and_files_are_those_of_torch(name, tmp_path):
    theirs, ours = fitted(name, False), fitted(name, True)
    assert isinstance(ours.models[0].hist_encoder, bptt.RNN | bptt.GRU | bptt.LSTM)
    found, expected = (
        np.array([loss for _, loss in f.models[0].train_trajectories]) for f in (ours, theirs)
    )
    assert found[-1] < 0.9 * found[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    column = type(ours.models[0]).__name__
    ahead, expected = (f.predict()[column].to_numpy() for f in (ours, theirs))
    np.testing.assert_allclose(ahead, expected, rtol=1e-3, atol=1e-4)
    ours.save(str(tmp_path), overwrite=True, save_dataset=True)
    again = NeuralForecast.load(str(tmp_path))
    np.testing.assert_allclose(again.predict()[column].to_numpy(), ahead, rtol=1e-4, atol=1e-5)
    assert not isinstance(again.models[0].hist_encoder, bptt.RNN | bptt.GRU | bptt.LSTM)
    bptt.convert(again.models[0])
    np.testing.assert_array_equal(again.predict()[column].to_numpy(), ahead)
