"""Cells of one's own on native kernels, against the twin, which runs their equations."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from bptt._src.engines import looped, product
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call
from bptt._src.engines.kernel_library import has_bf16, type_of
from bptt._src.engines.loops.program import Writer, instructions, rows, state, vector
from bptt._src.steps import Steps
from bptt.cells import CELLS, Cell

pytestmark = pytest.mark.skipif(
    bptt.kernels.backend().name != "native", reason="there are no native kernels"
)


class Spike(torch.autograd.Function):
    """1 where x is positive; its gradient is that of a smooth function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return d / (1 + (math.pi * x) ** 2)


def leaky(x, h, state, units):
    _, v = state
    v = 0.8 * v + 0.2 * (x[0] + h[0])
    return torch.relu(v), v


def diagonal(x, h, state, units):  # of Li et al. (2018), with a bounded nonlinearity
    return (torch.nn.functional.softplus(x[0] + units[0] * state[0], beta=2),)


def spiking(x, h, state, units):
    s, v = state
    v = 0.9 * v * (1 - s.detach()) + x[0] + h[0]
    return Spike.apply(v - 1), v


def exponential(x, h, state, units):  # gates that are exponential, kept in range by a fourth state
    _, c, n, m = state
    i, f = x[0] + h[0], torch.nn.functional.logsigmoid(x[1] + h[1])
    z, o = torch.tanh(x[2] + h[2]), torch.sigmoid(x[3] + h[3])
    after = torch.maximum(f + m, i)
    i, f = torch.exp(i - after), torch.exp(f + m - after)
    c, n = f * c + i * z, f * n + i
    return o * c / torch.clamp(n, min=1e-3), c, n, after


def shifted(x, h, state, units):  # states that change places, and one that nothing changes
    a, b, c = state
    return torch.sin(x[0] + h[0]) + b, a, c


def apart(x, h, state, units):  # blocks that are used alone, in products, or not at all
    r = torch.sigmoid(x[0])
    n = torch.nn.functional.gelu(x[1] * h[0] + h[1].abs().sqrt())
    return (torch.where(n > 0.1, n, r * state[0] ** 3) - torch.expm1(-r) * units[1],)


def interpolated(x, h, state, units):
    t = torch.sigmoid(x[0] + h[0])
    new = torch.lerp(torch.tanh(x[1] + h[1]), torch.nn.functional.silu(x[2] + h[2]), t)
    return (torch.clamp(new, -0.9, 0.9),)


OWN = [
    Cell("LEAKY", 1, 1, leaky, states=2),
    Cell("DIAGONAL", 1, 0, diagonal, units=1),
    Cell("SPIKING", 1, 1, spiking, states=2),
    Cell("EXPONENTIAL", 4, 4, exponential, states=4),
    Cell("SHIFTED", 1, 1, shifted, states=3),
    Cell("APART", 3, 2, apart, units=2),
    Cell("INTERPOLATED", 3, 3, interpolated),
    *(dataclasses.replace(c, name=f"MY_{c.name}", is_native=False, by_hand=None) for c in CELLS),
]


def network(cell, *sizes, **options):
    torch.manual_seed(0)
    return bptt.Recurrent(cell, *sizes, **options)


def results(net, x, kernels, **options):
    """Return the outputs, the final states, and all gradients."""
    with bptt.kernels.use(kernels):
        net.zero_grad()
        x = x.detach().requires_grad_()
        batch = x
        if "lengths" in options:
            batch = pack_padded_sequence(x, options.pop("lengths"), enforce_sorted=False)
        y, final = net(batch, **options)
        y = y if isinstance(y, torch.Tensor) else y.data
        final = final if isinstance(final, tuple) else (final,)
        weights = torch.cos(torch.arange(y.numel()).double()).view(y.shape).to(y.dtype)
        ((y * weights).sum() + sum((i + 2) * s.sum() for i, s in enumerate(final))).backward()
    return [y, *final, x.grad, *(p.grad for p in net.parameters())]


def assert_same(some, others, tolerance):
    for a, b in zip(some, others, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cell", OWN, ids=lambda c: c.name)
def test_it_is_the_engine_of_ones_own_cells(cell):
    net = network(cell, 3, 4)
    assert bptt.kernels.not_native(net) is None
    w = net._weights(0, False)
    given = torch.zeros(2, 3), tuple(torch.zeros(1, 4) for _ in range(cell.states))
    assert engine_for(Call(cell, *given, w, Steps((1, 1)))) is looped


OPTIONS = [
    {},
    {"lengths": torch.tensor([2, 5, 1, 5])},
    {"resets": torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.3},
    {"credit": "truncated:2"},
    {"credit": "truncated:every=1,reach=3"},
    {"credit": "truncated:every=1,reach=3", "lengths": torch.tensor([2, 5, 1, 5])},
]
SIZES = [(3, 5), (1, 1), (2, 37)]
# Every cell with all options and all sizes, and over three cells, with each pair of them.
CASES = [(c, o, SIZES[(n + m) % 3]) for n, c in enumerate(OWN) for m, o in enumerate(OPTIONS)]


@pytest.mark.parametrize(
    ("cell", "options", "sizes"), CASES, ids=lambda v: v.name if isinstance(v, Cell) else str(v)
)
def test_as_the_twin(cell, options, sizes):
    inputs, hidden = sizes
    both = "reach" not in options.get("credit", "")
    net = network(cell, inputs, hidden, num_layers=2, bidirectional=both).double()
    x = torch.randn(5, 4, inputs, dtype=torch.float64)
    assert_same(
        results(net, x, "native", **dict(options)), results(net, x, "twin", **dict(options)), 1e-10
    )


@pytest.mark.parametrize(
    "cell", [c for c in OWN if "LSTM" in c.name and c.gates_h], ids=lambda c: c.name
)
def test_projected(cell):
    net = network(cell, 3, 7, proj_size=2, num_layers=2, bias=False).double()
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    assert_same(results(net, x, "native"), results(net, x, "twin"), 1e-10)


@pytest.mark.parametrize("cell", OWN, ids=lambda c: c.name)
def test_in_float32_with_the_same_bits_for_any_number_of_threads(cell):
    net, x = network(cell, 20, 50), torch.randn(9, 7, 20)
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(results(net, x, "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(found[0], other, 0)
    if cell.name not in (
        "SPIKING",
        "MY_LIF",
        "APART",
    ):  # a rounding spikes; √ is steep at 0
        assert_same(found[0], results(net, x, "twin"), 2e-4)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_kind_of_vectors(isa):
    try:
        with bptt.kernels.use(isa):
            pass
    except bptt.errors.KernelError:
        pytest.skip(f"this processor has no {isa}")
    net, x = network(OWN[3], 3, 21).double(), torch.randn(4, 5, 3, dtype=torch.float64)
    assert_same(results(net, x, isa), results(net, x, "twin"), 1e-10)


def test_products_of_bfloat16():
    cell = next(c for c in OWN if c.name == "MY_LSTM")
    net, x = network(cell, 32, 64), torch.randn(10, 16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = results(net, x, "native")
    exact = results(net, x, "native")
    assert has_bf16() == any(
        not torch.equal(a, b.to(a.dtype)) for a, b in zip(rounded, exact, strict=True)
    )
    for a, b in zip(rounded, exact, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()


NOT = {
    "lgamma": (lambda x, h, s, u: (torch.lgamma(x[0] + h[0]),), "lgamma has no instruction"),
    "digamma": (lambda x, h, s, u: (torch.digamma(x[0] + h[0]),), "digamma"),
    "if": (lambda x, h, s, u: (x[0] if bool((h[0] > -9).all()) else h[0],), "traced"),
}


@pytest.mark.parametrize("name", NOT)
def test_what_has_no_instruction_runs_on_the_twin_and_the_reason_is_told(name):
    equations, why = NOT[name]
    net = network(Cell("ODD", 1, 1, equations), 3, 4)
    assert why in bptt.kernels.not_native(net)
    looped._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"{why}.* runs in plain torch"):
        y, _ = net(torch.rand(2, 2, 3))
    assert y.shape == (2, 2, 4)
    net(torch.rand(2, 2, 3))  # it is said once


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_equations_are_traced_wherever_they_are_met_first(context):
    fresh = Cell("FRESH", 1, 1, lambda x, h, s, u: (torch.tanh(x[0] + h[0]),))
    net = network(fresh, 3, 4)
    with context():
        assert bptt.kernels.not_native(net) is None
        net(torch.rand(2, 2, 3))
    net(torch.rand(2, 2, 3, requires_grad=True))[0].sum().backward()


@pytest.mark.parametrize("width", [1, 15, 16, 33])
def test_reductions_of_a_row(width):
    x = torch.randn(5, width, dtype=torch.float64)
    if width > 1:
        x[1, 0] = x[2, -1] = math.nan
        x[3] = -math.inf
    for name, wanted in (("sum", x.sum(1)), ("amax", x.amax(1))):
        writer = Writer()
        writer.emit(name, rows("to", 3), rows("x", width))
        writer.emit("copy", state(0, 1), state(0, 1))
        to, s = x.new_empty(5, 3), x.new_zeros(1, 1)
        given = {"to": to, "x": x}, [(s, s)], (1,) * 5
        writer.program((1,), x.dtype).run(*given, type_=type_of(x.dtype), last_first=False)
        torch.testing.assert_close(to, wanted[:, None].expand(5, 3), equal_nan=True)


NOT_ELEMENTWISE = {"product", "sum", "amax", "spread", "gather", "scatter"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_vector", [False, True])
def test_numbers_at_places(dtype, is_vector):
    x, n = torch.randn(5, 7, dtype=dtype), 1 if is_vector else 5
    x[1, 3] = math.inf
    places = torch.randint(7, (n, 11))
    for name, given, width in (("gather", x, 7), ("scatter", torch.randn(5, 11, dtype=dtype), 11)):
        columns = 11 if name == "gather" else 7
        writer, at = Writer(), (vector if is_vector else rows)("places", 11)
        writer.emit(name, rows("to", columns), rows("x", width), at)
        writer.emit("copy", state(0, 1), state(0, 1))
        to, s = x.new_empty(5, columns), x.new_zeros(1, 1)
        tensors = {"to": to, "x": given, "places": places.to(dtype)}
        program = writer.program((1,), dtype)
        how = {"type_": type_of(dtype), "last_first": False}
        program.run(tensors, [(s, s)], (1,) * 5, **how)
        wide = places.expand(5, 11)
        wanted = x.gather(1, wide) if name == "gather" else torch.zeros_like(to)
        if name == "scatter":
            wanted.scatter_add_(1, wide, given)
        torch.testing.assert_close(to, wanted)
        outside = places.to(dtype)
        outside[:, 0], outside[:, 1], outside[:, 2] = 7, -1, math.nan
        program.run(tensors | {"places": outside}, [(s, s)], (1,) * 5, **how)
        if name == "gather":  # nothing is read or written that is not there
            assert to[:, :3].isnan().all()
            assert torch.equal(to[:, 3:], wanted[:, 3:])
        else:
            wide = places[:, 3:].expand(5, 8)
            wanted = torch.zeros_like(to).scatter_add_(1, wide, given[:, 3:])
            torch.testing.assert_close(to, wanted)


def with_threads(run, numbers):
    before, found = torch.get_num_threads(), []
    try:
        for n in numbers:
            torch.set_num_threads(n)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cell", [bptt.cells.MIN_GRU, bptt.cells.MIN_LSTM, bptt.cells.INDRNN])
def test_units_are_shared_out_with_the_same_bits(cell, batch):
    net, x = bptt.Recurrent(cell, 3, 83), torch.randn(400, batch, 3)
    x.requires_grad_()
    resets = torch.rand(400, batch) < 0.1

    def run():
        y, last = net(x, resets=resets, credit="truncated:50")
        return [y, last, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]

    one, *others = with_threads(run, (1, 2, 3, 7))
    for other in others:
        assert all(map(torch.equal, one, other))
    with bptt.kernels.use("twin"):
        torch.testing.assert_close(one, run(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(set(instructions()) - NOT_ELEMENTWISE))
def test_each_instruction(name, dtype):
    special = {
        "relu": torch.relu, "copy": torch.clone, "muladd": lambda a, b, c: a * b + c,
        "where": lambda a, b, c: torch.where(a != 0, b, c), "div": torch.div,
    }  # fmt: skip
    function = special.get(name) or getattr(torch, name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2003, generator=generator, dtype=torch.float64) * torch.logspace(
        -12, 1.6, 2003
    )
    if name in ("sqrt", "rsqrt", "log", "pow"):
        x = x.abs()
    x[:, :6] = torch.tensor([0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])
    x = x.to(dtype)
    for number in (1, 2, 3):
        try:
            wanted = function(*x[:number].double())
        except (TypeError, RuntimeError):
            continue
        break
    writer = Writer()
    writer.emit(name, rows("to", 2003), *(rows("x", 2003, i * 2003) for i in range(number)))
    writer.emit("copy", state(0, 1), state(0, 1))
    to, s = x.new_empty(1, 2003), x.new_zeros(1, 1)
    writer.program((1,), dtype).run(
        {"to": to, "x": x.reshape(1, -1)}, [(s, s)], (1,), type_=type_of(dtype), last_first=False
    )
    wanted = wanted.to(dtype)
    tolerance = {torch.float32: 4e-7, torch.float64: 1e-15}[dtype] * (8 if name == "expm1" else 3)
    if name == "reciprocal":
        to[0, 4], wanted[4] = 0, 0
    torch.testing.assert_close(to[0], wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (3, 5, 7), (17, 600, 33), (64, 1100, 100), (0, 3, 2), (2, 0, 3)]
)
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_large_products(dtype, sizes, flips):
    M, K, N = sizes
    a = torch.randn(*((K, M) if flips[0] else (M, K)), dtype=dtype)
    b = torch.randn(*((N, K) if flips[1] else (K, N)), dtype=dtype)
    a, b = a.t() if flips[0] else a, b.t() if flips[1] else b
    bias = torch.randn(N, dtype=dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(product.multiply(a, b, bias))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found[0], a @ b + bias, rtol=tolerance, atol=tolerance)


def test_the_gradient_by_finite_differences():
    net = network(OWN[3], 2, 3).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: net(x)[0], (x, *net.parameters()))
    assert torch.autograd.gradgradcheck(lambda x: net(x)[0], (x,))


def test_factors_and_resets_that_lie_apart_in_memory():
    net = network(OWN[0], 2, 3).double()
    x = torch.randn(6, 1, 2, dtype=torch.float64)
    carry = torch.rand(6, 2, dtype=torch.float64)[:, :1]
    resets = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 1], [0, 1], [0, 0]]).bool()[:, :1]
    options = {"carry": carry, "resets": resets}
    assert_same(results(net, x, "native", **options), results(net, x, "twin", **options), 1e-12)


def test_eleven_units_are_no_batch():
    """As many as there are sequences while the equations are traced."""
    for cell in OWN:
        net = network(cell, 3, 11).double()
        assert bptt.kernels.not_native(net) is None
        x = torch.randn(4, 5, 3, dtype=torch.float64)
        assert_same(results(net, x, "native"), results(net, x, "twin"), 1e-10)


def test_not_native_asks_all_modules_inside():
    odd = bptt.Cell("ODD", 1, 1, lambda x, h, state, units: (torch.lgamma(x[0] + h[0]),))
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), bptt.LSTM(3, 4))
    assert bptt.kernels.not_native(model) is None
    model.append(bptt.Recurrent(odd, 4, 4))
    assert "lgamma" in bptt.kernels.not_native(model)
    with pytest.raises(TypeError, match=r"a model with one inside, got Linear"):
        bptt.kernels.not_native(torch.nn.Linear(3, 3))
