"""Many losses through one step: the native kernel beside its twin, on shapes that cross borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import using
from torch import Tensor

from bptt._src.engines import kernel_library
from bptt._src.flow.derivatives import Locals, Terms
from bptt._src.flow.network import Layer
from bptt._src.flow.step_matrix import Places, Through
from bptt.cells import Cell, Weights

DOUBLE, FLOAT = torch.float64, torch.float32


class Layout(NamedTuple):
    """Which local derivatives there are: (result, block), (result, tensor of the state before)."""

    states: int
    of_hidden: tuple[tuple[int, int], ...]
    of_input: tuple[tuple[int, int], ...]
    of_results: bool = False
    of_state: tuple[tuple[int, int], ...] = ()


LAYOUTS = {
    "Elman": Layout(1, ((0, 0),), ((0, 0),)),
    "GRU": Layout(1, ((0, 0), (0, 1), (0, 2)), ((0, 0), (0, 1), (0, 2)), False, ((0, 0),)),
    "MGU": Layout(1, ((0, 0), (0, 1)), ((0, 0), (0, 1)), False, ((0, 0),)),
    "LSTM": Layout(2, *[((1, 0), (1, 1), (1, 2), (0, 3))] * 2, True, ((1, 1),)),
    "everything": Layout(
        2,
        (*((1, n) for n in (0, 2, 1, 5, 3, 4)), *((0, n) for n in range(5))),
        ((1, 1), (0, 0), (0, 1)),
        True,
        ((0, 0), (1, 1), (1, 0), (0, 1)),
    ),
    "no weights of c": Layout(2, ((0, 1),), ((0, 0), (0, 2)), False, ((0, 1), (1, 0))),
    "no weights": Layout(1, (), (), False, ((0, 0),)),
}
EACH_MODE = pytest.mark.parametrize("mode", LAYOUTS)


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    """The kind of vectors that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


@dataclass(frozen=True)
class Step:
    """What a step is about; its tensors follow from it."""

    mode: str
    dtype: torch.dtype = DOUBLE
    sequences: int = 2
    losses: int = 9
    first: int = 0  # of the losses, the first that is on its way; those before it are not touched
    after: int = 0  # losses that are not on their way any more
    inputs: int = 3
    hidden: int = 5
    projection: int = 0
    wants: str = "nothing"  # or d_x, credit
    resets: bool = False
    steps: int = 2  # of the layer, of which the last is gone through
    seed: int = 0
    scale: float = 1.0
    flawed: float | None = None  # a number that a gradient has once

    def run(self, kernels: str) -> dict[str, Tensor]:
        """Go back through the step, and give all that is found."""
        with using(kernels):
            through, rows, resets = self._given()
            assert through.is_native == (kernels != "twin")
            losses = slice(self.first, self.first + self.losses)
            norms = [torch.zeros(g.shape[:2], dtype=DOUBLE) for g in through.given]
            credit = torch.zeros_like(norms[0]) if self.wants == "credit" else None
            places = Places(
                [n[:, losses] for n in norms], None if credit is None else credit[:, losses]
            )
            d_x = through.back(rows, losses, resets, places)
        found = dict(zip(("d_h", "d_c"), through.given, strict=False))
        found |= dict(zip(("norm_h", "norm_c"), norms, strict=False))
        if self.wants == "d_x":
            found["d_x"] = d_x
        if credit is not None:
            found["credit"] = credit
        return found

    def _given(self) -> tuple[Through, slice, Tensor | None]:
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=DOUBLE).to(self.dtype)

        layout, S, H, I = LAYOUTS[self.mode], self.sequences, self.hidden, self.inputs
        cell = Cell("MADE", 4, 6, lambda x, h, s, u: s, states=layout.states)
        P, N = self.projection or H, self.steps * self.sequences
        hr = normal(P, H) / H**0.5 if self.projection else None
        w = Weights(normal(4 * H, I) / I**0.5, normal(6 * H, P) / P**0.5, None, None, hr)
        local = Locals(
            normal(N, P),
            *(
                Terms(normal(N, len(places), H), places)
                for places in (layout.of_input, layout.of_hidden)
            ),
            {1: normal(N, H)} if layout.of_results else {},
            {place: normal(N, H) for place in layout.of_state},
        )
        initial = (normal(S, P), normal(S, H))[: layout.states]
        layer = Layer(cell, w, normal(N, I), initial)
        projected = normal(N, 4, H) if self.wants == "credit" else None
        all_losses = self.first + self.losses + self.after
        passing = Through(layer, local, self.wants == "d_x", projected, S, all_losses)
        for g in passing.given:
            g.copy_(normal(*g.shape) * self.scale)
            if self.flawed is not None:
                g[S // 2, self.first, -1] = self.flawed
        rows = slice((self.steps - 1) * S, self.steps * S)
        resets = torch.rand(S, 1, generator=random) < 0.4 if self.resets else None
        return passing, rows, resets


@st.composite
def steps(draw: st.DrawFn, mode: str, dtype: torch.dtype = DOUBLE) -> Step:
    size = st.one_of(st.integers(1, 40), st.integers(1, 40), st.integers(120, 270))
    hidden = draw(size)
    return Step(
        mode,
        dtype,
        sequences=draw(st.integers(1, 5)),
        losses=draw(st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 129, 270]))),
        first=draw(st.integers(0, 3)),
        after=draw(st.integers(0, 3)),
        inputs=draw(size),
        hidden=hidden,
        projection=draw(st.integers(0, 9)) if mode in ("Elman", "LSTM") else 0,
        wants=draw(st.sampled_from(["nothing", "d_x", "credit"])),
        resets=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = expected[expected.isfinite()].abs().amax().clamp(min=1).item()
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=tolerance * scale, equal_nan=True
        )


@EACH_MODE
@settings(max_examples=25)
@given(data=st.data())
def test_agrees_with_the_twin(mode, data, path):
    step = data.draw(steps(mode))
    assert_close(step.run(path.isa), step.run("twin"), 1e-12)


@EACH_MODE
@settings(max_examples=10)
@given(data=st.data())
def test_agrees_with_the_twin_in_float(mode, data, path):
    step = data.draw(steps(mode, FLOAT))
    assert_close(step.run(path.isa), step.run("twin"), 1e-5)


@EACH_MODE
@pytest.mark.parametrize("wants", ["nothing", "d_x", "credit"])
@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(mode, wants, sequences, path):
    step = Step(mode, FLOAT, sequences, 130, hidden=147, inputs=70, wants=wants, resets=True)
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = step.run(path.isa)
    finally:
        torch.set_num_threads(before)
    for name, expected in found[1].items():
        for threads in (2, 3):
            assert torch.equal(found[threads][name], expected), (name, threads)


@EACH_MODE
@pytest.mark.parametrize("flawed", [torch.inf, torch.nan])
@pytest.mark.parametrize("wants", ["nothing", "d_x", "credit"])
def test_what_is_not_finite_comes_out_as_from_the_twin(mode, flawed, wants, path):
    step = Step(mode, flawed=flawed, wants=wants)
    found, expected = step.run(path.isa), step.run("twin")
    assert not expected["norm_h"].isfinite().all()
    for name, of_twin in expected.items():
        assert torch.equal(found[name].isfinite(), of_twin.isfinite()), name
    assert_close(found, expected, 1e-12)


@EACH_MODE
@pytest.mark.parametrize("flawed", [None, torch.inf, torch.nan])
def test_nothing_passes_a_reset(mode, flawed, path):
    step = Step(mode, sequences=6, resets=True, flawed=flawed, first=1)
    found = step.run(path.isa)
    resets = step._given()[2].flatten()
    assert 0 < resets.sum() < 6
    for state in ("h", "c")[: LAYOUTS[mode].states]:
        assert (found[f"d_{state}"][resets, 1:] == 0).all()
        assert (found[f"norm_{state}"][resets] == 0).all()
        assert (found[f"norm_{state}"][~resets, 1:] > 0).any()


@EACH_MODE
@pytest.mark.parametrize("dtype", [DOUBLE, FLOAT])
def test_what_is_about_to_be_nothing_ends(mode, dtype, path):
    tiny = max(torch.finfo(dtype).tiny, 1e-152)
    for scale, ends in ((tiny, True), (1e7 * tiny, False)):
        step = Step(mode, dtype, scale=scale)
        found, expected = step.run(path.isa), step.run("twin")
        for name in ("d_h", "d_c")[: LAYOUTS[mode].states]:
            assert (found[name] == 0).all() == ends
            assert (expected[name] == 0).all() == ends
            norms = expected[name.replace("d_", "norm_")]
            torch.testing.assert_close(
                found[name.replace("d_", "norm_")], norms, rtol=1e-4, atol=10 * tiny
            )


def test_losses_that_are_not_on_their_way_stay_as_they_are(path):
    step = Step("LSTM", first=2, after=3, losses=4, wants="credit")
    given = step._given()[0].given
    found = step.run(path.isa)
    for before, name in zip(given, ("d_h", "d_c"), strict=True):
        assert not torch.equal(found[name][:, 2:6], before[:, 2:6])
        for rest in (slice(0, 2), slice(6, 9)):
            assert torch.equal(found[name][:, rest], before[:, rest])
    for name in ("norm_h", "norm_c", "credit"):
        assert (found[name][:, :2] == 0).all()
        assert (found[name][:, 6:] == 0).all()


def test_no_memory_is_an_error(monkeypatch, path):
    monkeypatch.setattr(kernel_library.library(), "bptt_flow_back", lambda call: -1)
    with pytest.raises(MemoryError, match="matrices of 5 hidden units"):
        Step("GRU").run(path.isa)
