"""Spiking and liquid modules of public libraries under ``bptt.check_module``: a line for each.

envs/spiking_and_liquid/bin/python benchmarks/audits/checked_modules.py
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import norse.torch as norse
import snntorch
import torch
from ncps.torch import LTC, CfC, CfCCell
from ncps.wirings import AutoNCP
from torch import Tensor, nn

import bptt

T, B, N = 6, 3, 4


class Several(nn.Module):
    """A neuron whose state is several tensors, as ``(x, state) -> (y, state)``."""

    def __init__(self, neuron: nn.Module, returns_all: bool = False) -> None:
        super().__init__()
        self.neuron, self.returns_all = neuron, returns_all

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes, *after = self.neuron(x, *state)
        return spikes, (spikes, *after) if self.returns_all else tuple(after)


class Timed(nn.Module):
    """A liquid network with the time that each step takes as a second input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: tuple[Tensor, Tensor], state: Any = None) -> Any:
        return self.network(x[0], state, x[1])


class OneSecond(nn.Module):
    """A liquid cell in steps of one second."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = CfCCell(N, 5)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        return self.cell(x, h, 1.0)


def modules() -> dict[str, tuple[Callable[[], Any], dict[str, Any]]]:
    """What is checked: how it is made, and the options of the check."""
    x, step = 2 * torch.rand(T, B, N), bptt.Stepwise
    z, h = torch.zeros(B, N), torch.zeros(B, 5)
    strong = {"inputs": 30 * x}
    spans = {"inputs": (x.transpose(0, 1), torch.rand(B, T, 1)), "batch_first": True}
    of_units = {"inputs": (spans["inputs"][0], spans["inputs"][1].expand(B, T, 5))}
    return {
        "snntorch.Leaky": (
            lambda: step(snntorch.Leaky(beta=0.9)),
            {"inputs": x, "state": z},
        ),
        "snntorch.Leaky, without state=": (
            lambda: step(snntorch.Leaky(beta=0.9)),
            {"inputs": x},
        ),
        "snntorch.Synaptic": (
            lambda: step(Several(snntorch.Synaptic(alpha=0.8, beta=0.9))),
            {"inputs": x, "state": (z, z)},
        ),
        "snntorch.Alpha": (
            lambda: step(Several(snntorch.Alpha(alpha=0.9, beta=0.8))),
            {"inputs": x, "state": (z, z, z)},
        ),
        "snntorch.RLeaky": (
            lambda: step(Several(snntorch.RLeaky(beta=0.9, linear_features=N), returns_all=True)),
            {"inputs": x, "state": (z, z)},
        ),
        "snntorch.SLSTM": (
            lambda: step(Several(snntorch.SLSTM(N, 5))),
            {"inputs": x, "state": (h, h)},
        ),
        "norse.LIF": (norse.LIF, strong),
        "norse.LIFRecurrent": (lambda: norse.LIFRecurrent(N, 5), strong),
        "norse.LIFCell": (lambda: step(norse.LIFCell()), strong),
        "norse.LIFRecurrentCell": (lambda: step(norse.LIFRecurrentCell(N, 5)), strong),
        "norse.LI": (norse.LI, {"inputs": x}),
        "norse.LSNNRecurrent": (lambda: norse.LSNNRecurrent(N, 5), strong),
        "norse.LIFAdEx": (norse.LIFAdEx, strong),
        "norse.IAFCell": (lambda: step(norse.IAFCell()), {"inputs": x}),
        "norse.SequentialState": (
            lambda: step(norse.SequentialState(nn.Linear(N, 6), norse.LIFCell())),
            strong,
        ),
        "ncps.CfC": (lambda: CfC(N, 5), {}),
        "ncps.CfC, pure": (lambda: CfC(N, 5, mode="pure"), {}),
        "ncps.CfC, mixed_memory": (lambda: CfC(N, 5, mixed_memory=True), {}),
        "ncps.CfC on an NCP": (lambda: CfC(N, AutoNCP(8, 2)), {}),
        "ncps.CfC, backbone_dropout": (
            lambda: CfC(N, 5, backbone_layers=2, backbone_dropout=0.3),
            {},
        ),
        "ncps.CfCCell": (lambda: step(OneSecond()), {"inputs": x, "state": h}),
        "ncps.LTC": (lambda: LTC(N, 5), {}),
        "ncps.LTC, mixed_memory": (lambda: LTC(N, 5, mixed_memory=True), {}),
        "ncps.LTC on an NCP": (lambda: LTC(N, AutoNCP(8, 2)), {}),
        "ncps.CfC, timespans [B, T, H]": (lambda: Timed(CfC(N, 5)), {**spans, **of_units}),
        "ncps.CfC, timespans [B, T, 1]": (lambda: Timed(CfC(N, 5)), spans),
    }


def main() -> None:
    """Print a line for each module."""
    torch.manual_seed(0)
    print(", ".join(f"{p} {version(p)}" for p in ("torch", "snntorch", "norse", "ncps")))
    for name, (make, options) in modules().items():
        try:
            found = bptt.check_module(make(), **options)
        except RuntimeError as e:
            print(f"{name:32} raises {str(e).splitlines()[0]}")
            continue
        wrong = ", ".join(c.name for c in found.wrong)
        surrogate = any("surrogate" in c.says for c in found.checks)
        note = " (surrogate gradient)" if surrogate else ""
        print(f"{name:32} {'wrong: ' + wrong if wrong else 'right'}{note}")


if __name__ == "__main__":
    main()
