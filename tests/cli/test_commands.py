"""The commands as a user runs them: in forks, and where it matters in a process of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cli import forked, offered
from cli.processes import start

SMALL_ROWS = ["--hidden", "16", "--batch-size", "4", "--threads", "1"]
SMALL = [*SMALL_ROWS, "--steps", "10"]


def story(sentences: int = 300) -> str:
    people = ["John", "Jane", "Mary", "Anne"]
    return "".join(
        f"{people[i % 4]} greets {people[(i * i + 1) % 4]} again.\n" for i in range(sentences)
    )


@pytest.fixture(scope="module", autouse=True)
def _all_is_imported():
    offered.loaded()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to work in, with a book, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "book.txt").write_text(story())
    return tmp_path


def bptt(*arguments, status=0):
    """Run a command in a fork; give what it printed."""
    ended = forked.command(*arguments, where=Path.cwd())
    assert ended.status == status, ended
    assert "Traceback" not in ended.err
    return ended.out, ended.err


def alone(*arguments, text=None, status=0):
    """Run a command in a process of its own; give what it printed."""
    process = start(*arguments, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE)
    out, err = process.communicate(text, timeout=120)
    assert process.returncode == status, (out, err)
    assert "Traceback" not in err
    return out, err


def fails(*arguments, status=1, run=bptt, **options):
    """Run a command that must fail with one line; give the line."""
    _, err = run(*arguments, status=status, **options)
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def fails_here(in_process):
    """Do what :func:`fails` does in this process."""

    def run(*arguments):
        lines = in_process(*arguments, status=1)[1].strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def test_train_evaluate_sample(here):
    out, err = bptt("train", "book.txt", *SMALL, "--epochs", 3, "--out", "run")
    assert not err
    assert "vocabulary" in out
    assert "update 1 " in out
    assert "epoch 3/3" in out
    assert "a unigram model's is" in out
    assert "A sample:" in out
    assert "\x1b" not in out

    out, _ = bptt("evaluate", "run")
    assert "the state carried" in out
    assert "perplexity" in out
    figures = []
    for batch_size in (1, 7):
        out, _ = bptt("evaluate", "run", "book.txt", "--batch-size", batch_size, "--json", "-")
        figures.append(json.loads(out))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert figures[0]["characters"] == len(story()) - len("John")

    out, _ = bptt("sample", "run", "--prompt", "John greets", "--length", 9, "--seed", 1)
    assert out.startswith("John greets")
    assert out == bptt("sample", "run", "--prompt", "John greets", "--length", 9, "--seed", 1)[0]


def test_standard_input_and_lines(here):
    out, _ = alone(
        "train", "-", *SMALL_ROWS, "--epochs", 1, "--lines", "--out", "run", text=story()
    )
    assert "standard input" in out
    out, _ = bptt("train", "--resume", "run", "--epochs", 2)
    assert "epoch 2/2" in out
    out, _ = alone("evaluate", "run", "-", text="John greets Mary again.\n")
    assert "1 sequences" in out or "1 sequence" in out


def test_a_table_sentence_by_sentence(here):
    rows = "".join(f'{i},"{s}"\n' for i, s in enumerate(story().splitlines()))
    (here / "comments.csv").write_text("id,body\n" + rows)
    out, _ = bptt(
        "train", "comments.csv", "--column", "body", "--level", "word", "--vocabulary", 8000,
        "--sentences", "--cell", "rnn", *SMALL_ROWS, "--epochs", 1, "--out", "run",
    )  # fmt: skip
    assert "RNN (tanh)" in out
    assert json.loads((here / "run/config.json").read_text())["reading"] == "sentences"


def test_the_configuration_of_a_run_and_what_wins_over_it(here):
    bptt("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", "--quiet")
    out, _ = bptt("train", "--config", "run/config.json", "--hidden", 8, "--out", "again", "-q")
    assert not out
    first, second = (json.loads((here / r / "config.json").read_text()) for r in ("run", "again"))
    first.pop("sha256"), second.pop("sha256")
    assert second == {**first, "hidden": 8}


def test_a_run_does_not_depend_on_where_it_is_resumed(here, monkeypatch):
    bptt("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", "--quiet")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    monkeypatch.setenv("BPTT_CACHE", str(here / "another"))
    bptt("train", "--resume", "../run", "--epochs", 2, "--quiet")
    bptt("train", "--config", "../run/config.json", "--out", "again", "--quiet")


def test_runs_are_numbered_where_no_name_is_given(here):
    for _ in range(2):
        bptt("train", "book.txt", *SMALL, "--epochs", 0, "--quiet")
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["book-1", "book-2"]


@pytest.mark.long
def test_two_begun_together_take_two_directories(here):
    options = ["train", "book.txt", *SMALL, "--epochs", 1, "--quiet"]
    both = [start(*options), start(*options)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["book-1", "book-2"]


def test_a_run_that_is_in_training_is_left_alone(here):
    process = start("train", "book.txt", *SMALL, "--epochs", 100_000, "--out", "run", "--quiet")
    metrics = here / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text())
    assert "another process" in fails("train", "--resume", "run")
    process.kill()
    process.communicate()
    bptt("train", "--resume", "run", "--epochs", 1, "--quiet")


def test_a_reader_that_goes_away_does_not_stop_training(here):
    process = start("train", "book.txt", *SMALL, "--epochs", 5, "--out", "run")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert about(here / "run")["reader"]["epoch"] == 5


def test_tensorboard(here):
    pytest.importorskip("tensorboard")
    bptt("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", "--tensorboard", "-q")
    assert any((here / "run" / "tensorboard").iterdir())


@pytest.mark.long
def test_the_time_may_be_limited(here):
    out, _ = bptt(
        "train", "book.txt", *SMALL, "--epochs", 100_000, "--max-minutes", 0.02, "--out", "run"
    )
    assert "Stopped after 0.02 minutes" in out
    assert "A sample:" in out


@pytest.mark.long
def test_a_credit_and_a_budget_of_memory(here):
    options = ["train", "book.txt", *SMALL_ROWS, "--epochs", 2]
    out, err = bptt(
        *options, "--credit", "truncated:every=5,reach=20", "--memory", "recompute:2,segment=5",
        "--out", "run",
    )  # fmt: skip
    assert not err
    line = "Credit: Truncated(every=5, reach=20); each update runs the 15 steps before its window"
    assert f"{line} again." in out
    config = json.loads((here / "run/config.json").read_text())
    assert config["credit"] == "truncated:every=5,reach=20"
    assert config["memory"] == "recompute:2,segment=5"
    out, _ = bptt("train", "--resume", "run", "--epochs", 3, "--memory", "store,segment=5")
    assert line in out
    assert "error: --credit cannot change" in fails("train", "--resume", "run", "--credit", "full")

    out, _ = bptt(*options, "--credit", "randomized:20,shared=True", "--out", "random")
    assert "Credit: Randomized(20, shared=True).\n" in out
    out, _ = bptt(*options, "--lines", "--credit", "truncated:every=2,reach=4", "--out", "lines")
    assert "Credit: Truncated(every=2, reach=4).\n" in out  # nothing is before a line
    assert "Credit" not in bptt(*options, "--out", "full")[0]


def test_what_an_adaptive_credit_measures_is_shown_and_kept(here):
    pytest.importorskip("tensorboard")
    out, _ = bptt(
        "train", "book.txt", *SMALL_ROWS, "--epochs", 2, "--tensorboard",
        "--credit", "adaptive:0.9,start=9,most=20", "--out", "run",
    )  # fmt: skip
    assert "Credit: Adaptive(0.9, start=9, most=20; reach 9 assumed, nothing measured yet)" in out
    lines = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    found = [m for m in lines if "credit" in m]
    assert [m["credit_measurements"] for m in found] == [1, 2]
    for m in found:
        assert f"update {m['update']:,} ".ljust(14) + f"credit {m['credit']}\n" in out
        assert f"reach {m['credit_reach']}, decay {m['credit_beta']:.3g} a step" in m["credit"]
    out, _ = bptt("train", "--resume", "run", "--epochs", 3)
    reach = found[-1]["credit_reach"]
    assert f"each update runs the {reach} steps before its window again" in out

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(here / "run/tensorboard"))
    events.Reload()
    drawn = [(e.step, e.value) for e in events.Scalars("credit_reach")]
    assert drawn[:2] == [(m["update"], m["credit_reach"]) for m in found]


@pytest.mark.long
def test_a_credit_from_a_file_beside_us(here):
    (here / "mine.py").write_text(
        "import bptt\n\nclass Own(bptt.Credit):\n"
        "    def plan(self, steps, batch=1, generator=None):\n"
        "        return bptt.Plan(steps, carry=[0.5] * steps)\n"
    )
    alone("train", "book.txt", *SMALL, "--epochs", 1, "--credit", "mine.Own", "--out", "run", "-q")
    (here / "mine.py").unlink()
    bptt("sample", "run", "--length", 3)
    assert "directory of mine.py" in fails(
        "train", "--resume", "run", "--epochs", 2, "--allow-code", run=alone
    )


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it took too long")


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
    ],
)
def test_a_signal_saves_and_leaves(here, number, status):
    process = start("train", "book.txt", *SMALL, "--epochs", 100_000, "--out", "run")
    metrics = here / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert not err
    assert "saved" in out
    assert "bptt train --resume run" in out
    if number == signal.SIGINT:
        assert "Validation perplexity" in out
    updates = about(here / "run")["progress"]["updates"]
    assert updates > 1
    out, _ = bptt("train", "--resume", "run", "--epochs", 1)
    assert f"going on after update {updates:,}" in out


def about(run):
    with safetensors.safe_open(run / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["about"])


@pytest.mark.long
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(here):
    options = ["train", "book.txt", *SMALL, "--epochs", 12, "--save-every", 0, "--dropout", 0.2]
    bptt(*options, "--out", "whole", "--quiet")
    process = start(*options, "--out", "parts", "--quiet")
    wait_for((here / "parts" / "config.json").exists)
    kills = 0
    for delay in (0.0, 0.13, 0.31):
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        assert (here / "parts" / "config.json").exists()
        before = about(here / "parts")["progress"]["updates"]
        process = start("train", "--resume", "parts", "--quiet")
        wait_for(
            lambda p=process, b=before: (
                p.poll() is not None or about(here / "parts")["progress"]["updates"] > b
            )
        )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert kills >= 2
    assert (here / "whole/model.safetensors").read_bytes() == (
        here / "parts/model.safetensors"
    ).read_bytes()
    for name in ("checkpoint.safetensors", "model.safetensors"):
        whole, parts = (safetensors.torch.load_file(here / r / name) for r in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not [p.name for p in (here / "parts").iterdir() if p.name.endswith(".new")]


BAD = {
    "a missing file": (["train", "nothing.txt"], "nothing.txt"),
    "an empty file": (["train", "empty.txt"], "empty.txt"),
    "white space": (["train", "blank.txt"], "blank.txt"),
    "a binary file": (["train", "binary.bin"], "binary"),
    "too little text": (["train", "short.txt"], "short.txt|too|tokens"),
    "no such column": (["train", "table.csv", "--column", "bodi"], "bodi.*body|body.*bodi"),
    "no column": (["train", "table.csv"], "--column"),
    "a column of what is no table": (["train", "book.txt", "--column", "body"], "column"),
    "an encoding there is not": (["train", "book.txt", "--encoding", "utf-9"], "utf-9"),
    "an empty folder": (["train", "folder"], "folder"),
    "streams that are too many": (["train", "book.txt", "--batch-size", "100000"], "batch"),
    "no run to resume": (["train", "--resume", "nothing"], "no run at nothing"),
    "resume elsewhere": (["train", "--resume", "x", "--out", "y"], "leave out --out"),
    "another device": (["train", "book.txt", "--device", "meta"], "--device"),
    "a seed out of range": (["train", "book.txt", "--seed", "9" * 30], "--seed"),
    "both readings": (["train", "book.txt", "--sentences", "--lines"], "exclude each other"),
    "no such credit": (["train", "book.txt", "--credit", "all"], "full, truncated:35"),
    "no such class": (["train", "book.txt", "--credit", "no.Way"], "No module named 'no'"),
    "looking less than never": (
        ["train", "book.txt", "--flow-every", "-1"],
        "--flow-every must be at least 0, got -1",
    ),
    "going back never": (
        ["train", "book.txt", "--on-divergence", "rewind", "--most-rewinds", "0"],
        "--most-rewinds must be at least 1, got 0",
    ),
    "steps of what has none": (
        ["train", "book.txt", "--sentences", "--steps", "7"],
        "--steps 7 is for --stream, got --sentences: leave --steps out",
    ),
    "two texts to validate on": (
        ["train", "book.txt", "--valid", "book.txt", "--valid-fraction", ".4"],
        "--valid-fraction 0.4 has no effect beside --valid: leave --valid-fraction out",
    ),
    "going back where it stops": (
        ["train", "book.txt", "--most-rewinds", "5"],
        "--most-rewinds 5 is for --on-divergence rewind, got --on-divergence stop",
    ),
    "a column of no text": (["evaluate", "x", "--column", "b"], "--column b has no effect without"),
    "nothing as a place": (["train", "book.txt", "--out", ""], "--out is empty"),
    "twice": (
        ["train", "--lr", "1", "--learning-rate", "2"],
        "--learning-rate or --lr was given 2",
    ),
    "yes and no": (["train", "--tied", "--no-tied"], "--tied or --no-tied was given 2 times"),
    "a window too short": (
        ["train", "book.txt", "--credit", "truncated:20", "--steps", "10"],
        "leave --steps out",
    ),
    "a length adaptive chooses": (
        ["train", "book.txt", "--credit", "adaptive", "--steps", "15"],
        "leave --steps 15 out",
    ),
    "no text to validate on": (["train", "book.txt", "--valid=x"], "--valid: .* x: check the path"),
    "no such memory": (["train", "book.txt", "--memory", "64MB"], "recompute:64MB"),
    "a bad option": (["train", "book.txt", "--hidden", "0"], "--hidden must be at least 1, got 0"),
    "not a number": (["train", "book.txt", "--lr", "nan"], "--learning-rate must be"),
    "a config that is none": (["train", "--config", "book.txt"], "not a JSON file"),
    "evaluating no run": (["evaluate", "nothing"], "no run at nothing"),
    "sampling no run": (["sample", "nothing"], "no run at nothing"),
    "out is a file": (["train", "book.txt", "--out", "book.txt"], "is a file"),
    "out below a file": (["train", "book.txt", "--out", "book.txt/run"], "book.txt/run"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_a_status(here, fails_here, arguments, says):
    (here / "empty.txt").touch()
    (here / "blank.txt").write_text(" \n\n \t\n")
    (here / "binary.bin").write_bytes(bytes(range(256)) * 100)
    (here / "short.txt").write_text("One two.")
    (here / "table.csv").write_text("id,body\n1,Something was said.\n")
    (here / "folder").mkdir()
    before = sorted(p.name for p in here.iterdir())
    line = fails_here(*arguments)
    assert re.search(says, line), line
    assert sorted(p.name for p in here.iterdir() if p.name != "cache") == before


def test_empty_standard_input_is_one_line(here):
    assert "standard input" in fails("train", "-", run=alone, text="")


def test_a_damaged_checkpoint_is_one_line(here):
    bptt("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", "--quiet")
    path = here / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "checkpoint.safetensors" in fails("train", "--resume", "run", "--epochs", 2)
    bptt("sample", "run", "--length", 3)  # the best model is still good


def test_divergence_is_one_line_and_the_run_stays_usable(here):
    line = fails(
        "train", "book.txt", *SMALL, "--optimizer", "sgd", "--lr", "1e30", "--clip", 0,
        "--cell", "rnn", "--nonlinearity", "relu", "--out", "run", "--quiet",
    )  # fmt: skip
    assert "diverged at update" in line
    bptt("sample", "run", "--length", 3)


def test_the_horizon_is_shown_beside_the_loss_and_measured(here):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, err = bptt(
        "train", "book.txt", *SMALL_ROWS, "--epochs", 2, "--out", "run", "--tensorboard",
        "--flow-every", 20, "--credit", "truncated:1", "--max-tokens", 400,
    )  # fmt: skip
    assert not err
    lines = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    seen = [m for m in lines if "horizon" in m]
    assert len(seen) > 5
    shown = re.findall(r"^epoch \d/2 .* bits per character.*  horizon (≥? ?\d+)  ", out, re.M)
    at = [i for i, m in enumerate(lines) if "valid_loss" in m]
    for words, i in zip(shown, at, strict=True):
        last = [m for m in lines[:i] if "horizon" in m][-1]
        assert words == f"{'' if last['horizon_settled'] else '≥ '}{last['horizon']}"
    assert "warning" not in out
    remark = [m for m in lines if "horizon" in m][-1]["remark"]
    assert out.count(f"How far the gradient reaches: {remark}.\n") == 1
    assert out.count("at most 0 steps back") == 1
    events = EventAccumulator(str(here / "run/tensorboard")).Reload().Scalars("horizon")
    assert [(e.step, e.value) for e in events] == [(m["update"], m["horizon"]) for m in seen]

    out, _ = bptt("train", "book.txt", *SMALL, "--epochs", 1, "--out", "off", "--flow-every", 0)
    assert "horizon" not in out
    assert "horizon" not in (here / "off/metrics.jsonl").read_text()


def test_divergence_can_go_back_and_says_so(here):
    wild = [
        "train", "book.txt", *SMALL, "--optimizer", "sgd", "--lr", 16, "--clip", 0,
        "--cell", "rnn", "--nonlinearity", "relu", "--epochs", 1,
    ]  # fmt: skip
    line = fails(*wild, "--out", "run", "--quiet")
    assert "bptt train --resume run --clip 1" in line
    last = json.loads((here / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert f"error: {last['diverged']}; " in line
    line = fails(*wild, "--out", "few", "--on-divergence", "rewind", "--most-rewinds", 1, "-q")
    assert "after 1 rewind:" in line

    out, err = bptt("train", "--resume", "run", "--on-divergence", "rewind")
    assert not err
    said = re.findall(r"update 0 +back here with half the learning rate \((\d) of at most 5", out)
    assert said == [str(n + 1) for n in range(len(said))]
    assert said
    assert out.count("before anything is learnt") == 1
    assert "because training diverged at update" in out
    assert f"Training diverged and went back {len(said)} time" in out
    assert f"the learning rate is {0.5 ** len(said):g} of --lr since." in out


def test_a_full_disk_is_one_line(here):
    """A file system that is full, by a limit on what the process may write to one file."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from bptt._src.cli import main; sys.argv[0] = 'bptt'; main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "train", "book.txt", "--hidden", "64", "--out", "run", "-q"],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert len(process.stderr.strip().splitlines()) == 1
    assert "File too large" in process.stderr
    assert not [p for p in here.iterdir() if p.name not in ("book.txt", "cache")]


def test_unknown_commands_and_help(here):
    out, err = bptt("--version")
    assert out.startswith("bptt ")
    out, _ = bptt("train", "--help")
    assert "--hidden" in out
    _, err = bptt("nonsense", status=2)
    assert "nonsense" in err


@pytest.mark.long
def test_output_into_a_closed_pipe_is_no_error(here):
    bptt("train", "book.txt", *SMALL, "--epochs", 0, "--out", "run", "--quiet")
    process = start("sample", "run", "--length", 20_000)
    process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert not err


def test_a_credit_that_a_file_names_is_imported_only_if_told(here):
    (here / "own_in_a_file.py").write_text(
        "import bptt\nopen('imported', 'w').close()\n"
        "class Mine(bptt.Credit):\n"
        "    def plan(self, steps, batch=1, generator=None):\n"
        "        return bptt.Full().plan(steps, batch, generator)\n"
    )
    (here / "options.json").write_text('{"credit": "own_in_a_file.Mine"}')
    options = ["train", "book.txt", *SMALL, "--config", "options.json", "--epochs", 0]
    assert "own_in_a_file.Mine" in fails(*options, "--out", "run")
    assert not (here / "imported").exists()
    alone(*options, "--out", "run", "--allow-code")
    assert (here / "imported").exists()
    assert "--allow-code" in fails("train", "--resume", "run")
