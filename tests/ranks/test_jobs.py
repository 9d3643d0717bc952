"""``torchrun -m bptt train``: refusals, failures, signals and kills; no process waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ranks.broken import break_it
from ranks.launched import HERE, Forked, environment, run, torchrun
from ranks.trainings import text

OPTIONS = (
    *("train", "book.txt", "--hidden", "6", "--steps", "7", "--batch-size", "5"),
    *("--optimizer", "sgd", "--epochs", "2", "--save-every", "0"),
)
OURS = re.compile(r"(?m)^((?:rank \d+: )?error: .*)$")


@pytest.fixture
def place(tmp_path, monkeypatch, cache):
    text(tmp_path / "book.txt")
    monkeypatch.setenv("BPTT_CACHE", str(cache))
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def job(place, *arguments, size=2, fault=""):
    """A job in forks, at its end."""
    return begun(place, *arguments, size=size, fault=fault).wait()


def begun(place, *arguments, size=2, fault=""):
    return Forked(
        place, *arguments, size=size, setup=lambda rank: break_it(str(rank), fault) if fault else 0
    )


def by_torchrun(place, *arguments, size=2, restarts=0):
    return run(torchrun(size, "-m", "bptt", *arguments, restarts=restarts), cwd=place)


def checkpoint(run):
    return safetensors.torch.load_file(run / "checkpoint.safetensors")


def updates(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["update"] for line in lines)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------ what it prints


def test_rank_0_prints_and_the_others_are_silent(place):
    done = by_torchrun(place, *OPTIONS, "--out", "r")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Text: ") == done.stdout.count("The run is in r.") == 1
    assert "Processes: 2" in done.stdout
    assert done.stderr.count("warning: ") <= 1
    assert not OURS.findall(done.stderr)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cell", "lsmt"), "lsmt"),
        (("--batch-size", "1"), "batch-size 1 leaves 1 of the 2 processes"),
        (("--credit", "nowhere.Credit"), "nowhere.Credit"),
        (("--valid", "missing.txt"), "missing.txt"),
        (("--out", "taken"), "taken already holds a run"),
        (("--out", "taken", "--overwrite", "--device", "cuda:77"), "cuda:77"),
    ],
)
def test_what_one_process_refuses_two_refuse_in_one_line(place, options, said):
    (place / "taken").mkdir()
    (place / "taken/config.json").write_text('{"hidden": 4}')
    given = {"--batch-size"} & set(options)
    kept = OPTIONS[:6] + OPTIONS[8:] if given else OPTIONS
    kept = kept if "--out" in options else (*kept, "--out", "new")
    done = job(place, *kept, *options)
    assert 0 not in done.status
    (line,) = OURS.findall(done.err)
    assert said in line
    assert not (place / "new").exists()


def test_a_run_is_trained_by_one_job(place):
    first = begun(place, *OPTIONS, "--out", "r", fault="all slow")
    try:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        (place / "other").mkdir()
        done = job(place / "other", "train", "--resume", "../r")
        (line,) = OURS.findall(done.err)
        assert "another process is training ../r" in line
        assert 0 not in done.status
    finally:
        first.end()


def test_other_commands_are_for_one_process(place):
    def by_torchrun(rank):
        os.environ["TORCHELASTIC_RUN_ID"] = "1"

    done = Forked(place, "evaluate", "r", "book.txt", setup=by_torchrun).wait()
    (line,) = OURS.findall(done.err)
    assert line == "error: bptt evaluate runs in one process: start it without torchrun"
    assert 0 not in done.status


def test_an_environment_that_is_incomplete_is_named(place):

    def without(rank):
        del os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    done = Forked(place, *OPTIONS, setup=without).wait()
    assert done.status == [1, 1]
    assert "MASTER_ADDR, MASTER_PORT is not set: start them by torchrun" in done.err


# ----------------------------------------------------------------------- failures on one rank


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("0 text", "error: the text is not here"),
        ("1 model", "rank 1: "),
        ("1 update", "rank 1: "),
        ("0 save", "error: r: No space left on device"),
        ("0 evaluation", ""),
        ("1 killed", "error: rank 1 has ended without a word, perhaps killed"),
        ("0 killed in evaluation", "rank 1: error: rank 0 has ended"),
    ],
)
def test_a_failure_on_one_rank_ends_all(place, fault, said):
    done = job(place, *OPTIONS, "--out", "r", fault=fault)
    assert 0 not in done.status
    found = OURS.findall(done.err)
    if fault.split(" ", 1)[1] in ("model", "update", "evaluation"):
        assert not found
        assert done.err.count("Traceback") == 1  # a programming error keeps it
    else:
        (line,) = found
        assert line.startswith(said)
        assert "Traceback" not in done.err


def test_the_text_is_prepared_once_a_machine(place):
    done = job(place, *OPTIONS, "--out", "r", fault="1 text")  # which rank 1 never does
    assert done.status == [0, 0], done.err


def test_the_process_whose_numbers_are_not_finite_says_where(place):
    done = job(place, *OPTIONS, "--out", "r", fault="1 nan")
    (line,) = OURS.findall(done.err)
    assert "training diverged at update 3" in line
    assert "readout" in line
    assert "after update 2, is kept" in line


def test_all_go_back_together(place):
    options = ("--on-divergence", "rewind", "--most-rewinds", "2", "--lr", "1e38", "--clip", "0")
    done = job(place, *OPTIONS, *options, "--out", "r")
    (line,) = OURS.findall(done.err)
    assert "after 2 rewinds" in line
    assert done.out.count("back here with half the learning rate") == 2


def test_all_run_out_of_patience_together(place):
    options = ("--patience", "2", "--eval-every", "1", "--lr", "0", "--epochs", "50")
    kept = [o for o in OPTIONS if o not in ("--epochs", "2")]
    done = job(place, *kept, *options, "--out", "r")
    assert done.status == [0, 0], done.err
    assert "Stopped: 2 evaluations brought nothing better." in done.out
    assert updates(place / "r") == 3


# ------------------------------------------------------------------------------ signals, kills


def wait_for(happened, seconds=60.0):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


@contextlib.contextmanager
def running(place, *arguments, size=2, restarts=0, fault="all slow"):
    """A job that goes on slowly, with what it prints in a file."""
    command = torchrun(size, str(HERE / "broken.py"), *arguments, restarts=restarts)
    with (place / "printed").open("w") as printed:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment(FAULT=fault),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ranks_of(process):
    """The processes that torchrun has started, by rank."""
    found = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    for pid in map(int, children.split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next((v for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank[5:])] = pid
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


def goes_on(place, straight):
    """Whether the job goes on to the checkpoint of one that was not stopped."""
    done = job(place, "train", "--resume", "r", size=2)
    assert done.status == [0, 0], done.err
    return same(checkpoint(place / "r"), checkpoint(straight))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """A run of two processes that nothing has stopped."""
    place = tmp_path_factory.mktemp("straight")
    text(place / "book.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(cache))
        assert job(place, *OPTIONS, "--out", "r").status == [0, 0]
    return place / "r"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_once_and_the_job_goes_on_from_there(place, number, straight):
    with running(place, *OPTIONS, "--out", "r") as process:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        process.send_signal(number)
        process.wait(60)
    said = "Interrupted and saved" if number == signal.SIGINT else "SIGTERM came, all is saved"
    printed = (place / "printed").read_text()
    assert printed.count(said) == 1, printed
    assert not OURS.findall(printed)
    assert goes_on(place, straight)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all(place, rank, straight):
    first = begun(place, *OPTIONS, "--out", "r", fault="all slow")
    wait_for(lambda: (place / "r/metrics.jsonl").exists())
    first.kill(rank, signal.SIGTERM)
    assert first.wait().status == [143, 143]
    assert first.out.count("SIGTERM came, all is saved") == 1
    assert goes_on(place, straight)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_process_ends_those_that_no_one_watches(place, rank):
    first = begun(place, *OPTIONS, "--out", "r", size=3, fault="all slow")
    wait_for(lambda: (place / "r/metrics.jsonl").exists())
    first.kill(rank)
    first.wait(30)
    (line,) = OURS.findall(first.err)
    assert f"rank {rank} has ended" in line
    assert sorted(first.status) == [-signal.SIGKILL, 1, 1]


@needs_proc
@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_job_again_that_goes_on(place, rank, straight):
    with running(place, *OPTIONS, "--out", "r", restarts=1) as process:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        time.sleep(0.3)
        os.kill(ranks_of(process)[rank], signal.SIGKILL)
        process.wait(90)
        assert process.returncode == 0, (place / "printed").read_text()
    printed = (place / "printed").read_text()
    (line,) = OURS.findall(printed)
    assert re.match(rf"(rank 1: )?error: rank {rank} has ended without a word", line)
    assert "Run: r (going on after update" in printed
    assert same(checkpoint(place / "r"), checkpoint(straight))


@pytest.mark.long
def test_a_restart_does_not_take_a_strangers_run(place):
    assert job(place, *OPTIONS, "--out", "r").status == [0, 0]
    before = (place / "r/checkpoint.safetensors").read_bytes()
    done = by_torchrun(place, *OPTIONS, "--out", "r", restarts=1)
    assert done.returncode != 0
    lines = OURS.findall(done.stderr)
    assert len(lines) == 2  # of the first try and of the second
    assert all("r already holds a run" in line for line in lines)
    assert (place / "r/checkpoint.safetensors").read_bytes() == before


def test_a_restart_must_find_its_run(place):
    def may_restart(rank):
        os.environ["TORCHELASTIC_MAX_RESTARTS"] = "1"

    done = Forked(place, *OPTIONS, setup=may_restart).wait()
    (line,) = OURS.findall(done.err)
    assert "torchrun --max-restarts needs --out" in line
    assert not (place / "runs").exists()
