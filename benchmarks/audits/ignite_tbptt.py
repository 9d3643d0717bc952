"""ignite's ``create_supervised_tbptt_trainer``."""

from __future__ import annotations

import torch
from ignite.contrib.engines import create_supervised_tbptt_trainer
from table import told
from torch import nn

import bptt


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(4, 8), nn.Linear(8, 2)

    def forward(self, x, hidden=None):
        y, hidden = self.rnn(x, hidden)
        return self.fc(y), hidden


def main() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_tbptt_trainer(model, optimizer, nn.functional.mse_loss, 4)
    batch = torch.randn(12, 2, 4), torch.randn(12, 2, 2)
    report = bptt.audit(lambda: trainer.run([batch], max_epochs=1), model, "rnn")
    told(
        "pytorch-ignite", "create_supervised_tbptt_trainer, tbtt_step = 4, 12 steps",
        "an update every 4 steps, through the same 4 steps", report,
        {"Truncated(4)": bptt.Truncated(4)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
