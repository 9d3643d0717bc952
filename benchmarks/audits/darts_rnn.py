"""darts' RNNModel, which builds its network in ``fit``: found by its class."""

from __future__ import annotations

import logging

import numpy as np
from darts import TimeSeries
from darts.models import RNNModel
from table import told
from torch import nn

import bptt


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    values = np.sin(np.arange(16, dtype=np.float32) / 3)
    series = TimeSeries.from_values(values)
    model = RNNModel(
        input_chunk_length=5, training_length=8, model="LSTM", hidden_dim=8, n_rnn_layers=1,
        batch_size=4, n_epochs=1, random_state=0,
        pl_trainer_kwargs={
            "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False,
        },
    )  # fmt: skip
    report = bptt.audit(lambda: model.fit(series), nn.LSTM)
    told(
        "darts", "RNNModel(model='LSTM', training_length=8).fit",
        "training_length: the length of the series used in training",
        report, {"full in each sample of 8 steps": bptt.Truncated(8)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
