"""Random cells, fused: as the cell step by step, with all gradients, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bptt

UNARY: list[Callable[[Tensor], Tensor]] = [
    *(torch.tanh, torch.sigmoid, torch.relu, torch.sin, torch.cos, torch.abs, torch.sign),
    *(F.gelu, F.silu, F.softplus, F.elu, F.mish, F.logsigmoid, F.leaky_relu, F.hardtanh),
    *(torch.atan, torch.round, torch.floor, torch.ceil, torch.detach, torch.square),
    *(lambda a: a.softmax(-1), lambda a: F.normalize(a, dim=-1), lambda a: a.flip(-1)),
    *(lambda a: a.roll(1, -1), lambda a: a.clamp(-0.5, 0.7), lambda a: a % 0.7, lambda a: a**3),
    *(lambda a: a - a.mean(-1, keepdim=True), lambda a: a.cumsum(-1), lambda a: a.clone().mul_(2)),
    *(lambda a: F.layer_norm(a, a.shape[-1:]), lambda a: torch.where(a > 0, a, 0.1 * a)),
    *(lambda a: torch.stack(a.unbind(1)[::-1], 1), lambda a: a[:, :1].expand_as(a)),
    *(lambda a: torch.cat([a[:, 1:], a[:, :1]], 1), lambda a: a * (a > 0.1).to(a.dtype)),
    *(lambda a: a / (a.std(-1, keepdim=True) + 1), lambda a: a.amax(-1, keepdim=True) + 0 * a),
    *(
        lambda a: a * a.sum(-1).unsqueeze(1),
        lambda a: torch.exp(-a * a),
        lambda a: F.pad(a[:, 1:], (1, 0)),
    ),
    *(lambda a: a[:, torch.arange(a.shape[1]).flip(0)], lambda a: F.group_norm(a, 1)),
    *(lambda a: _without_gradient(a) * a, lambda a: a.gather(1, (a[:, :1] > 9).long())),
    *(lambda a: a[:, ::2].repeat(1, 2)[:, : a.shape[1]], lambda a: 1 / (1 + a * a)),
]


def _without_gradient(a: Tensor) -> Tensor:
    with torch.no_grad():
        return a.sigmoid()


BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum),
    *(lambda a, b: torch.where(a > b, a, b.tanh()), lambda a, b: torch.lerp(a, b, 0.3)),
    *(
        lambda a, b: a.sigmoid() * b,
        lambda a, b: a / (1 + b.abs()),
        lambda a, b: torch.addcmul(a, a, b),
    ),
    *(lambda a, b: torch.stack([a, b], 1).mean(1), lambda a, b: torch.stack([a, b], -1).amax(-1)),
    *(lambda a, b: torch.cat([a, b], 1).chunk(2, 1)[1] * a, lambda a, b: a.masked_fill(b > 0, 0.2)),
]


class Random(nn.Module):
    """An expression graph over x, states, weights and what was computed before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = self.choose = random.Random(seed)
        self.units, self.inputs = choose.choice([2, 3, 4, 6, 11, 13]), choose.choice([1, 3, 5])
        self.states = choose.choice([1, 2, 3])
        self.of_x = nn.Linear(self.inputs, self.units)
        self.products = nn.ModuleList([nn.Linear(self.units, self.units) for _ in range(3)])
        self.scale = nn.Parameter(torch.randn(self.units))
        n, self.steps = choose.randint(3, 12), list[tuple[Any, ...]]()
        for i in range(n):
            given = 2 + self.states + i
            a, b = choose.randrange(given), choose.randrange(given)
            kind = choose.choice(["unary", "unary", "binary", "binary", "product"])
            self.steps.append(
                {
                    "unary": (choose.choice(UNARY), a),
                    "binary": (choose.choice(BINARY), a, b),
                    "product": (self.products[choose.randrange(3)], a),
                }[kind]
            )
        total = 2 + self.states + n
        self.after = [choose.randrange(total) for _ in range(self.states)]
        self.given = [choose.randrange(total) for _ in range(2)]

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> Any:
        found = [self.of_x(x), self.scale.expand(len(x), -1), *state]
        for function, *given in self.steps:
            found.append(function(*(found[i] for i in given)))
        return [found[i] for i in self.given], tuple(torch.tanh(found[i]) for i in self.after)


def by_steps(cell: Random, x: Tensor, state: Any) -> Any:
    """Run the cell over the steps; a state that it detaches is as good as any here."""
    each = []
    for x_t in x:
        outputs, state = cell(x_t, state)
        each.append(outputs)
    return [torch.stack(y) for y in zip(*each, strict=True)], state


def check(seed: int) -> bool:
    """Whether it was fused."""
    torch.manual_seed(seed)
    cell = Random(seed).double()
    T, B = random.Random(seed).choice([(1, 1), (3, 2), (5, 1), (2, 11)])
    x = torch.randn(T, B, cell.inputs).double().requires_grad_()
    state = tuple(torch.randn(B, cell.units).double().requires_grad_() for _ in range(cell.states))
    try:
        module = bptt.fuse(cell, x[0].detach(), tuple(s.detach() for s in state))
    except bptt.errors.FuseError:
        return False
    assert bptt.kernels.not_native(module) is None
    leaves, found = [x, *state, *cell.parameters()], []
    for run in (module, partial(by_steps, cell)):
        outputs, after = run(x, state)
        flat = [*outputs, *after]
        loss = sum((y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum() for y in flat)
        none = [None] * len(leaves)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else none
        found.append([*flat, *grads])
    for ours, theirs in zip(*found, strict=True):
        one = torch.zeros(()).double() if theirs is None else theirs
        other = torch.zeros_like(one) if ours is None else ours
        scale = max(1.0, float(one.detach().abs().max()))
        torch.testing.assert_close(other, one.expand_as(other), rtol=0, atol=1e-9 * scale)
    return True


def test_random_cells() -> None:
    assert sum(map(check, range(40))) > 15  # the others do what cannot be fused


@pytest.mark.long
@pytest.mark.parametrize("block", range(10))
def test_many_random_cells(block: int) -> None:
    assert sum(check(40 + 60 * block + i) for i in range(60)) > 20
