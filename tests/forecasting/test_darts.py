"""darts, whose models build torch.nn.RNN, GRU or LSTM when they are fitted."""

from __future__ import annotations

import numpy as np
import pytest
from darts import TimeSeries
from darts.models import BlockRNNModel, RNNModel
from pytorch_lightning import Callback

import bptt


class Losses(Callback):
    def __init__(self, is_converted):
        self.is_converted, self.losses = is_converted, []

    def on_fit_start(self, trainer, module):
        if self.is_converted:
            bptt.convert(module)

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"].item())


def fitted(kind, cell, is_converted, series):
    seen = Losses(is_converted)
    options = {"training_length": 16} if kind is RNNModel else {"output_chunk_length": 4}
    model = kind(
        input_chunk_length=12, model=cell, hidden_dim=8, n_rnn_layers=2, dropout=0.0,
        batch_size=16, n_epochs=6, random_state=0, optimizer_kwargs={"lr": 0.01}, **options,
        pl_trainer_kwargs={
            "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "callbacks": [seen],
        },
    )  # fmt: skip
    model.fit(series)
    return model, seen.losses


@pytest.mark.parametrize("kind", [RNNModel, BlockRNNModel])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_losses_forecasts_and_files_are_those_of_torch(kind, cell, tmp_path):
    series = TimeSeries.from_values(np.sin(np.arange(80, dtype=np.float32) / 3))
    theirs, expected = fitted(kind, cell, False, series)
    ours, found = fitted(kind, cell, True, series)
    assert isinstance(ours.model.rnn, bptt.RNN | bptt.GRU | bptt.LSTM)
    assert found[-1] < 0.9 * found[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    ahead = ours.predict(7).values()
    np.testing.assert_allclose(ahead, theirs.predict(7).values(), rtol=1e-3, atol=1e-4)
    ours.save(str(tmp_path / "model.pt"))
    again = kind.load(str(tmp_path / "model.pt"), trusted=True)  # for the callback above
    assert not isinstance(again.model.rnn, bptt.RNN | bptt.GRU | bptt.LSTM)
    np.testing.assert_allclose(again.predict(7).values(), ahead, rtol=1e-4, atol=1e-5)
