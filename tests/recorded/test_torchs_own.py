"""What torch tests its RNN, GRU and LSTM with, as the installed torch has it, on ours."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal import common_modules
from torch.testing._internal.common_modules import ModuleErrorEnum

import bptt

INFOS = {i.module_cls.__name__: i for i in common_modules.module_db}
NAMES = ["RNN", "GRU", "LSTM"]
EACH = pytest.mark.parametrize("name", NAMES)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
]
OWN_WORDS = {  # of torch's messages that ours say in other words: what both name
    "RNN input dtype": r"bptt\.\w+: the input is torch\.\w+ and the weights are torch\.\w+"
}


def samples(name, dtype, training, requires_grad=False, packed=True):
    info = INFOS[name]
    assert info.module_cls is getattr(torch.nn, name)
    torch.manual_seed(0)
    return info.module_inputs_func(
        *(info, "cpu", dtype, requires_grad, training), with_packed_sequence=packed
    )


def made(library, name, sample, training, **factory):
    given = sample.constructor_input
    torch.manual_seed(1)
    return getattr(library, name)(*given.args, **given.kwargs, **factory).train(training)


def called(module, sample, args=None):
    given = sample.forward_input
    return tensors(module(*(given.args if args is None else args), **given.kwargs))


def tensors(results):
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, tuple | list):
        return [t for r in results for t in tensors(r)]
    return [] if results is None else [results]


def assert_same(ours, theirs, exact=False):
    near = {"rtol": 0, "atol": 0} if exact else {}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **near)


@EACH
@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_those_of_torch_and_of_its_reference(name, training, dtype):
    count = 0
    for sample in samples(name, dtype, training):
        ours, theirs = (made(lib, name, sample, training, dtype=dtype) for lib in (bptt, torch.nn))
        assert_same(ours.parameters(), theirs.parameters(), exact=True)
        found = called(ours, sample)
        assert_same(found, called(theirs, sample))
        if not isinstance(sample.forward_input.args[0], PackedSequence):
            assert sample.reference_fn is not None
            given = sample.forward_input
            assert_same(found, tensors(sample.reference_fn(ours, *given.args, **given.kwargs)))
        count += 1
    assert count >= 16


@EACH
@MODES
def test_gradients_and_gradients_of_gradients(name, training):
    for sample in samples(name, torch.float64, training, requires_grad=True, packed=False)[::7]:
        module = made(bptt, name, sample, training, dtype=torch.float64)
        given = sample.forward_input
        flat = tensors(given.args)

        def run(*inputs, module=module, sample=sample, given=given):
            first, *hx = inputs[: len(tensors(given.args))]
            args = (first,) if not hx else (first, tuple(hx) if len(hx) > 1 else hx[0])
            return tuple(called(module, sample, args))

        inputs = (*flat, *module.parameters())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@EACH
@MODES
def test_a_copy_a_pickle_and_its_description(name, training):
    for sample in samples(name, torch.float32, training):
        module, theirs = (made(lib, name, sample, training) for lib in (bptt, torch.nn))
        expected = called(module, sample)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert again.training is training
            assert_same(called(again, sample), expected, exact=True)
        assert repr(module) == repr(theirs)
        assert str(module.state_dict().keys()) == str(theirs.state_dict().keys())


@EACH
@MODES
def test_where_and_what_the_parameters_are(name, training):
    for sample in samples(name, torch.float32, training, packed=False)[::4]:
        double = made(bptt, name, sample, training, dtype=torch.float64)
        assert {p.dtype for p in double.parameters()} == {torch.float64}
        meta = made(bptt, name, sample, training, device="meta")
        assert all(p.is_meta for p in meta.parameters())
        here = meta.to_empty(device="cpu")
        here.load_state_dict(made(bptt, name, sample, training).state_dict())
        assert_same(called(here, sample), called(made(torch.nn, name, sample, training), sample))
        for change in ("half", "bfloat16", "double", "float"):
            assert_same(
                *[
                    [
                        p.detach()
                        for p in getattr(made(lib, name, sample, training), change)().parameters()
                    ]
                    for lib in (bptt, torch.nn)
                ],
                exact=True,
            )


@EACH
@MODES
def test_inputs_of_any_strides(name, training):
    for sample in samples(name, torch.float64, training, packed=False):
        found = []
        for library in (bptt, torch.nn):
            module = made(library, name, sample, training, dtype=torch.float64)
            wide = [torch.stack([t, t], -1)[..., 0] for t in tensors(sample.forward_input.args)]
            leaves = [t.requires_grad_() for t in wide]
            first, *hx = leaves
            args = (first,) if not hx else (first, tuple(hx) if len(hx) > 1 else hx[0])
            results = called(module, sample, args)
            loss = sum(r.sin().sum() for r in results)
            grads = torch.autograd.grad(loss, [*leaves, *module.parameters()])
            found.append([r.detach() for r in results] + list(grads))
        assert_same(*found)


@EACH
@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_torch_refuses_is_refused_by_the_same_error(name, training, dtype):
    info, count = INFOS[name], 0
    errors = info.module_error_inputs_func(info, "cpu", dtype, False, training)
    for error in errors:
        sample, words = error.module_error_input, error.error_regex
        ours = next((own for start, own in OWN_WORDS.items() if words.startswith(start)), words)
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=ours):
                made(bptt, name, sample, training)
        else:
            module = made(bptt, name, sample, training)
            with pytest.raises(error.error_type, match=ours):
                called(module, sample)
        count += 1
    assert count > 5
    assert re.search("dtype", str([e.error_regex for e in errors]))
