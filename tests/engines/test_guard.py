"""What may cross into the native kernels, and what becomes of everything else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from bptt._src.engines import guard
from bptt.losses import linear_cross_entropy

EACH_NAME = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
SHAPE = (6, 3, 4)


@pytest.fixture(autouse=True, params=["twin", "native"])
def _kernels(request):
    with bptt.kernels.use(request.param):
        yield


def pair(name, **options):
    """A module of torch.nn and ours, with the same weights, and an input."""
    theirs, ours = getattr(nn, name)(4, 8, **options), getattr(bptt, name)(4, 8, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(SHAPE)


def test_addresses_are_taken_in_one_place():
    package = Path(bptt.__file__).parent
    found = [
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "data_ptr"
    ]
    assert found == ["guard.py"]


@EACH_NAME
def test_a_negative_view_has_its_own_values(name):
    theirs, ours, x = pair(name)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(ours(negative)[0], theirs(-x)[0])
    torch.testing.assert_close(ours(torch._neg_view(x))[0], theirs(-x)[0])
    state = torch._neg_view(torch.randn(1, 3, 8))
    hx = (state, state) if name == "LSTM" else state
    plain = (state.resolve_neg(),) * 2 if name == "LSTM" else state.resolve_neg()
    torch.testing.assert_close(ours(x, hx)[0], theirs(x, plain)[0])
    weight = ours.weight_hh_l0
    del ours.weight_hh_l0
    ours.weight_hh_l0 = torch._neg_view(-weight.detach())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@EACH_NAME
@pytest.mark.parametrize("where", ["x", "weights", "state"])
def test_a_subclass_is_computed_by_its_own_operations(name, where):
    theirs, ours, x = pair(name)
    twice = TwoTensor(x, 2 * x) if where == "x" else x
    given = (twice,)
    if where == "state":
        h = TwoTensor(torch.ones(1, 3, 8), torch.zeros(1, 3, 8))
        given = (x, (h, h) if name == "LSTM" else h)
    if where == "weights":
        w = {k: TwoTensor(v.detach(), 2 * v.detach()) for k, v in ours.named_parameters()}
        y = torch.func.functional_call(ours, w, given)[0]
        expected = [
            theirs(x)[0],
            torch.func.functional_call(theirs, {k: v.b for k, v in w.items()}, (x,))[0],
        ]
    else:
        y = ours(*given)[0]
        halves = [tuple(_half(g, part) for g in given) for part in "ab"]
        expected = [theirs(*half)[0] for half in halves]
    assert isinstance(y, TwoTensor)
    torch.testing.assert_close(y.a, expected[0])
    torch.testing.assert_close(y.b, expected[1])


def _half(given, part):
    if isinstance(given, tuple):
        return tuple(_half(g, part) for g in given)
    return getattr(given, part) if isinstance(given, TwoTensor) else given


@EACH_NAME
def test_under_a_fake_tensor_mode_there_are_shapes(name):
    with FakeTensorMode():
        ours = getattr(bptt, name)(4, 8, num_layers=2, bidirectional=True)
        y, _ = ours(torch.randn(SHAPE))
        y.sum().backward()
        loss = linear_cross_entropy(
            y, torch.randn(9, 16), None, torch.zeros(6, 3, dtype=torch.int64)
        )
    assert y.shape == (6, 3, 16)
    assert ours.weight_hh_l1.grad.shape == ours.weight_hh_l1.shape
    assert loss.shape == ()


@EACH_NAME
def test_make_fx_records_what_is_computed(name):
    _, ours, x = pair(name)
    other = torch.randn(SHAPE)

    def gradient(z):
        y = ours(z)[0]
        return y, torch.autograd.grad(y.square().sum(), ours.weight_hh_l0)[0]

    graph = make_fx(gradient)(x)
    for found, expected in zip(graph(other), gradient(other), strict=True):
        torch.testing.assert_close(found, expected)


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@EACH_NAME
@pytest.mark.parametrize("credit", [None, "truncated:every=2,reach=3"])
def test_a_mode_sees_forward_and_backward(name, credit):
    _, ours, x = pair(name)
    y, _ = ours(x, credit=credit)
    expected = torch.autograd.grad(y.square().sum(), ours.weight_hh_l0)[0]
    y = ours(x, credit=credit)[0]
    with Counting() as backwards:
        (found,) = torch.autograd.grad(y.square().sum(), ours.weight_hh_l0)
    torch.testing.assert_close(found, expected)
    with Counting() as forwards:
        torch.testing.assert_close(ours(x, credit=credit)[0], y)
    for seen in (backwards.seen, forwards.seen):
        assert sum("mm" in op for op in seen) >= 4  # a product at each step


@pytest.mark.parametrize("part", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@EACH_NAME
def test_a_weight_on_another_device_is_refused_as_by_torch(name, part):
    theirs, ours, x = pair(name)
    for module in (theirs, ours):
        setattr(module, part, nn.Parameter(getattr(module, part).to("meta")))
        with pytest.raises(RuntimeError, match=r"device|meta") as caught:
            module(x)
    assert part.removesuffix("_l0") in str(caught.value)


@EACH_NAME
def test_a_state_on_another_device_is_refused_as_by_torch(name):
    theirs, ours, x = pair(name)
    h = torch.zeros(1, 3, 8, device="meta")
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="not at the same device"):
            module(x, (h, h) if name == "LSTM" else h)


@EACH_NAME
def test_all_on_meta_gives_shapes(name):
    _, ours, x = pair(name)
    assert ours.to("meta")(x.to("meta"))[0].shape == (6, 3, 8)


@EACH_NAME
@pytest.mark.parametrize("part", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("shape", [(1,), (3, 3), (64, 16), (8, 32), ()])
def test_weights_of_another_shape_are_refused(name, part, shape):
    _, ours, x = pair(name)
    setattr(ours, part, nn.Parameter(torch.ones(shape)))
    with pytest.raises((RuntimeError, IndexError)):
        ours(x)


@EACH_NAME
def test_memory_that_was_freed_is_refused(name):
    if bptt.kernels.backend().name != "native":
        pytest.skip("torch itself reads it")
    for freed in ("weight_hh_l0", "bias_ih_l0", "x", "part of another"):
        _, ours, x = pair(name)
        if freed == "part of another":
            flat = torch.randn(32 * 8 * 8)
            ours.weight_hh_l0.data = flat[8 : 8 + ours.weight_hh_l0.numel()].view_as(
                ours.weight_hh_l0
            )
            freed = "weight_hh_l0"
        t = x if freed == "x" else getattr(ours, freed)
        t.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="freed"):
            ours(x)


@EACH_NAME
def test_zeros_that_are_not_there_are_zeros(name):
    theirs, ours, _ = pair(name)
    zeros = torch._efficientzerotensor(SHAPE)
    torch.testing.assert_close(ours(zeros)[0], theirs(torch.zeros(SHAPE))[0])


@EACH_NAME
@pytest.mark.parametrize(
    "change",
    [lambda t: t.double(), lambda t: t.to("meta"), lambda t: t[:1]],
    ids=["dtype", "meta", "shape"],
)
def test_what_hooks_on_saved_tensors_give_back_is_checked(name, change):
    if bptt.kernels.backend().name != "native":
        pytest.skip("torch's own operations check it, or expand")
    _, ours, x = pair(name)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, change):
        y = ours(x)[0]
    with pytest.raises(RuntimeError):
        y.sum().backward()


@EACH_NAME
def test_saved_tensors_may_be_moved_and_wrapped(name):
    _, ours, x = pair(name)
    ours(x)[0].square().sum().backward()
    expected = ours.weight_hh_l0.grad.clone()
    for unpack in (lambda t: t.clone(), lambda t: torch._neg_view(-t)):
        ours.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y = ours(x)[0]
        y.square().sum().backward()
        torch.testing.assert_close(ours.weight_hh_l0.grad, expected)


@EACH_NAME
def test_a_default_device_changes_nothing(name):
    _, ours, x = pair(name)
    lengths = torch.tensor([6, 4, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[2] = True
    expected = ours(packed, resets=resets)[0].data
    with torch.device("meta"):
        assert torch.equal(ours(packed, resets=resets)[0].data, expected)


SIZES = [[2, 2, 2], [1, 2], [2, -1, 2], [1], [3, 0], [], [[2, 1]], [2.0, 1.0]]


@EACH_NAME
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_that_do_not_fit_the_rows_of_a_packed_sequence_are_refused(name, sizes):
    _, ours, _ = pair(name)
    with pytest.raises(RuntimeError, match=r"expected batch_sizes of a PackedSequence .* 3 rows"):
        ours(PackedSequence(torch.randn(3, 4), torch.tensor(sizes)))


@EACH_NAME
def test_an_order_that_is_none_is_refused(name):
    theirs, ours, _ = pair(name)
    bad = torch.tensor([0, 7])
    for module in (theirs, ours):
        with pytest.raises((IndexError, RuntimeError)):
            module(PackedSequence(torch.randn(3, 4), torch.tensor([2, 1]), bad, bad))


@EACH_NAME
def test_nested_tensors_are_refused(name):
    theirs, ours, _ = pair(name)
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=torch.jagged)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError):
            module(nested)


@pytest.mark.parametrize("part", ["weight", "bias", "targets", "label_weights"])
def test_a_readout_on_two_devices_is_refused(part):
    given = {
        "weight": torch.randn(5, 8),
        "bias": torch.randn(5),
        "targets": torch.zeros(6, dtype=torch.int64),
        "label_weights": torch.ones(5),
    }
    given[part] = given[part].to("meta")
    with pytest.raises(RuntimeError, match=f"hidden and {part} are not at the same device"):
        linear_cross_entropy(torch.randn(6, 8), **given)


def test_a_readout_takes_what_torch_takes():
    h, w, b, t = torch.randn(6, 8), torch.randn(5, 8), torch.randn(5), torch.arange(6) % 5
    expected = nn.functional.cross_entropy(nn.functional.linear(h, w, b), t)
    for found in (
        linear_cross_entropy(torch._neg_view(-h), w, torch._neg_view(-b), t),
        make_fx(lambda *given: linear_cross_entropy(*given))(torch.zeros(6, 8), w, b, t * 0)(
            h, w, b, t
        ),
        linear_cross_entropy(TwoTensor(h, h), w, b, t).a,
    ):
        torch.testing.assert_close(found, expected)
    assert linear_cross_entropy(*(v.to("meta") for v in (h, w, b, t))).is_meta


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_that_are_a_negative_view_have_their_own_values(reduction):
    h, w, t, factors = torch.randn(6, 8), torch.randn(5, 8), torch.arange(6) % 5, torch.rand(5)
    expected = nn.functional.cross_entropy(h @ w.t(), t, weight=factors, reduction=reduction)
    found = linear_cross_entropy(
        h, w, None, torch._neg_view(-t), label_weights=factors, reduction=reduction
    )
    torch.testing.assert_close(found, expected)


def test_targets_that_hooks_changed_are_checked():
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t + 1000 if t.dtype == torch.int64 else t
    ):
        loss = linear_cross_entropy(
            torch.randn(6, 8, requires_grad=True),
            torch.randn(5, 8),
            None,
            torch.arange(6) % 5,
            reduction="none",
        )
    with pytest.raises(IndexError, match="expected targets from 0 to 4"):
        loss.sum().backward()


def test_gradient_flow_on_meta_is_an_error():
    with pytest.raises(ValueError, match="meta"):
        bptt.gradient_flow(bptt.LSTM(4, 8).to("meta"), torch.randn(SHAPE))


def test_an_operand_that_is_written_to_is_not_copied():
    t = torch.zeros(3, 4).t()
    with pytest.raises(RuntimeError, match="must be contiguous"):
        guard.room("norms", t, t.dtype, t.shape)
    with pytest.raises(RuntimeError, match="strides"):
        guard.within("norms", t, t.dtype, (4, 3), (3, 1))


def test_a_process_survives_without_the_checks_of_annotations():
    """Outside of pytest's checks of annotations, which may raise before the guard does."""
    code = """
import torch, bptt
from torch.nn.utils.rnn import PackedSequence
for bad in (lambda: bptt.LSTM(4, 5, device="meta")(torch.randn(3, 2, 4)),
            lambda: bptt.LSTM(4, 5)(PackedSequence(torch.randn(3, 4), torch.tensor([2, 2, 2]))),
            lambda: bptt.gradient_flow(bptt.GRU(4, 5, device="meta"), torch.randn(6, 2, 4))):
    try:
        bad()
    except (RuntimeError, ValueError) as e:
        assert len(str(e).splitlines()) == 1, e
    else:
        raise AssertionError("accepted")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
