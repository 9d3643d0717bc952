"""``bptt flow`` as a user runs it; in this process, where it starts faster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from statistics import median

import pytest
import torch
from matplotlib.figure import Figure

from bptt._src.language_model.tensors import read_tensors, write_tensors
from bptt._src.networks import NAMES, cell_of

SMALL = ["--hidden", "6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with runs in it: two on a stream, one on sentences."""
    from bptt.language_model import Config, train

    where = tmp_path_factory.mktemp("runs")
    book = where / "book.txt"
    book.write_text("".join(f"John greets {n} again. Jane smiled.\n" for n in ("Ann", "Mary") * 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(where / "cache"))
        for name, options in [
            ("stream", {"cell": "lstm", "layers": 2}),
            ("sentences", {"cell": "gru", "reading": "sentences"}),
            ("relu", {"cell": "rnn", "nonlinearity": "relu"}),
        ]:
            options |= {"hidden": 6, "epochs": 1, "batch_size": 4, "threads": 1}
            train(Config(corpus=(str(book),), **options), where / name)
    return where


@pytest.fixture
def bptt(trained, tmp_path, monkeypatch, in_process):
    """Run the command in this process; give what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPTT_CACHE", str(trained / "cache"))
    return partial(in_process, "flow")


@pytest.fixture
def fails(bptt):
    def run(*arguments, status=1):
        out, err = bptt(*arguments, status=status)
        assert not out
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("error: ")
        return err.strip()

    return run


def documents(bptt, *arguments):
    out, _ = bptt(*arguments, "--json", "-")
    return json.loads(out)


# ------------------------------------------------------------------------------- trained networks


def test_a_run_on_its_own_validation_text(bptt, trained):
    out, err = bptt(trained / "stream")
    assert not err
    head, row, blank, verdict, *_ = out.splitlines()
    assert head.split() == ["steps", "loss", "horizon", "decay", "a", "step", *head.split()[6:]]
    assert row.startswith("stream  ")
    assert not blank
    assert verdict.startswith("stream: ")
    (found,) = documents(bptt, trained / "stream")
    assert found["name"] == "stream"
    assert found["steps"] == 71  # of all 720 tokens, a tenth
    assert found["module"] == "LSTM(6, 6, num_layers=2)"
    assert found["tokens"][1:] == found["targets"][:-1]
    assert set(found["tokens"]) <= {
        "John",
        "greets",
        "Ann",
        "Mary",
        "again",
        "Jane",
        "smiled",
        *".\n",
    }
    assert found["verdict"]["kind"] in row
    assert len(found["dynamics"]) == 2
    assert found["advice"]


def test_a_text_of_ones_own(bptt, trained, tmp_path):
    text = "Jane greets John again."
    (found,) = documents(bptt, trained / "stream", "--text", text)
    assert found["tokens"] == ["Jane", "greets", "John", "again"]
    assert found["targets"] == ["greets", "John", "again", "."]
    (tmp_path / "own.txt").write_text(text)
    assert documents(bptt, trained / "stream", "--file", "own.txt") == [found]
    (found,) = documents(bptt, trained / "stream", "--text", text, "--tokens", 2)
    assert found["targets"] == ["greets", "John"]


def test_a_table_and_another_encoding(bptt, fails, trained, tmp_path):
    run, text = trained / "stream", "Jane greets John again."
    (tmp_path / "t.csv").write_text(f'id,body\n1,"{text}"\n')
    (tmp_path / "old.txt").write_bytes(f"Jané {text}".encode("latin-1"))
    assert "--column" in fails(run, "--file", "t.csv")
    for given in ([run], ["--cell", "gru", *SMALL]):
        (found,) = documents(bptt, *given, "--file", "t.csv", "--column", "body")
        assert found["tokens"][:3] == ["Jane", "greets", "John"]
        (found,) = documents(bptt, *given, "--file", "old.txt", "--encoding", "latin-1")
        assert found["tokens"][1] == "Jane"
    assert "--column body has no effect without --file" in fails(run, "--column", "body")
    assert "--encoding latin-1 has no effect without --file" in fails(
        run, "--text", text, "--encoding", "latin-1"
    )


def test_of_a_stream_that_goes_on_what_is_looked_at_is_an_excerpt(bptt, trained):
    whole, *_ = documents(bptt, trained / "stream")
    part, *_ = documents(bptt, trained / "stream", "--tokens", 40)
    sentence, *_ = documents(bptt, trained / "sentences", "--tokens", 4)
    out, _ = bptt(trained / "stream", "--tokens", 3)  # no reach within so few is enough
    assert "> 2" in out.splitlines()[1]
    assert [f["excerpt"] for f in (whole, part, sentence)] == [False, True, False]


def test_what_is_suggested_fits_the_windows_of_the_run_and_says_whether_it_was_measured(
    bptt, trained
):
    stream, *_ = documents(bptt, trained / "stream")
    sentence, *_ = documents(bptt, trained / "sentences")
    W = json.loads((trained / "stream/config.json").read_text())["steps"] or 35
    found, own = stream["suggested_reach"], sentence["suggested_reach"]
    assert found["every"] == W
    assert own["every"] == own["reach"]
    out, _ = bptt(trained / "stream")
    K, measured = found["reach"], found["measured"]
    known = "estimate" if measured is None else f"bias {measured:.2f}"
    assert f"  {K} ({known})  " in out.splitlines()[1]
    assert (measured is None) == (found["why"] is not None)


def test_where_the_gradient_explodes_the_run_says_where_to_clip(bptt, trained, tmp_path):
    run = tmp_path / "wild"
    shutil.copytree(trained / "relu", run)
    path = run / "model.safetensors"
    weights, about = read_tensors(path, lambda kinds: None)
    for name, w in weights.items():
        if "weight_hh" in name:
            w.copy_(1.5 * torch.eye(6))
        if "bias_ih" in name:
            w.fill_(9)  # each unit is on
    write_tensors(path, weights, about)
    (found,) = documents(bptt, run)
    assert found["verdict"]["kind"] == "exploding"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [m["gradient_norm"] for m in lines if "gradient_norm" in m]
    assert found["advice"][0]["figures"]["gradient_norm"] == pytest.approx(median(norms), rel=1e-4)


def test_of_sentences_the_longest_one_is_looked_at(bptt, trained):
    text = "John greets Ann. Jane greets Mary again. Jane smiled."
    (found,) = documents(bptt, trained / "sentences", "--text", text)
    assert found["tokens"] == ["<s>", "Jane", "greets", "Mary", "again", "."]
    assert found["targets"][-1] == "</s>"


def test_several_runs_side_by_side_and_all_that_is_written(bptt, trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "bptt._src.report.flow.draw_flow", lambda *flows: (drawn.append(len(flows)), Figure())[1]
    )
    out, _ = bptt(
        trained / "stream", trained / "sentences", "--text", "Jane greets Mary again.",
        "--html", "flow.html", "--json", "flow.json", "--figure", "flow.png",
    )  # fmt: skip
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["stream", "sentences"]
    page = (tmp_path / "flow.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    found = json.loads((tmp_path / "flow.json").read_text())
    assert [f["name"] for f in found] == ["stream", "sentences"]
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [2]


# ----------------------------------------------------------------------------- untrained networks


def test_untrained_networks_on_two_sentences(bptt):
    cells = ["rnn:tanh", "rnn:sigmoid", "rnn:relu", *NAMES[1:]]
    options = [o for c in cells for o in ("--cell", c)]
    found = documents(bptt, *options, "--hidden", 12)
    names = ["RNN tanh 12", "RNN sigmoid 12", "RNN relu 12"]
    names += [f"{n.upper()} 12" for n in NAMES[1:]]
    assert [f["name"] for f in found] == [f"{n}, {s}" for n in names for s in ("short", "long")]
    short, long = found[0]["targets"], found[1]["targets"]
    assert short[-1] == long[-1] == "John"
    assert short.count("John") == long.count("John") == 2
    assert len(long) > len(short) + 15
    # What the seeds say of the sigmoid: a quarter at most for each step, so nothing comes far.
    horizon = {f["name"]: f["horizon"]["lag"] for f in found}
    assert horizon["RNN sigmoid 12, long"] < horizon["RNN tanh 12, long"]


def test_each_option_of_an_untrained_network_counts(bptt):
    def norms(*options):
        return documents(bptt, "--text", "a b c d e a b", *options)[0]["states"]

    plain = norms("--cell", "rnn", *SMALL)
    assert norms("--cell", "rnn", *SMALL) == plain
    assert norms("--cell", "rnn", "--nonlinearity", "relu", *SMALL) != plain
    assert norms("--cell", "rnn", *SMALL, "--seed", 1) != plain
    assert norms("--cell", "rnn", "--hidden", 7) != plain
    assert [s["layer"] for s in norms("--cell", "rnn", *SMALL, "--layers", 3)] == [0, 1, 2]
    for name in NAMES:
        assert len(norms("--cell", name, *SMALL)) == cell_of(name).states
    names = [
        f["name"]
        for f in documents(
            bptt, "--cell", "rnn", "--nonlinearity", "tanh", "--nonlinearity", "sigmoid",
            "--cell", "lstm", "--text", "a b c", *SMALL, "--layers", 2,
        )
    ]  # fmt: skip
    assert names == ["2 × RNN tanh 6", "2 × RNN sigmoid 6", "2 × LSTM 6"]


# ----------------------------------------------------------------------------------- what is wrong


def test_what_does_not_fit_together(fails, trained):
    run = trained / "stream"
    assert "give the directory of a run, or --cell" in fails()
    assert "not both" in fails(run, "--cell", "rnn")
    assert "--text or --file" in fails(run, "--text", "a", "--file", "b.txt")
    assert "got 'rnm'" in fails("--cell", "rnm")
    assert "got 'gru:tanh'" in fails("--cell", "gru:tanh")
    assert "got 'sine'" in fails("--cell", "rnn:sine")
    assert "got 'sine'" in fails("--cell", "rnn", "--nonlinearity", "sine")
    assert "untrained rnn" in fails("--cell", "gru", "--nonlinearity", "tanh")
    assert "untrained rnn" in fails(run, "--nonlinearity", "tanh")
    for option in ("--hidden", "--layers", "--seed"):
        assert f"{option} 1 has no effect without --cell" in fails(run, option, "1")


def test_runs_and_texts_that_cannot_be_used(fails, trained, tmp_path):
    run = trained / "stream"
    assert "there is no run at nowhere" in fails("nowhere")
    assert "is not a run" in fails(tmp_path)
    for given in ([run], ["--cell", "gru"]):
        assert "no text" in fails(*given, "--text", " ") or "no token" in fails(
            *given, "--text", " "
        )
        assert "1 token; at least 2 are needed" in fails(*given, "--text", "John")
        assert "missing.txt" in fails(*given, "--file", "missing.txt")
        (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
        assert "binary.txt" in fails(*given, "--file", "binary.txt")
        (tmp_path / "empty.txt").write_text("")
        assert fails(*given, "--file", "empty.txt")
    for given in ([run], ["--cell", "gru"]):
        assert "--device" in fails(*given, "--device", "abacus")


def test_places_that_cannot_be_written(fails, tmp_path):
    short = ["--cell", "rnn", "--text", "a b c", *SMALL]
    assert ".png, .svg or .pdf" in fails(*short, "--figure", "flow.gif")
    assert ".png, .svg or .pdf" in fails(*short, "--figure", "flow")
    for option in ("--html", "--json"):
        assert "nowhere" in fails(*short, option, "nowhere/flow.out")
    assert not list(tmp_path.glob("*.new"))


def test_what_is_written_has_its_own_place_before_anything_is_written(fails, tmp_path):
    short = ["--cell", "rnn", "--text", "a b c", *SMALL]
    assert "the same file" in fails(*short, "--html", "out", "--json", "out")
    assert "the same file" in fails(*short, "--json", "out.png", "--figure", "./out.png")
    for option in ("--html", "--figure"):
        assert "only --json" in fails(*short, option, "-")
    assert ".png, .svg or .pdf" in fails(*short, "--html", "flow.html", "--figure", "flow.gif")
    assert not list(tmp_path.iterdir())


def test_from_the_command_line_as_a_process():
    done = subprocess.run(
        [sys.executable, "-m", "bptt", "flow", "--cell", "rnn", "--text", "a b c <b>", *SMALL],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert not done.stderr
    assert "RNN tanh 6" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_loop_of_links_is_no_place_to_write(bptt, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    _, err = bptt("lstm", "--json", loop, status=1)
    assert f"--json {loop}" in err
    assert len(err.splitlines()) == 1
