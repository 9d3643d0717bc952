"""The search among random shapes, on small ones. No time is ever compared."""

from __future__ import annotations

import pytest
import torch

from bptt._src.bench import layers, search
from bptt._src.bench.result import CELL, CONVERTED, IN_BF16, OURS, TORCH, Row
from bptt._src.bench.search import Case, compared, draw_cases, measure_search, summaries
from bptt._src.bench.shapes import GATES, Shape
from bptt._src.bench.table import write_bench
from bptt._src.bench.timing import Effort, Pace
from bptt.bench import Bench
from bptt.errors import ConfigError
from bptt.kernels import backend

LITTLE = Effort(rounds=2, turn=0.0, search=3)
FP32, BF16 = [OURS, TORCH], [IN_BF16[OURS], IN_BF16[TORCH]]
has_bf16 = pytest.mark.skipif(not backend().bf16, reason="the kernels have no products of bf16")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(search, "RANGES", ((2, 5), (1, 3), (1, 9), (6, 9)))


# ----------------------------------------------------------------------------------------- cases


def test_cases_are_drawn_by_a_seed():
    few, many = draw_cases(5, (), 1), draw_cases(50, (), 1)
    assert few == many[:5]
    assert draw_cases(5, (), 2) != few
    assert {case.cell for case in many} == {*GATES}
    assert {case.trains for case in many} == {True, False}
    assert {case.cell for case in draw_cases(9, ["gru"], 1)} == {"gru"}


def test_cases_are_log_uniform_and_affordable():
    cases = draw_cases(300, (), 0)
    for case in cases:
        sizes = (case.shape.steps, case.shape.batch, case.shape.inputs, case.shape.hidden)
        assert all(low <= n <= high for n, (low, high) in zip(sizes, search.RANGES, strict=True))
        assert case.flop <= search.MOST_FLOP
    # Half of all logarithms up to that of 1000 are below that of 32; large cases are left out.
    assert 0.45 < sum(case.shape.steps < 32 for case in cases) / 300 < 0.7
    assert min(case.shape.hidden for case in cases) == 6


def test_a_forward_pass_makes_a_third_of_the_products():
    shape = Shape(7, 3, 4, 6)
    assert 3 * Case("gru", shape, False).flop == Case("gru", shape, True).flop == shape.flop("gru")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"search": 0}, "search must be"), ({"seed": -1}, "seed must be at least 0")],
)
def test_no_search(given, said):
    with pytest.raises(ConfigError, match=said):
        Effort(**given)


# ------------------------------------------------------------------------------------ contenders


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_all_compute_the_same(cell, trains, steps):
    """In bfloat16 too, wherever it is computed: there its own bound holds."""
    given = {"trains": trains, "bf16": True, "steps": 3}
    contenders = layers.contenders_of(cell, Shape(steps, 2, 4, 6), **given)
    right, notes = layers.agreeing(contenders, reference=TORCH)
    converted = () if trains else CONVERTED.values()
    assert [*right] == [OURS, TORCH, CELL, *IN_BF16.values(), *converted]
    assert not notes


def test_the_cell_is_there_for_few_steps_only():
    given = {"trains": False, "bf16": False, "steps": 2}
    assert list(layers.contenders_of("rnn", Shape(3, 2, 4, 6), **given)) == [OURS, TORCH]


@has_bf16
def test_bfloat16_is_computed_in_it():
    """Not so exactly as float32, gradients of float32 neither: else nothing would be compared."""
    given = {"trains": True, "bf16": True, "steps": 0}
    found = layers.contenders_of("lstm", Shape(10, 4, 40, 16), **given)
    exact = found[TORCH].found()[1:]
    for name in BF16:
        assert 1e-4 < layers.distance(found[name].found()[1:], exact) < 0.05


def test_a_forward_pass_goes_on_from_its_state():
    contender = layers.contenders_of("lstm", Shape(1, 2, 4, 6), trains=False, bf16=False, steps=1)[
        OURS
    ]
    (first,) = contender.found()
    contender()
    h, _ = contender.state
    assert not torch.equal(h[0], first[0])
    assert torch.equal(contender.found()[0], first)
    assert not h.requires_grad


# ------------------------------------------------------------------------------------------ rows


def test_each_case_is_a_row_for_each_dtype(small):
    rows = measure_search(["lstm"], LITTLE, Pace())
    names = [[OURS, TORCH], BF16][: 1 + backend().bf16]
    found = [[n for n in row.seconds if n not in CONVERTED.values()] for row in rows]
    assert found == names * 3
    assert {row.section for row in rows} == {"search"}
    assert all(row.notes == [] for row in rows)


def test_who_computes_something_else_is_told(small, monkeypatch):
    monkeypatch.setattr(layers, "AGREES", -1.0)
    rows = measure_search(["rnn"], Effort(rounds=1, turn=0.0, search=1), Pace())
    assert compared([row for row in rows if row.base == OURS]) == []
    assert rows[0].notes[0].endswith("away from torch.nn")


def test_close_cases_are_measured_again_for_longer(small, monkeypatch):
    turns = []

    def turn(contenders, effort, pace):
        turns.append(effort.turn)
        return {name: [2.0 if name in (OURS, IN_BF16[OURS]) else 3.0] for name in contenders}

    monkeypatch.setattr(search, "take_turns", turn)
    measure_search([], Effort(turn=1.0, search=2), Pace())
    assert turns == [search.LOOK] * 2
    turns.clear()
    monkeypatch.setattr(search, "CLOSE", 1.6)
    measure_search([], Effort(turn=1.0, search=2), Pace())
    assert turns == [search.LOOK, search.AGAIN] * 2


def test_it_is_stopped_between_cases(small):
    shares = []

    class After(Pace):
        def stopped(self):
            return bool(shares)

        def done(self, share):
            shares.append(share)

    rows = measure_search(["gru"], LITTLE, After())
    assert len(rows) == 1 + backend().bf16
    assert shares == [1 / 3]


# ---------------------------------------------------------------------------------------- tables


def row(name, ours, *peers, base=OURS):
    times = dict(zip((TORCH, CELL), ([p] for p in peers), strict=False))
    return Row("search", name, "1/2/3/6", 1, {base: [ours], **times}, base=base)


ROWS = [
    row("RNN training", 1.0, 2.0),
    row("GRU training", 2.0, 3.0, 1.0),
    row("GRU training bf16", 4.0, 5.0, base=IN_BF16[OURS]),
    row("LSTM training", 1.0, 3.0),
    Row("search", "RNN forward", "1/2/3/6", 1, {TORCH: [1.0]}),
]


def test_the_fastest_peer_counts():
    assert [r.name for r in compared(ROWS)] == [
        "GRU training",
        "GRU training bf16",
        "RNN training",
        "LSTM training",
    ]
    assert search.fastest_peer(ROWS[1]) == CELL
    assert search.against_fastest(ROWS[1]) == 0.5


def test_sums_are_of_each_kind():
    sums = [(s.name, s.cases, s.median, s.below) for s in summaries(ROWS)]
    assert sums == [("training, float32", 3, 2.0, 1), ("training, bfloat16", 1, 1.25, 0)]


def test_the_worst_are_printed_first():
    c = {"processor": "A", "processors": 1, "load": 0.0, "threads": 1, "rounds": 1, "jax": None}
    c |= dict.fromkeys(("bptt", "kernels", "torch", "numpy", "python", "system"), "x")
    text = write_bench(Bench(c, rows=ROWS))
    assert max(map(len, text.splitlines())) <= 100
    lines = [line.split() for line in text.splitlines()]
    assert ["training,", "float32", "3", "2.00", "1"] in lines
    worst = next(n for n, line in enumerate(lines) if line[:2] == ["GRU", "training"])
    assert lines[worst][-5:] == ["-", "1,000", "0.500", "torch.nn", "cell"]
    assert lines[worst + 1][:3] == ["GRU", "training", "bf16"]
