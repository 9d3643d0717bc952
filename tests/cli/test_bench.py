"""``bptt bench`` as a user runs it, on tiny shapes; in this process, where it starts faster."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bptt._src.bench import jax_scan
from bptt._src.bench import jobs as everything
from bptt._src.bench.shapes import ModelShape, ReadoutShape, Shape, Variant
from bptt._src.cli import bench as command
from bptt._src.cli.bench import BenchDisplay
from bptt.bench import Limits, Start
from bptt.bench import bench as real_bench

SMALL = ["--shape", "5/2/3/4", "--rounds", "1", "--quick"]
ALL_SMALL = ["--rounds", "1", "--quick", "--sentences", "2"]
ONE_ROUND = ["--rounds", "1", "--quick"]


@pytest.fixture
def run(monkeypatch):
    """The module that goes through it all, with tiny jobs and no limits to measure."""
    tiny = ModelShape("rnn", 1, vocabulary=20, hidden=4, batch=1, steps=4)
    monkeypatch.setattr(everything, "MODELS", (tiny,))
    for name in ("SHAPES", "ACTING"):
        monkeypatch.setattr(everything, name, (Shape(3, 2, 4, 5),))
    for name in ("WRITERS", "READERS"):
        monkeypatch.setattr(everything, name, (replace(tiny, cell="lstm"),))
    monkeypatch.setattr(everything, "READOUTS", (ReadoutShape(3, hidden=4, vocabulary=9),))
    monkeypatch.setattr(everything, "VARIANTS", (Variant("gru", Shape(3, 2, 4, 5), "float16"),))
    monkeypatch.setattr("bptt._src.bench.generation.READ", 9)
    monkeypatch.setattr("bptt._src.bench.tutorial.SEED", tiny)
    monkeypatch.setattr("bptt._src.bench.search.RANGES", ((2, 4), (1, 3), (1, 9), (6, 9)))
    monkeypatch.setattr(
        everything, "measure_limits", lambda seconds: Limits(10.0, None, {"mm 8": 5.0})
    )
    monkeypatch.setattr(everything, "measure_start", lambda: Start(None, 2.0, 1.0))
    monkeypatch.setattr(everything.platform, "libc_ver", lambda: ("", ""))  # none for memory
    monkeypatch.setattr(everything.os, "cpu_count", lambda: 1)  # too few for the part ranks
    monkeypatch.setattr(
        everything.sharing, "processors_to_choose", list
    )  # none for the part threads
    monkeypatch.setattr(jax_scan, "load", lambda threads: (None, "JAX is not installed"))
    return everything


@pytest.fixture
def bptt(run, tmp_path, monkeypatch, in_process):
    """Run the command; give what it printed."""
    monkeypatch.chdir(tmp_path)
    return partial(in_process, "bench")


@pytest.fixture
def fails(bptt, run, monkeypatch):
    """Run a command that fails, before anything is measured."""
    monkeypatch.setattr(run, "measure_limits", lambda seconds: pytest.fail("it was measured"))

    def call(*arguments):
        out, err = bptt(*arguments, status=1)
        assert not out
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: ")
        return err

    return call


def measured(bptt, *arguments):
    bptt(*arguments, "--json", "found.json")
    return json.loads(Path("found.json").read_text(encoding="utf-8"))


def names(found):
    return [f"{row['section']} {row['name']} {row['shape']}" for row in found["rows"]]


def test_the_tables(bptt):
    out, err = bptt(*ALL_SMALL)
    assert not err
    assert "Fused multiply-adds at most: 10 GFLOP/s." in out
    assert "A training step of a layer" in out
    assert "A training step of a whole language model" in out
    assert "A window of 5 steps behind each loss" in out
    assert "seed epoch" in out
    assert "In a fresh process" in out
    assert "JAX is not installed." in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_shape_alone_means_layers(bptt):
    found = measured(bptt, *SMALL, "--shape", "2/1/3/3")
    assert names(found) == [
        f"kernels {cell} {shape}"
        for cell in ("RNN", "GRU", "LSTM")
        for shape in ("5/2/3/4", "2/1/3/3")
    ]
    assert found["seed_epoch"] is None
    assert found["start"] is None


def test_a_cell_alone_means_layers(bptt):
    assert names(measured(bptt, "--cell", "gru", *ONE_ROUND)) == ["kernels GRU 3/2/4/5"]


def test_search_alone_means_random_shapes(bptt):
    found = measured(bptt, "--search", 2, "--cell", "gru", "--seed", 3, *ONE_ROUND)
    assert found["conditions"]["search"] == 2
    drawn = names(found)
    assert drawn[0].startswith("search GRU")
    assert len({name.rpartition(" ")[2] for name in drawn}) == 2
    assert names(measured(bptt, "--search", 2, "--cell", "gru", "--seed", 4, *ONE_ROUND)) != drawn


def test_parts(bptt):
    found = measured(bptt, *ONE_ROUND, "--only", "credit", "--only", "start", "--cell", "lstm")
    assert names(found) == ["credit LSTM 3/2/4/5"]
    assert found["start"] == {
        "load_milliseconds": None,
        "first_call_milliseconds": 2.0,
        "later_call_milliseconds": 1.0,
    }


def test_rounds_threads_and_sentences(bptt):
    before = torch.get_num_threads()
    found = measured(bptt, "--quick", "--rounds", 2, "--threads", 1, "--only", "model")
    assert found["conditions"]["threads"] == 1
    assert torch.get_num_threads() == before
    times = [c["milliseconds_of_rounds"] for c in found["rows"][0]["contenders"].values()]
    assert list(map(len, times)) == [2, 2]
    found = measured(bptt, "--quick", "--sentences", 3, "--only", "seed")
    assert found["seed_epoch"]["contenders"]["bptt"]["measured_sentences"] == 3


def test_quick_is_less(bptt, run, monkeypatch):
    efforts = []
    monkeypatch.setattr(command, "bench", _note(efforts, run))
    bptt("--only", "start")
    bptt("--only", "start", "--quick")
    usual, quick = efforts
    assert (usual.rounds, usual.sentences, usual.steps) == (15, 2000, 20)
    assert quick.rounds < usual.rounds
    assert quick.turn < usual.turn
    assert quick.sentences < usual.sentences
    assert quick.steps == usual.steps


def _note(efforts, run):
    def bench(**options):
        efforts.append(options["effort"])
        return real_bench(**options)

    return bench


def test_the_files(bptt, tmp_path):
    out, _ = bptt(*SMALL, "--json", "a.json", "--figure", "a.png")
    assert out.endswith("Written: a.json and a.png.\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["what"] == "bptt bench"
    assert found["units"]["gflop_per_second"]
    bptt(*SMALL, "--figure", "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.png", "a.svg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "1/2/3"], "--shape 1/2/3: give T/B/I/H"),
        (["--cell", "tree"], "--cell must be one of rnn, gru, lstm, got 'tree'"),
        (["--only", "all"], "--only must be one of kernels, model, bf16, acting, sampling"),
        (["--only", "ranks", "--threads", "2"], "--threads has no effect on ranks"),
        (["--threads", "0"], "--threads must be from 1 to 1024, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--sentences", "0"], "--sentences must be at least 1, got 0"),
        (["--search", "0"], "--search must be at least 1, got 0"),
        (["--search", "9", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--search", "9", "--shape", "1/2/3/4"], "--shape has no effect on search: leave it out"),
        (["--cell", "rnn", "--seed", "1"], "--seed has no effect on kernels: leave it out, or add"),
        (["--json", "."], "--json . is a directory: give a file in it"),
        (["--json", "no/a.json"], "--json no/a.json: make the directory no first"),
        (["--figure", "a.jpg"], "--figure a.jpg: expected a name that ends in .png, .svg or .pdf"),
        (["--json", "a.svg", "--figure", "a.svg"], "--json and --figure are the same file, a.svg"),
        (["--only", "seed", "--figure", "a.svg"], "--figure has no effect on seed: leave it out"),
        (["--only", "seed", "--rounds", "2"], "--rounds has no effect on seed: leave it out"),
        (["--shape", "1/2/3/4", "--sentences", "2"], "--sentences has no effect on kernels"),
    ],
)
def test_what_cannot_be(fails, arguments, said):
    assert said in fails(*arguments)


def test_what_cannot_be_written(fails, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "--json a.json cannot be written" in fails("--json", "a.json")


def test_kernels_that_are_not_to_be_had(fails):
    """What is asked for by name runs, or the reason is said."""
    import bptt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules["bptt._src.engines.backend"]._choice, "name", None)
        patched.setenv("BPTT_KERNELS", "sse2")
        assert "BPTT_KERNELS must be one of auto, native, twin" in fails(*SMALL)
    assert bptt.kernels.backend().threads


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_prints_what_is_there(bptt, run, monkeypatch, tmp_path, sent, status):
    measure = run.measure_layer

    def then_stop(*arguments, **options):
        row = measure(*arguments, **options)
        signal.raise_signal(sent)
        return row

    monkeypatch.setattr(run, "measure_layer", then_stop)
    out, err = bptt(*SMALL, "--json", "found.json", status=status)
    assert not err
    assert out.startswith("Interrupted; what was measured until then:")
    assert " RNN" in out
    assert " GRU" not in out
    assert "medians over at most 1 rounds" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["interrupted"]
    assert names(found) == ["kernels RNN 5/2/3/4"]


def test_stopped_before_there_is_anything(bptt, run, monkeypatch, tmp_path):
    def limits(seconds):
        signal.raise_signal(signal.SIGINT)
        return Limits(10.0, None, {"mm 8": 5.0})

    monkeypatch.setattr(run, "measure_limits", limits)
    out, err = bptt(*SMALL, "--figure", "a.svg", status=130)
    assert not err
    assert "Fused multiply-adds" in out
    assert "Written" not in out
    assert not list(tmp_path.iterdir())  # there is nothing to draw


def test_a_bar_on_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show = BenchDisplay()
    with show.progress():
        show.begun("RNN 5/2/3/4", 0, 2)
        show.done(0.5)
        assert show.bar.tasks[0].completed == 0.25
    assert "1 of 2: RNN 5/2/3/4" in capsys.readouterr().out


def test_no_bar_elsewhere(run, capsys):
    show = BenchDisplay()
    with show.progress():
        show.begun("RNN 5/2/3/4", 0, 2)
        show.done(0.5)
    assert capsys.readouterr().out == ""
