"""neuralforecast's LSTM; ``fit`` trains a copy of the model, so it is found by its class.

Of ``h_train`` it says "maximum sequence length for truncated train backpropagation".
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM
from table import told
from torch import nn

import bptt


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    days = pd.date_range("2020-01-01", periods=40, freq="D")
    data = pd.DataFrame(
        {"unique_id": "a", "ds": days, "y": np.sin(np.arange(40, dtype=np.float32) / 4)}
    )
    for how in ({"recurrent": True}, {"recurrent": True, "h_train": 3}, {"recurrent": False}):
        model = LSTM(
            h=4, input_size=6, **how, encoder_hidden_size=8, encoder_n_layers=1,
            decoder_hidden_size=8, decoder_layers=1, max_steps=2, batch_size=1,
            windows_batch_size=4, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        forecast = NeuralForecast([model], freq="D")
        report = bptt.audit(lambda f=forecast: f.fit(data), nn.LSTM)
        steps = report.record.calls[0].steps
        losses = int(report.has_loss[:, :steps].any(0).sum())
        settings = ", ".join(f"{k}={v}" for k, v in how.items())
        says = "maximum sequence length for truncated train backpropagation"
        told(
            "neuralforecast",
            f"LSTM(h=4, input_size=6, {settings}).fit",
            f"h_train={how.get('h_train', 1)}: {says}" if how["recurrent"] else "-",
            report,
            {
                f"full in windows of {steps} steps, losses at the last {losses}": bptt.Truncated(
                    steps
                )
            },
        )


if __name__ == "__main__":
    main()
