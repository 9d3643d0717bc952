"""What a cell takes from Python may change after it was fused: the step is traced anew, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from users_cells import Cell, H, I

import bptt

SETTINGS = SimpleNamespace(inner=SimpleNamespace(scale=1.0))


class Scaled(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.config = 0.3, {"b": [0.5]}

    def forward(self, x: Tensor, h: Tensor) -> Any:
        scale = self.alpha * self.config["b"][0] * SETTINGS.inner.scale
        h = torch.tanh(self.of_x(x) + scale * self.of_h(h))
        return h, h


def _attribute(module: bptt.Fused) -> None:
    module.cell.alpha = 2.0


def _by_the_fused_module(module: bptt.Fused) -> None:
    module.alpha = 2.0
    assert module.cell.alpha == module.alpha == 2.0


def _in_a_list(module: bptt.Fused) -> None:
    module.config["b"][0] = 3.0


def _of_a_global(module: bptt.Fused) -> None:
    SETTINGS.inner.scale += 1


@pytest.mark.parametrize("change", [_attribute, _by_the_fused_module, _in_a_list, _of_a_global])
def test_a_change_is_seen(change: Any) -> None:
    torch.manual_seed(0)
    cell, x, h = Scaled().double(), torch.randn(4, 3, I).double(), torch.randn(3, H).double()
    module = bptt.fuse(cell, x[0], h)
    before = [plan for _, plan in module._plans.found.values()]
    y = module(x, h)[0]
    assert all(a is b for a, (_, b) in zip(before, module._plans.found.values(), strict=True))
    change(module)
    found = module(x, h)[0]
    assert not torch.allclose(found, y)
    torch.testing.assert_close(found, bptt.Stepwise(cell)(x, h)[0], rtol=0, atol=1e-12)
    assert bptt.kernels.not_native(module) is None


def test_hooks_run_step_by_step() -> None:
    cell, x, h = Scaled(), torch.randn(4, 3, I), torch.randn(3, H)
    module, seen = bptt.fuse(cell, x[0], h), []
    handle = cell.of_h.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(RuntimeWarning, match="of_h has hooks"):
        module(x, h)
    assert len(seen) == 4
    with pytest.raises(bptt.errors.FuseError, match="of_h has hooks"):
        bptt.fuse(cell, x[0], h)
    handle.remove()
    assert bptt.kernels.not_native(module) is None


def test_what_has_no_rows_is_the_same_at_each_step() -> None:
    cell = Cell()
    T, B = 2, H // 2  # as many rows in all as there are units
    module = bptt.fuse(
        lambda x, h: (cell.of_h.bias, torch.tanh(cell.of_x(x) + h)),
        torch.zeros(B, I),
        torch.zeros(B, H),
    )
    assert torch.equal(module(torch.randn(T, B, I))[0], cell.of_h.bias.expand(T, H))
