"""What is measured, on shapes so small that it takes no time. No time is ever compared."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bptt
from bptt._src.bench import fresh, jax_scan, layers, models, processor, tutorial
from bptt._src.bench.result import EXACT, JAX, OURS, TEXTBOOK, TORCH, WINDOWS, Peaks
from bptt._src.bench.shapes import GATES, MODELS, SEED, SHAPES, ModelShape
from bptt._src.bench.timing import Effort, Pace, Stopped, Surroundings, take_turns
from bptt.bench import Row, Shape
from bptt.errors import BpttError, ConfigError, KernelError

SMALL = Shape(7, 3, 4, 5)
LITTLE = Effort(rounds=2, turn=0.0, steps=3, sentences=4, textbook=1)
TINY = ModelShape("lstm", 2, vocabulary=30, hidden=6, batch=2, steps=5)


class After(Pace):
    """Asks to stop once it was asked so many times."""

    def __init__(self, times):
        self.left, self.shares = times, []

    def stopped(self):
        self.left -= 1
        return self.left < 0

    def done(self, share):
        self.shares.append(share)


# ------------------------------------------------------------------------- shapes and operations


def test_the_usual_shapes():
    assert list(map(str, SHAPES)) == [
        "35/20/200/200",
        "35/20/650/650",
        "100/32/128/256",
        "20/1/100/100",
        "1000/1/64/64",
        "200/64/64/64",
    ]
    assert [f"{m.name} {m}" for m in MODELS] == [
        "RNN 8000/100/20/35",
        "RNN 8000/100/1/20",
        "LSTM 2 layers 10000/200/20/20",
        "LSTM 2 layers 10000/650/20/35",
    ]


@pytest.mark.parametrize(
    "text", ["", "1/2/3", "1/2/3/4/5", "0/1/1/1", "1/-2/3/4", "a/b/c/d", "1/2/3/4 "]
)
def test_no_shape(text):
    with pytest.raises(ConfigError, match="give T/B/I/H"):
        Shape.parse(text)


no_onednn_lstm = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")


@no_onednn_lstm
@pytest.mark.parametrize("cell", GATES)
def test_a_layers_operations_are_those_that_torch_counts(cell):
    module = layers.MODULES[TORCH][cell](SMALL.inputs, SMALL.hidden)
    x = torch.randn(SMALL.steps, SMALL.batch, SMALL.inputs, requires_grad=True)
    state = torch.zeros(1, SMALL.batch, SMALL.hidden, requires_grad=True)
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counted:
        module(x, (state, state) if cell == "lstm" else state)[0].sum().backward()
    assert SMALL.flop(cell) == counted.get_total_flops()


@no_onednn_lstm
def test_a_models_operations_are_those_that_torch_counts():
    plain = models.Plain(models.Ours(TINY).model, TINY)
    zero = torch.zeros(2, TINY.batch, TINY.hidden, requires_grad=True)
    plain.state = (zero, zero.clone())
    (batch,) = models.synthetic_batches(TINY, 1)
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counted:
        plain(*batch)
    assert TINY.flop() == counted.get_total_flops()
    assert TINY.flop(2 * TINY.steps) == 2 * TINY.flop()


# --------------------------------------------------------------------------------------- turns


def test_the_contenders_take_turns():
    order = []

    def contender(name, seconds):
        def step():
            order.append(name)
            return seconds

        return step

    effort = Effort(rounds=3, turn=1.0)
    pace = After(100)
    times = take_turns({"a": contender("a", 0.5), "b": contender("b", 2.0)}, effort, pace)
    assert times == {"a": [0.5] * 3, "b": [2.0] * 3}
    warm_up, turns = order[:6], order[6:]
    assert sorted(warm_up) == ["a"] * 3 + ["b"] * 3
    assert turns == ["a", "a", "b"] * 3  # as many steps as fit into a second, one at least
    assert pace.shares == [1 / 3, 2 / 3, 1.0]


def test_the_time_of_a_turn_is_its_median():
    seconds = iter([9.0, 9.0, 1.0, 1.0, 5.0, 2.0])
    times = take_turns({"a": lambda: next(seconds)}, Effort(rounds=1, turn=3.0), Pace())
    assert times == {"a": [2.0]}


def test_who_is_stopped_gives_the_rounds_that_are_finished():
    steps = {"a": lambda: 1.0, "b": lambda: 1.0}
    times = take_turns(steps, Effort(rounds=9, turn=0.0), After(2))
    assert {n: len(t) for n, t in times.items()} == {"a": 3, "b": 3}
    with pytest.raises(Stopped):
        After(0).check()


@pytest.mark.parametrize("name", ["rounds", "sentences"])
def test_an_effort_of_nothing(name):
    with pytest.raises(ConfigError, match=rf"^{name} must be at least 1, got 0"):
        Effort(**{name: 0})


def test_ratios_are_of_neighbours():
    row = Row(
        "kernels", "RNN", "1/1/1/1", 4_000_000, {OURS: [1.0, 4.0, 2.0], TORCH: [3.0, 4.0, 4.0]}
    )
    assert row.ratio(TORCH) == 2.0  # of 3, 1 and 2
    assert row.ratio(OURS) == 1.0
    assert row.milliseconds(OURS) == 2000.0
    assert row.gflops(TORCH) == pytest.approx(0.001)
    assert row.share(TORCH, Peaks(0.1)) == pytest.approx(0.01)
    assert row.share(TORCH, Peaks(bfloat16=0.1)) is None
    assert (row.milliseconds(JAX), row.gflops(JAX), row.ratio(JAX)) == (None, None, None)
    assert Row("kernels", "RNN", "", 1, {TORCH: [1.0]}).ratio(TORCH) is None  # ours is not in it


# -------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("cell", GATES)
def test_a_layers_row(cell):
    row = layers.measure_layer(cell, SMALL, LITTLE, Pace(), jax=False)
    assert (row.section, row.name, row.shape) == ("kernels", cell.upper(), "7/3/4/5")
    assert {n: len(t) for n, t in row.seconds.items()} == {OURS: 2, TORCH: 2}
    assert row.flop == SMALL.flop(cell)
    assert row.notes == []


def test_each_step_has_fresh_gradients(monkeypatch):
    """As after an update: they do not add up, and their buffers are not kept."""
    module = bptt.RNN(4, 5)
    x, d_y = torch.randn(7, 3, 4), torch.randn(7, 3, 5)
    around = []
    layer = layers.TorchLayer(module, x, d_y, lambda: around.append(module.weight_hh_l0.grad))
    expected = [t.clone() for t in layer.found()]
    layer()
    layer()
    assert around == [None, None]
    for found, wanted in zip(layer.found(), expected, strict=True):
        assert torch.equal(found, wanted)
    assert len(expected) == 6  # outputs, input, and the four weights


def test_who_computes_something_else_is_not_timed(monkeypatch):
    class Wrong(bptt.RNN):
        def forward(self, input, *rest, **how):
            y, state = super().forward(input, *rest, **how)
            return y * 1.001, state

    monkeypatch.setitem(layers.MODULES[OURS], "rnn", Wrong)
    row = layers.measure_layer("rnn", SMALL, LITTLE, Pace(), jax=False)
    assert list(row.seconds) == [TORCH]
    (note,) = row.notes
    assert note == "RNN 7/3/4/5: bptt is not timed, it is 0.001 away from torch.nn"


def test_a_wrong_gradient_is_seen_too():
    expected = [torch.tensor([1.0, 2.0]), torch.tensor([100.0, 0.0])]
    assert layers.distance(expected, expected) == 0
    found = [expected[0], torch.tensor([100.0, 1.0])]
    assert layers.distance(found, expected) == pytest.approx(0.01)


def test_windows_beside_the_exact_gradient():
    asked = []

    class Asked(bptt.GRU):
        def forward(self, *arguments, **how):
            asked.append(how)
            return super().forward(*arguments, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(layers.MODULES[OURS], "gru", Asked)
        row = layers.measure_credit("gru", SMALL, LITTLE, Pace())
    assert list(row.seconds) == [EXACT, WINDOWS]
    assert row.ratio(EXACT) == 1.0
    assert asked[0] == {}
    assert asked[-1] == {"credit": bptt.Truncated(every=1, reach=5)}


def test_the_surroundings_are_bounded():
    assert Surroundings(5, 3).h.shape == (5, 3)
    assert Surroundings(10_000, 3).h.shape == (1024, 3)


# ----------------------------------------------------------------------------------------- JAX


def test_without_jax(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert jax_scan.load(1) == (None, "JAX is not installed")


def test_a_jax_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('no\\n jaxlib')")
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NPROC", "7")
    assert jax_scan.load(1) == (None, "JAX cannot be used: no jaxlib")
    assert os.environ["NPROC"] == "7"


@pytest.mark.parametrize("cell", GATES)
def test_jax_computes_the_same(cell):
    pytest.importorskip("jax")
    version, reason = jax_scan.load(1)
    assert version is not None
    assert reason is None
    row = layers.measure_layer(cell, SMALL, LITTLE, Pace(), jax=True)
    assert list(row.seconds) == [OURS, TORCH, JAX]
    assert row.notes == []


# ------------------------------------------------------------------------------ language models


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_models_row(cell):
    shape = ModelShape(cell, 2, vocabulary=30, hidden=6, batch=2, steps=5)
    row = models.measure_model(shape, LITTLE, Pace())
    assert (row.section, row.name, row.shape) == ("model", f"{cell.upper()} 2 layers", "30/6/2/5")
    assert row.tokens == 10
    assert row.flop == shape.flop()
    assert row.losses[OURS] == pytest.approx(row.losses[TORCH], rel=1e-5)
    assert row.notes[0].endswith("they agree")


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.11}, {"clip": 0.01}, {"carried": False}], ids=lambda w: next(iter(w))
)
def test_a_model_that_is_trained_otherwise_does_not_agree(monkeypatch, wrong):
    plain = models.Plain

    def other(like, shape):
        carried = wrong.get("carried", True)
        changed = {k: v for k, v in wrong.items() if k != "carried"}
        return plain(like, ModelShape(**{**vars(shape), **changed}), carried=carried)

    monkeypatch.setattr(models, "Plain", other)
    shape = ModelShape("rnn", 2, vocabulary=30, hidden=6, batch=2, steps=5)
    row = models.measure_model(shape, Effort(rounds=1, turn=0.0), Pace())
    assert row.notes[0].endswith("they DO NOT AGREE")


def test_a_model_is_stopped_before_there_is_anything():
    with pytest.raises(Stopped):
        models.measure_model(TINY, LITTLE, After(2))


def test_a_vocabulary_of_any_size():
    assert [models.tokenizer_of(n).size for n in (2, 30, 1234)] == [2, 30, 1234]


def test_words_are_as_frequent_as_in_texts():
    drawn = models.words(np.random.default_rng(1), 50, 20_000)
    assert drawn.min() == 0
    assert drawn.max() == 49
    first, second = (drawn == 0).mean(), (drawn == 1).mean()
    assert first / second == pytest.approx(2, rel=0.15)


# --------------------------------------------------------------------------------- seed's epoch


@pytest.fixture
def small_seed(monkeypatch):
    monkeypatch.setattr(tutorial, "SEED", ModelShape("rnn", 1, 20, 4, 1, 25, rate=0.005, clip=None))
    monkeypatch.setattr(tutorial, "SENTENCES", 1000)
    monkeypatch.setattr(tutorial, "TURN", 2)


def test_the_seeds_epoch(small_seed):
    epoch = tutorial.measure_seed_epoch(LITTLE, Pace())
    assert {n: count for n, (_, count) in epoch.measured.items()} == {
        OURS: 4,
        TORCH: 4,
        TEXTBOOK: 1,
    }
    assert epoch.seconds(OURS) == pytest.approx(epoch.measured[OURS][0] * 250)
    values = epoch.to_dict()["contenders"]
    assert values[OURS]["is_extrapolated"]
    assert values[TEXTBOOK]["measured_sentences"] == 1


def test_the_seeds_epoch_is_stopped(small_seed):
    epoch = tutorial.measure_seed_epoch(
        LITTLE, After(1)
    )  # asked by the textbook, then after a turn
    assert epoch.measured[OURS][1] == epoch.measured[TORCH][1] == 2
    with pytest.raises(Stopped):
        tutorial.measure_seed_epoch(LITTLE, After(0))


def test_the_seeds_sentences():
    sentences = tutorial.made_up_sentences(2000)
    lengths = [len(s) - 1 for s in sentences]
    assert (min(lengths), max(lengths)) == (1, 49)
    assert sum(lengths) / len(lengths) == pytest.approx(25, rel=0.03)
    assert sentences[0].shape[1:] == (1,)
    assert (SEED.vocabulary, SEED.hidden, SEED.clip) == (8000, 100, None)


# ------------------------------------------------------------------------------------ processor


def test_the_limits(monkeypatch):
    monkeypatch.setattr(processor, "PRODUCTS", (16, 32))
    monkeypatch.setattr(
        processor.kernel_library, "fma_peak", lambda threads, seconds, bf16: 7.0 + bf16
    )
    limits = processor.measure_limits(0.0)
    assert (limits.peak, limits.no_peak) == (7.0, None)
    assert limits.peak_bf16 == (8.0 if bptt.kernels.backend().bf16 else None)
    sizes = [what.rpartition(" ")[2] for what in limits.products]
    assert sizes == ["16", "32", "16", "32"]
    assert limits.products[limits.best] == max(limits.products.values())


def test_no_peak_without_a_library(monkeypatch):
    def no_library(threads, seconds, bf16):
        raise KernelError("there is no library")

    monkeypatch.setattr(processor, "PRODUCTS", (16,))
    monkeypatch.setattr(processor.kernel_library, "fma_peak", no_library)
    limits = processor.measure_limits(0.0)
    assert limits.to_dict()["fma_peak"] == {
        "gflop_per_second": None,
        "not_measured": "there is no library",
        "gflop_per_second_bf16": None,
    }


def test_the_conditions_name_what_runs():
    with bptt.kernels.use("twin"):
        found = processor.conditions("1.2")
    assert (found["backend"], found["isa"], found["jax"]) == ("twin", None, "1.2")
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__


def test_a_fresh_process_begins():
    found = fresh.run_fresh(fresh.beginning, 1, "twin")
    assert found["load"] is None
    assert found["first_call"] > 0
    assert found["later_call"] > 0


def test_what_fails_in_a_fresh_process_is_one_line():
    with pytest.raises(BpttError, match=r"numpy_products failed in a process of its own: .*Error"):
        fresh.run_fresh(fresh.numpy_products, 1, ["x"], 0.0)
