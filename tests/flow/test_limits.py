"""A user's own errors come out as they are, whichever way derivatives are taken."""

from __future__ import annotations

import pytest
import torch

import bptt
from bptt import gradient_flow
from bptt._src.flow.jacobians import jacobian_norms
from bptt._src.flow.trajectory import follow

T, B, H = 6, 2, 3


def tanh_with(backward):
    """A tanh whose backward pass is ``(∂L/∂h, h) -> ∂L/∂a``."""

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            h = a.tanh()
            ctx.save_for_backward(h)
            return h

        @staticmethod
        def backward(ctx, d):
            return backward(d, *ctx.saved_tensors)

    return Tanh.apply


def step_with(tanh):
    W = 1.3 * torch.nn.init.orthogonal_(torch.empty(H, H))

    def module(x, state):
        h = x.new_zeros(B, H) if state is None else state
        outputs = []
        for x_t in x:
            h = tanh(h @ W + x_t)
            outputs.append(h)
        return torch.stack(outputs), h

    return module


class Broken(RuntimeError):
    pass


def out_of_memory(d, h):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_room(d, h):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory: you tried to")


def broken(d, h):
    raise Broken("vmap: this is mine")  # of a class of one's own, whatever it says


def not_there(d, h):
    raise NotImplementedError("the backward pass of my cell is not there yet")


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (out_of_memory, torch.OutOfMemoryError, "out of memory"),
        (no_room, RuntimeError, "can't allocate memory"),
        (broken, Broken, "this is mine"),
        (not_there, NotImplementedError, "my cell is not there yet"),
    ],
)
def test_an_error_in_a_backward_pass_is_not_taken_for_a_limit_of_torchs(backward, error, message):
    """It is raised once only, as memory may run out once: what is tried again would succeed."""
    calls = []

    def once(d, h):
        calls.append(d)
        if len(calls) == 2:  # the first is of a single loss, the second of many at once
            backward(d, h)
        return d * (1 - h * h)

    module = step_with(tanh_with(once))
    with pytest.raises(error, match=message):
        gradient_flow(module, torch.randn(T, B, H), state_batch_dim=0, check=False)


@pytest.mark.parametrize(
    "backward",
    [
        lambda d, h: d * (1 - h * h) if d.sum().item() < 1e9 else d,
        lambda d, h: d * (1 - h * h) if (d < 1e9).all() else d,
        lambda d, h: d * torch.tensor((1 - h * h).tolist()) if d.tolist() else d,
        lambda d, h: torch.from_numpy((d * (1 - h * h)).numpy()),
        lambda d, h: torch.zeros(B, H).add_(d * (1 - h * h)),
        lambda d, h: torch.mul(d, 1 - h * h, out=torch.empty(B, H)),
        lambda d, h: (d * (1 - h * h)).to_sparse().to_dense(),
        lambda d, h: d * (1 - h * h) + 0 * torch.rand(B, H),
    ],
    ids=["item", "if", "tolist", "numpy", "in place", "out", "sparse", "random"],
)
def test_what_torch_cannot_batch_is_taken_one_by_one(backward):
    x, matrix = torch.randn(T, B, H), torch.random.get_rng_state()
    flows = []
    for tanh in (tanh_with(backward), torch.tanh):
        torch.random.set_rng_state(matrix)
        flows.append(gradient_flow(step_with(tanh), x, state_batch_dim=0))
    assert flows[1].norms[5, 0] > 1e-4
    torch.testing.assert_close(flows[0].norms, flows[1].norms, equal_nan=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError, "my own trouble"),
        (NotImplementedError, "my own trouble"),
        (torch.OutOfMemoryError, "CUDA out of memory"),
    ],
)
def test_an_error_in_forward_mode_is_not_taken_for_a_limit_of_torchs(error, message):
    def tanh(a):
        if torch.autograd.forward_ad.unpack_dual(a).tangent is not None:
            raise error(message)
        return a.tanh()

    (layer,) = follow(step_with(tanh), torch.randn(T, B, H), state_batch_dim=0)
    with pytest.raises(error, match=message):
        jacobian_norms(layer)


def backward_only(a):
    """An operator of which torch is told how to go back, and not how to go forwards."""
    return torch.ops.bptt_tests.tanh(a)


torch.library.define("bptt_tests::tanh", "(Tensor a) -> Tensor")
torch.library.impl("bptt_tests::tanh", "default", lambda a: a.tanh())
torch.library.register_autograd(
    "bptt_tests::tanh",
    lambda ctx, d: d * (1 - ctx.saved_tensors[0] ** 2),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
)


@pytest.mark.parametrize("tanh", [tanh_with(lambda d, h: d * (1 - h * h)), backward_only])
def test_an_operation_without_forward_mode_has_its_jacobian_all_the_same(tanh):
    """torch says so of the first, and silently takes no derivative of the second."""
    x, matrix = torch.randn(40, B, H), torch.random.get_rng_state()
    found = []
    for f in (tanh, torch.tanh):
        torch.random.set_rng_state(matrix)
        module = step_with(f)
        (layer,) = follow(module, x, state_batch_dim=0)
        exponents = bptt.lyapunov_exponents(module, x, state_batch_dim=0).exponents
        found.append((jacobian_norms(layer), exponents))
    assert found[1][0][:, 1:].min() > 0
    assert found[1][1].isfinite().all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5, equal_nan=True)
