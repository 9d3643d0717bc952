"""Modules on native kernels inside what torch does with modules: transforms, compile, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from paths import using

import bptt

MODULES = {
    "RNN": lambda **options: bptt.RNN(3, 5, **options),
    "GRU": lambda **options: bptt.GRU(3, 5, **options),
    "LSTM": lambda **options: bptt.LSTM(3, 5, **options),
}
EACH = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True, params=["twin", "native"])
def kernels(request):
    with using(request.param) as backend:
        yield backend


def loss_of(module, x):
    y, state = module(x)
    final = state if isinstance(state, tuple) else (state,)
    return y.sin().sum() + sum((s * s).sum() for s in final)


def gradients(module, x):
    return torch.autograd.grad(loss_of(module, x), [x, *module.parameters()])


def assert_same(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@EACH
def test_func_grad_vmap_and_jvp(name):
    module = MODULES[name](dtype=torch.float64)
    xs = torch.randn(2, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([gradients(module, x)[0] for x in xs])
    of_one = torch.func.grad(lambda x: loss_of(module, x))
    assert_same(torch.func.vmap(of_one)(xs.detach()), expected)
    v = torch.randn_like(xs[0])
    _, along = torch.func.jvp(lambda x: loss_of(module, x), (xs[0].detach(),), (v,))
    torch.testing.assert_close(along, (expected[0] * v).sum())


@EACH
def test_a_derivative_of_the_derivative(name):
    module = MODULES[name](dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: loss_of(module, x), (x,))


@EACH
def test_a_batch_of_gradients(name):
    module = MODULES[name](dtype=torch.float64)
    x = torch.randn(4, 1, 3, dtype=torch.float64, requires_grad=True)
    y, _ = module(x)
    v = torch.randn(3, *y.shape, dtype=torch.float64)
    (batch,) = torch.autograd.grad(y, x, v, is_grads_batched=True, retain_graph=True)
    for one, found in zip(v, batch, strict=True):
        assert_same(torch.autograd.grad(y, x, one, retain_graph=True), [found])


@EACH
def test_a_copy_gives_the_same_and_is_its_own(name):
    module = MODULES[name]()
    x = torch.randn(4, 2, 3, requires_grad=True)
    expected = gradients(module, x)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    for a, b in zip(gradients(copied, x), expected, strict=True):
        assert torch.equal(a, b)


@EACH
def test_weights_and_inputs_of_any_strides(name):
    module = MODULES[name](dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = gradients(module, x)
    for p in module.parameters():
        wide = torch.full((*p.shape, 2), 9.0, dtype=p.dtype)
        wide[..., 1] = p.detach()
        p.data = wide[..., 1]
        assert not p.is_contiguous()
    turned = x.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert not turned.is_contiguous()
    assert_same(gradients(module, turned), expected)


@EACH
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_frozen_weights_get_no_gradient_and_leave_the_others_as_they_are(name, frozen):
    module = MODULES[name](dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    loss_of(module, x).backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    module.get_parameter(frozen).requires_grad_(False)
    loss_of(module, x).backward()
    for name, p in module.named_parameters():
        if name == frozen:
            assert p.grad is None
        else:
            assert torch.equal(p.grad, expected[name])
