"""What runs again sees the buffers of the first run, and leaves them as one pass would."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import bptt

T, B, I, H = 20, 4, 3, 5
MEMORIES = [
    bptt.Store(segment=3),
    bptt.Recompute(6),
    bptt.Recompute(2),
    bptt.Recompute(2, segment=3),
]


class Normed(nn.Module):
    """A cell with everything that changes as it runs: statistics, iterations, a buffer anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = spectral_norm(nn.Linear(I + H, H))
        self.norm = nn.BatchNorm1d(H)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.steps = self.steps + 1
        h = torch.tanh(self.scale * self.norm(self.linear(torch.cat([x, h], 1))))
        return h + 0.01 * self.steps, h


def train(cell: Any, module: nn.Module, **how: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    x = torch.linspace(-1, 2, T * B * I).view(T, B, I)
    y, _ = bptt.unroll(bptt.Stepwise(cell), x.sin(), torch.zeros(B, H), **how)
    found = torch.autograd.grad(y.square().mean(), list(module.parameters()))
    return [y.detach(), *found], copy.deepcopy(dict(module.named_buffers()))


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
@pytest.mark.parametrize("as_what", ["module", "method", "function", "partial"])
def test_recomputation_leaves_buffers_as_one_pass_does(memory: Any, as_what: str) -> None:
    base = Normed()

    def run(**how: Any) -> Any:
        module = copy.deepcopy(base)
        calls = {
            "module": module,
            "method": module.forward,
            "function": lambda x, h: module(x, h),
            "partial": partial(lambda m, x, h: m(x, h), module),
        }
        return train(calls[as_what], module, **how)

    right, buffers = run()
    found, left = run(memory=memory)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)
    assert left["norm.num_batches_tracked"] == T
    assert left["steps"] == T
    for name in buffers:
        assert torch.equal(left[name], buffers[name]), name


def test_what_happens_to_buffers_between_the_passes_stays() -> None:
    module = Normed()
    x = torch.randn(T, B, I)
    y, _ = bptt.unroll(bptt.Stepwise(module), x, torch.zeros(B, H), memory=bptt.Recompute(2))
    own = module.norm.num_batches_tracked
    module(x[0], torch.zeros(B, H))
    y.sum().backward()
    assert module.norm.num_batches_tracked is own
    assert own == T + 1
    assert module.steps == T + 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stream_counts_each_step_once(length: int) -> None:
    base, x = Normed(), torch.randn(T, B, I)
    counts = []
    for credit in (bptt.Truncated(length), bptt.Truncated(every=length, reach=3 * length)):
        module = copy.deepcopy(base)
        stream = bptt.Stream(torch.zeros(B, H))
        for window in x.split(length):
            y, stream = stream.advance(bptt.Stepwise(module), window, credit=credit)
            y.sum().backward()
        counts.append(copy.deepcopy(dict(module.named_buffers())))
    assert counts[1]["norm.num_batches_tracked"] == counts[1]["steps"] == T
    for name in counts[0]:
        torch.testing.assert_close(counts[0][name], counts[1][name])


def test_estimator_error_leaves_buffers_as_they_were() -> None:
    module = Normed()
    before = copy.deepcopy(dict(module.named_buffers()))
    bptt.estimator_error(
        bptt.Stepwise(module), torch.randn(T, B, I), lambda y: y.square().mean(),
        bptt.Randomized(4), state=torch.zeros(B, H), draws=3,
    )  # fmt: skip
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_module_that_does_something_else_the_second_time() -> None:
    generator = np.random.default_rng(0)
    gru = nn.GRU(I, H)

    def noisy(x: Tensor, h: Any) -> Any:
        return gru(x + torch.from_numpy(generator.standard_normal(x.shape)).float(), h)

    kept: dict[str, Any] = {}

    def remembers(x: Tensor, h: Any) -> Any:
        y, h = gru(x + kept.get("x", 0.0), h)
        kept["x"] = x[-1:].detach()
        return y, h

    x = torch.randn(T, B, I)
    for module in (noisy, remembers):
        y, _ = bptt.unroll(module, x, memory=bptt.Recompute(2, segment=3))
        with pytest.raises(RuntimeError, match=r"the steps \d+ to \d+ gave other results when"):
            y.sum().backward()
