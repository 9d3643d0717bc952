"""Fused cells against autograd on the cells themselves, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from users_cells import CASES, Cell, Gru, H, I, Lstm, state_of

import bptt
from bptt._src.pytree import map_tensors, tensors_of

SIZES = [(1, 1), (7, 3), (2, 11), (13, 1)]


def fused(name: str, dtype: torch.dtype) -> tuple[Any, bptt.Fused]:
    torch.manual_seed(0)
    case = CASES[name]
    cell = case.make()
    if isinstance(cell, torch.nn.Module):
        cell.to(dtype)
    else:
        for value in cell.__closure__:
            value.cell_contents.to(dtype)
    x_t = case.inputs((2,), dtype=dtype)
    return cell, bptt.fuse(cell, x_t, state_of(case, 2, dtype=dtype))


def results(module: Any, inputs: Any, state: Any, weights: list[torch.Tensor]) -> list[Any]:
    """Outputs, final states, and the gradients of all of them."""

    def leaf(t: torch.Tensor) -> torch.Tensor:
        t = t.detach().clone()
        return t.requires_grad_() if t.is_floating_point() else t

    inputs, state = map_tensors(leaf, inputs), map_tensors(leaf, state)
    found = [*map(tensors_of, module(inputs, state))]
    flat = [t for part in found for t in part]
    loss = sum((t * torch.linspace(-1, 2, t.numel()).view(t.shape)).sum() for t in flat)
    wanted = [t for t in (*tensors_of(inputs), *tensors_of(state), *weights) if t.requires_grad]
    return [*flat, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def assert_same(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert not any(t is not None and t.any() for t in (a, b))
            continue
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_the_cell_step_by_step(name: str, dtype: torch.dtype) -> None:
    cell, module = fused(name, dtype)
    assert bptt.kernels.not_native(module) is None
    for T, B in SIZES:
        torch.manual_seed(T)
        inputs = CASES[name].inputs((T, B), dtype=dtype)
        state = state_of(CASES[name], B, dtype=dtype)
        weights = list(module.parameters())
        expected = results(bptt.Stepwise(cell), inputs, state, weights)
        found = results(module, inputs, state, weights)
        assert_same(found, expected, 1e-10 if dtype == torch.float64 else 2e-5)


def test_gradients_of_gradients() -> None:
    cell, module = fused("gru", torch.float64)
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, H, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (module, bptt.Stepwise(cell)):
        loss = run(x, h)[0].square().sum()
        first = torch.autograd.grad(loss, [x, *cell.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), [x, h])
        found.append([*first, *second])
    assert_same(*found, 1e-10)


def test_finite_differences() -> None:
    cell, module = fused("dale", torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, H, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, h, *_: module(x, h), (x, h, *cell.parameters()))


def test_inputs_and_gradients_that_are_not_dense() -> None:
    cell, module = fused("lstm", torch.float64)
    inputs = torch.randn(I, 3, 7, dtype=torch.float64).permute(2, 1, 0)
    state = tuple(torch.randn(H, 3, dtype=torch.float64).t() for _ in range(2))
    found = []
    for run in (module, bptt.Stepwise(cell)):
        x = inputs.detach().requires_grad_()
        y, (h, c) = run(x, state)
        loss = y.sum() + y[2].expand(4, 3, H).sum() + h[:, 0].sum() + c.flip(1)[:, 1].sum()
        found.append([y, *torch.autograd.grad(loss, [x, *cell.parameters()])])
    assert_same(*found, 1e-10)


def test_some_gradients_only() -> None:
    cell, module = fused("gru", torch.float64)
    cell.of_h.weight.requires_grad_(False)
    y, _ = module(torch.randn(5, 2, I, dtype=torch.float64))
    y.sum().backward()
    assert cell.of_h.weight.grad is None
    assert cell.of_x.weight.grad is not None
    with torch.no_grad():
        again, _ = module(torch.randn(5, 2, I, dtype=torch.float64))
    assert not again.requires_grad


@pytest.mark.parametrize("name", ["gru", "norms", "residual"])
def test_numbers_of_threads_give_the_same_bits(name: str) -> None:
    _cell, module = fused(name, torch.float32)
    torch.manual_seed(1)
    inputs, state = CASES[name].inputs((9, 37)), state_of(CASES[name], 37)
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(results(module, inputs, state, list(module.parameters())))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("seed", range(12))
def test_random_sizes(seed: int) -> None:
    torch.manual_seed(seed)
    sizes = [1, 2, 3, 8, 11, 13, 16, 17, 33]
    inputs, hidden, T, B = (sizes[i] for i in torch.randint(len(sizes), (4,)))
    kind: type[Cell]
    kind, n, states = ((Gru, 3, 1), (Lstm, 4, 2))[seed % 2]
    cell = kind(n, inputs, hidden).double()
    state = tuple(torch.randn(B, hidden).double() for _ in range(states))
    given = state if states > 1 else state[0]
    module = bptt.fuse(cell, torch.randn(B, inputs).double(), given)
    x = torch.randn(T, B, inputs).double()
    weights = list(cell.parameters())
    expected = results(bptt.Stepwise(cell), x, given, weights)
    assert_same(results(module, x, given, weights), expected, 1e-10)


def test_places_are_those_of_the_buffer_now() -> None:
    cell, module = fused("places", torch.float64)
    (plan,) = (plan for _, plan in module._plans.found.values())
    assert max(plan.parts.vectors) == H  # not a row for each step
    x, h = torch.randn(3, 2, I).double(), torch.randn(2, H).double()
    before = module(x, h)[0]
    cell.order.copy_(torch.tensor([5, 4, 3, 2, 1, 0]))
    found = module(x, h)[0]
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, bptt.Stepwise(cell)(x, h)[0], rtol=0, atol=1e-10)
    cell.order[2] = H
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        module(x, h)


def test_what_is_not_finite_stays_where_it_is() -> None:
    cell, module = fused("places", torch.float64)
    x, h = torch.randn(1, 2, I).double(), torch.zeros(2, H).double()
    for at in range(H):
        h[0, at] = torch.inf
        found, expected = (torch.isfinite(m(x, h)[1]) for m in (module, bptt.Stepwise(cell)))
        assert torch.equal(found, expected)
        h[0, at] = 0


def test_twenty_thousand_steps() -> None:
    cell, module = fused("lstm", torch.float32)
    x, state = torch.randn(20_000, 1, I), state_of(CASES["lstm"], 1)
    whole, last = module(x, state)
    first, between = module(x[:10_000], state)
    second, after = module(x[10_000:], between)
    assert torch.equal(whole, torch.cat([first, second]))
    assert all(map(torch.equal, last, after))
    weights = list(cell.parameters())
    found = torch.autograd.grad(whole.square().sum(), weights)
    parts = torch.autograd.grad(first.square().sum() + second.square().sum(), weights)
    for a, b in zip(found, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def _rolled(x: torch.Tensor, h: torch.Tensor) -> Any:
    h = torch.tanh(x[:, :64] + h.roll(1, -1))
    return h, h


def _overlapping(x: torch.Tensor, h: torch.Tensor) -> Any:
    both = torch.cat([torch.tanh(x[:, :64] + h), torch.sigmoid(x[:, 64:] - h)], 1)
    return both, 0.5 * h + 0.3 * both[:, 32:96]


def _apart(x: torch.Tensor, h: torch.Tensor) -> Any:
    h = torch.sigmoid(x[:, :64]) * h + x[:, 64:]
    return h, h


@pytest.mark.parametrize("step", [_rolled, _overlapping, _apart])
def test_one_sequence_on_several_threads(step: Any) -> None:
    module = bptt.fuse(step, torch.randn(2, 128), torch.randn(2, 64))
    x, before, found = torch.randn(900, 1, 128), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(results(module, x, torch.ones(1, 64), []))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert_same(found[0], results(bptt.Stepwise(step), x, torch.ones(1, 64), []), 1e-4)
