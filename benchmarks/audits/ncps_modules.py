"""ncps: CfC and LTC, on windows whose states are carried and detached."""

from __future__ import annotations

import torch
from ncps.torch import LTC, CfC
from ncps.wirings import AutoNCP
from table import told
from torch import nn
from torch.utils._pytree import tree_map

import bptt


def main() -> None:
    torch.manual_seed(0)
    wiring = AutoNCP(10, 2)
    modules = {
        "CfC": CfC(3, 8),
        "CfC, mixed_memory": CfC(3, 8, mixed_memory=True),
        "CfC on an NCP": CfC(3, wiring),
        "LTC on an NCP": LTC(3, wiring),
    }
    for name, module in modules.items():
        x = torch.randn(2, 8, 3)  # [B, T, I]

        def run(module: nn.Module = module, x: torch.Tensor = x) -> None:
            state = None
            for window in x.split(4, dim=1):
                y, state = module(window, state)
                y.square().mean().backward()
                state = tree_map(torch.Tensor.detach, state)

        told(
            "ncps", f"{name}, windows of 4 steps, detached between", "-",
            bptt.audit(run, module), {"Truncated(4)": bptt.Truncated(4)},
        )  # fmt: skip


if __name__ == "__main__":
    main()
