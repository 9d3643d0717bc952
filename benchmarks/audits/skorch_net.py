"""skorch's NeuralNetRegressor, which builds its module in ``fit``: found by its class."""

from __future__ import annotations

import numpy as np
from skorch import NeuralNetRegressor
from table import told
from torch import nn

import bptt


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


def main() -> None:
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((8, 6, n)).astype(np.float32) for n in (3, 1))
    net = NeuralNetRegressor(
        Module, max_epochs=1, lr=0.1, batch_size=4, train_split=None, verbose=0,
        iterator_train__shuffle=True,
    )  # fmt: skip
    report = bptt.audit(lambda: net.fit(x, y), nn.GRU)
    told(
        "skorch", "NeuralNetRegressor.fit, sequences of 6 steps", "-", report,
        {"full in each batch of 6 steps": bptt.Truncated(6)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
