"""estimator_error beside gradients that are computed directly, and beside exact expectations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from problems import CREDITS, Fading
from torch import nn

import bptt
from bptt.credit import Plan
from bptt.errors import ConfigError, ZeroGradientError


class Answering(nn.Module):
    """A network with a readout, and dropout in between; it hands credit on."""

    takes_carry = True

    def __init__(self, kind=bptt.LSTM, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.recurrent = kind(2, 4, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(4, 1, dtype=torch.float64)
        with torch.no_grad():
            self.recurrent.weight_hh_l0 *= 3  # so that much flows back

    def forward(self, x, state=None, **how):
        h, state = self.recurrent(x, state, **how)
        return self.readout(self.dropout(h)), state


def inputs(steps=7, batch=2):
    return torch.randn(
        steps, batch, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )


def loss(y):
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    return ((y + 0.3).sin() * weights).sum()


def gradient(module, x, credit, **options):
    """The gradient of each parameter, by name."""
    module.zero_grad()
    loss(bptt.unroll(module, x, credit=credit, **options)[0]).backward()
    return {n: p.grad.clone().flatten() for n, p in module.named_parameters()}


def joined(gradients):
    return torch.cat(list(gradients.values()))


def relative(off, exact):
    return float(off.norm() / exact.norm())


@pytest.mark.parametrize("kind", [bptt.RNN, bptt.GRU, bptt.LSTM])
@pytest.mark.parametrize("name", ["truncated 1", "truncated 3", "every 2 reach 3", "fading"])
def test_the_bias_is_the_difference_of_the_gradients(kind, name):
    module, x, credit = Answering(kind), inputs(), CREDITS[name]
    exact, found = gradient(module, x, bptt.Full()), gradient(module, x, credit)
    error = bptt.estimator_error(module, x, loss, credit)
    assert error.draws == 1
    assert list(error.parameters) == list(exact)
    for of, e, g in [
        (error.total, joined(exact), joined(found)),
        *((error.parameters[n], exact[n], found[n]) for n in exact),
    ]:
        assert of.norm == pytest.approx(float(e.norm()), rel=1e-9)
        assert of.bias == pytest.approx(relative(g - e, e), rel=1e-9, abs=1e-14)
        assert of.cosine == pytest.approx(float(g @ e / g.norm() / e.norm()), rel=1e-9)
        assert (of.bias_noise, of.variance) == (0, 0)
    assert error.total.bias > 0.01


def test_the_exact_credit_has_no_error():
    error = bptt.estimator_error(Answering(), inputs(), loss, bptt.Full())
    assert error.draws == 1
    for of in (error.total, *error.parameters.values()):
        assert (of.bias, of.bias_noise, of.variance) == (0, 0, 0)
        assert of.cosine == pytest.approx(1)
        assert of.norm > 0


def outcomes(credit, steps):
    """Every plan that a randomized credit can draw for one sequence, and its probability."""
    for cuts in itertools.product((False, True), repeat=steps - 1):
        carry, since, p = np.ones(steps), np.ones(1), 1.0
        for j, cut in enumerate(cuts, 1):
            c = float(credit.cut_probability(j, since, steps)[0])
            p *= c if cut else 1 - c
            carry[j] = 0 if cut else 1 / (1 - c)
            since = np.ones(1) if cut else since + 1
        yield Plan(steps, carry), p


@pytest.mark.parametrize(
    "credit",
    [bptt.Randomized(2.5, tail="constant"), bptt.Randomized(2.5), bptt.Randomized(pi=0.6)],
    ids=str,
)
def test_the_variance_is_that_of_all_outcomes(credit):
    T, draws = 4, 200
    module, x = Answering(bptt.RNN), inputs(T, batch=1)
    exact = joined(gradient(module, x, bptt.Full()))
    found = [(joined(gradient(module, x, plan)), p) for plan, p in outcomes(credit, T)]
    assert sum(p for _, p in found) == pytest.approx(1)
    mean = sum(g * p for g, p in found)
    assert torch.allclose(mean, exact, rtol=1e-10)  # unbiased
    squares = [(float((g - mean).square().sum() / exact.square().sum()), p) for g, p in found]
    variance = sum(s * p for s, p in squares)
    fourth = sum(s * s * p for s, p in squares)
    # of a sample's variance: (E s² - (E s)²) / n, and a little for the estimated mean
    standard_error = math.sqrt((fourth - variance**2) / draws)
    generator = torch.Generator().manual_seed(11)
    error = bptt.estimator_error(module, x, loss, credit, draws=draws, generator=generator)
    assert error.draws == draws
    assert variance > 8 * standard_error  # so that the test means something
    assert error.total.variance == pytest.approx(variance, abs=4 * standard_error)
    cosine = sum(float(g @ exact / g.norm() / exact.norm()) * p for g, p in found)
    assert error.total.cosine == pytest.approx(cosine, abs=4 / math.sqrt(draws))


@pytest.mark.parametrize("name", ["constant", "heavy", "heavy, shared", "pi"])
def test_what_is_unbiased_has_a_bias_of_noise(name):
    generator = torch.Generator().manual_seed(2)
    error = bptt.estimator_error(
        Answering(), inputs(), loss, CREDITS[name], draws=100, generator=generator
    )
    assert 0 < error.total.bias < 4 * error.total.bias_noise
    assert error.total.bias_noise == pytest.approx(math.sqrt(error.total.variance / 100))
    biased = bptt.estimator_error(
        Answering(), inputs(), loss, bptt.Truncated(2), generator=generator
    )
    assert biased.total.bias > 4 * error.total.bias_noise  # so that the test means something


def test_the_total_is_that_of_the_parameters_together():
    credit, generator = bptt.Randomized(2.5), torch.Generator().manual_seed(4)
    error = bptt.estimator_error(Answering(), inputs(), loss, credit, draws=20, generator=generator)
    norms = [e.norm**2 for e in error.parameters.values()]
    assert error.total.norm**2 == pytest.approx(sum(norms))
    for kind in ("bias", "variance"):
        power = 2 if kind == "bias" else 1
        parts = [getattr(e, kind) ** power for e in error.parameters.values()]
        weighted = sum(p * n for p, n in zip(parts, norms, strict=True)) / sum(norms)
        assert getattr(error.total, kind) ** power == pytest.approx(weighted)
    module = Answering()
    few = {"w": module.recurrent.weight_hh_l0}
    of_few = bptt.estimator_error(
        module, inputs(), loss, credit, draws=20, parameters=few,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    assert of_few.parameters["w"] == error.parameters["recurrent.weight_hh_l0"]
    assert of_few.total == of_few.parameters["w"]


def test_dropout_falls_on_the_same_units():
    module = Answering(dropout=0.5)
    error = bptt.estimator_error(module, inputs(), loss, bptt.Full())
    assert error.total.bias == 0
    torch.manual_seed(1)
    one = bptt.estimator_error(module, inputs(), loss, bptt.Truncated(2))
    torch.manual_seed(2)
    other = bptt.estimator_error(module, inputs(), loss, bptt.Truncated(2))
    assert one.total.bias != other.total.bias  # it does fall on something


def test_a_foreign_module_is_cut_for_all_sequences_at_once():
    torch.manual_seed(0)
    module, x = nn.GRU(2, 4, dtype=torch.float64), inputs()
    exact = joined(gradient(module, x, bptt.Full()))
    found = joined(gradient(module, x, bptt.Truncated(2)))
    error = bptt.estimator_error(module, x, loss, bptt.Truncated(2))
    assert error.total.bias == pytest.approx(relative(found - exact, exact), rel=1e-9)
    drawn = bptt.estimator_error(module, x, loss, bptt.Randomized(2.5), draws=10)
    assert drawn.total.variance > 0


def test_per_sequence_lowers_the_variance():
    module, x = Answering(), inputs(batch=8)
    found = {
        per_sequence: bptt.estimator_error(
            module, x, loss, bptt.Randomized(2.5), draws=100, per_sequence=per_sequence,
            generator=torch.Generator().manual_seed(0),
        ).total.variance
        for per_sequence in (True, False)
    }  # fmt: skip
    assert 2 * found[True] < found[False]


@pytest.mark.parametrize("memory", [bptt.Store(), bptt.Recompute(2)], ids=repr)
@pytest.mark.parametrize("name", ["truncated 3", "heavy"])
def test_memory_changes_no_figure(memory, name):
    x, credit = inputs(), CREDITS[name]

    def total(**options):
        generator = torch.Generator().manual_seed(6)
        return bptt.estimator_error(
            Answering(), x, loss, credit, draws=5, generator=generator, **options
        ).total

    with_memory, without = total(memory=memory), total()
    for field in ("bias", "bias_noise", "variance", "cosine", "norm"):
        assert getattr(with_memory, field) == pytest.approx(getattr(without, field), rel=1e-9)


def test_resets_and_the_state_are_handed_on():
    module, x = Answering(), inputs()
    resets = torch.zeros(7, dtype=torch.bool)
    resets[3] = True
    state = tuple(torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain = bptt.estimator_error(module, x, loss, bptt.Truncated(3)).total
    for options in ({"resets": resets}, {"state": state}):
        assert bptt.estimator_error(module, x, loss, bptt.Truncated(3), **options).total != plain
    assert all(s.grad is None for s in state)


def test_the_same_generator_draws_the_same_and_torch_s_own_is_left_alone():
    module, x, credit = Answering(dropout=0.3), inputs(), bptt.Randomized(2.5)

    def error(generator):
        return bptt.estimator_error(module, x, loss, credit, draws=5, generator=generator).total

    before = torch.get_rng_state()
    one = error(torch.Generator().manual_seed(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert error(torch.Generator().manual_seed(8)) == one
    assert error(torch.Generator().manual_seed(9)) != one
    torch.manual_seed(1)
    by_default = error(None)
    torch.manual_seed(1)
    assert error(None) == by_default


def test_a_credit_that_draws_nothing_leaves_the_generator_alone():
    generator = torch.Generator().manual_seed(8)
    before = generator.get_state()
    for credit in (bptt.Truncated(2), Fading(), bptt.Full()):
        bptt.estimator_error(Answering(), inputs(), loss, credit, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_gradients_that_are_there_stay():
    module = Answering()
    bptt.estimator_error(module, inputs(), loss, bptt.Truncated(2))
    assert all(p.grad is None for p in module.parameters())


def test_it_works_without_gradients_around_it():
    with torch.no_grad():
        error = bptt.estimator_error(Answering(), inputs(), loss, bptt.Truncated(2))
    assert error.total.bias > 0


def test_a_plan_is_a_credit():
    plan = bptt.Truncated(2).plan(7)
    error = bptt.estimator_error(Answering(), inputs(), loss, plan)
    assert error.total == bptt.estimator_error(Answering(), inputs(), loss, bptt.Truncated(2)).total


def test_printed_it_is_a_table():
    lines = str(bptt.estimator_error(Answering(), inputs(), loss, bptt.Truncated(2))).splitlines()
    assert lines[0] == "Truncated(2), 1 draw"
    assert lines[1].split() == ["bias", "±", "noise", "variance", "cosine", "norm"]
    assert lines[2].startswith("all parameters")
    assert [line.split()[0] for line in lines[3:]] == list(dict(Answering().named_parameters()))


def test_errors():
    module, x = Answering(), inputs()
    with pytest.raises(ConfigError, match="at least 2 draws, got 1"):
        bptt.estimator_error(module, x, loss, bptt.Full(), draws=1)
    with pytest.raises(ZeroGradientError, match="gradient is zero"):
        bptt.estimator_error(module, x, lambda y: 0 * y.sum(), bptt.Full())
    with pytest.raises(ConfigError, match="no parameter"):
        bptt.estimator_error(lambda x, s: (x, s), x, loss, bptt.Full())
    for p in module.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter"):
        bptt.estimator_error(module, x, loss, bptt.Full())


def test_a_gradient_of_rows_is_measured_as_the_whole_one():
    class Words(nn.Module):
        takes_carry = True

        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(4)
            self.table = nn.Embedding(9, 2, sparse=sparse, dtype=torch.float64)
            self.recurrent = bptt.GRU(2, 3, dtype=torch.float64)

        def forward(self, x, state=None, **how):
            return self.recurrent(self.table(x), state, **how)

    tokens = torch.tensor([[1, 2], [1, 3], [5, 1], [2, 2]])
    found, expected = (
        bptt.estimator_error(Words(sparse), tokens, loss, bptt.Truncated(2))
        for sparse in (True, False)
    )
    assert found.parameters["table.weight"].bias > 0.01
    assert found.total == expected.total
