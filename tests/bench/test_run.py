"""A whole run, its tables and its picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bptt._src.bench import jax_scan, jobs, ranks
from bptt._src.bench.figure import draw_bench
from bptt._src.bench.result import (
    ALONE,
    EXACT,
    HEARD,
    IN_PROCESSES,
    JAX,
    LOOK,
    OURS,
    TEXTBOOK,
    TOLD,
    TORCH,
    UPDATE,
    WINDOWS,
)
from bptt._src.bench.shapes import ModelShape, ReadoutShape, Variant
from bptt._src.bench.table import duration, percent, write_bench
from bptt._src.bench.timing import Effort
from bptt._src.report.style import as_picture
from bptt.bench import SECTIONS, Bench, BenchWatch, Limits, Row, SeedEpoch, Shape, Start, bench
from bptt.errors import BpttError, ConfigError

LITTLE = Effort(rounds=2, turn=0.0, steps=2, sentences=2, textbook=1, search=1)
SMALL = Shape(3, 2, 4, 5)


def no_process(situation, cells, shapes, effort, pace):
    """What measure_crowded returns, without another process."""
    times = {ALONE: [0.1], OURS: [0.1], TORCH: [0.2]}
    return [
        Row("threads", f"{c.upper()}, {situation}", str(s), 1, times, base=ALONE)
        for c in cells
        for s in shapes
    ]


def no_processes(shape, effort, pace):
    """What measure_ranks returns, without other processes."""
    names = [ranks.how(who, trained) for who in (OURS, TORCH) for trained in IN_PROCESSES]
    times = {name: [0.1 * (1 + n % 4)] for n, name in enumerate(names)}
    return Row("ranks", shape.name, str(shape), 1, times, tokens=4, base=names[0])


def no_fresh_memory(cells, shapes, threads, effort, pace):
    """What measure_memory returns, without other processes."""
    times, faults = {OURS: [0.1], TORCH: [0.3]}, {OURS: 0, TORCH: 4321}
    return [
        Row("memory", c.upper(), str(s), 1, times, faults=faults) for c in cells for s in shapes
    ]


@pytest.fixture
def small(monkeypatch):
    """Everything that a run measures, tiny, and without other processes."""
    tiny = ModelShape("rnn", 1, vocabulary=20, hidden=4, batch=1, steps=4)
    monkeypatch.setattr(jobs, "MODELS", (tiny,))
    monkeypatch.setattr(jobs, "SHAPES", (SMALL,))
    monkeypatch.setattr(jobs, "ACTING", (SMALL,))
    monkeypatch.setattr(jobs, "WRITERS", (replace(tiny, cell="lstm"),))
    monkeypatch.setattr(jobs, "READERS", (replace(tiny, cell="lstm"),))
    monkeypatch.setattr(jobs, "READOUTS", (ReadoutShape(3, hidden=4, vocabulary=9),))
    monkeypatch.setattr(jobs, "VARIANTS", (Variant("gru", SMALL, "float16"),))
    monkeypatch.setattr("bptt._src.bench.generation.READ", 9)
    monkeypatch.setattr("bptt._src.bench.tutorial.SEED", tiny)
    monkeypatch.setattr("bptt._src.bench.search.RANGES", ((2, 4), (1, 3), (1, 9), (6, 9)))
    monkeypatch.setattr(jobs, "measure_limits", lambda seconds: Limits(10.0, None, {"mm 8": 5.0}))
    monkeypatch.setattr(jobs, "measure_start", lambda: Start(None, 2.0, 1.0))
    monkeypatch.setattr(jobs.crowded, "measure_crowded", no_process)
    monkeypatch.setattr(jobs, "measure_ranks", no_processes)
    monkeypatch.setattr(jobs.memory, "measure_memory", no_fresh_memory)
    monkeypatch.setattr(jobs.platform, "libc_ver", lambda: ("glibc", "2"))
    monkeypatch.setattr(jobs.sharing, "processors_to_choose", lambda: [0, 1])
    monkeypatch.setattr(jax_scan, "load", lambda threads: (None, "JAX is not installed"))


OLDER = ("kernels", "model", "credit", "sight", "ranks")


def parts(found):
    there = [
        *(row.section for row in found.rows),
        *["seed"] * (found.seed_epoch is not None),
        *["start"] * (found.start is not None),
    ]
    return [section for section in SECTIONS if section in there]


def test_everything_is_measured(small):
    found = bench(effort=LITTLE)
    assert parts(found) == list(SECTIONS)
    layers = ["RNN", "GRU", "LSTM"]
    rows = [row.name for row in found.rows if row.section in OLDER]
    assert rows == [*layers, "RNN", *layers, "RNN", "RNN"]
    crowded = [f"{row.name} {row.shape}" for row in found.rows if row.section == "threads"]
    assert crowded == [
        f"LSTM, {situation} {shape}"
        for situation in ("2 threads on 1", "4 threads on 2", "2 threads on 2, 1 busy")
        for shape in ("200/64/64/64", "20/1/100/100")
    ]
    assert found.notes == ["JAX is not installed"]
    assert not found.interrupted
    assert found.conditions["rounds"] == 2


@pytest.mark.parametrize("section", SECTIONS)
def test_only_a_part(small, section):
    assert parts(bench(only=[section], effort=LITTLE)) == [section]


def test_shapes_and_cells(small):
    shapes = [Shape(2, 1, 3, 3), Shape(2, 1, 3, 4)]
    found = bench(shapes=shapes, cells=["lstm", "rnn"], only=["kernels"], effort=LITTLE)
    assert [f"{row.name} {row.shape}" for row in found.rows] == [
        "RNN 2/1/3/3",
        "RNN 2/1/3/4",
        "LSTM 2/1/3/3",
        "LSTM 2/1/3/4",
    ]


def test_the_threads_part_takes_shapes_and_cells_too(small):
    found = bench(shapes=[SMALL], cells=["gru"], only=["threads"], effort=LITTLE)
    assert [f"{row.name} {row.shape}" for row in found.rows] == [
        "GRU, 2 threads on 1 3/2/4/5",
        "GRU, 4 threads on 2 3/2/4/5",
        "GRU, 2 threads on 2, 1 busy 3/2/4/5",
    ]


def test_where_there_are_too_few_processors_a_line_says_so(small, monkeypatch):
    monkeypatch.setattr(jobs.sharing, "processors_to_choose", lambda: [3])
    found = bench(only=["threads"], effort=LITTLE)
    assert {row.name for row in found.rows} == {"LSTM, 2 threads on 1"}
    assert found.notes[1:] == [
        "4 threads on 2: not measured, this process may run on 1 only",
        "2 threads on 2, 1 busy: not measured, this process may run on 1 only",
    ]
    monkeypatch.setattr(jobs.sharing, "processors_to_choose", list)
    found = bench(only=["threads"], effort=LITTLE)
    assert not found.rows
    assert found.notes[1].startswith("threads: not measured, this system")


def test_threads_are_set_for_the_run_alone(small, monkeypatch):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    found = bench(only=["start"], threads=other, effort=LITTLE)
    assert found.conditions["threads"] == other
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cells": ["tree"]}, "cell must be one of rnn, gru, lstm, got 'tree'"),
        (
            {"only": ["all"]},
            "only must be one of " + ", ".join(SECTIONS),
        ),
        ({"threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"threads": 2, "only": ["threads"]}, "threads has no effect on threads, with numbers"),
        ({"only": ["seed"], "cells": ["rnn"]}, "cell has no effect on seed: leave it out, or add"),
        ({"only": ["model", "credit"], "shapes": [Shape(1, 1, 1, 1)]}, "shape has no effect on"),
    ],
)
def test_what_cannot_be_measured(given, said):
    with pytest.raises(ConfigError, match=said):
        bench(**given)


def test_it_tells_how_it_goes(small):
    told = []

    class Telling(BenchWatch):
        def begun(self, what, number, jobs):
            told.append((what, number, jobs))

        def done(self, share):
            told.append(share)

    bench(cells=["gru"], only=["kernels"], effort=LITTLE, watch=Telling())
    assert told == [("the processor's limits", 0, 2), ("GRU 3/2/4/5", 1, 2), 0.5, 1.0]


@pytest.mark.parametrize(("asked", "rows", "rounds"), [(0, 0, 0), (2, 1, 1), (3, 1, 2), (4, 2, 1)])
def test_stopped_it_gives_what_there_is(small, asked, rows, rounds):
    left = iter([None] * asked)  # before each measurement it is asked, and after each round
    found = bench(only=["kernels"], effort=LITTLE, stop=lambda: next(left, "Ctrl-C"))
    assert found.interrupted
    assert len(found.rows) == rows
    if rows:
        assert len(found.rows[-1].seconds[OURS]) == rounds
    write_bench(found)


# --------------------------------------------------------------------------- tables and pictures


@pytest.fixture
def found():
    """One of everything."""
    shape = Shape(35, 20, 650, 650)
    about = {
        "processor": "A Processor",
        "processors": 4,
        "load": 0.0,
        "threads": 2,
        "kernels": "native kernels, avx2, 2 threads",
        "backend": "native",
        "isa": "avx2",
        "bptt": "1",
        "torch": "2",
        "numpy": "3",
        "jax": "4",
        "python": "5",
        "system": "Linux-6",
        "rounds": 2,
    }
    layer = {OURS: [0.01, 0.02], TORCH: [0.02, 0.06], JAX: [0.03, 0.03]}
    model = {OURS: [0.1, 0.1], TORCH: [0.4, 0.4]}
    losses = {OURS: 9.0, TORCH: 9.0}
    sight = {UPDATE: [0.1] * 3, HEARD: [0.11, 0.12, 0.1], TOLD: [0.001] * 3, LOOK: [0.3] * 3}
    crowded = {ALONE: [0.1, 0.1], OURS: [0.11, 0.13], TORCH: [0.2, 0.4]}
    return Bench(
        about,
        Limits(200.0, None, {"torch.mm 1024": 120.0, "NumPy (blas) 2048": 150.0}),
        [
            Row("kernels", "GRU", str(shape), shape.flop("gru"), layer),
            Row("kernels", "LSTM", str(shape), shape.flop("lstm"), layer, ["a note"]),
            Row("model", "LSTM 2 layers", "10000/650/20/35", 10**9, model, [], 700, losses),
            Row("credit", "RNN", "35/20/200/200", None, {EXACT: [0.1], WINDOWS: [0.3]}, base=EXACT),
            Row("sight", "RNN", "8000/100/1/20", None, sight, tokens=20, base=UPDATE),
            Row("threads", "LSTM, 2 threads on 1", "3/2/4/5", 1, crowded, base=ALONE),
            *no_fresh_memory(["rnn"], ["7/7/7/7"], 1, None, None),
        ],
        SeedEpoch(79_000, {OURS: (2.0, 2000), TORCH: (3.0, 79_000), TEXTBOOK: (5.0, 5)}),
        Start(1.5, 2.5, 0.5),
    )


def test_the_tables(found):
    text = write_bench(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "\n\n\n" not in text
    assert "A Processor, 4 processors; 2 threads for everyone." in text
    assert "bptt 1: native kernels, avx2, 2 threads." in text
    assert "torch 2, NumPy 3, JAX 4, Python 5; Linux." in text
    assert "Fused multiply-adds at most: 200 GFLOP/s." in text
    assert "matrix product: 150 GFLOP/s, 75% of it, NumPy (blas) 2048." in text
    lines = [line.split() for line in text.splitlines()]
    layer = next(line for line in lines if line[:1] == ["GRU"])
    assert layer[1:5] == ["35/20/650/650", "15.0", "40.0", "30.0"]
    assert layer[-2:] == ["2.50", "2.25"]  # medians of 2 and 3, of 3 and 1.5
    model = next(line for line in lines if "10000/650/20/35" in line)
    assert model[-3:] == ["4.00", "7,000", "1,750"]
    assert next(line for line in lines if "35/20/200/200" in line)[2:] == ["100", "300", "3.00"]
    sight = next(line for line in lines if "8000/100/1/20" in line)
    assert sight[-5:] == [
        "100",
        "110",
        "1.00",
        "300",
        "2.6%",
    ]  # 1 / 100, 10 / 10 / 100, 300 / 500 / 100
    crowded = next(line for line in lines if "3/2/4/5" in line)
    assert crowded[-6:] == ["3/2/4/5", "100", "120", "300", "1.20", "3.00"]
    memory = next(line for line in lines if "7/7/7/7" in line)
    assert memory[-5:] == ["100", "300", "3.00", "0", "4,321"]
    assert "bptt       1.3 min (extrapolated from 2,000 sentences)" in text
    assert "torch.nn     3.0 s, 0.0380 times bptt (all of it run)" in text
    assert "textbook    21.9 h, 1,000 times bptt (extrapolated from 5 sentences)" in text
    assert "1.50 ms to load; the first training step" in text
    assert "a note." in text
    assert "busy" not in text


def test_on_a_narrow_terminal(found):
    text = write_bench(found, 80)
    assert max(map(len, text.splitlines())) <= 80
    layer = next(line for line in text.splitlines() if line.strip().startswith("GRU"))
    assert "…" not in layer
    assert "GF/s" not in text.partition("GRU")[0].partition("shape ")[2]


def test_without_a_peak_without_jax_on_a_busy_machine(found):
    found.limits = Limits(None, "there is no library", {"torch.mm 1024": 120.0})
    found.rows = [Row("kernels", "RNN", "1/1/1/1", 12, {OURS: [1.0], TORCH: [2.0]})]
    found.start = Start(None, 2.0, 1.0)
    found.conditions |= {"load": 1.7, "jax": None}
    text = write_bench(found)
    assert "Fused multiply-adds at most: not measured, there is no library." in text
    assert "%" not in text
    assert "JAX" not in text
    assert "The machine was busy when this began (load 1.7)" in text
    assert "no library is loaded" in text


def test_json_has_everything_and_its_units(found):
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    row = values["rows"][0]["contenders"][TORCH]
    assert row["milliseconds"] == 40.0
    assert row["milliseconds_of_rounds"] == [20.0, 60.0]
    assert row["ratio"] == 2.5
    assert row["share_of_peak"] == pytest.approx(row["gflop_per_second"] / 200)
    assert values["limits"]["matrix_product"]["what"] == "NumPy (blas) 2048"
    assert values["seed_epoch"]["contenders"][TORCH]["is_extrapolated"] is False
    assert values["start"]["load_milliseconds"] == 1.5
    used = {"milliseconds", "flop", "gflop_per_second", "share_of_peak", "ratio", "shape", "loss"}
    assert used <= set(values["units"])


def test_the_picture(found):
    figure = draw_bench(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["GRU, T/B/I/H", "LSTM, T/B/I/H", "Language model, V/H/B/T", ""]
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["15.0 ms", "40.0 ms", "30.0 ms", "large product", "peak"]
    first = figure.axes[0].patches[0]
    assert first.get_width() == pytest.approx(found.rows[0].gflops(OURS))
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert as_picture(figure, kind).startswith(begins)


def test_no_picture_of_nothing(found):
    found.rows = found.rows[-1:]
    with pytest.raises(BpttError, match="measure the parts kernels or model"):
        draw_bench(found)


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.04, "3.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (3.6e7, "10,000.0 h")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_shares():
    assert [percent(v) for v in (None, 0.0123, 0.0994, 0.5)] == ["-", "1.2%", "9.9%", "50%"]
