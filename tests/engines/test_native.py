"""The native kernels beside the twin, on shapes that cross the borders of their blocks."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from every_engine import ALL, Call, calls, converted
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import using

from bptt._src.engines import kernel_library, native, twin
from bptt._src.engines.call import Call as EngineCall
from bptt._src.engines.reference import ScaleGradient
from bptt.cells import BY_NAME

MODES = sorted(name for name, cell in BY_NAME.items() if cell.is_native)
DOUBLE, FLOAT = torch.float64, torch.float32
EACH_MODE = pytest.mark.parametrize("mode", MODES)
EACH_ENGINE = pytest.mark.parametrize("engine", [native, twin], ids=["native", "twin"])
EACH_DTYPE = pytest.mark.parametrize("dtype", [DOUBLE, FLOAT], ids=["double", "float"])


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    """The kind of vectors that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


def assert_close(ours, theirs, tolerance):
    """Each tensor within a tolerance of its largest element, or of one."""
    for name, expected in theirs.items():
        scale = expected.abs().max().clamp(min=1).item()
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_equal(ours, theirs):
    """The same bits, where no number is the same as none."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name].nan_to_num(nan=9e9), expected.nan_to_num(nan=9e9)), name


# --------------------------------------------------------------------------- beside the twin


@EACH_MODE
@settings(max_examples=15)
@given(data=st.data())
def test_agrees_with_the_twin(mode, data):
    call = data.draw(calls(mode, DOUBLE))
    assert_close(call.run(native), call.run(twin), 1e-11)


@EACH_MODE
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [(7, 4, 4, 2, 1), (9, 2, 2, 2), (5, 5, 1)])
def test_sequences_of_different_lengths_agree_with_the_twin(mode, lengths, reverse):
    call = Call(mode, DOUBLE, lengths, 3, 9, reverse)
    assert_close(call.run(native), call.run(twin), 1e-11)


@EACH_MODE
@pytest.mark.parametrize("by_windows", [False, True])
def test_windows_over_more_rows_than_are_worked_on_at_a_time(mode, by_windows):
    call = Call(mode, DOUBLE, (150,) * 4, 3, 9, every_reach=(50, 60), by_windows=by_windows)
    assert_close(call.run(native), call.run(twin), 1e-11)


@EACH_MODE
@EACH_ENGINE
@pytest.mark.parametrize("cut", ["carry", "resets"])
def test_where_it_is_cut_not_even_an_infinite_gradient_passes(mode, engine, cut):
    call = Call(mode, DOUBLE, (4, 4), 3, 9)
    given = call.given()
    here = torch.zeros(8, 1, dtype=torch.bool)
    here[4:6] = True  # before the third step
    carry = 1 - here.to(DOUBLE)
    d_y = given.d_y.clone()
    d_y[6] = torch.inf
    boundary = given.boundary._replace(**{cut: carry if cut == "carry" else here})
    found = call.run(engine, given._replace(boundary=boundary, d_y=d_y))
    assert found["d_x"][:4].isfinite().all()
    assert found["d_h_0"].isfinite().all()
    assert not found["d_x"][4].isfinite().all()


@EACH_MODE
@settings(max_examples=8)
@given(data=st.data())
def test_is_as_exact_in_float32_as_the_twin(mode, data):
    call = data.draw(calls(mode, FLOAT))
    assert_is_as_exact(call, call.given())


def assert_is_as_exact(call, given):
    """Compare the errors of both in float32, measured with the twin in float64."""
    ours, theirs = call.run(native, given), call.run(twin, given)
    exact = {}
    for run in (ours, theirs):
        # A rectifier that is on or off by a rounding error makes another gradient: the same y.
        y = run["y"].double() if call.mode == "RNN_RELU" else None
        exact[id(run)] = replace(call, dtype=DOUBLE).run(twin, converted(given, DOUBLE), y)
    for name, right in exact[id(ours)].items():
        error = (ours[name].double() - right).norm()
        other = (theirs[name].double() - exact[id(theirs)][name]).norm()
        # What sums of so many terms near one are off by, however small they turn out.
        terms = max(sum(call.lengths), call.cell.gates_h * call.hidden, call.inputs)
        rounding = 2**-23 * (right.norm() + (terms * right.numel()) ** 0.5)
        assert error <= 4 * other + 8 * rounding, f"{name}: {error:.3g}, the twin's {other:.3g}"


@EACH_MODE
@EACH_DTYPE
@pytest.mark.parametrize("every_reach", [None, (2, 5)])
def test_only_what_is_needed_is_the_same_as_all(mode, dtype, every_reach):
    """Each gradient alone, and none at all: of each block's border, some rows lie beyond it."""
    call = Call(mode, dtype, (9, 9, 7, 2) * 40, 11, 13, resets=True, every_reach=every_reach)
    call = replace(call, lengths=tuple(sorted(call.lengths, reverse=True)))
    everything = call.run(native)
    for n in range(5):
        alone = replace(call, needed=tuple(n == k for k in range(7))).run(native)
        assert_equal(alone, {name: everything[name] for name in alone})


@EACH_MODE
@EACH_DTYPE
@pytest.mark.parametrize("resets", [False, True])
def test_nothing_kept_gives_the_same_outputs(mode, dtype, resets):
    call = Call(mode, dtype, (90, 90, 60), 5, 21, resets=resets)
    x, state, w, boundary, *_ = call.given()
    results = {}
    for keep in (True, False):
        y, final, kept = native.forward(
            EngineCall(call.cell, x, state, w, call.steps, boundary), keep
        )
        results[keep] = {"y": y} | dict(zip("hc", final, strict=False))
        assert bool(kept) == (keep and not mode.startswith("RNN"))
    assert_equal(results[False], results[True])


@EACH_MODE
@EACH_DTYPE
def test_nothing_given_is_changed(mode, dtype):
    call = Call(mode, dtype, (5, 4, 2), 7, 9, carry=True, resets=True)
    given, fresh = call.given(), call.given()
    call.run(native, given)
    flat = torch.utils._pytree.tree_leaves
    for a, b in zip(flat(tuple(given)), flat(tuple(fresh)), strict=True):
        assert a is None or torch.equal(a, b)


# -------------------------------------------------------------------------------------- norms


def handed_down(call):
    """‖∂L/∂h‖ and ‖∂L/∂c‖ of the state that each step leaves, but for what the output adds, [N, 2].

    Each sequence is run alone, so that its last step is the last of all.
    """
    x, state, w, boundary, d_y, d_state = call.given()
    offsets = np.concatenate([[0], np.cumsum(call.steps.sizes)])
    found = torch.full((len(x), call.cell.states), -1.0, dtype=DOUBLE)
    for b, length in enumerate(call.lengths):
        rows = [int(offsets[t]) + b for t in range(length)]
        h, after = [s[b : b + 1] for s in state], []
        loss = 0
        for row in rows[::-1] if call.reverse else rows:
            if boundary.carry is not None:
                h = [ScaleGradient.apply(s, boundary.carry[row : row + 1]) for s in h]
            if boundary.resets is not None:
                h = [s.masked_fill(boundary.resets[row], 0) for s in h]
            h = list(call.cell.step(x[row : row + 1], tuple(h), w))
            loss = loss + (h[0] * d_y[row]).sum()
            h = [s + torch.zeros_like(s, requires_grad=True) for s in h]
            after.append((row, h))
        loss = loss + sum((s * d[b]).sum() for s, d in zip(h, d_state, strict=True))
        asked = [s for _, states in after for s in states]
        gradients = iter(torch.autograd.grad(loss, asked))
        for row, states in after:
            found[row] = torch.stack([next(gradients).norm() for _ in states])
    return found


@EACH_MODE
@EACH_ENGINE
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [(9, 9), (7, 4, 4, 1)])
def test_row_norms_are_those_of_what_the_step_after_hands_down(mode, engine, reverse, lengths):
    call = Call(mode, DOUBLE, lengths, 3, 9, reverse, carry=True, resets=True)
    expected = handed_down(call)
    assert (expected > 0).any(0).all()
    torch.testing.assert_close(call.run(engine)["row_norms"], expected, rtol=1e-10, atol=1e-12)


@EACH_MODE
@EACH_ENGINE
def test_row_norms_of_windows_are_those_of_each_window_alone(mode, engine):
    call = Call(mode, DOUBLE, (11, 11, 8), 3, 9, resets=True, every_reach=(2, 5))
    given, windows = call.given(), call.windows
    found = call.run(engine)["row_norms"]
    for window in range(windows.steps.batch):
        mine = torch.cat([torch.arange(n) == window for n in windows.steps.sizes])
        last = torch.arange(windows.steps.batch) == window
        alone = given._replace(
            d_y=given.d_y * mine.unsqueeze(1),
            d_state=tuple(d * last.unsqueeze(1) for d in given.d_state),
        )
        norms = call.run(engine, alone)["row_norms"]
        torch.testing.assert_close(norms[mine], found[mine], rtol=1e-12, atol=0)
        assert (norms[~mine] == 0).all()


# --------------------------------------------------------------------- numbers that are not tame


@EACH_MODE
@EACH_DTYPE
@pytest.mark.parametrize("reverse", [False, True])
def test_no_number_in_one_sequence_stays_in_it(mode, dtype, reverse):
    call = Call(mode, dtype, (6, 6, 6, 3, 3, 2, 1), 4, 19, reverse)
    given = call.given()
    spoilt = given._replace(x=given.x.clone())
    sizes = call.steps.sizes
    row, t = sum(sizes[:2]) + 1, 2  # the third step of the second sequence
    spoilt.x[row, 0] = float("nan")
    clean, found = call.run(native, given), call.run(native, spoilt)
    step = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    sequence = torch.cat([torch.arange(n) for n in sizes])
    reached = (sequence == 1) & ((step <= t) if reverse else (step >= t))
    assert torch.equal(found["y"].isnan().any(1), reached)
    assert torch.equal(found["y"][~reached], clean["y"][~reached])
    others = sequence != 1
    assert torch.equal(found["d_x"][others], clean["d_x"][others])
    assert found["d_ih"].isnan().any()
    for name in ("h_n", "c_n", "d_h_0", "d_c_0"):
        if name in clean:
            rest = torch.arange(len(call.lengths)) != 1
            assert torch.equal(found[name][rest], clean[name][rest])
            # A rectifier's slope is 1 where its output is no number, as in the twin.
            assert found[name][1].isnan().any() or (mode == "RNN_RELU" and name == "d_h_0")


@EACH_MODE
@pytest.mark.parametrize("exponent", [-30, 30])
@pytest.mark.parametrize("what", ["ih", "hh"])
def test_weights_of_any_size_give_what_they_give_in_the_twin(mode, exponent, what):
    call = Call(mode, DOUBLE, (3, 3, 2), 5, 11)
    given = call.given()
    w = given.w._replace(**{what: getattr(given.w, what) * 10.0**exponent})
    given = given._replace(w=w)
    ours, theirs = call.run(native, given), call.run(twin, given)
    for name, expected in theirs.items():
        scale = expected.abs().max().item()
        assert expected.isfinite().all()
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-11 * scale)


@EACH_MODE
@EACH_DTYPE
def test_denormal_numbers_are_numbers(mode, dtype):
    """A linear cell's results, or nearly so, of inputs that small: as many times smaller."""
    tiny = torch.finfo(dtype).tiny
    call = Call(mode, dtype, (3, 3), 4, 9, bias=False, output_used=True)
    given = call.given()
    given = given._replace(x=torch.full_like(given.x, tiny / 8))
    found = call.run(native, given)
    ones = call.run(native, given._replace(x=torch.zeros_like(given.x)))
    assert torch.equal(found["y"], ones["y"])  # too small to be seen there
    # ∂L/∂W_ih = Σ δ x, and δ is the bias's gradient.
    biased = replace(call, bias=True)
    zero = torch.zeros_like(given.w.ih[:, 0])
    with_bias = biased.run(native, given._replace(w=given.w._replace(b_ih=zero, b_hh=zero)))
    expected = with_bias["d_b_ih"].double().unsqueeze(1) * (tiny / 8)
    assert found["d_ih"].any()
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    error = (found["d_ih"].double() - expected).abs().max().item()
    assert error <= (8 * step if dtype == FLOAT else 1e-12 * tiny + 8 * 5e-324)


# ------------------------------------------------------------------------------------- memory


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing says how much it is")
@pytest.mark.parametrize("in_threads", [False, True])
def test_memory_does_not_grow_with_calls(in_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    call = Call("LSTM", FLOAT, (40,) * 16, 64, 64, needed=ALL)
    given = call.given()

    def run():
        if in_threads:  # each has a work space of its own, while it lives
            thread = threading.Thread(target=call.run, args=(native, given))
            thread.start()
            thread.join()
        else:
            call.run(native, given)

    for _ in range(20):
        run()
    before = resident_bytes()
    for _ in range(200):
        run()
    assert resident_bytes() - before < 8e6  # the outputs alone are 200 times 160 kB
