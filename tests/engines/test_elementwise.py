"""The kernels' own exp, tanh and sigmoid: their relative errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paths import using

from bptt._src.engines import kernel_library

DTYPES = {"float": np.float32, "double": np.float64}
NAMES = ("exp", "tanh", "sigmoid")
EACH = pytest.mark.parametrize("name", NAMES)
EACH_KIND = pytest.mark.parametrize("kind", DTYPES)

MOST = {"float": 88.0, "double": 709.0}
LEAST = {"float": -87.0, "double": -708.0}

# As wide as a double's exponent and with more digits; without it there is nothing to compare with.
exact_enough = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="a long double is no more than a double here"
)


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    """The kind of vectors that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


def ours(name, x):
    return kernel_library.elementwise(name, torch.from_numpy(x)).numpy()


def exact(name, x):
    x = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        if name == "exp":
            return np.exp(x)
        if name == "tanh":
            return np.tanh(x)
        e = np.exp(-np.abs(x))
        return np.where(x < 0, e, 1) / (1 + e)


def everywhere(kind):
    """Finite numbers of every exponent and both signs, and those near the functions' borders."""
    dtype = DTYPES[kind]
    info, random = np.finfo(dtype), np.random.default_rng(0)
    bits = f"u{info.dtype.itemsize}"
    largest = int(np.array(info.max).view(bits))
    positive = np.linspace(0, largest, 200_003).astype(bits).view(dtype)
    borders = []
    for border in (0.625, 2**-12, MOST[kind], -LEAST[kind], 0.5 * MOST[kind], np.log(2) / 2):
        at = int(np.array(border, dtype).view(bits))
        borders.append(np.arange(at - 1000, at + 1000).astype(bits).view(dtype))
    usual = np.abs(random.normal(size=200_000) * 4).astype(dtype)
    x = np.concatenate([positive, *borders, usual])
    x = x[np.isfinite(x)]
    return np.concatenate([x, -x])


def relative(found, right, dtype):
    """How far off, in units of the dtype's epsilon; of the least normal number for smaller ones."""
    info = np.finfo(dtype)
    unit = info.eps * np.maximum(np.abs(right), info.tiny)
    return np.abs(found.astype(np.longdouble) - right) / unit


@EACH
@EACH_KIND
@exact_enough
def test_within_two_epsilons(name, kind):
    dtype = DTYPES[kind]
    x = everywhere(kind)
    if name == "exp":
        x = x[(x <= MOST[kind]) & (x >= LEAST[kind])]
    found, right = ours(name, x), exact(name, x)
    # Below the smallest normal number a sigmoid may be zero.
    small = (name == "sigmoid") & (right < np.finfo(dtype).tiny)
    error = np.where(small, 0, relative(found, right, dtype))
    worst = error.argmax()
    assert error[worst] <= 2, f"{name}({x[worst]!r}) = {found[worst]!r}, not {right[worst]!r}"
    assert (found[small] >= 0).all()
    assert (found[small] <= np.finfo(dtype).tiny).all()


@EACH_KIND
def test_exp_beyond_its_range(kind):
    dtype = DTYPES[kind]
    most, least = dtype(MOST[kind]), dtype(LEAST[kind])
    at = np.array([most, most + 1, 1e30, np.inf], dtype)
    assert np.isfinite(ours("exp", at)).tolist() == [True, False, False, False]
    below = np.array([least, np.nextafter(least, -dtype(np.inf)), -1e30, -np.inf], dtype)
    found = ours("exp", below)
    assert found[0] > 0
    assert (found == found[0]).all()


@EACH_KIND
def test_at_zero_at_infinity_and_at_no_number(kind):
    dtype = DTYPES[kind]
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([0.0, -0.0, tiny, -tiny, np.inf, -np.inf], dtype)
    assert ours("tanh", x).tolist() == [0, 0, tiny, -tiny, 1, -1]
    assert ours("sigmoid", x).tolist() == [0.5, 0.5, 0.5, 0.5, 1, 0]
    assert ours("exp", x[:4]).tolist() == [1, 1, 1, 1]
    for name in NAMES:
        # On every place of a vector, beside numbers that stay numbers.
        for place in range(16):
            row = np.linspace(-3, 3, 16).astype(dtype)
            row[place] = np.nan
            assert np.isnan(ours(name, row)).nonzero()[0].tolist() == [place]


@EACH_KIND
def test_tanh_is_odd_and_stays_within_one_and_both_rise(kind):
    x = np.sort(everywhere(kind))
    for name, low in (("tanh", -1), ("sigmoid", 0)):
        y = ours(name, x)
        assert y.min() == low
        assert y.max() == 1
        # Where two neighbours are as near as their rounding, they may change places.
        assert (np.diff(y) >= -4 * np.spacing(np.abs(y[1:]))).all()
    assert (ours("tanh", -x) == -ours("tanh", x)).all()


@EACH
@EACH_KIND
def test_each_element_is_its_own(name, kind):
    """Whatever their number, so that a vector's end is not seen."""
    x = np.linspace(-4, 4, 67).astype(DTYPES[kind])
    whole = ours(name, x)
    for n in range(1, 67):
        assert (ours(name, x[:n].copy()) == whole[:n]).all()
