"""The fused readout and cross-entropy against torch's two functions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from bptt._src.engines import native, readout, twin
from bptt.losses import linear_cross_entropy

NAMES = ("hidden", "weight", "bias")


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    """A few rows at a time, so that the small problems here take several chunks."""
    monkeypatch.setattr(readout, "CHUNK", 40)


def problem(rows=(3, 4), V=11, H=5, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((*rows, H), (V, H), (V,))
    tensors = [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes]
    targets = torch.randint(V, rows, generator=draw)
    return [t.requires_grad_() for t in tensors], targets


def reference(hidden, weight, bias, targets, *, label_weights=None, **options):
    """What torch computes, with all logits."""
    logits = linear(hidden, weight, bias).reshape(-1, len(weight))
    found = cross_entropy(logits, targets.reshape(-1), weight=label_weights, **options)
    return found.reshape(targets.shape) if options.get("reduction") == "none" else found


def upstream(loss):
    """A gradient that comes in, another one for each loss."""
    return torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).reshape(loss.shape)


def gradients(f, tensors, *rest, **options):
    loss = f(*tensors, *rest, **options)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return loss, *torch.autograd.grad(loss, wanted, upstream(loss))


def assert_same(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance or {"rtol": 1e-11, "atol": 1e-13})


# ------------------------------------------------------------------------- against torch.nn


@st.composite
def cases(draw):
    rows = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    V = draw(st.integers(1, 30))
    tensors, targets = problem(rows, V, draw(st.integers(1, 6)), seed=draw(st.integers(0, 99)))
    if draw(st.booleans()):
        tensors[2] = None
    ignored = draw(st.sampled_from([-100, -1, 0, V - 1, V, 1000]))
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(1))
    targets = torch.where(mask < draw(st.sampled_from([0.0, 0.3, 0.9])), ignored, targets)
    options = {"ignore_index": ignored, "reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if draw(st.booleans()):
        options["label_weights"] = torch.linspace(0.1, 2.0, V, dtype=torch.float64)
    return tensors, targets, options


@given(cases())
def test_values_and_gradients_are_those_of_torch(case):
    tensors, targets, options = case
    found = gradients(linear_cross_entropy, tensors, targets, **options)
    expected = gradients(reference, tensors, targets, **options)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True, rtol=1e-11, atol=1e-13)
    assert_same(found[1:], expected[1:])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(reduction, with_bias):
    tensors, targets = problem((7,), V=6, H=3)
    targets[2] = -100
    weights = torch.linspace(0.2, 2.0, 6, dtype=torch.float64)

    def f(hidden, weight, bias=None):
        return linear_cross_entropy(
            hidden, weight, bias, targets, label_weights=weights, reduction=reduction
        )

    assert torch.autograd.gradcheck(f, tensors[: 2 + with_bias])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_float32_is_as_exact_as_torch(reduction):
    tensors, targets = problem((40,), V=300, H=20)
    exact = gradients(reference, tensors, targets, reduction=reduction)
    small = [t.detach().float().requires_grad_() for t in tensors]
    ours = gradients(linear_cross_entropy, small, targets, reduction=reduction)
    theirs = gradients(reference, small, targets, reduction=reduction)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - e).abs().max() <= 4 * (b - e).abs().max() + 1e-7 * e.abs().max()


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_logits_of_any_size(scale):
    tensors, targets = problem()
    tensors[0] = (tensors[0].detach() * scale).requires_grad_()
    found = gradients(linear_cross_entropy, tensors, targets)
    assert_same(found, gradients(reference, tensors, targets))
    assert found[0] > 100


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows_as_in_torch(value):
    for bad in range(3):
        tensors, targets = problem()
        with torch.no_grad():
            tensors[bad].flatten()[0] = value
        found = gradients(linear_cross_entropy, tensors, targets)
        expected = gradients(reference, tensors, targets)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_a_label_that_is_impossible():
    tensors, targets = problem()
    with torch.no_grad():
        tensors[2][4] = -math.inf
    targets[targets == 4] = 3
    found = gradients(linear_cross_entropy, tensors, targets)
    assert found[0].isfinite()
    expected = gradients(reference, tensors, targets)
    assert_same(found[:2], expected[:2])
    assert found[3][4] == 0


# --------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_only_what_is_needed(needed, reduction, monkeypatch):
    tensors, targets = problem()
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    for t, need in zip(tensors, needed, strict=True):
        t.requires_grad_(bool(need))
    seen = []
    for engine in (native, twin):
        compute = engine.cross_entropy
        noted = lambda r, compute=compute: seen.append(r.needed) or compute(r)  # noqa: E731
        monkeypatch.setattr(engine, "cross_entropy", noted)
    loss = linear_cross_entropy(*tensors, targets, reduction=reduction)
    found = torch.autograd.grad(loss, wanted, upstream(loss))
    expected = reference(*tensors, targets, reduction=reduction)
    assert_same(found, torch.autograd.grad(expected, wanted, upstream(expected)))
    asked = tuple(map(bool, needed))
    assert seen == ([asked] if reduction == "sum" else [(False,) * 3, asked])


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_there_are_only_losses(how):
    tensors, targets = problem()
    with how():
        found = linear_cross_entropy(*tensors, targets, reduction="none")
        assert not found.requires_grad
        torch.testing.assert_close(found, reference(*tensors, targets, reduction="none"))


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_logits_of_all_rows_are_never_there(reduction, ignored):
    N, V, H = 500, 20, 3
    tensors, targets = problem((N,), V, H)
    targets[::7] = -100 if ignored else 0

    def largest(f):
        with Largest() as seen:
            loss = f(*tensors, targets, reduction=reduction)
            loss.backward(upstream(loss))
        return seen.elements

    assert largest(reference) == N * V
    assert largest(linear_cross_entropy) == N * H


def test_the_gradient_is_given_away_not_copied(monkeypatch):
    """What the parameters get is the memory that the forward pass wrote."""
    tensors, targets = problem()
    places = []
    for engine in (native, twin):

        def noted(readout, compute=engine.cross_entropy):
            found = compute(readout)
            places.append(found.weight.data_ptr())
            return found

        monkeypatch.setattr(engine, "cross_entropy", noted)
    linear_cross_entropy(*tensors, targets).backward()
    assert places == [tensors[1].grad.data_ptr()]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_pass_over_the_same_graph(reduction):
    tensors, targets = problem()
    loss = linear_cross_entropy(*tensors, targets, reduction=reduction)
    first = torch.autograd.grad(loss, tensors, upstream(loss), retain_graph=True)
    first = [g.clone() for g in first]
    assert_same(torch.autograd.grad(loss, tensors, 3 * upstream(loss)), [3 * g for g in first])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors, upstream(loss))


def test_a_weight_that_changed_in_between_is_noticed():
    tensors, targets = problem()
    loss = linear_cross_entropy(*tensors, targets)
    with torch.no_grad():
        tensors[1] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -------------------------------------------------------------------------- how it is given


def test_memory_that_is_not_in_order():
    (h, W, b), targets = problem()
    given = [h.detach().transpose(0, 1).contiguous().transpose(0, 1), W.detach().t().contiguous()]
    given = [given[0].requires_grad_(), given[1].t().requires_grad_(), b]
    assert not given[0].is_contiguous()
    assert not given[1].is_contiguous()
    order = targets.t().contiguous().t()
    found = gradients(linear_cross_entropy, given, order)
    assert_same(found, gradients(reference, [h, W, b], targets))


def test_a_gradient_that_comes_in_expanded():
    tensors, targets = problem()
    found = linear_cross_entropy(*tensors, targets, reduction="none").sum()
    expected = reference(*tensors, targets, reduction="none").sum()
    assert_same(torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors))


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_weight_that_is_the_embeddings_too(create_graph):
    (_, W, b), targets = problem()
    found = []
    for f in (linear_cross_entropy, reference):
        hidden = torch.tanh(torch.nn.functional.embedding(targets.flip(0), W))
        loss = f(hidden, W, b, targets)
        found.append(torch.autograd.grad(loss, (W, b), create_graph=create_graph))
    assert_same(*found)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_at_all_and_nothing_but_padding(reduction):
    for rows in ((0,), (2, 0), (5,)):
        tensors, targets = problem(rows)
        targets.fill_(-100)
        found = gradients(linear_cross_entropy, tensors, targets, reduction=reduction)
        expected = reference(*tensors, targets, reduction=reduction)
        torch.testing.assert_close(found[0], expected, equal_nan=True)
        assert all(g.count_nonzero() == 0 for g in found[1:])


def test_padding_is_not_looked_at():
    tensors, targets = problem()
    targets[1, 2] = -100
    with torch.no_grad():
        tensors[0][1, 2] = math.nan
    assert all(t.isfinite().all() for t in gradients(linear_cross_entropy, tensors, targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_halves_are_computed_in_float32(dtype, reduction):
    tensors, targets = problem(dtype=dtype)
    loss, *found = gradients(linear_cross_entropy, tensors, targets, reduction=reduction)
    wide = [t.detach().float().requires_grad_() for t in tensors]
    expected = reference(*wide, targets, reduction=reduction)
    torch.testing.assert_close(loss, expected.to(dtype))
    expected = torch.autograd.grad(expected, wide, upstream(loss).float())
    assert_same(found, [e.to(dtype) for e in expected], rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_under_autocast_all_is_float32(reduction):
    tensors, targets = problem(dtype=torch.float32)
    expected = gradients(reference, tensors, targets, reduction=reduction)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(linear_cross_entropy, tensors, targets, reduction=reduction)
    assert found[0].dtype == torch.float32
    assert_same(found, expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # as of layers that computed in bfloat16
        mixed = [tensors[0].bfloat16(), *tensors[1:]]
        assert linear_cross_entropy(*mixed, targets).dtype == torch.float32


def test_under_autocast_torchs_own_functions_compute_in_float32_too():
    tensors, targets = problem(dtype=torch.float32)
    expected = gradients(reference, tensors, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*tensors, targets)
        found = torch.autograd.grad(loss, tensors, upstream(loss), create_graph=True)
        assert_same(found, expected[1:], rtol=1e-5, atol=1e-6)

        def each(hidden, targets):
            return linear_cross_entropy(hidden, *tensors[1:], targets, reduction="none")

        losses = torch.func.vmap(each)(tensors[0], targets)
    torch.testing.assert_close(losses, reference(*tensors, targets, reduction="none"))


# --------------------------------------------------------------- more than a first derivative


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_that_can_be_differentiated_is_the_same_one(reduction):
    tensors, targets = problem()
    targets[0, 1] = -100
    options = {"reduction": reduction, "label_weights": torch.linspace(0.1, 2, 11).double()}
    loss = linear_cross_entropy(*tensors, targets, **options)
    found = torch.autograd.grad(loss, tensors, upstream(loss), create_graph=True)
    assert_same(found, gradients(linear_cross_entropy, tensors, targets, **options)[1:])
    expected = reference(*tensors, targets, **options)
    expected = torch.autograd.grad(expected, tensors, upstream(expected), create_graph=True)
    second = [
        torch.autograd.grad(sum(g.sin().sum() for g in gs), tensors) for gs in (found, expected)
    ]
    assert_same(*second)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradgradcheck(reduction):
    tensors, targets = problem((3,), V=4, H=2)
    assert torch.autograd.gradgradcheck(
        lambda *t: linear_cross_entropy(*t, targets, reduction=reduction), tensors
    )


def test_forward_mode():
    tensors, targets = problem()
    targets[2, 1] = -100
    found = []
    for f in (linear_cross_entropy, reference):
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(t.detach(), torch.ones_like(t)) for t in tensors]
            found.append(forward_ad.unpack_dual(f(*dual, targets)).tangent)
    assert_same(found[:1], found[1:])


def test_transforms_of_torch_func():
    tensors, targets = problem()
    tensors = [t.detach() for t in tensors]
    targets[2, 1] = -100
    weights = torch.linspace(0.1, 2, 11).double()

    def each(f):
        def of(hidden, weight, bias, targets):
            return f(hidden, weight, bias, targets, label_weights=weights)

        return torch.func.vmap(torch.func.grad(of, (0, 1, 2)), (0, None, None, 0))

    assert_same(each(linear_cross_entropy)(*tensors, targets), each(reference)(*tensors, targets))


def test_a_batch_of_gradients():
    tensors, targets = problem()
    found = []
    for f in (linear_cross_entropy, reference):
        loss = f(*tensors, targets, reduction="none")
        ones = torch.eye(loss.numel()).double().reshape(-1, *loss.shape)
        found.append(torch.autograd.grad(loss, tensors, ones, is_grads_batched=True))
    assert_same(*found)


# ------------------------------------------------------------------------------------ refusals


def refused(error, match, **change):
    (hidden, weight, bias), targets = problem()
    given = {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets, **change}
    with pytest.raises(error, match=match) as e:
        bptt.losses.linear_cross_entropy(**given)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("label", [-1, 11, -99, 2**40])
def test_a_target_that_is_no_label(label):
    targets = torch.zeros(3, 4, dtype=torch.int64)
    targets[1, 1] = label
    refused(IndexError, rf"targets from 0 to 10.* got {label}$", targets=targets)
    targets[0, 0] = -100
    refused(IndexError, rf"targets from 0 to 10.* got {label}$", targets=targets)


def test_what_does_not_fit_is_named():
    t = torch.zeros
    refused(ValueError, r"reduction must be .* got 'all'", reduction="all")
    refused(ValueError, r"hidden \[..., H\] and weight \[V, H\], got", weight=t(11, 6).double())
    refused(ValueError, r"got \(\) and \(11, 5\)", hidden=t(()))
    refused(ValueError, r"expected bias \[V\] = \(11,\), .* got \(12,\)", bias=t(12).double())
    refused(ValueError, r"expected label_weights .* got \(1,\)", label_weights=t(1))
    refused(ValueError, r"int64 of shape \(3, 4\), .* got torch.int32", targets=t(3, 4).int())
    refused(ValueError, r"int64 of shape \(3, 4\), .* of \(4, 3\)", targets=t(4, 3).long())
    refused(ValueError, r"one floating-point dtype, got float32, float64", hidden=t(3, 4, 5))
    refused(ValueError, r"floating-point dtype, got complex64", hidden=t(3, 4, 5).cfloat())
