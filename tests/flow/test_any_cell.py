"""The flow of any cell: what follows from its equations, and what else it says of itself."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from cells.test_derived import OTHERS
from flow.test_pairs import DOUBLE, EACH_WAY, going, losses_of

import bptt
from bptt._src.flow.activity import activity
from bptt._src.flow.dynamics import measure
from bptt._src.flow.jacobians import bound, jacobian_norms
from bptt._src.flow.trajectory import follow
from bptt.cells import CELLS, Nonlinearity, elman

DERIVED_TANH = dataclasses.replace(elman.TANH, by_hand=None)
EACH = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


def both_ways(x, h, state, u):
    """A block of x, one of h and the state before reach h by c and past it."""
    c = torch.sigmoid(x[0] + h[0]) * state[1] + torch.tanh(x[1] + h[1])
    return torch.tanh(c) * torch.sigmoid(x[0] + h[1]) + 0.5 * state[1] + 0.3 * state[0], c


BOTH_WAYS = bptt.Cell("BOTH_WAYS", 2, 2, both_ways, states=2)


def by_steps(module, x, resets):
    """‖∂L_t/∂state_s‖, [N, N] of each tensor, of one layer and sequence, a backward pass a loss."""
    cell, w = module.cell, module._weights(0, False)
    state = tuple(torch.zeros(1, n, dtype=DOUBLE) for n in sizes_of(module))
    entering, outputs = [], []
    for t in range(len(x)):
        if bool(resets[t]):
            state = tuple(torch.zeros_like(s) for s in state)
        after = cell.step(x[t], state, w)
        entering.append([torch.zeros_like(s, requires_grad=True) for s in after])
        state = tuple(s + z for s, z in zip(after, entering[-1], strict=True))
        outputs.append(after[0])
    found = torch.zeros(cell.states, len(x), len(x), dtype=DOUBLE)
    for t, loss in enumerate(losses_of(torch.stack(outputs))[:, 0]):
        zeros = [z for s in entering[:t] for z in s]
        if not (loss.requires_grad and zeros):
            continue
        d = torch.autograd.grad(
            loss, zeros, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for n, g in enumerate(d):
            found[n % cell.states, t, n // cell.states] = g.norm()
    return found


def sizes_of(module):
    return [module.proj_size or module.hidden_size] + [module.hidden_size] * (
        module.cell.states - 1
    )


@pytest.mark.parametrize("cell", [*CELLS, *OTHERS, BOTH_WAYS], ids=lambda cell: cell.name)
@EACH_WAY
def test_all_pairs_are_those_of_autograd(cell, way):
    torch.manual_seed(3)
    module = bptt.Recurrent(cell, 2, 4, dtype=DOUBLE)
    with torch.no_grad():
        for p in module.parameters():
            p *= 2
    x, resets = torch.randn(8, 1, 2, dtype=DOUBLE), torch.arange(8) == 3
    expected = by_steps(module, x, resets)
    with going(way):
        flow = bptt.gradient_flow(module, x, losses_of, resets=resets, dynamics=False)
    assert [s.name for s in flow.states] == ["hidden", "cell", "state 3", "state 4"][: cell.states]
    below = torch.ones(8, 8).tril(-1).bool()
    for s, norms in zip(flow.states, expected, strict=True):
        torch.testing.assert_close(s.norms[0][below], norms[below], rtol=1e-9, atol=1e-13)
    if cell.name not in ("WITHOUT_X", "CONSTANT"):
        assert expected[0][2, 0] > 0


@pytest.mark.parametrize(
    "cell", [DERIVED_TANH, bptt.cells.PEEPHOLE_LSTM], ids=lambda cell: cell.name
)
@EACH_WAY
def test_with_a_projection(cell, way):
    module = bptt.Recurrent(cell, 2, 4, proj_size=3, dtype=DOUBLE)
    x, resets = torch.randn(8, 1, 2, dtype=DOUBLE), torch.arange(8) == 9
    expected = by_steps(module, x, resets)
    with going(way):
        flow = bptt.gradient_flow(module, x, losses_of, dynamics=False)
    below = torch.ones(8, 8).tril(-1).bool()
    for s, norms in zip(flow.states, expected, strict=True):
        torch.testing.assert_close(s.norms[0][below], norms[below], rtol=1e-9, atol=1e-13)


@EACH
def test_measures_of_each_cell(cell):
    module = bptt.Recurrent(cell, 2, 16, num_layers=2, dtype=DOUBLE)  # some ReLUs are on
    x = torch.randn(12, 3, 2, dtype=DOUBLE)
    for layer, d in enumerate(measure(module, x)):
        assert (d.layer, d.mode) == (layer, cell.name)
        says = cell.gates is not None or cell.phi is not None
        assert (d.saturated is None) == (not says)
        assert (d.gates is None) == (cell.gates is None)
        assert (d.bound is None) == (cell.phi is None)
    assert torch.isfinite(bptt.lyapunov_exponents(module, x).exponents).any()
    assert bptt.vanishing_penalty(module, x, lambda y: y[-1].sum()).item() > 0
    flow = bptt.gradient_flow(module, x)
    assert flow.cells == (cell.kind,)
    assert flow.verdict.kind in ("vanishing", "healthy", "undetermined", "exploding")
    assert len({s.layer for s in flow.states}) == 2
    assert isinstance(flow.advice, tuple)


def test_the_gates_of_a_peephole_lstm_see_the_cell_state():
    module = bptt.Recurrent(bptt.cells.PEEPHOLE_LSTM, 1, 6)
    x = torch.randn(20, 2, 1)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.bias_ih_l0[12:18] = 1.0  # g, so that c is about 1
    (before,) = measure(module, x)
    assert before.gates == dict.fromkeys(("input", "forget", "output"), (0.0, 0.0))
    with torch.no_grad():
        module.weight_units_l0[2] = 100.0
    (after,) = measure(module, x)
    assert after.gates["output"] == (0.0, 1.0)
    assert after.gates["input"] == (0.0, 0.0)


def test_of_a_cell_that_says_nothing_nothing_is_said():
    cell = dataclasses.replace(bptt.cells.MGU, gates=None, keeping=None, is_native=False)
    (d,) = measure(bptt.Recurrent(cell, 2, 5), torch.randn(10, 2, 2))
    unknown = (d.saturated, d.gates, d.bound, d.slope, d.spectral_radius)
    assert unknown == (None,) * 5
    assert d.jacobian_norms is not None
    assert d.weight_norm is not None


def test_no_norm_exceeds_the_bound_of_a_projection():
    module = bptt.Recurrent(DERIVED_TANH, 2, 6, proj_size=3, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hr_l0 *= 5
    (layer,) = follow(module, torch.randn(20, 2, 2, dtype=DOUBLE))
    norms = jacobian_norms(layer)
    assert (norms <= bound(layer) * (1 + 1e-12)).all()
    assert norms.max() > bound(layer) / 10


def test_a_nonlinearity_of_ones_own():
    def equations(x, h, state, units):
        return (torch.sin(x[0] + h[0]) / 2,)

    cell = bptt.Cell("SINE", 1, 1, equations, phi=Nonlinearity("sine", 0.5))
    module = bptt.Recurrent(cell, 2, 5, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_ih_l0 *= 20
    (d,) = measure(module, torch.randn(40, 2, 2, dtype=DOUBLE))
    assert d.bound == pytest.approx(d.weight_norm / 2)
    assert 0.01 < d.saturated < 0.2  # |cos| < 0.1
    assert bptt.init.spectral_radius_(module, 0.5) is module


# ------------------------------------------------------------------ kinks, and what has no jvp


@pytest.mark.parametrize("of_torch", [True, False], ids=["RNN", "own cell"])
def test_a_kink_is_on_the_side_on_which_the_run_had_it(of_torch):
    """With round numbers gates are zero but for rounding; what is off was off for autograd too."""
    own = bptt.Cell("MINE", 1, 1, lambda x, h, s, u: (torch.relu(x[0] + h[0]),))
    off = 0
    for seed in range(150, 180):
        torch.manual_seed(seed)
        make = partial(bptt.RNN, nonlinearity="relu") if of_torch else partial(bptt.Recurrent, own)
        module, x = make(3, 6), torch.randn(20, 2, 3).round()
        with torch.no_grad():
            for p in module.parameters():
                p.copy_((p * 10).round() / 10)
        y, _ = module(x)
        off += int((y == 0).sum())
        options = {"loss_fn": lambda y: y.sum(-1), "dynamics": False}
        whole = bptt.gradient_flow(module, x, **options).states[0].norms[:, 19]
        alone = bptt.gradient_flow(module, x, times=[19], **options).states[0].norms[:, 0]
        torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-9, equal_nan=True)
    assert off


class Spike(torch.autograd.Function):
    """A step with a surrogate gradient, and no derivative forwards."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return d / (1 + x.abs()) ** 2


def leaky_integrate_and_fire(x, h, state, units):
    potential = 0.9 * state[1] * (1 - state[0].detach()) + x[0] + h[0]
    return Spike.apply(potential - 1), potential


def test_equations_that_cannot_be_differentiated_forwards():
    cell = bptt.Cell("LIF", 1, 1, leaky_integrate_and_fire, states=2)
    module, x = bptt.Recurrent(cell, 3, 4), torch.randn(20, 2, 3)
    assert bptt.gradient_flow(module, x).dynamics[0].jacobian_norms.isfinite().all()
    assert bptt.lyapunov_exponents(module, x).exponents.isfinite().all()


def test_a_unit_is_off_where_the_run_had_it_off():
    """Here W_ih x + b is recomputed for all steps at once: zero, or nearly, in another order."""
    off = 0
    for seed in range(40):
        torch.manual_seed(seed)
        rnn, x = bptt.RNN(3, 64, nonlinearity="relu"), torch.randn(20, 5, 3).round()
        with torch.no_grad():
            for p in rnn.parameters():
                p.copy_((p * 10).round() / 10)
        (trajectory,) = follow(rnn, x)
        h = trajectory.outputs
        assert activity(trajectory).saturated == (h == 0).double().mean()
        off += int((h == 0).sum())
    assert off
