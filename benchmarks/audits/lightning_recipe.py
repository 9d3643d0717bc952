"""The recipe of Lightning's page "Truncated Backpropagation Through Time (TBPTT)".

The page says "splits of size k". Its code calls ``tensor_split(self.truncated_bptt_steps)``, which
takes a number of chunks: with its own 100 steps and 10 the two agree, with 24 and 4 they do not.
"""

from __future__ import annotations

import logging

import lightning
import torch
from table import told
from torch import nn

import bptt


class LitModel(lightning.LightningModule):
    def __init__(self, truncated_bptt_steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.truncated_bptt_steps = truncated_bptt_steps
        self.rnn = nn.LSTM(4, 8, batch_first=True)
        self.linear_out = nn.Linear(8, 2)

    def forward(self, x, hs):
        seq, hs = self.rnn(x, hs)
        return self.linear_out(seq), hs

    def training_step(self, batch, batch_idx):
        x, y = batch
        split_x, split_y = [
            x.tensor_split(self.truncated_bptt_steps, dim=1),
            y.tensor_split(self.truncated_bptt_steps, dim=1),
        ]
        hiddens = None
        optimizer = self.optimizers()
        for x, y in zip(split_x, split_y, strict=True):
            y_pred, hiddens = self(x, hiddens)
            loss = nn.functional.mse_loss(y_pred, y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            hiddens = [h.detach() for h in hiddens]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.001)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for steps, asked in ((24, 4), (16, 4)):
        model = LitModel(asked)
        data = torch.utils.data.TensorDataset(torch.randn(2, steps, 4), torch.randn(2, steps, 2))
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(data, batch_size=2)
        report = bptt.audit(lambda t=trainer, m=model, d=loader: t.fit(m, d), model, "rnn")
        told(
            "lightning", f"the recipe, truncated_bptt_steps = {asked}, {steps} steps",
            f"splits of size {asked}", report,
            {f"Truncated({k})": bptt.Truncated(k) for k in (asked, steps // asked)},
        )  # fmt: skip


if __name__ == "__main__":
    main()
