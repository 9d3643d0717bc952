"""Which dtypes come out of parameters in half precision and of autocast: those of torch.nn."""

from __future__ import annotations

import pytest
import torch
from paths import using
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt

FLOAT, BF16, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
MODULES = {
    "RNN": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 2}),
}
HOW = [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False, "batch_first": True}]
CASES = {  # weights, autocast, input, initial state
    "float": (FLOAT, None, FLOAT, FLOAT),
    "bfloat16": (BF16, None, BF16, None),
    "half": (HALF, None, HALF, HALF),
    "autocast": (FLOAT, BF16, FLOAT, None),
    "autocast, input": (FLOAT, BF16, BF16, None),
    "autocast, state": (FLOAT, BF16, FLOAT, BF16),
    "autocast, float state": (FLOAT, BF16, FLOAT, FLOAT),
    "autocast, both": (FLOAT, BF16, BF16, BF16),
    "autocast of bfloat16": (BF16, BF16, BF16, None),
    "autocast of bfloat16, float input": (BF16, BF16, FLOAT, None),
    "autocast to half": (FLOAT, HALF, FLOAT, None),
    "autocast of double": (DOUBLE, BF16, DOUBLE, None),
}


@pytest.fixture(autouse=True, params=["twin", "native"])
def kernels(request):
    with using(request.param) as backend:
        yield backend


def run(library, kind, weights, autocast, of_x, of_state, kind_of_input="batched", **options):
    """The outputs, the final states and the gradients of all that was given."""
    name, own = MODULES[kind]
    torch.manual_seed(4)
    module = getattr(library, name)(3, 4, **own, **options).to(weights)
    x, batch = torch.randn(5, 2, 3), 2
    if module.batch_first:
        x = x.transpose(0, 1)
    if kind_of_input == "unbatched":
        x, batch = x[:, 0], None
    x = x.to(of_x).requires_grad_()
    given, hx = x, None
    if kind_of_input == "packed":
        given = pack_sequence([x[:3, 0], x[:, 1]], enforce_sorted=False)
    if of_state is not None:
        cells = module.num_layers * (1 + module.bidirectional)
        sizes = [module.proj_size or 4, 4] if name == "LSTM" else [4]
        shape = (cells,) if batch is None else (cells, batch)
        hx = tuple(torch.randn(*shape, n).to(of_state).requires_grad_() for n in sizes)
    with torch.autocast("cpu", autocast or BF16, enabled=autocast is not None):
        y, state = module(given, hx if hx is None or len(hx) > 1 else hx[0])
    y = y.data if isinstance(y, PackedSequence) else y
    found = [y, *(state if isinstance(state, tuple) else (state,))]
    inputs = [x, *(hx or ()), *module.parameters()]
    return found + list(torch.autograd.grad(sum(t.float().sin().sum() for t in found), inputs))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("options", HOW)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_dtypes_and_values_are_those_of_torch(kind, options, case):
    ours = run(bptt, kind, *CASES[case], **options)
    if (kind, case) == ("LSTM", "autocast to half"):
        assert [t.dtype for t in ours] == [HALF] * 3 + [FLOAT] * (len(ours) - 3)
        try:
            theirs = run(torch.nn, kind, *CASES[case], **options)
        except RuntimeError:  # no processor without products in float16 does it
            return
    else:
        theirs = run(torch.nn, kind, *CASES[case], **options)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    coarse = BF16 if BF16 in CASES[case] else HALF if HALF in CASES[case] else FLOAT
    coarse = DOUBLE if DOUBLE in CASES[case] else coarse
    near = {DOUBLE: 1e-12, FLOAT: 1e-5, HALF: 1e-2, BF16: 6e-2}[coarse]
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().float().abs().max())
        torch.testing.assert_close(a.float(), b.float(), rtol=near, atol=near * scale)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("kind_of_input", ["unbatched", "packed"])
@pytest.mark.parametrize("case", ["autocast", "autocast, input", "autocast, state", "bfloat16"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_they_are_for_other_inputs_too(kind, kind_of_input, case):
    ours = run(bptt, kind, *CASES[case], kind_of_input)
    theirs = run(torch.nn, kind, *CASES[case], kind_of_input)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]


@pytest.mark.parametrize("kind", MODULES)
def test_autocast_rounds_the_results_and_nothing_inside(kind):
    exact, rounded = (run(bptt, kind, FLOAT, of, FLOAT, None) for of in (None, BF16))
    states = 3 if kind in ("LSTM", "projected") else 2
    for a, b in zip(exact[:states], rounded[:states], strict=True):
        assert torch.equal(a.to(b.dtype), b)
    assert kind == "GRU" or rounded[0].dtype == BF16


@pytest.mark.parametrize(
    "how", [{"credit": "truncated:2"}, {"resets": torch.tensor([0, 0, 1]) > 0}]
)
def test_credit_and_resets_change_no_dtype(how):
    for module in (bptt.LSTM(3, 4), bptt.GRU(3, 4), bptt.Recurrent(bptt.cells.MGU, 3, 4)):
        with torch.autocast("cpu", BF16):
            plain, asked = (module(torch.randn(3, 2, 3), **more) for more in ({}, how))
            *with_states, ((*states,),) = module(torch.randn(3, 2, 3), return_states=True)
            along = bptt.unroll(module, torch.randn(3, 2, 3), **how)
        expected = FLOAT if isinstance(module, bptt.GRU) else BF16
        for y, _ in (plain, asked, along, with_states, [states[-1], None]):
            assert y.dtype == expected


def test_layers_of_any_cell_return_the_dtype_of_autocast():
    for cell in (bptt.cells.MGU, bptt.cells.BY_NAME["RNN_SIGMOID"]):
        with torch.autocast("cpu", BF16):
            y, h = bptt.Recurrent(cell, 3, 4)(torch.randn(5, 2, 3))
        assert y.dtype == h.dtype == BF16
