"""Sequences as long as anyone trains on: a million steps online, 20,000 in one backward pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from users_cells import CASES, H, I, state_of

import bptt

F64 = {"dtype": torch.float64}
LONG = 20_000


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gated(x, h, state, u):
    slow = torch.sigmoid(x[1] + 4) * state[1] + torch.tanh(x[0] + h[0] + u[0] * state[1])
    return torch.tanh(slow), slow


OWN = bptt.Cell("GATED_LONG", gates_x=2, gates_h=1, equations=gated, states=2, units=1)


def assert_same(found, expected, rtol):
    """The error of each gradient, relative to its norm."""
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= rtol * float(b.norm())


@pytest.mark.parametrize(
    "cell",
    [OWN, pytest.param(bptt.cells.SLSTM, marks=pytest.mark.long)],
    ids=lambda cell: cell.name,
)
def test_a_cell_over_20000_steps_is_autograds(cell):
    torch.manual_seed(0)
    module, x = bptt.Recurrent(cell, 3, 4, **F64), torch.randn(LONG, 1, 3, **F64)
    w, state, y = module._weights(0, False), (torch.zeros(1, 4, **F64),) * cell.states, []
    leaves = [x.requires_grad_(), *module.parameters()]
    for x_t in x.unbind():
        state = cell.step(x_t, state, w)
        y.append(state[0])
    of_step = torch.randn(LONG, 1, 4, **F64)
    expected = torch.autograd.grad((torch.stack(y) * of_step).sum(), leaves)
    found = torch.autograd.grad((module(x)[0] * of_step).sum(), leaves)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("name", ["lstm", pytest.param("multiplicative", marks=pytest.mark.long)])
def test_a_fused_step_over_20000_steps_is_autograds(name):
    torch.manual_seed(0)
    case = CASES[name]
    cell = case.make().double()
    fast = bptt.fuse(cell, torch.zeros(1, I, **F64), state_of(case, 1, **F64))
    x, state, y = torch.randn(LONG, 1, I, **F64), state_of(case, 1, **F64), []
    before = state
    for x_t in x.unbind():
        out, state = cell(x_t, state)
        y.append(out)
    of_step, leaves = torch.randn(LONG, 1, H, **F64), list(cell.parameters())
    expected = torch.autograd.grad((torch.stack(y) * of_step).sum(), leaves)
    found = torch.autograd.grad((fast(x, before)[0] * of_step).sum(), leaves)
    assert_same(found, expected, 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("cell", [bptt.cells.MIN_LSTM, bptt.cells.LRU], ids=lambda cell: cell.name)
def test_a_million_steps_online_are_backpropagation_in_constant_memory(cell):
    """Both find one gradient of a million losses; one in chunks of 1,000, one in a single call."""
    torch.manual_seed(0)
    module, steps, chunk = bptt.Recurrent(cell, 2, 4, **F64), 1_000_000, 1_000
    if cell.draw is None:
        bptt.init.chrono_(module, longest=100_000)
    else:
        bptt.init.ring_(module, r_min=0.999, r_max=0.99999)
    weights = [p for p in module.parameters() if p.numel()]
    x, of_step = torch.randn(steps, 1, 2, **F64), torch.randn(steps, 1, 4, **F64)
    state, least, most = None, float("inf"), 0
    for n, (part, of) in enumerate(zip(x.split(chunk), of_step.split(chunk), strict=True)):
        y, state = module(part, state, credit="online")
        (y * of).sum().backward()
        if n >= 50:
            least, most = min(least, resident()), max(most, resident())
    found = [p.grad.clone() for p in weights]
    assert most - least < 8 << 20
    before = resident()
    y, _ = module(x)
    assert resident() - before > 80 << 20  # what the graph of all steps takes
    whole = torch.autograd.grad((y * of_step).sum(), weights, retain_graph=True)
    assert_same(found, whole, 1e-10)
    # What lies further back than a chunk is part of it.
    y, state, short = None, None, [torch.zeros_like(p) for p in weights]
    for part, of in zip(x[:20_000].split(chunk), of_step[:20_000].split(chunk), strict=True):
        y, state = module(part, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        for total, d in zip(short, torch.autograd.grad((y * of).sum(), weights), strict=True):
            total += d
    y, _ = module(x[:20_000])
    whole = torch.autograd.grad((y * of_step[:20_000]).sum(), weights)
    assert all((a - b).norm() > 1e-3 * b.norm() for a, b in zip(short, whole, strict=True))
