"""norse: a recurrent layer cut into windows by hand, and a network of ``SequentialState``."""

from __future__ import annotations

import norse.torch as norse
import torch
from table import told
from torch import nn

import bptt


def main() -> None:
    torch.manual_seed(0)
    layer, readout = norse.LIFRecurrent(4, 8), nn.Linear(8, 2)
    x, y = 40 * torch.rand(12, 3, 4), torch.randn(12, 3, 2)

    def windows() -> None:
        state = None
        for x_k, y_k in zip(x.split(4), y.split(4), strict=True):
            spikes, state = layer(x_k, state)
            nn.functional.mse_loss(readout(spikes), y_k).backward()
            state = type(state)(*(part.detach() for part in state))

    told(
        "norse", "LIFRecurrent, windows of 4 steps, all parts of the state detached",
        "-", bptt.audit(windows, layer),
        {"Truncated(4)": bptt.Truncated(4)},
    )  # fmt: skip

    network = norse.SequentialState(
        nn.Linear(4, 8), norse.LIFCell(), nn.Linear(8, 2), norse.LICell()
    )

    def steps() -> None:
        state, loss = None, 0.0
        for x_t, y_t in zip(x, y, strict=True):
            voltage, state = network(x_t, state)
            loss = loss + nn.functional.mse_loss(voltage, y_t)
        loss.backward()

    for place in ("1", "3"):
        report = bptt.audit(steps, network, place)
        name = type(network[int(place)]).__name__
        told(
            "norse", f"SequentialState, a step a call, its {name}", "-",
            report, {"full": bptt.Full()},
        )  # fmt: skip


if __name__ == "__main__":
    main()
