"""bptt.RNN, GRU and LSTM against torch.nn's, option by option."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import using
from problems import lengths
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import bptt
from bptt._src import layers, run_layer
from bptt._src.engines import reference

NAMES = ["RNN", "GRU", "LSTM"]
EACH = pytest.mark.parametrize("name", NAMES)


def pair(name, *args, **options):
    """torch.nn's module and ours, made from the same seed."""
    modules = []
    for library in (torch.nn, bptt):
        torch.manual_seed(7)
        modules.append(getattr(library, name)(*args, **{"dtype": torch.float64, **options}))
    return modules


def states(module, batch, seed=0):
    """An initial state that requires gradients; batch None for an unbatched input."""
    generator = torch.Generator().manual_seed(seed)
    cells = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, torch.nn.LSTM):
        sizes.append(module.hidden_size)
    shape = (cells,) if batch is None else (cells, batch)
    drawn = [
        torch.randn(*shape, n, generator=generator, dtype=torch.float64).requires_grad_()
        for n in sizes
    ]
    return tuple(drawn) if len(drawn) == 2 else drawn[0]


def flat(*results):
    found = []
    for r in results:
        if isinstance(r, PackedSequence):
            found.append(r.data)
        elif isinstance(r, tuple):
            found += flat(*r)
        elif r is not None:
            found.append(r)
    return found


def run(module, x, hx, **options):
    """Everything that comes out of a module, and every gradient."""
    results = flat(module(x, hx, **options))
    loss = sum((r.sin() * torch.linspace(0.5, 1.5, r.numel()).view_as(r)).sum() for r in results)
    inputs = [t for t in flat(x, hx) if t.requires_grad] + list(module.parameters())
    return results + list(torch.autograd.grad(loss, inputs))


def assert_same(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


OPTIONS = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "bidirectional": st.booleans(),
    }
)


@EACH
@settings(max_examples=40)
@given(
    options=OPTIONS,
    relu=st.booleans(),
    projection=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    batched=st.booleans(),
    with_state=st.booleans(),
    contiguous=st.booleans(),
)
def test_outputs_states_and_gradients_are_those_of_torch(
    name, options, relu, projection, sizes, batched, with_state, contiguous
):
    T, B, I, H = sizes
    if name == "RNN" and relu:
        options["nonlinearity"] = "relu"
    if name == "LSTM" and projection and H > 1:
        options["proj_size"] = H - 1
    theirs, ours = pair(name, I, H, **options)
    shape = ((B, T, I) if options["batch_first"] else (T, B, I)) if batched else (T, I)
    torch.manual_seed(T)
    x = torch.randn(*shape, dtype=torch.float64)
    if not contiguous:
        x = torch.stack([x, x], dim=-1)[..., 0]
    x.requires_grad_()
    hx = states(ours, B if batched else None) if with_state else None
    assert_same(run(ours, x, hx), run(theirs, x, hx))


@EACH
@settings(max_examples=40)
@given(lengths=lengths(), options=OPTIONS, shuffled=st.booleans(), with_state=st.booleans())
def test_packed_sequences_are_those_of_torch(name, lengths, options, shuffled, with_state):
    theirs, ours = pair(name, 3, 4, **options)
    torch.manual_seed(len(lengths))
    order = torch.randperm(len(lengths)).tolist() if shuffled else range(len(lengths))
    x = pack_sequence(
        [torch.randn(lengths[i], 3, dtype=torch.float64, requires_grad=True) for i in order],
        enforce_sorted=not shuffled,
    )
    hx = states(ours, len(lengths)) if with_state else None
    assert_same(run(ours, x, hx), run(theirs, x, hx))
    output, expected = ours(x, hx)[0], theirs(x, hx)[0]
    assert torch.equal(output.batch_sizes, expected.batch_sizes)
    assert output.sorted_indices is x.sorted_indices
    assert output.unsorted_indices is x.unsorted_indices


@EACH
def test_dropout_draws_the_same_masks_as_torch(name):
    theirs, ours = pair(name, 3, 8, num_layers=3, dropout=0.4)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        results.append(run(module, x, None))
    assert_same(*results)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    assert torch.equal(ours.eval()(x)[0], ours(x)[0])
    torch.testing.assert_close(ours(x)[0], theirs.eval()(x)[0], rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("projection", [0, 3])
def test_state_dict_moves_both_ways(name, projection):
    options = {"num_layers": 2, "bidirectional": True}
    if projection and name == "LSTM":
        options["proj_size"] = projection
    theirs, ours = pair(name, 3, 4, **options)
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for p in source.parameters():
                p.uniform_(-1, 1)
        target.load_state_dict(source.state_dict())
        x = torch.randn(3, 2, 3, dtype=torch.float64)
        assert_same(flat(target(x)), flat(source(x)))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bias": False, "dropout": 0.5, "bidirectional": True}],
)
@EACH
def test_it_prints_like_torch(name, options):
    theirs, ours = pair(name, 3, 4, batch_first=True, **options)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))


def test_the_sigmoid_is_ours_in_addition():
    rnn = bptt.RNN(3, 4, nonlinearity="sigmoid", dtype=torch.float64)
    assert "sigmoid" in repr(rnn)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y, _ = rnn(x)
    h = torch.zeros(2, 4, dtype=torch.float64)
    for t in range(5):
        a = x[t] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        h = torch.sigmoid(a)
        torch.testing.assert_close(y[t], h)
    other = bptt.RNN(3, 4, dtype=torch.float64)
    other.load_state_dict(rnn.state_dict())
    assert not torch.allclose(other(x)[0], y)


BAD_CALLS = {
    "one dimension": lambda m, x, h: m(x[0, 0], h),
    "four dimensions": lambda m, x, h: m(x.unsqueeze(0), h),
    "another dtype": lambda m, x, h: m(x.float(), h),
    "another input size": lambda m, x, h: m(x[..., 1:], h),
    "no steps": lambda m, x, h: m(x[:0], h),
    "state of another batch": lambda m, x, h: m(x[:, 1:], h),
    "batched state, unbatched input": lambda m, x, h: m(x[:, 0], h),
    "state of another dtype": lambda m, x, h: m(
        x, tuple(s.float() for s in h) if isinstance(h, tuple) else h.float()
    ),
}


@EACH
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_calls_raise_what_torch_raises(name, call):
    theirs, ours = pair(name, 3, 4)
    x, hx = torch.randn(5, 2, 3, dtype=torch.float64), states(theirs, 2)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        call(theirs, x, hx)
    with pytest.raises((ValueError, RuntimeError), match=f"bptt.{name}: .*got|convert") as found:
        call(ours, x, hx)
    assert found.type is expected.type


BAD_ARGUMENTS = [
    {"input_size": 0},
    {"hidden_size": -1},
    {"hidden_size": 2.5},
    {"num_layers": 0},
    {"dropout": 1.5},
    {"proj_size": 2},
    {"nonlinearity": "cosine"},
    {"nonlinearity": "TANH"},
    {"nonsense": 1},
]


@EACH
@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_raise_what_torch_raises(name, bad):
    arguments = {"input_size": 3, "hidden_size": 4, **bad}
    raised = []
    for library in (torch.nn, bptt):
        try:
            getattr(library, name)(**arguments)
            raised.append(None)
        except (ValueError, TypeError) as error:
            raised.append(type(error))
    theirs, ours = raised
    assert (ours is None) == (theirs is None)
    assert theirs is not ValueError or ours is ValueError


def test_the_nonlinearity_can_be_given_by_position_as_in_torch():
    assert bptt.RNN(3, 4, 1, "relu").mode == torch.nn.RNN(3, 4, 1, "relu").mode
    with pytest.raises(ValueError, match="'tanh', 'relu' or 'sigmoid', got 'cosine'"):
        bptt.RNN(3, 4, nonlinearity="cosine")


# ------------------------------------------------------------------------ carry and resets


@EACH
@settings(max_examples=40)
@given(options=OPTIONS, cut=st.integers(1, 5), seed=st.integers(0, 99))
def test_resets_are_sequences_run_on_their_own(name, options, cut, seed):
    """Two episodes end to end with a reset between them, and each alone; both directions."""
    _, ours = pair(name, 3, 4, **{**options, "batch_first": False})
    torch.manual_seed(seed)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[cut, 0] = True  # the first sequence only
    y = ours(x, resets=resets)[0]
    apart = torch.cat([ours(x[:cut, :1])[0], ours(x[cut:, :1])[0]])
    expected = torch.cat([apart, ours(x[:, 1:])[0]], dim=1)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *ours.parameters()]
    assert_same(
        torch.autograd.grad(y.sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
    )


@EACH
def test_a_reset_before_the_first_step_ignores_the_initial_state(name):
    _, ours = pair(name, 3, 4)
    x, hx = torch.randn(5, 2, 3, dtype=torch.float64), states(ours, 2)
    starts = torch.zeros(5, dtype=torch.bool)
    starts[0] = True
    torch.testing.assert_close(ours(x, hx, resets=starts)[0], ours(x)[0])
    assert not torch.allclose(ours(x, hx)[0], ours(x)[0])


@EACH
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_carry_of_zero_is_a_detached_state(name, bidirectional):
    """carry cuts the gradient and leaves the outputs: the state is carried over, detached."""
    _, ours = pair(name, 3, 4, bidirectional=bidirectional)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    carry = torch.ones(6, dtype=torch.float64)
    carry[4] = 0
    y = ours(x, carry=carry)[0]
    torch.testing.assert_close(y, ours(x)[0], rtol=1e-12, atol=1e-12)
    (late,) = torch.autograd.grad(y[5, :, :4].sum(), x, retain_graph=True)
    assert not late[:4].any()
    assert late[4:].any()
    if bidirectional:  # the other way over the same boundary
        (early,) = torch.autograd.grad(y[0, :, 4:].sum(), x)
        assert early[:4].any()
        assert not early[4:].any()
    else:
        first, state = ours(x[:4])
        state = tuple(s.detach() for s in state) if name == "LSTM" else state.detach()
        expected = torch.cat([first, ours(x[4:], state)[0]])
        inputs = [x, *ours.parameters()]
        y = ours(x, carry=carry)[0]
        assert_same(
            torch.autograd.grad(y.sin().sum(), inputs),
            torch.autograd.grad(expected.sin().sum(), inputs),
        )


def by_hand(module, x, hx, carry, resets):
    """[T, B, I] through all layers and directions, step by step; what crosses, by arithmetic."""
    finals, k = [], 0
    for layer in range(module.num_layers):
        outputs = []
        for reverse in range(2 if module.bidirectional else 1):
            suffix = f"l{layer}" + "_reverse" * reverse
            w_ih, w_hh, b_ih, b_hh = (
                getattr(module, f"{n}_{suffix}")
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            state = tuple(h[k] for h in hx) if isinstance(hx, tuple) else (hx[k],)
            ys = [None] * len(x)
            for t in reversed(range(len(x))) if reverse else range(len(x)):
                boundary = t + 1 if reverse else t
                if boundary < len(x):
                    c, r = carry[boundary].unsqueeze(1), resets[boundary].unsqueeze(1)
                    state = tuple(c * s + (1 - c) * s.detach() for s in state)
                    state = tuple(torch.where(r, 0, s) for s in state)
                a, q = x[t] @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh
                if module.mode == "LSTM":
                    i, f, g, o = (a + q).chunk(4, 1)
                    c_t = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
                    state = (o.sigmoid() * c_t.tanh(), c_t)
                elif module.mode == "GRU":
                    (a_r, a_z, a_n), (q_r, q_z, q_n) = a.chunk(3, 1), q.chunk(3, 1)
                    r, z = (a_r + q_r).sigmoid(), (a_z + q_z).sigmoid()
                    state = ((1 - z) * (a_n + r * q_n).tanh() + z * state[0],)
                else:
                    state = ((a + q).tanh(),)
                ys[t] = state[0]
            outputs.append(torch.stack(ys))
            finals.append(state)
            k += 1
        x = torch.cat(outputs, -1)
    return [x, *(torch.stack(s) for s in zip(*finals, strict=True))]


@EACH
@settings(max_examples=25)
@given(
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    per_sequence=st.booleans(),
    seed=st.integers(0, 999),
)
def test_carry_and_resets_are_what_arithmetic_says(
    name, layers, bidirectional, batch_first, per_sequence, seed
):
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
    _, ours = pair(name, 3, 4, **options)
    torch.manual_seed(seed)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    hx = states(ours, 2, seed)
    shape = (6, 2) if per_sequence else (6,)
    carry, resets = torch.randint(0, 5, shape).double() / 2, torch.rand(shape) < 0.25
    given = x.transpose(0, 1) if batch_first else x
    laid_out = [v.t() if batch_first and per_sequence else v for v in (carry, resets)]
    y, final = ours(given, hx, carry=laid_out[0], resets=laid_out[1])
    found = flat(y.transpose(0, 1) if batch_first else y, final)
    if not per_sequence:
        carry, resets = (v.unsqueeze(1).expand(6, 2) for v in (carry, resets))
    expected = by_hand(ours, x, hx, carry, resets)
    assert_same(found, expected)
    inputs = [x, *flat(hx), *ours.parameters()]

    def gradients(results):
        loss = sum((r * torch.linspace(0.5, 1.5, r.numel()).view_as(r)).sum() for r in results)
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    assert_same(gradients(found), gradients(expected))


@EACH
def test_what_is_said_past_the_end_of_a_packed_sequence_changes_nothing(name):
    _, ours = pair(name, 3, 4, bidirectional=True)
    long, short = (torch.randn(n, 3, dtype=torch.float64) for n in (5, 3))
    packed, hx = pack_sequence([long, short]), states(ours, 2)
    carry, resets = torch.ones(5, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.bool)
    carry[3:, 1], resets[3:, 1] = 0, True
    assert_same(run(ours, packed, hx, carry=carry, resets=resets), run(ours, packed, hx))


@EACH
@settings(max_examples=40)
@given(lengths=lengths(), bidirectional=st.booleans(), seed=st.integers(0, 99))
def test_carry_and_resets_of_packed_sequences(name, lengths, bidirectional, seed):
    """[T, B] in the order in which the user gave the sequences; each as if run alone."""
    _, ours = pair(name, 3, 4, bidirectional=bidirectional, num_layers=2)
    torch.manual_seed(seed)
    order = torch.randperm(len(lengths)).tolist()
    lengths = [lengths[i] for i in order]
    T, B = max(lengths), len(lengths)
    sequences = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    carry = torch.randint(0, 4, (T, B)).double() / 2
    resets = torch.rand(T, B) < 0.3
    packed = pack_sequence(sequences, enforce_sorted=False)
    y, _ = pad_packed_sequence(ours(packed, carry=carry, resets=resets)[0])
    total, expected = 0, 0
    for b, (x, n) in enumerate(zip(sequences, lengths, strict=True)):
        alone = ours(x.unsqueeze(1), carry=carry[:n, b], resets=resets[:n, b])[0]
        torch.testing.assert_close(y[:n, b], alone[:, 0], rtol=1e-12, atol=1e-12)
        total = total + y[:n, b].sin().sum()
        expected = expected + alone.sin().sum()
    inputs = [*sequences, *ours.parameters()]
    assert_same(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"carry": torch.ones(4)}, ValueError, r"carry of shape \(5,\) or \(5, 2\).*got \(4,\)"),
        ({"resets": torch.ones(2, 5) > 0}, ValueError, r"resets.*got \(2, 5\); transpose it"),
        ({"carry": torch.ones(5, dtype=torch.int64)}, ValueError, "carry must be floating-point"),
        ({"resets": torch.ones(5)}, ValueError, "resets must be bool, got torch.float32"),
        ({"resets": torch.ones(5).long()}, ValueError, "resets must be bool, got torch.int64"),
    ],
)
def test_bad_carry_and_resets_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        bptt.GRU(3, 4)(torch.randn(5, 2, 3), **options)


# -------------------------------------------------------------------- around the ecosystem


@EACH
def test_forward_mode_transforms_and_second_derivatives(name):
    _, ours = pair(name, 2, 3, num_layers=2)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x)[0], x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], x)

    parameters = {k: p.detach() for k, p in ours.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(ours, parameters, (x,))[0].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for b in range(2):
        alone = torch.func.grad(loss)(parameters, x[:, b])
        for k, g in alone.items():
            torch.testing.assert_close(per_sample[k][b], g, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.func.jacrev(lambda x: ours(x)[0])(x), torch.func.jacfwd(lambda x: ours(x)[0])(x)
    )


@EACH
@pytest.mark.parametrize("tied", [False, True])
def test_a_graph_of_the_gradient_leaves_the_gradient_as_it_is(name, tied):
    """Two windows that hang on each other, and a weight that is used twice."""
    _, ours = pair(name, 4, 4, num_layers=2)
    if tied:
        ours.weight_hh_l0 = ours.weight_hh_l1 = ours.weight_ih_l0
    x = torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *dict.fromkeys(ours.parameters())]
    first, state = ours(x[:3])
    second, _ = ours(x[3:], state)
    loss = second.sin().sum() + first.sum()
    many = torch.randn(3, *second.shape, dtype=torch.float64)

    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert_same(torch.autograd.grad(loss, inputs, create_graph=True), plain)
    together = torch.autograd.grad(second, inputs, many, is_grads_batched=True, retain_graph=True)
    assert not any(g.requires_grad for g in together)
    for d, found in zip(many, zip(*together, strict=True), strict=True):
        assert_same(found, torch.autograd.grad(second, inputs, d, retain_graph=True))


@EACH
def test_second_derivatives_over_two_windows_are_those_of_torch(name):
    products = []
    for module in pair(name, 3, 4):
        torch.manual_seed(1)
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        _, state = module(x[:3])
        loss = module(x[3:], state)[0].sin().sum()
        parameters = list(module.parameters())
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        dot = sum((g * g.detach().cos()).sum() for g in grads)
        products.append(torch.autograd.grad(dot, parameters, materialize_grads=True))
    assert_same(*products)


@EACH
def test_batched_gradients_agree_with_one_at_a_time(name):
    _, ours = pair(name, 2, 3)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    y = ours(x)[0]
    many = torch.randn(5, *y.shape, dtype=torch.float64)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for d, found in zip(many, together, strict=True):
        (alone,) = torch.autograd.grad(y, x, d, retain_graph=True)
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


@EACH
def test_parametrizations_are_seen(name):
    _, ours = pair(name, 2, 3)
    torch.nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    ours(x)[0].sum().backward()
    original = ours.parametrizations.weight_hh_l0.original0
    assert original.grad is not None
    before = ours(x)[0]
    with torch.no_grad():
        original *= 2
    assert not torch.allclose(before, ours(x)[0])


@EACH
def test_copies_pickles_and_dtypes(name):
    _, ours = pair(name, 2, 3)
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(flat(other(x))[0], flat(ours(x))[0])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        low = copy.deepcopy(ours).to(dtype)
        y, _ = low(x.to(dtype))
        assert y.dtype == dtype
        y.sum().backward()
        assert low.weight_hh_l0.grad.dtype == dtype
        torch.testing.assert_close(y.double(), ours(x)[0], rtol=tolerance, atol=tolerance)


@EACH
def test_under_autocast_the_computation_is_in_the_weights_precision(name):
    ours = getattr(bptt, name)(2, 3)
    x, hx = torch.randn(4, 2, 2).bfloat16(), tuple(torch.randn(1, 2, 3).bfloat16() for _ in "hc")
    hx = hx if name == "LSTM" else hx[0]
    wide = tuple(h.float() for h in hx) if name == "LSTM" else hx.float()
    expected = ours(x.float(), wide)[0]
    gradients = torch.autograd.grad(expected.sum(), ours.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ours(x, hx)
        found = torch.autograd.grad(y.sum(), ours.parameters())
        for wrong in (x.long(), x.double()):
            with pytest.raises(ValueError, match="convert one of them"):
                ours(wrong)
    assert torch.equal(y, expected.bfloat16())
    assert all(map(torch.equal, found, gradients))


@EACH
def test_an_empty_batch_and_the_meta_device(name):
    theirs, ours = pair(name, 3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(5, 0, 3, dtype=torch.float64, requires_grad=True)
    assert_same(run(ours, x, None), run(theirs, x, None))
    assert ours.to("meta")(torch.empty(5, 2, 3, dtype=torch.float64, device="meta"))[0].is_meta


@EACH
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_complex_numbers_are_those_of_torch(name):
    theirs, ours = (m.to(torch.complex128) for m in pair(name, 3, 4))
    x = torch.randn(4, 2, 3, dtype=torch.complex128, requires_grad=True)

    def gradients(module):
        loss = module(x)[0].abs().square().sum()
        return torch.autograd.grad(loss, [x, *module.parameters()])

    assert_same(gradients(ours), gradients(theirs))


@EACH
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore::UserWarning",  # torch.export of torch 2.6, of its own graphs
)
def test_compiled_exported_and_traced_it_computes_the_same(name):
    ours = getattr(bptt, name)(3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    expected = ours(x)[0]
    compiled = torch.compile(ours, backend="eager")(x)[0]
    exported = torch.export.export(ours, (x,), strict=False).module()(x)[0]
    # Unchecked: the annotations' checks of a random item of a tuple give values other names.
    traced = torch.jit.trace(ours, x, check_trace=False)(x)[0]
    for found in (compiled, exported, traced):
        torch.testing.assert_close(found, expected)


def test_the_first_derivative_takes_the_fast_path(monkeypatch):
    def refuse(*_):
        raise AssertionError("went through the cells")

    monkeypatch.setattr(reference, "forward", refuse)
    ours = bptt.LSTM(2, 3, num_layers=2, bidirectional=True)
    ours(torch.randn(4, 2, 2))[0].sum().backward()


@EACH
def test_where_torch_has_faster_kernels_they_are_used(name, monkeypatch):
    """On a GPU, that is; here every tensor passes for one that is there."""
    theirs, ours = pair(name, 3, 4, num_layers=2)
    x, hx = torch.randn(5, 2, 3, dtype=torch.float64), states(theirs, 2)
    monkeypatch.setattr(layers.Layers, "_leaves_it_to_torch", lambda *_: True)
    assert all(map(torch.equal, run(ours, x, hx), run(theirs, x, hx)))
    calls, sequence = [], run_layer.sequence
    monkeypatch.setattr(run_layer, "sequence", lambda *a: calls.append(a) or sequence(*a))
    ours(x, hx)
    assert not calls
    ours(x, hx, resets=torch.zeros(5, dtype=torch.bool))
    assert len(calls) == 2


OF_INPUT = {
    "batched": lambda: torch.randn(5, 2, 3),
    "one sequence": lambda: torch.randn(5, 1, 3),
    "one step": lambda: torch.randn(1, 1, 3),
    "unbatched": lambda: torch.randn(5, 3),
    "packed": lambda: pack_sequence([torch.randn(n, 3) for n in (2, 5)], enforce_sorted=False),
    "one packed": lambda: pack_sequence([torch.randn(4, 3)]),
}
CREDITS = [None, "truncated:2", "truncated:every=1,reach=2", "randomized:2"]


@pytest.mark.parametrize("kernels", ["twin", "native"])
@pytest.mark.parametrize("kind", OF_INPUT)
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_final_states_can_be_detached_in_place(kernels, kind, credit, layers):
    made = [
        *(bptt.RNN(3, 4, layers), bptt.GRU(3, 4, layers), bptt.LSTM(3, 4, layers)),
        bptt.LSTM(3, 4, layers, proj_size=2),
        bptt.Recurrent(bptt.cells.MGU, 3, 4, layers),
    ]
    with using(kernels):
        for module in made:
            y, state = module(OF_INPUT[kind](), credit=credit)
            for s in flat(state):
                before = s.clone()
                s.detach_()
                assert torch.equal(s, before)
            y, _ = module(OF_INPUT[kind](), state, credit=credit)
            flat(y)[0].sum().backward()
