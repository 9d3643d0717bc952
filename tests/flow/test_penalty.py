"""Ω by its definition, from whole Jacobians; its gradient by finite differences of just that."""

from __future__ import annotations

import pytest
import torch
from flow.foreign import Named
from problems import OF_TORCH, Problem
from torch import nn
from torch.nn.utils import parametrizations

import bptt
from bptt import vanishing_penalty
from bptt.cells import Weights

PROBLEMS = [Problem(mode) for mode in OF_TORCH] + [
    Problem("RNN_TANH", layers=2),
    Problem("LSTM", layers=2),
    Problem("LSTM", projection=2),
]


def loss_fn(y):
    """Of some of the steps only, a mean over the sequences."""
    weights = torch.linspace(0.5, 1.5, y[3:6].numel(), dtype=y.dtype).view_as(y[3:6])
    return ((y[3:6] + 0.3).sin() * weights).sum(dim=(0, 2)).mean()


def rolled(problem, given=None):
    """The cells' own steps: inputs [L][T], states before and after [L][T], each [B, n]."""
    x, cell, found = list(problem.x.detach()), problem.cell, []
    for w, state in zip(given or problem.weights, problem.states, strict=True):
        before, after, inputs = [], [], x
        for x_t in inputs:
            before.append(torch.cat([s.view_as(s) for s in state], dim=1))
            sizes = [s.shape[1] for s in state]
            state = cell.step(x_t, tuple(before[-1].split(sizes, dim=1)), w)
            after.append(torch.cat(state, dim=1))
            state = tuple(after[-1].split(sizes, dim=1))
        x = [rows[:, : sizes[0]] for rows in after]
        found.append((inputs, before, after, sizes))
    return found, torch.stack(x)


def constants(problem):
    """What the gradient of Ω takes as constants: inputs, states before, and ∂E/∂(state after)."""
    layers, y = rolled(problem)
    flat = [rows for _, _, after, _ in layers for rows in after]
    d = torch.autograd.grad(loss_fn(y), flat, materialize_grads=True)
    T, found = problem.steps, []
    for n, (inputs, before, _, sizes) in enumerate(layers):
        parts = ([v.detach() for v in inputs], [v.detach() for v in before])
        found.append((*parts, d[n * T : (n + 1) * T], sizes))
    return found


def omega(problem, weights, fixed):
    """Ω for some weights, everything else as it is."""
    total = 0.0
    for w, (inputs, before, d, sizes) in zip(weights, fixed, strict=True):
        w = Weights(*(None if p is None else p.detach() for p in w))
        for x_t, h_t, d_t in zip(inputs, before, d, strict=True):
            for b in range(problem.batch):
                if not d_t[b].any():
                    continue

                def step(h, x=x_t[b], w=w, sizes=sizes):
                    state = tuple(h[None].split(sizes, dim=1))
                    return torch.cat(problem.cell.step(x[None], state, w), dim=1)[0]

                jacobian = torch.func.jacrev(step)(h_t[b])
                ratio = (d_t[b] @ jacobian).norm() / d_t[b].norm()
                total += float((ratio - 1) ** 2) / problem.batch
    return total


def penalty(problem, module):
    states = problem.states
    stacked = tuple(torch.stack(s).detach() for s in zip(*states, strict=True))
    state = stacked if problem.mode == "LSTM" else stacked[0]
    return vanishing_penalty(module, problem.x, loss_fn, state)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_value_and_its_gradient(problem):
    module, fixed, weights = problem.module(), constants(problem), problem.weights
    found = penalty(problem, module)
    exact = omega(problem, weights, fixed)
    assert exact > 0.1
    assert float(found.detach()) == pytest.approx(exact, rel=1e-9)
    found.backward()
    given = [p for w in weights for p in w if p is not None]
    for ours, p in zip(module.parameters(), given, strict=True):
        direction = torch.randn_like(p)
        step = 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * step * direction
            values.append(omega(problem, weights, fixed))
            with torch.no_grad():
                p -= sign * step * direction
        numeric = (values[0] - values[1]) / (2 * step)
        gradient = torch.zeros_like(p) if ours.grad is None else ours.grad
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_some_of_the_gradients_are_not_zero():
    problem = Problem("RNN_TANH")
    module = problem.module()
    penalty(problem, module).backward()
    assert module.weight_hh_l0.grad.abs().max() > 0.01
    assert module.weight_ih_l0.grad.abs().max() > 0.01


def test_the_closed_form_of_a_linear_step():
    """A ReLU network that is all on: ∂h_{k+1}/∂h_k = W, whatever the states."""
    rnn = bptt.RNN(1, 3, nonlinearity="relu", dtype=torch.float64)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(50.0)
    W = rnn.weight_hh_l0.detach()
    x, v = torch.zeros(5, 1, 1).double(), torch.randn(3).double()
    found = vanishing_penalty(rnn, x, lambda y: (y[-1] @ v).sum(), torch.zeros(1, 1, 3).double())
    d, expected = v, 0.0
    for _ in range(5):
        expected += float(((d @ W).norm() / d.norm() - 1) ** 2)
        d = d @ W
    assert float(found.detach()) == pytest.approx(expected)
    without = vanishing_penalty(rnn, x, lambda y: (y[-1] @ v).sum())
    last = float(((d @ W.inverse() @ W).norm() / (d @ W.inverse()).norm() - 1) ** 2)
    assert float(without.detach()) == pytest.approx(expected - last)


def test_steps_that_keep_the_length_cost_nothing():
    rnn = bptt.init.identity_(bptt.RNN(2, 4, nonlinearity="relu"))
    x = torch.rand(6, 2, 2)
    nn.init.constant_(rnn.weight_ih_l0, 1.0)
    found = vanishing_penalty(rnn, x, lambda y: y[-1].sum(), torch.ones(1, 2, 4))
    assert float(found.detach()) == 0.0


def test_where_no_gradient_flows_there_is_no_penalty():
    rnn, x = bptt.RNN(2, 4, dtype=torch.float64), torch.randn(8, 3, 2).double()
    short = vanishing_penalty(rnn, x[:4], lambda y: y[3].sum())
    long = vanishing_penalty(rnn, x, lambda y: y[3].sum())  # nothing after step 3
    torch.testing.assert_close(long, short)
    nothing = vanishing_penalty(rnn, x, lambda y: 0 * y.sum())
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    for p in rnn.parameters():
        assert p.grad is None or p.grad.isfinite().all()


@pytest.mark.parametrize("layout", ["batch first", "unbatched", "torch"])
def test_layouts(layout):
    options = {"dtype": torch.float64, "batch_first": layout == "batch first"}
    module = (nn.RNN if layout == "torch" else bptt.RNN)(2, 4, **options)
    plain = bptt.RNN(2, 4, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(6, 1 if layout == "unbatched" else 3, 2).double()
    expected = vanishing_penalty(plain, x, lambda y: y.square().sum())
    given = {"batch first": x.transpose(0, 1), "unbatched": x[:, 0], "torch": x}[layout]

    def loss(y):
        assert y.shape == module(given)[0].shape
        return y.square().sum()

    torch.testing.assert_close(vanishing_penalty(module, given, loss), expected)


def test_a_foreign_module_beside_ours():
    """Their outputs are not known to be their states: equal where only the last one is asked."""
    rnn = bptt.RNN(2, 4, dtype=torch.float64)
    x = torch.randn(6, 3, 2).double()
    ours = vanishing_penalty(rnn, x, lambda y: y[-1].square().sum(), torch.zeros(1, 3, 4).double())
    theirs = vanishing_penalty(
        lambda x, s: rnn(x, s), x, lambda y: y[-1].square().sum(), torch.zeros(1, 3, 4).double()
    )
    after_last = vanishing_penalty(  # the last step's own Ω is what is not known
        rnn, x, lambda y: y[-1].square().sum(), torch.zeros(1, 3, 4).double()
    )
    assert float(theirs.detach()) < float(ours.detach()) == float(after_last.detach())
    module, x = Named(), torch.randn(6, 3, 2).double()
    found = vanishing_penalty(module, x, lambda y: y.square().mean())
    found.backward()
    assert float(found.detach()) > 0
    assert module.across.weight.grad.abs().max() > 0


def test_parametrized_weights_get_a_gradient():
    rnn = parametrizations.weight_norm(bptt.RNN(2, 4), "weight_hh_l0")
    vanishing_penalty(rnn, torch.randn(5, 2, 2), lambda y: y.sum()).backward()
    assert all(p.grad is not None for n, p in rnn.named_parameters() if "weight_hh" in n)


def test_a_few_updates_keep_more_of_the_gradient():
    rnn, x = bptt.RNN(2, 16), torch.randn(30, 4, 2)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)

    def flow():
        return bptt.gradient_flow(rnn, x, attribution=False, dynamics=False)

    before = flow().decay.beta
    for _ in range(40):
        optimizer.zero_grad()
        vanishing_penalty(rnn, x, lambda y: y[-1].square().sum()).backward()
        optimizer.step()
    assert before < 0.7
    assert flow().decay.beta > 0.85


@pytest.mark.parametrize(
    ("module", "loss", "message"),
    [
        (bptt.RNN(2, 4), lambda y: y.sum((1, 2)), r"expected loss_fn to give a scalar.*\(5,\)"),
        (bptt.RNN(2, 4), lambda y: torch.zeros(()), "that does not; it is the loss"),
        (bptt.RNN(2, 4, bidirectional=True), lambda y: y.sum(), "bidirectional"),
    ],
)
def test_what_is_refused(module, loss, message):
    with pytest.raises(ValueError, match=message):
        vanishing_penalty(module, torch.zeros(5, 1, 2), loss)


@pytest.mark.parametrize("foreign", [False, True])
def test_with_resets_it_is_the_sum_over_the_episodes(foreign):
    """No gradient crosses a reset, and none is asked to; in another layout it is the same."""
    gru = torch.nn.GRU(2, 3, dtype=torch.float64)

    def module(x, state=None):
        state = x.new_zeros(1, x.shape[1], 3) if state is None else state
        return gru(x, state)

    module = module if foreign else gru
    x, resets = torch.randn(10, 2, 2, dtype=torch.float64), torch.zeros(10, 2, dtype=torch.bool)
    resets[6] = True
    loss_fn = lambda y: y.square().sum()  # noqa: E731
    whole = bptt.vanishing_penalty(module, x, loss_fn, resets=resets)
    parts = [bptt.vanishing_penalty(module, piece, loss_fn) for piece in (x[:6], x[6:])]
    torch.testing.assert_close(whole, parts[0] + parts[1])
    assert not torch.isclose(whole, bptt.vanishing_penalty(module, x, loss_fn), rtol=0.01)
    if not foreign:
        gru.batch_first = True
        turned = bptt.vanishing_penalty(gru, x.transpose(0, 1), loss_fn, resets=resets.t())
        torch.testing.assert_close(turned, whole)
