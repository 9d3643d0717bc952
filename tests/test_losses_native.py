"""The native readout's loss beside its twin, with each kind of vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import using

from bptt._src.engines import kernel_library, native, twin
from bptt._src.engines.readout import Readout

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    """The vectors that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


@pytest.fixture
def threads():
    """Set the number of threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(N, H, V, dtype, seed=0, bias=True, factors=True):
    torch.manual_seed(seed)
    return (
        torch.randn(N, H, dtype=dtype),
        torch.randn(V, H, dtype=dtype),
        torch.randn(V, dtype=dtype) if bias else None,
        torch.randint(V, (N,)),
        torch.rand(N, dtype=dtype) if factors else None,
    )


def assert_as_the_twin(given, needed=(True, True, True)):
    """Not farther from the twin in float64 than the twin in the same dtype may be."""
    ours = native.cross_entropy(Readout(*given, needed))
    exact = [t.double() if t is not None and t.is_floating_point() else t for t in given]
    hidden, weight = exact[:2]
    epsilon = torch.finfo(given[0].dtype).eps
    # A logit is a sum of H products, and an error in it is one of the probability, relatively.
    largest = (hidden @ weight.t()).abs().max() + 1
    # What the probabilities of all rows are multiplied by and summed, by result: the loss, and the
    # gradients of hidden, weight and bias. Where they cancel, the errors do not.
    rows = hidden.shape[0]
    summed = (rows, weight.abs().max(), hidden.abs().sum(0).max(), rows)
    for a, b, terms in zip(ours, twin.cross_entropy(Readout(*exact, needed)), summed, strict=True):
        if b is None:
            assert a is None
        else:
            scale = float(terms + 1) * float(largest)
            torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * epsilon * scale)


@DTYPES
@settings(max_examples=60)
@given(
    N=st.integers(1, 40),
    H=st.integers(1, 40),
    V=st.integers(1, 600),
    bias=st.booleans(),
    factors=st.booleans(),
    needed=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 999),
)
def test_agrees_with_its_twin(dtype, N, H, V, bias, factors, needed, seed):
    given = problem(N, H, V, dtype, seed, bias, factors)
    assert_as_the_twin(given, (needed[0], needed[1], needed[2] and bias))


@DTYPES
@pytest.mark.parametrize(
    "shape", [(700, 33, 300), (130, 17, 257), (25, 100, 8000), (600, 20, 9001), (2, 600, 512)]
)
def test_several_chunks_and_blocks(dtype, shape):
    """More rows than are computed at a time, more labels than one part, deeper than a block."""
    assert_as_the_twin(problem(*shape, dtype))


@DTYPES
def test_the_same_bits_for_any_number_of_threads(dtype, threads):
    given = problem(300, 40, 3000, dtype)
    found = []
    for n in (1, 2, 3, 4, 2):
        threads(n)
        found.append(native.cross_entropy(Readout(*given, (True, True, True))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_labels_that_cannot_be_and_values_that_are_not_finite():
    hidden, weight, bias, targets, _ = problem(4, 3, 20, torch.float64)
    bias[5:9] = -torch.inf
    targets.fill_(0)
    given = hidden, weight, bias, targets, None
    assert_as_the_twin(given)
    _, _, d_weight, d_bias = native.cross_entropy(Readout(*given, (True, True, True)))
    assert not d_weight[5:9].any()
    assert not d_bias[5:9].any()
    hidden[2] = torch.nan
    ours = native.cross_entropy(Readout(*given, (True, True, True)))
    assert ours[0].isnan().tolist() == [False, False, True, False]
    assert torch.equal(ours[1].isnan().any(1), torch.tensor([False, False, True, False]))


def test_large_logits_do_not_overflow():
    hidden, weight, bias, targets, factors = problem(5, 3, 70, torch.float32)
    given = hidden * 1e4, weight, bias, targets, factors
    found = native.cross_entropy(Readout(*given, (True, True, True)))
    assert all(t.isfinite().all() for t in found)
    assert_as_the_twin(given)
