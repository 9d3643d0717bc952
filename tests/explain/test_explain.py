"""explain_gradient: the weights of every credit are found, and none where there are none."""

import numpy as np
import pytest
import torch

import bptt
from bptt.errors import ConfigError

T, I, H = 8, 3, 6
STEP, LOSS = np.indices((T, T))[::-1]
LOWER = STEP <= LOSS


def square(y):
    return y.square().sum()


def make(kind, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return kind(I, H, **options).to(dtype)


def computed(rnn, credit=None, loss_fn=square, names=None, change=lambda g: g):
    """A function that computes a gradient, as a kernel or NumPy code would."""
    named = {k: p for k, p in rnn.named_parameters() if names is None or k in names}

    def gradient(x):
        y, _ = bptt.unroll(rnn, x, credit=credit)
        return change(
            dict(zip(named, torch.autograd.grad(loss_fn(y), named.values()), strict=True))
        )

    return gradient


CREDITS = {
    "full": LOWER,
    "truncated:3": LOWER & (LOSS // 3 == STEP // 3),
    "truncated:every=1,reach=4": LOWER & (LOSS - STEP <= 3),
    "truncated:every=2,reach=4": LOWER & (STEP >= (LOSS // 2 + 1) * 2 - 4),
}
WORDS = {
    "full": "the full gradient",
    "truncated:3": "windows of 3 steps",
    "truncated:every=1,reach=4": "truncated: each loss goes back over 3 transitions, 4 cells",
    "truncated:every=2,reach=4": "every=2, reach=4",
}


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [bptt.RNN, bptt.GRU, torch.nn.LSTM])
def test_the_weights_of_a_credit_are_found(kind, dtype, credit):
    rnn = make(kind, dtype)
    before = [p.clone() for p in rnn.parameters()]
    found = bptt.explain_gradient(
        rnn, torch.randn(T, 1, I, dtype=dtype), square, computed(rnn, credit)
    )
    assert found.rank == found.unknowns == 36
    assert found.residual < (1e-12 if dtype == torch.float64 else 1e-5)
    np.testing.assert_allclose(found.weights[LOWER], CREDITS[credit][LOWER], atol=5e-3)
    assert np.isnan(found.weights[~LOWER]).all()
    assert found.is_full == (credit == "full")
    assert WORDS[credit] in str(found)
    assert {*found.parameters} == {*dict(rnn.named_parameters())}
    assert all(torch.equal(p, q) for p, q in zip(rnn.parameters(), before, strict=True))
    assert all(p.grad is None for p in rnn.parameters())


def test_any_plan_is_found_in_a_stack_with_a_state_and_batch_first():
    carry = np.array([1.0, 0.5, 2.0, 0.0, 1.0, -1.0, 0.3])
    plan = bptt.Plan(7, carry=carry)
    rnn = make(bptt.LSTM, num_layers=2, batch_first=True)
    x, state = torch.randn(2, 7, I).double(), tuple(torch.randn(2, 2, 2, H).double())

    def gradient(x):
        y, _ = rnn(x, state, credit=plan)
        found = torch.autograd.grad(square(y), [*rnn.parameters()])
        return dict(zip(dict(rnn.named_parameters()), found, strict=True))

    found = bptt.explain_gradient(rnn, x, square, gradient, state=state)
    lower = np.tri(7, dtype=bool)
    np.testing.assert_allclose(found.weights[lower], plan.matrix()[lower], atol=1e-9)
    assert found.total.has_term[lower].all()  # the initial state gives W_hh a term at step 0, too


@pytest.mark.parametrize("seed", range(20))
def test_what_is_counted_wrongly_is_found_whatever_is_drawn(seed):
    rng = np.random.default_rng(seed)
    dtype = (torch.float64, torch.float32)[seed % 2]
    factor, reach = float(rng.choice([2, 1 / T, -1])), int(rng.integers(2, 6))
    rnn = make(bptt.RNN, dtype, seed=seed)
    gradient = computed(
        rnn,
        bptt.Truncated(every=1, reach=reach),
        names=["weight_hh_l0"],
        change=lambda g: {k: factor * v for k, v in g.items()},
    )
    found = bptt.explain_gradient(rnn, torch.randn(T, 1, I, dtype=dtype), square, gradient)
    known = LOWER & (STEP > 0)  # at step 0 the state before is zero: W_hh has no term there
    expected = factor * (reach > LOSS - STEP)
    np.testing.assert_allclose(found.weights[known], expected[known], atol=1e-2)
    assert np.isnan(found.weights[~known]).all()
    assert (found.rank, found.unknowns) == (28, 28)
    assert f"goes back over {reach - 1} transition" in str(found)
    assert f"times {factor:.4g}" in str(found)


def test_one_short_sequence_does_not_determine_the_weights_and_three_do():
    rnn = make(bptt.RNN)
    gradient = computed(rnn, "truncated:3", names=["weight_hh_l0"])
    inputs = [torch.randn(T, 1, I).double() for _ in range(3)]
    one = bptt.explain_gradient(rnn, inputs[0], square, gradient(inputs[0]))
    assert (one.rank, one.unknowns) == (27, 28)
    assert one.residual < 1e-13
    assert one.condition == np.inf
    assert "27 of 28" in str(one)
    assert one.weights is None or np.isnan(one.weights[LOWER & (STEP > 0)]).any()
    if one.weights is not None:  # what is given is right
        known = np.isfinite(one.weights)
        np.testing.assert_allclose(one.weights[known], CREDITS["truncated:3"][known], atol=1e-6)
    three = bptt.explain_gradient(rnn, inputs, square, [gradient(x) for x in inputs])
    assert three.rank == 28
    known = LOWER & (STEP > 0)
    np.testing.assert_allclose(three.weights[known], CREDITS["truncated:3"][known], atol=1e-9)
    assert "rank" in str(three)


def test_a_bias_alone_has_too_few_equations_to_say_anything():
    rnn = make(bptt.RNN)
    x = torch.randn(T, 1, I).double()
    gradient = computed(
        rnn, names=["bias_hh_l0"], change=lambda g: {k: v.cos() for k, v in g.items()}
    )
    found = bptt.explain_gradient(rnn, x, square, gradient(x))
    assert found.residual < 1e-9  # any gradient would fit
    assert found.weights is None
    assert "nothing is left to check" in str(found)
    drawn = bptt.explain_gradient(rnn, x, square, gradient)
    assert drawn.weights is None
    assert drawn.residual > 1e-2


def test_inputs_that_are_all_the_same_determine_no_more_by_being_dealt_anew():
    rnn = make(bptt.RNN)
    gradient = computed(rnn, "truncated:3", names=["bias_hh_l0"])
    found = bptt.explain_gradient(rnn, torch.ones(T, 1, I).double(), square, gradient)
    assert found.rank < found.unknowns
    assert found.weights is None


@pytest.mark.parametrize(
    "change",
    [
        lambda g: {**g, "weight_hh_l0": g["weight_hh_l0"].T},
        lambda g: {**g, "weight_hh_l0": g["weight_hh_l0"] + 0.01 * g["weight_hh_l0"].tanh()},
        lambda g: {**g, "weight_hh_l0": g["weight_hh_l0"].abs()},
    ],
)
def test_what_is_no_weight_gives_no_weights(change):
    for seed in range(5):
        rnn = make(bptt.RNN, seed=seed)
        gradient = computed(rnn, change=change)
        found = bptt.explain_gradient(rnn, torch.randn(T, 1, I).double(), square, gradient)
        assert found.weights is None
        assert found.residual > 1e-5
        assert not found.parameters["weight_hh_l0"].is_weights
        assert found.parameters["weight_ih_l0"].is_full
        assert "no weights explain it" in str(found)


def test_more_data_are_drawn_where_the_first_do_not_determine_the_weights():
    """One word among seven of another kind: there are eight sentences, and 12 draws miss some."""
    rnn, calls = make(bptt.RNN), []
    gradient = computed(rnn, "truncated:3", names=["bias_hh_l0"])

    def counted(x):
        calls.append(x)
        return gradient(x)

    x = torch.eye(I).double()[[0, 1, 1, 1, 1, 1, 1, 1]].unsqueeze(1)
    found = bptt.explain_gradient(rnn, x, square, counted)
    assert len(calls) == found.datasets == 24
    assert found.rank == 36
    np.testing.assert_allclose(found.weights[LOWER], CREDITS["truncated:3"][LOWER], atol=1e-6)
    calls.clear()
    bptt.explain_gradient(rnn, torch.randn(T, 1, I).double(), square, counted)
    assert len(calls) == 12


def test_a_gradient_in_float32_is_known_as_such_in_arrays_of_float64():
    rnn = make(bptt.RNN, torch.float32)
    gradient = computed(rnn, change=lambda g: {k: v.double().numpy() for k, v in g.items()})
    found = bptt.explain_gradient(rnn, torch.randn(T, 1, I), square, gradient)
    assert found.residual > 1e-9
    assert found.is_full


def test_terms_that_rounding_hides_are_unknown():
    rnn = make(bptt.RNN, torch.float32)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(0.05)
    gradient = computed(rnn, names=["weight_hh_l0"])
    found = bptt.explain_gradient(rnn, torch.randn(T, 1, I), square, gradient)
    far, near = LOWER & (LOSS - STEP > 6), (LOSS == STEP) & (STEP > 0)
    assert np.isnan(found.weights[far]).all()
    np.testing.assert_allclose(found.weights[near], 1, atol=1e-3)
    assert "rounding hides" in str(found)


def test_a_function_with_its_parameters_is_a_module():
    w = torch.linalg.qr(torch.randn(H, H, dtype=torch.float64))[0].requires_grad_()

    def cell(x, h):
        h = x.new_zeros(x.shape[1], H) if h is None else h
        ys = []
        for x_t in x:
            h = torch.tanh(x_t + h @ w.T)
            ys.append(h)
        return torch.stack(ys), h

    def numpy(x):
        y = cell(x, None)[0]
        return {"w": 3 * torch.autograd.grad(square(y), w)[0].numpy()}

    options = {"parameters": {"w": w}, "state_batch_dim": 0}
    found = bptt.explain_gradient(cell, torch.randn(5, 1, H).double(), square, numpy, **options)
    known = np.tri(5, dtype=bool) & (np.arange(5) > 0)
    np.testing.assert_allclose(found.weights[known], 3, atol=1e-9)


def test_a_loss_need_not_be_a_sum_over_steps():
    rnn = make(bptt.GRU)

    def loss_fn(y):
        return y.mean(0).pow(3).sum().exp()

    found = bptt.explain_gradient(
        rnn, torch.randn(T, 2, I).double(), loss_fn, computed(rnn, None, loss_fn)
    )
    assert found.is_full


def test_dropout_is_off_and_the_mode_stays():
    rnn = make(bptt.LSTM, num_layers=2, dropout=0.5).eval()
    gradient = computed(rnn)
    rnn.train()

    def evaluated(x):
        rnn.eval()
        found = gradient(x)
        rnn.train()
        return found

    found = bptt.explain_gradient(rnn, torch.randn(T, 1, I).double(), square, evaluated)
    assert found.is_full
    assert rnn.training


def test_half_precision_has_the_tolerance_of_its_dtype():
    rnn = make(bptt.RNN)
    gradient = computed(
        rnn, "truncated:3", change=lambda g: {k: v.bfloat16() for k, v in g.items()}
    )
    x = torch.randn(T, 1, I).double()
    found = bptt.explain_gradient(rnn, x, square, gradient)
    assert found.total.is_weights
    assert not found.is_full
    assert not bptt.explain_gradient(rnn, x, square, gradient, tolerance=1e-6).total.is_weights


ONES = torch.ones(H)
BIAS = {"bias_hh_l0": ONES}


def x(steps=T):
    return torch.randn(steps, 1, I)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"gradient": {"weight": torch.ones(H, H)}}, ConfigError, "no parameter 'weight'"),
        ({"gradient": {"weight_hh_l0": torch.ones(H)}}, ConfigError, r"expected \(6, 6\)"),
        ({"gradient": {"weight_ih_l0": torch.ones(I, H)}}, ConfigError, "transpose it"),
        ({"gradient": {"weight_hh_l0": torch.full((H, H), torch.nan)}}, ConfigError, "not finite"),
        ({"gradient": torch.ones(H, H)}, ConfigError, "gradients by name"),
        ({"gradient": {}}, ConfigError, "an empty dictionary"),
        ({"inputs": [x(), x()]}, ConfigError, "2 inputs, 2 losses and 1 gradients"),
        (
            {"inputs": [x(), x(4)], "gradient": 2 * [{"bias_hh_l0": torch.ones(H)}]},
            ConfigError,
            "8 and 4",
        ),
        ({"inputs": [x(), x()], "gradient": [BIAS, {"bias_ih_l0": ONES}]}, ConfigError, "another"),
        ({"inputs": x(40)}, ConfigError, "40 steps have 820 weights"),
        ({"loss_fn": lambda y: y}, ConfigError, "must return a scalar"),
        ({"loss_fn": lambda y: torch.ones(())}, ConfigError, "no gradient of the loss"),
        ({"module": lambda x, s: (x, s)}, ConfigError, "parameters="),
        ({"parameters": {"w": torch.ones(1)}}, ConfigError, "for functions"),
        ({"module": bptt.GRU(I, H, bidirectional=True)}, ValueError, "bidirectional"),
        ({"inputs": [x()], "gradient": lambda x: {}}, ConfigError, "one data set"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, says):
    given = {
        "module": bptt.RNN(I, H),
        "inputs": x(),
        "loss_fn": square,
        "gradient": {"weight_hh_l0": torch.ones(H, H)},
    }
    with pytest.raises(error, match=says):
        bptt.explain_gradient(**given | options)
