"""Every credit in every cell: the gradient is the sum of W[t, s] · C[t, s], to the last digit."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CREDITS, Problem, expected, lengths, sizes_of
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import bptt
import bptt._src.layers
from bptt._src.engines.windows import windows_of
from bptt.cells import BY_NAME
from bptt.credit import Block
from bptt.errors import ConfigError

CELLS = {mode: Problem(mode) for mode in sorted(BY_NAME)}
CELLS["LSTM P"] = Problem("LSTM", projection=2)
EACH_CELL = pytest.mark.parametrize("problem", CELLS.values(), ids=CELLS.keys())
EACH_CREDIT = pytest.mark.parametrize("credit", CREDITS.values(), ids=CREDITS.keys())
SOME = [CREDITS[n] for n in ("truncated 3", "every 2 reach 4", "heavy", "fading windows")]
SOME_CREDITS = pytest.mark.parametrize("credit", SOME, ids=lambda c: type(c).__name__)
WINDOWS = bptt.Truncated(every=2, reach=4)
MODULES = ["RNN_TANH", "GRU", "LSTM"]


def seeded():
    return torch.Generator().manual_seed(11)


@lru_cache
def terms_of(problem):
    """C[t, s], once for all credits."""
    return problem.terms()


def oracle(problem, credit):
    return expected(problem, terms_of(problem), plan_of(problem, credit))


def plan_of(problem, credit):
    return credit.plan(problem.steps, problem.batch, seeded())


def layers_of(module, final):
    """The final state of each layer, from h_n or (h_n, c_n)."""
    stacked = final if isinstance(final, tuple) else (final,)
    return [tuple(s[layer] for s in stacked) for layer in range(module.num_layers)]


def joined(states):
    """The initial state as the modules take it."""
    stacked = tuple(torch.stack(s) for s in zip(*states, strict=True))
    return stacked if len(stacked) > 1 else stacked[0]


def found(problem, credit, module=None, run=None):
    """The gradient that a module finds: of all weights, of x, of the initial states.

    ``run(module, x, hx, options)`` gives outputs [T, B, P] and the final state.
    """
    module = module or problem.module()
    x, states = problem.x, problem.states
    options = {"credit": credit, "resets": problem.resets, "generator": seeded()}
    if run is None:
        y, final = module(x, joined(states), **options)
    else:
        y, final = run(module, x, joined(states), options)
    loss = problem.total(y, layers_of(module, final))
    inputs = [*module.parameters(), x, *(s for state in states for s in state)]
    return torch.autograd.grad(loss, inputs)


def assert_same(ours, theirs, tolerance=1e-10):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def distance(ours, theirs):
    """Of all gradients together, relative to theirs."""
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (ours, theirs))
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------------------ what is meant


@EACH_CREDIT
@EACH_CELL
def test_the_gradient_is_the_one_that_the_plan_means(problem, credit):
    assert_same(found(problem, credit), oracle(problem, credit))


@EACH_CREDIT
@EACH_CELL
def test_the_problems_tell_the_credits_apart(problem, credit):
    """Where nothing flows back, every gradient is right."""
    full = oracle(problem, bptt.Full())
    if plan_of(problem, credit).is_full:
        assert_same(oracle(problem, credit), full)
    else:
        assert distance(oracle(problem, credit), full) > 0.001


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_with_resets_of_each_sequence(mode, credit):
    problem = Problem(mode, with_resets=True)
    ours = found(problem, credit)
    assert_same(ours, oracle(problem, credit))
    assert distance(ours, found(Problem(mode), credit)) > 0.01


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_in_two_layers(mode, credit):
    problem = Problem(mode, layers=2, with_resets=credit in SOME)
    assert_same(found(problem, credit), oracle(problem, credit))


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_packed_sequences_in_the_order_in_which_they_were_given(mode, credit):
    problem = Problem(mode, layers=2, lengths=(4, 7, 1, 6), with_resets=credit in SOME)

    def packed(module, x, hx, options):
        given = [x[:n, b] for b, n in enumerate(problem.lengths)]
        y, final = module(pack_sequence(given, enforce_sorted=False), hx, **options)
        return pad_packed_sequence(y)[0], final

    assert_same(found(problem, credit, run=packed), oracle(problem, credit))


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_batch_first(mode, credit):
    problem = Problem(mode)

    def swapped(module, x, hx, options):
        y, final = module(x.transpose(0, 1), hx, **options)
        return y.transpose(0, 1), final

    module = problem.module(batch_first=True)
    assert_same(found(problem, credit, module, swapped), oracle(problem, credit))


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_unbatched(mode, credit):
    problem = Problem(mode, lengths=(7,))

    def unbatched(module, x, hx, options):
        hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
        y, final = module(x[:, 0], hx, **options)
        final = tuple(s.unsqueeze(1) for s in final) if isinstance(final, tuple) else final[:, None]
        return y.unsqueeze(1), final

    assert_same(found(problem, credit, run=unbatched), oracle(problem, credit))


@EACH_CREDIT
@pytest.mark.parametrize("mode", MODULES)
def test_all_windows_see_the_same_dropout(mode, credit):
    problem = Problem(mode, layers=3, lengths=(7, 7))
    module = problem.module(dropout=0.5)
    torch.manual_seed(5)
    ones = torch.ones(problem.steps * problem.batch, problem.hidden, dtype=torch.float64)
    masks = [torch.nn.functional.dropout(ones, 0.5) for _ in range(2)]
    masks = [m.view(problem.steps, problem.batch, -1) for m in masks]
    torch.manual_seed(5)
    ours = found(problem, credit, module)
    assert_same(ours, expected(problem, problem.terms(masks), plan_of(problem, credit)))
    if credit in SOME:
        assert_same(found(problem, credit, module.eval()), oracle(problem, credit))


@settings(max_examples=60)
@given(
    mode=st.sampled_from(sorted(BY_NAME)),
    lengths=lengths(),
    layers=st.integers(1, 2),
    with_resets=st.booleans(),
    data=st.data(),
)
def test_any_windows_and_any_factors(mode, lengths, layers, with_resets, data):
    problem = Problem(mode, layers, lengths=lengths, with_resets=with_resets)
    T = problem.steps
    blocks, first = [], 0
    while first < T:
        end = data.draw(st.integers(first + 1, T))
        blocks.append(Block(first, end, data.draw(st.integers(0, first))))
        first = end
    shape = data.draw(st.sampled_from([(T,), (T, problem.batch)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    plan = bptt.Plan(T, rng.choice([0.0, 0.5, 1.0, 1.0, 2.0], shape), blocks)

    def packed(module, x, hx, options):
        y, final = module(pack_sequence([x[:n, b] for b, n in enumerate(lengths)]), hx, **options)
        return pad_packed_sequence(y)[0], final

    assert_same(found(problem, plan, run=packed), oracle(problem, plan))


# ----------------------------------------------------------------------------- two directions


@pytest.mark.parametrize("mode", MODULES)
@pytest.mark.parametrize("name", [n for n, c in CREDITS.items() if c.plan(7).is_product])
def test_in_the_reverse_direction_the_same_boundaries_are_crossed_the_other_way(mode, name):
    """What Plan says of t and s holds of s and t, in the half of the output that runs back."""
    problem, credit = Problem(mode), CREDITS[name]
    T, B, H = problem.steps, problem.batch, problem.hidden
    module = problem.module(bidirectional=True)
    weights = [p for name, p in module.named_parameters() if name.endswith("_reverse")]
    with torch.no_grad():
        for p, given in zip(weights, problem.weights[0], strict=False):
            p.copy_(given)
    x, states = problem.x, problem.states[0]
    hx = joined([states, states])
    y, _ = module(x, hx, credit=credit, generator=seeded())
    loss = sum(problem.weigh(y[t, b, H:], t + 2 * b) for b in range(B) for t in range(T))
    ours = torch.autograd.grad(loss, [*weights, x])

    carry = plan_of(problem, credit).carry
    mirrored = bptt.Plan(T, np.concatenate([np.ones_like(carry[:1]), carry[:0:-1]]))
    matrix = plan_of(problem, credit).matrix()
    np.testing.assert_allclose(mirrored.matrix(), np.flip(matrix, (-1, -2)).swapaxes(-1, -2))
    turned = Turned(mode)
    *of_weights, of_x = expected(turned, turned.terms(), mirrored)[: len(weights) + 1]
    assert_same(ours, [*of_weights, of_x.flip(0)])


class Turned(Problem):
    """The last step comes first, and only the outputs count."""

    @property
    def x(self):
        return super().x.detach().flip(0).requires_grad_()

    def loss(self, states, t, b):
        return self.weigh(states[-1][0], self.steps - 1 - t + 2 * b)


@pytest.mark.parametrize("mode", MODULES)
def test_windows_have_no_meaning_in_two_directions(mode):
    module = Problem(mode).module(bidirectional=True)
    message = r"windows that overlap \(every < reach\).*Truncated\(k\), or bidirectional=False"
    with pytest.raises(ValueError, match=message):
        module(Problem(mode).x, credit=WINDOWS)


# ------------------------------------------------------------------ what a credit leaves alone


@SOME_CREDITS
@EACH_CELL
def test_outputs_are_the_same_bit_by_bit_with_and_without_a_graph(problem, credit):
    module, x, hx = problem.module(), problem.x, joined(problem.states)
    plain = torch.nn.utils.parameters_to_vector([r.flatten() for r in flat(module(x, hx))])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            results = flat(module(x, hx, credit=credit, generator=seeded()))
        assert torch.equal(torch.cat([r.flatten() for r in results]), plain)
        assert all(r.requires_grad is enabled for r in results)


def flat(results):
    y, final = results
    return [y, *(final if isinstance(final, tuple) else (final,))]


def test_without_a_graph_nothing_is_laid_out_by_windows(monkeypatch):
    def refuse(*_):
        raise AssertionError("laid out windows")

    problem = Problem("GRU")
    module = problem.module()
    monkeypatch.setattr(bptt._src.layers, "windows_of", refuse)
    with torch.no_grad():
        module(problem.x, credit=WINDOWS)
    with pytest.raises(AssertionError, match="laid out windows"):
        module(problem.x, credit=WINDOWS)


def test_a_draw_takes_as_many_numbers_with_a_graph_as_without():
    problem, credit = Problem("GRU"), CREDITS["heavy"]
    module, after = problem.module(), []
    for enabled in (True, False):
        torch.manual_seed(2)
        with torch.set_grad_enabled(enabled):
            module(problem.x, credit=credit)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_a_generator_is_drawn_from_and_torchs_own_only_without():
    problem, credit = Problem("GRU"), CREDITS["heavy"]
    module = problem.module()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    first = found(problem, credit, module)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first, found(problem, credit, module), 0)
    module(problem.x, credit=credit)
    assert not torch.equal(torch.get_rng_state(), state)


@SOME_CREDITS
@pytest.mark.parametrize("mode", MODULES)
def test_single_precision(mode, credit):
    problem = Problem(mode)
    module = problem.module().float()
    x, hx = problem.x.float(), joined(problem.states)
    hx = tuple(s.float() for s in hx) if isinstance(hx, tuple) else hx.float()
    y, final = module(x, hx, credit=credit, generator=seeded())
    loss = problem.total(y, layers_of(module, final))
    ours = torch.autograd.grad(loss, [*module.parameters()])
    assert all(g.dtype == torch.float32 for g in ours)
    assert distance([g.double() for g in ours], oracle(problem, credit)[: len(ours)]) < 1e-5


@SOME_CREDITS
def test_only_what_needs_a_gradient_gets_one(credit):
    problem = Problem("LSTM", layers=2)
    module = problem.module()
    module.weight_ih_l0.requires_grad_(False)
    module.bias_hh_l1.requires_grad_(False)
    y, final = module(problem.x.detach(), credit=credit, generator=seeded())
    problem.total(y, layers_of(module, final)).backward()
    for name, p in module.named_parameters():
        assert (p.grad is None) is (name in ("weight_ih_l0", "bias_hh_l1"))


@SOME_CREDITS
@pytest.mark.parametrize("used", range(3), ids=["output", "h_n", "c_n"])
def test_results_that_are_not_used_have_no_gradient_which_is_one_of_zeros(credit, used):
    problem = Problem("LSTM", layers=2)
    module, gradients = problem.module(), []
    for unused in (False, True):
        y, (h_n, c_n) = module(problem.x, credit=credit, generator=seeded())
        loss = (y, h_n, c_n)[used].sin().sum()
        if unused:
            loss = loss + 0 * (y.sum() + h_n.sum() + c_n.sum())
        gradients.append(torch.autograd.grad(loss, list(module.parameters())))
    assert_same(*gradients)
    assert all(g.abs().max() > 1e-3 for g in gradients[0])


@SOME_CREDITS
def test_an_empty_batch(credit):
    module = bptt.GRU(2, 3)
    y, final = module(torch.randn(7, 0, 2), credit=credit)
    assert y.shape == (7, 0, 3)
    (y.sum() + final.sum()).backward()
    assert not module.weight_hh_l0.grad.any()


def test_autocast_changes_no_gradient_of_float32_outputs():
    module, x = bptt.GRU(2, 3), torch.randn(7, 2, 2)

    def gradients(run):
        return torch.autograd.grad(run(x, credit=WINDOWS)[0].sin().sum(), module.parameters())

    plain = gradients(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a GRU's outputs are float32 there
        assert all(map(torch.equal, gradients(module), plain))


# --------------------------------------------------------------------------- what is refused


def test_a_credit_and_carry_exclude_each_other():
    module, x = bptt.LSTM(2, 3), torch.randn(7, 2, 2)
    with pytest.raises(ValueError, match=r"bptt\.LSTM: give a credit or carry, not both"):
        module(x, credit=bptt.Full(), carry=torch.ones(7))


@pytest.mark.parametrize("mode", MODULES)
def test_windows_have_no_second_derivative(mode):
    problem = Problem(mode)
    module = problem.module()
    loss = module(problem.x, credit=WINDOWS)[0].sin().sum()
    with pytest.raises(NotImplementedError, match="cannot be differentiated again: use a credit"):
        torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    y = module(problem.x, credit=WINDOWS)[0]
    many = torch.ones(3, *y.shape, dtype=y.dtype)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again: use a credit"):
        torch.autograd.grad(y, list(module.parameters()), many, is_grads_batched=True)


def test_windows_know_no_transform():
    module, x = Problem("GRU").module(), Problem("GRU").x.detach()
    with pytest.raises(NotImplementedError, match="first derivative only, without transforms"):
        torch.func.grad(lambda x: module(x, credit=WINDOWS)[0].sum())(x)


@pytest.mark.parametrize("credit", [bptt.Truncated(3), CREDITS["heavy"]], ids=["cuts", "factors"])
def test_products_have_a_second_derivative_that_of_their_carry(credit):
    problem = Problem("GRU")
    module = problem.module()
    carry = torch.from_numpy(plan_of(problem, credit).carry)
    parameters, second = list(module.parameters()), []
    for options in ({"credit": credit, "generator": seeded()}, {"carry": carry}, {}):
        loss = module(problem.x, **options)[0].sin().sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        second.append(torch.autograd.grad(first[1].sin().sum(), parameters))
    assert_same(second[0], second[1])
    assert distance(second[0], second[2]) > 0.01


class Wrong(bptt.Credit):
    def __init__(self, *plan):
        self.given = plan

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(*self.given)


@pytest.mark.parametrize(
    ("credit", "error", "message"),
    [
        (bptt.Plan(6), ConfigError, "6 steps, got 7"),
        (Wrong(6), ValueError, "planned for 6 steps and any batch, .* 7 steps and a batch of 2"),
        (bptt.Plan(7, np.ones((7, 3))), ValueError, "planned for 7 steps and a batch of 3"),
        (bptt.Randomized(pi=[0.5] * 6), ConfigError, "pi has 6 probabilities, the sequence 7"),
    ],
)
def test_plans_for_another_input_are_refused(credit, error, message):
    with pytest.raises(error, match=message):
        bptt.GRU(2, 3)(torch.randn(7, 2, 2), credit=credit)


def test_a_credit_without_a_plan_says_what_is_missing():
    class Nothing(bptt.Credit):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing must define plan\(steps, batch, gen"):
        bptt.GRU(2, 3)(torch.randn(7, 2, 2), credit=Nothing())


def test_the_layout_is_made_once_for_each_plan_and_batch():
    """A training run asks for the same one again and again."""
    plan = WINDOWS.plan(7)
    assert windows_of(plan.blocks, sizes_of((7, 7))) is windows_of(plan.blocks, (2,) * 7)
