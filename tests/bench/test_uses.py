"""What else is measured of layers and language models, on small ones. No time is ever compared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bptt._src.bench import generation, layers, models, uses
from bptt._src.bench.result import CELL, CONVERTED, IN_BF16, OURS, TORCH
from bptt._src.bench.shapes import GATES, ModelShape, ReadoutShape, Shape, Variant
from bptt._src.bench.timing import Effort, Pace
from bptt.kernels import backend

LITTLE = Effort(rounds=2, turn=0.0, steps=3)
SMALL = Shape(2, 3, 4, 6)
READOUT = ReadoutShape(5, hidden=6, vocabulary=30)
WRITER = ModelShape("lstm", 2, vocabulary=30, hidden=6, batch=1, steps=8)
BOTH = 1 + backend().bf16
"""Rows of a case: of float32, and of bfloat16 where the kernels multiply in it."""


def in_bf16(*names):
    return [IN_BF16[name] for name in names]


# ------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("cell", GATES)
def test_a_layers_row_in_bf16(cell):
    row = layers.measure_layer_in_bf16(cell, SMALL, LITTLE, Pace())
    assert list(row.seconds) == [*in_bf16(OURS, TORCH), OURS]
    assert (row.section, row.base, row.flop) == ("bf16", IN_BF16[OURS], SMALL.flop(cell))
    assert row.is_bf16
    assert row.name_of(TORCH) == IN_BF16[TORCH]
    assert not row.notes


def test_a_models_row_in_bf16():
    shape = ModelShape("gru", 1, vocabulary=30, hidden=6, batch=2, steps=5)
    row = models.measure_model_in_bf16(shape, LITTLE, Pace())
    assert list(row.seconds) == list(row.losses) == [*in_bf16(OURS, TORCH), OURS]
    assert row.notes[0].endswith("they agree")


def test_models_that_are_trained_otherwise_do_not_agree(monkeypatch):
    monkeypatch.setattr(models, "AGREES_BF16", 0.0)
    shape = ModelShape("rnn", 1, vocabulary=30, hidden=6, batch=2, steps=5)
    assert models.measure_model_in_bf16(shape, LITTLE, Pace()).notes[0].endswith("DO NOT AGREE")


@pytest.mark.skipif(not backend().bf16, reason="the kernels have no products of bfloat16")
def test_a_models_products_are_of_bfloat16():
    """Else the row would compare float32 with itself."""
    shape = ModelShape("lstm", 1, vocabulary=50, hidden=32, batch=4, steps=5)
    torch.manual_seed(0)
    ours, low = models.Ours(shape), models.Ours(shape, bf16=True)
    low.model.load_state_dict(ours.model.state_dict())
    plain = models.Plain(ours.model, shape, bf16=True)
    (batch,) = models.synthetic_batches(shape, 1)
    exact = ours(*batch)
    for loss in (low(*batch), plain(*batch)):
        assert loss != exact
        assert loss == pytest.approx(exact, rel=1e-3)


# ------------------------------------------------------------------- few rows, readouts, variants


def test_rows_of_acting():
    rows = uses.measure_acting("lstm", SMALL, LITTLE, Pace())
    assert [list(row.seconds) for row in rows] == [
        [OURS, TORCH, CELL],
        [*in_bf16(OURS, TORCH, CELL), *CONVERTED.values()],
    ][:BOTH]
    assert [row.name for row in rows] == ["LSTM", "LSTM bf16"][:BOTH]
    assert 3 * rows[0].flop == SMALL.flop("lstm")
    assert not any(row.notes for row in rows)


def test_a_readouts_rows():
    rows = uses.measure_readout(READOUT, LITTLE, Pace())
    assert [list(row.seconds) for row in rows] == [[OURS, TORCH], in_bf16(OURS, TORCH)][:BOTH]
    assert not any(row.notes for row in rows)
    assert rows[0].shape == "30/6/5"


def test_a_readouts_operations_are_those_that_torch_counts():
    h, w = torch.randn(5, 6, requires_grad=True), torch.randn(30, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        uses._plain_loss(h, w, torch.zeros(30), torch.arange(5)).backward()
    assert READOUT.flop == counted.get_total_flops()


def test_a_readout_that_loses_a_gradient_is_not_timed(monkeypatch):
    def wrong(hidden, weight, bias, targets):
        return uses._plain_loss(hidden, weight, bias.detach() + 0 * bias, targets)

    monkeypatch.setattr(uses, "linear_cross_entropy", wrong)
    row = uses.measure_readout(READOUT, LITTLE, Pace())[0]
    assert list(row.seconds) == [TORCH]
    assert row.notes[0].startswith("readout 30/6/5: bptt is not timed, it is 1 away")


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant("lstm", SMALL, projection=5), "LSTM proj 5"),
        (Variant("gru", SMALL, "float16"), "GRU weights float16"),
        (Variant("lstm", SMALL, "bfloat16"), "LSTM weights bf16"),
    ],
)
def test_a_variants_row(variant, name):
    (row,) = uses.measure_variant(variant, LITTLE, Pace())
    assert list(row.seconds) == [row.name_of(OURS), row.name_of(TORCH)]
    assert (row.name, row.notes) == (name, [])
    assert row.is_bf16 == (variant.dtype == "bfloat16")
    assert row.ratio(row.name_of(TORCH))


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projections_operations_are_those_that_torch_counts():
    T, B, I, H, P = 7, 3, 4, 6, 5
    x = torch.randn(T, B, I, requires_grad=True)
    state = [torch.zeros(1, B, n, requires_grad=True) for n in (P, H)]
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counted:
        nn.LSTM(I, H, proj_size=P)(x, tuple(state))[0].sum().backward()
    variant = Variant("lstm", Shape(T, B, I, H), projection=P)
    assert variant.flop == counted.get_total_flops()
    assert Variant("gru", SMALL, "float16").flop == SMALL.flop("gru")


# ---------------------------------------------------------------------------- writing and reading


def test_a_writers_row():
    row = generation.measure_writing(WRITER, LITTLE, Pace())
    assert (row.section, row.tokens, row.flop) == ("sampling", 8, None)
    assert list(row.seconds) == [OURS, TORCH]
    assert not row.notes


def test_who_writes_something_else_is_told(monkeypatch):
    class Other(generation.CellWriter):
        def write(self, length, *, draws=True):
            return [3] * length

    monkeypatch.setattr(generation, "CellWriter", Other)
    (note,) = generation.measure_writing(WRITER, LITTLE, Pace()).notes
    assert note == "LSTM 2 layers 30/6/1/8: bptt and torch.nn DO NOT WRITE THE SAME"


def test_a_writer_draws_by_the_models_probabilities():
    torch.manual_seed(0)
    model = models.Ours(WRITER).model
    with torch.no_grad():
        model.readout.weight.zero_()
        model.readout.bias.fill_(-math.inf)
        model.readout.bias[[4, 7]] = torch.tensor([0.75, 0.25]).log()
    drawn = generation.CellWriter(model, WRITER).write(400)
    assert {*drawn} == {4, 7}
    assert drawn.count(4) == pytest.approx(300, abs=40)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_readers_row(monkeypatch, streams):
    monkeypatch.setattr(generation, "READ", 24)
    shape = ModelShape("lstm", 1, vocabulary=30, hidden=6, batch=streams, steps=7)
    row = generation.measure_reading(shape, LITTLE, Pace())
    assert (row.section, row.tokens) == ("evaluation", 24)
    assert row.losses[OURS] == pytest.approx(row.losses[TORCH], rel=1e-6)
    assert row.notes[0].endswith("they agree")


def test_who_reads_otherwise_does_not_agree(monkeypatch):
    monkeypatch.setattr(generation, "READ", 23)
    monkeypatch.setattr(generation, "_read", lambda model, ids, shape: 9.0)
    shape = ModelShape("lstm", 1, vocabulary=30, hidden=6, batch=1, steps=7)
    assert generation.measure_reading(shape, LITTLE, Pace()).notes[0].endswith("DO NOT AGREE")
