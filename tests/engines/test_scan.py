"""The scan natively against the loop over the steps, for any initial state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt
from bptt._src.engines.scan import step_by_step

DTYPES = (torch.float64, torch.complex128)
SHAPES = [(1, 1), (5, 3), (2047, 1), (2048, 1), (5000, 2), (3073, 3), (4000, 70), (30, 4, 50)]
native = pytest.mark.skipif(
    bptt.kernels.backend().name != "native", reason="it is about the native kernels"
)


def drawn(shape, dtype, seed=0):
    torch.manual_seed(seed)
    b, h_0 = torch.randn(shape, dtype=dtype), torch.randn(shape[1:], dtype=dtype)
    a = torch.randn(shape, dtype=dtype)
    return (
        a / a.abs().clamp(min=1e-3) * (0.9 + 0.1 * torch.rand(shape, dtype=torch.float64)),
        b,
        h_0,
    )


def gradients(run, *tensors):
    tensors = [t.clone().requires_grad_() for t in tensors]
    h = run(*tensors)
    loss = (h.abs().square() * torch.linspace(1, 2, len(h)).view(-1, *(1,) * (h.dim() - 1))).sum()
    return h, *torch.autograd.grad(loss, tensors)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_loop(shape, dtype):
    tensors = drawn(shape, dtype)
    for found, expected in zip(
        gradients(bptt.scan, *tensors), gradients(step_by_step, *tensors), strict=True
    ):
        scale = expected.detach().abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * max(scale, 1))


@native
@settings(max_examples=20)
@given(steps=st.integers(1, 3000), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_any_size(steps, columns, seed):
    tensors = drawn((steps, columns), torch.float64, seed)
    torch.testing.assert_close(bptt.scan(*tensors), step_by_step(*tensors), rtol=1e-12, atol=1e-12)


@native
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(9000, 2), (400, 300)])
def test_the_bits_do_not_depend_on_the_threads(shape, dtype):
    tensors = [
        t.to(dtype) for t in drawn(shape, torch.complex128 if dtype.is_complex else torch.float64)
    ]
    number, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(bptt.scan, *tensors))
    finally:
        torch.set_num_threads(number)
    for others in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_finite_differences(dtype):
    tensors = [t.requires_grad_() for t in drawn((6, 2), dtype)]
    assert torch.autograd.gradcheck(bptt.scan, tensors)
    assert torch.autograd.gradgradcheck(bptt.scan, tensors)


@native
def test_infinities_stay_in_their_column():
    a, b, h_0 = drawn((5000, 2), torch.float64)
    b[100, 0] = float("inf")
    h = bptt.scan(a.abs(), b, h_0)
    assert h[100:, 0].isinf().all()
    assert h[:, 1].isfinite().all()


def test_views_and_layouts():
    a, b, h_0 = drawn((7, 4, 3), torch.complex128)
    turned = [t.transpose(-1, -2) for t in (a, b)]
    found = bptt.scan(turned[0].conj(), turned[1], h_0.t())
    expected = step_by_step(a.conj(), b, h_0)
    torch.testing.assert_close(found.transpose(1, 2), expected)
    assert bptt.scan(torch.ones(3, 0), torch.ones(3, 0)).shape == (3, 0)


def test_it_is_the_recursion_of_a_minimal_gru():
    network = bptt.Recurrent(bptt.cells.MIN_GRU, 3, 5, dtype=torch.float64)
    x, h_0 = torch.randn(9, 2, 3).double(), torch.randn(1, 2, 5).double()
    z, n = (x @ network.weight_ih_l0.t() + network.bias_ih_l0).chunk(2, -1)
    z = z.sigmoid()
    torch.testing.assert_close(bptt.scan(1 - z, z * n, h_0[0]), network(x, h_0)[0])


def test_what_it_refuses():
    one = torch.ones(3, 2)
    with pytest.raises(TypeError, match="of one dtype"):
        bptt.scan(one, one.double())
    with pytest.raises(TypeError, match="of one dtype"):
        bptt.scan(one.half(), one.half())
    for a, b, h_0 in ((one, one[:2], one[0]), (one, one, one), (one[:0], one[:0], one[0])):
        with pytest.raises(ValueError, match="expected a and b of one shape"):
            bptt.scan(a, b, h_0)


def of_min_gru(x):
    z = torch.sigmoid(x[0])
    return 1 - z, z * x[1]


def of_min_lstm(x):
    f, i = torch.sigmoid(x[0]), torch.sigmoid(x[1])
    return f / (f + i), i / (f + i) * x[2]


@pytest.mark.parametrize("steps", [1, 7, 2500])
@pytest.mark.parametrize(
    ("cell", "parts"), [(bptt.cells.MIN_GRU, of_min_gru), (bptt.cells.MIN_LSTM, of_min_lstm)]
)
def test_cells_that_are_linear_in_the_state_are_scans_for_any_initial_state(cell, parts, steps):
    network = bptt.Recurrent(cell, 3, 2).double()

    def by_scan(x, h_0):
        gates = torch.nn.functional.linear(x, network.weight_ih_l0, network.bias_ih_l0)
        return bptt.scan(*parts(gates.chunk(cell.gates_x, -1)), h_0[0])

    x, h_0 = torch.randn(steps, 1, 3).double(), 100 * torch.randn(1, 1, 2).double()
    found = gradients(lambda x, h: network(x, h)[0], x, h_0)
    for a, b in zip(found, gradients(by_scan, x, h_0), strict=True):
        scale = max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * scale)
