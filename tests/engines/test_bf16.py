"""Products of bfloat16 beside the same written out in float64, every operand rounded."""

from __future__ import annotations

import pytest
import torch
from paths import using

import bptt
from bptt._src.engines import kernel_library
from bptt.cells import BY_NAME
from bptt.losses import linear_cross_entropy

CELLS = sorted(name for name, cell in BY_NAME.items() if cell.is_native)
MORE = 17  # rows than a call has that is computed in float32


@pytest.fixture(autouse=True)
def kernels():
    """The widest vectors; other processors compute in float32 what is tested here."""
    with using("native"):
        if not kernel_library.has_bf16():
            pytest.skip("this processor does not multiply bfloat16")
        yield


class Product(torch.autograd.Function):
    """a Wᵀ of rounded operands; in the backward pass, the incoming gradient is one."""

    @staticmethod
    def forward(ctx, a, w):
        a, w = rounded(a), rounded(w)
        ctx.save_for_backward(a, w)
        return a @ w.t()

    @staticmethod
    def backward(ctx, d):
        (a, w), d = ctx.saved_tensors, rounded(d)
        return d @ w, d.t() @ a


def rounded(t):
    return t.bfloat16().double()


def written_out(module, x, state):
    """One layer in float64, step by step."""
    cell, (w_ih, w_hh, *rest) = module.cell, [p.detach().double() for p in module.parameters()]
    weights = [w.requires_grad_() for w in (w_ih, w_hh, *rest)]
    b_ih, b_hh, *units = weights[2:]
    of_units = units[0].unbind() if units else ()
    ys = []
    for x_t in x:
        of_x = (Product.apply(x_t, w_ih) + b_ih).chunk(cell.gates_x, 1)
        of_h = (Product.apply(state[0], w_hh) + b_hh).chunk(cell.gates_h, 1)
        state = cell.equations(of_x, of_h, state, of_units)
        ys.append(state[0])
    return torch.stack(ys), state, weights


def near(ours, theirs, what):
    """As float32, which now and then rounds an operand to the other neighbour."""
    ours, theirs = ours.detach(), theirs.detach()
    scale = float(theirs.abs().max())
    assert float((ours.double() - theirs).norm() / theirs.norm()) < 2e-4, what
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-3 * scale, msg=what)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(9, 5, 3, 7), (4, 6, 33, 50), (7, 3, 1, 1), (2, 20, 16, 129)])
def test_each_product_is_of_rounded_operands(cell, sizes):
    T, B, I, H = sizes
    torch.manual_seed(5)
    module = bptt.Recurrent(BY_NAME[cell], I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    state = [torch.randn(1, B, H).tanh().requires_grad_() for _ in range(module.cell.states)]
    d_y = torch.randn(T, B, H).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(x, state)
    assert T * B >= MORE
    assert y.dtype == torch.bfloat16
    given = [x, *state, *module.parameters()]
    ours = torch.autograd.grad(y, given, d_y)
    double = [t.detach().double().requires_grad_() for t in (x, *state)]
    expected, _, weights = written_out(module, double[0], tuple(s[0] for s in double[1:]))
    near(y, expected.bfloat16().double(), "y")
    theirs = torch.autograd.grad(expected, [*double, *weights], d_y.double())
    names = ["x", *(f"state {i}" for i in range(len(state))), "ih", "hh", "b_ih", "b_hh", "units"]
    for name, a, b in zip(names, ours, theirs, strict=False):
        near(a, b, name)


def test_the_readout_rounds_what_it_multiplies():
    torch.manual_seed(5)
    N, H, V = 70, 33, 515
    h, w, b = torch.randn(N, H), torch.randn(V, H) / 6, torch.randn(V)
    targets, given = torch.randint(V, (N,)), [h, w, b]
    for t in given:
        t.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(h, w, b, targets, reduction="sum")
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, given)
    h, w, b = (t.detach().double() for t in given)
    logits = rounded(h) @ rounded(w).t() + b
    e = (logits - logits.amax(1, keepdim=True)).exp()
    s, hot = 1 / e.sum(1, keepdim=True), torch.eye(V, dtype=torch.float64)[targets]
    near(loss.detach(), -(s * e * hot).sum(1).log().sum(), "loss")
    near(ours[0], s * (rounded(e) @ rounded(w)) - hot @ w, "hidden")
    near(ours[1], rounded(e).t() @ rounded(s * h) - hot.t() @ h, "weight")
    near(ours[2], (s * rounded(e) - hot).sum(0), "bias")


WAYS = {
    "plain": {},
    "cut": {"credit": "truncated:3"},
    "windows": {"credit": "truncated:every=2,reach=5"},
    "weighted": {"carry": torch.linspace(0, 1, 9)},
    "reset": {"resets": torch.arange(9) % 4 == 0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "MGU", "RNN_TANH"])
def test_whatever_is_asked_is_near_float32_and_the_same_for_any_threads(cell, way):
    torch.manual_seed(5)
    module = bptt.Recurrent(BY_NAME[cell], 40, 145, bidirectional=way != "windows")
    x = torch.randn(9, 8, 40, requires_grad=True)

    def run(low):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y, _ = module(x, **WAYS[way])
        found = torch.autograd.grad(y.float().sin().sum(), [x, *module.parameters()])
        return [y.detach().float(), *found]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        exact, alone = run(False), run(True)
        torch.set_num_threads(2)
        together = run(True)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(exact, alone, together, strict=True):
        assert torch.equal(b, c)
        assert 0 < float((a - b).norm() / a.norm()) < 1e-2


def test_packed_sequences_are_the_same_as_each_alone():
    torch.manual_seed(5)
    module, parts = bptt.GRU(5, 9), [torch.randn(n, 5) for n in (30, 25, 18)]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        together, _ = module(torch.nn.utils.rnn.pack_sequence(parts))
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(together)
        for column, part in enumerate(parts):
            assert torch.equal(module(part)[0], padded[: len(part), column])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_are_computed_in_float32(dtype):
    torch.manual_seed(5)
    module = bptt.LSTM(6, 40).to(dtype)
    exact = bptt.LSTM(6, 40)
    exact.load_state_dict(module.state_dict())
    x = torch.randn(20, 8, 6).to(dtype)
    y, (h, c) = module(x)
    expected = exact(x.float())[0]
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16):
            expected = exact(x)[0]
    assert y.dtype == h.dtype == c.dtype == dtype
    assert torch.equal(y, expected.to(dtype))
    y.sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {dtype}


def test_other_kernels_say_that_they_compute_in_float32():
    module, x = bptt.LSTM(6, 40), torch.randn(20, 8, 6)
    assert str(bptt.kernels.backend()).startswith("native kernels, avx512 with bf16, ")
    for name in ("avx2", "twin"):
        with bptt.kernels.use(name) as backend, torch.autocast("cpu", torch.bfloat16):
            assert not backend.bf16
            assert "bf16" not in str(backend)
            y = module(x)[0]
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(y, module(x)[0].bfloat16())


def test_few_rows_are_computed_in_float32():
    module = bptt.LSTM(6, 40)
    for rows, same in ((MORE - 1, True), (MORE, False)):
        x = torch.randn(rows, 1, 6)
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)[0]
        assert torch.equal(y, module(x)[0].bfloat16()) is same


def test_the_peak_is_measured_for_both():
    peaks = [kernel_library.fma_peak(1, 0.01, bf16) for bf16 in (False, True)]
    assert all(peak > 1 for peak in peaks)
    with using("avx2"), pytest.raises(bptt.errors.KernelError, match="no products of bfloat16"):
        kernel_library.fma_peak(1, 0.01, bf16=True)
