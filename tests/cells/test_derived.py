"""The backward pass that follows from a cell's equations, against autograd and that by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_engine import Call
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import state, weights

from bptt._src.engines import reference, twin
from bptt._src.engines.call import Call as EngineCall
from bptt._src.engines.call import Gradients, Incoming, Saved
from bptt._src.steps import Boundary, Steps
from bptt.cells import CELLS, Cell, Weights
from bptt.cells.derived import Derived

sigmoid, tanh = torch.sigmoid, torch.tanh


def fast_and_slow(x, h, state, u):
    fast = tanh(x[0] * h[1] + u[0] * state[1] + h[0])
    slow = u[1] * state[1] + sigmoid(x[1]) * state[2]
    return fast * slow, slow - fast, sigmoid(fast) * state[0]


OTHERS = (
    Cell("ONE_OF_X", 2, 1, lambda x, h, s, u: (sigmoid(x[0]) * s[0] + tanh(x[1] + h[0]),)),
    Cell("INDEPENDENT", 1, 0, lambda x, h, s, u: (torch.relu(x[0] + u[0] * s[0]),), units=1),
    Cell("NO_RECURRENCE", 2, 0, lambda x, h, s, u: ((1 - sigmoid(x[0])) * s[0] + x[1],)),
    Cell("WITHOUT_X", 1, 1, lambda x, h, s, u: (tanh(h[0]),)),
    Cell("CONSTANT", 1, 1, lambda x, h, s, u: (torch.ones_like(x[0]),)),
    Cell("THREE_STATES", 2, 2, fast_and_slow, states=3, units=2),
)
"""Cells that nobody has, for what the others do not do."""

DERIVED = [replace(cell, by_hand=None) for cell in CELLS]
EACH = pytest.mark.parametrize("cell", [*DERIVED, *OTHERS], ids=lambda cell: cell.name)


def drawn(cell, lengths, reverse, seed, projection=0, bias=True):
    torch.manual_seed(seed)
    sizes = tuple(sum(n > t for n in lengths) for t in range(max(lengths)))
    w = weights(cell, 3, 5, bias=bias, projection=projection, seed=seed)
    s = state(cell, len(lengths), 5, projection=projection)
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    carry = torch.tensor([0, 0.5, 1], dtype=torch.float64)[torch.randint(3, (len(x), 1))]
    return x, s, w, Steps(sizes, reverse), Boundary(carry, torch.rand(len(x), 1) < 0.2)


def by_autograd(cell, x, s, w, steps, at) -> tuple[torch.Tensor, ...]:
    y, final, _ = reference.forward(EngineCall(cell, x, s, w, steps, at))
    loss = y.sin().sum() + sum((a * a).sum() for a in final)
    there = [x, *s, *(p for p in w if p is not None)]
    found = torch.autograd.grad(loss, there, allow_unused=True, materialize_grads=True)
    return (y, *final, *found)


def by_the_twin(cell, x, s, w, steps, at) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        call = EngineCall(cell, x, s, w, steps, at)
        y, final, kept = twin.forward(call, keep=True)
        needed = tuple(t is not None for t in call.tensors())
        incoming = Incoming(y.cos(), tuple(2 * a for a in final), needed)
        found: Gradients = twin.backward(call, Saved(y, kept), incoming)
    assert found.state is not None
    return (y, *final, found.x, *found.state, *(d for d in found.w if d is not None))


@EACH
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    reverse=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_gradients_are_those_of_autograd(cell, lengths, reverse, bias, seed):
    call = drawn(cell, sorted(lengths, reverse=True), reverse, seed, bias=bias)
    for found, expected in zip(by_the_twin(cell, *call), by_autograd(cell, *call), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [(4, 4), (5, 2)])
def test_with_a_projection(lengths):
    cell = next(cell for cell in DERIVED if cell.name == "LSTM")
    call = drawn(cell, lengths, False, 0, projection=2)
    for found, expected in zip(by_the_twin(cell, *call), by_autograd(cell, *call), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [c for c in CELLS if c.by_hand], ids=lambda cell: cell.name)
@pytest.mark.parametrize("windows", [None, (2, 5)])
def test_that_by_hand_is_the_same(cell, windows, monkeypatch):
    call = Call(
        cell.name, lengths=(9, 9, 6), carry=True, resets=True, every_reach=windows,
        by_windows=windows is not None,
    )  # fmt: skip
    by_hand = call.run(twin)
    monkeypatch.setattr(twin, "recursion_of", lambda cell, w: Derived(cell))
    derived = call.run(twin)
    assert by_hand.keys() == derived.keys()
    for name, expected in by_hand.items():
        torch.testing.assert_close(derived[name], expected, rtol=1e-10, atol=1e-12, msg=name)


def test_weights_without_rows_for_h_are_ordinary():
    cell = OTHERS[1]
    w = weights(cell, 3, 5)
    assert isinstance(w, Weights)
    assert w.hh.shape == (0, 5)
    assert w.b_hh is not None
    assert w.b_hh.shape == (0,)
