"""``torchrun -m bptt train``: refusals, failures, signals and kills; no process waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ranks.launched import HERE, environment, run, torchrun
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


def job(place, *arguments, size=2, restarts=0, fault="", **more):
    start = (str(HERE / "broken.py"),) if fault else ("-m", "bptt")
    command = torchrun(size, *start, *arguments, restarts=restarts)
    return run(command, cwd=place, timeout=120, FAULT=fault, **more)


def checkpoint(run):
    return safetensors.torch.load_file(run / "checkpoint.safetensors")


def updates(run):
    return max(json.loads(line)["update"] for line in (run / "metrics.jsonl").open())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------ what it prints


def test_rank_0_prints_and_the_others_are_silent(place):
    done = job(place, *OPTIONS, "--out", "r")
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
    assert done.returncode != 0
    (line,) = OURS.findall(done.stderr)
    assert said in line
    assert not (place / "new").exists()


def test_a_run_is_trained_by_one_job(place):
    command = torchrun(2, str(HERE / "broken.py"), *OPTIONS, "--out", "r")
    first = subprocess.Popen(
        command,
        cwd=place,
        env=environment(FAULT="all slow"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        done = job(place, "train", "--resume", "r")
        (line,) = OURS.findall(done.stderr)
        assert "another process is training r" in line
        assert done.returncode != 0
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait(60)


def test_other_commands_are_for_one_process(place):
    done = job(place, "evaluate", "r", "book.txt")
    (line,) = OURS.findall(done.stderr)
    assert line == "error: bptt evaluate runs in one process: start it without torchrun"
    assert done.returncode != 0


def test_an_environment_that_is_incomplete_is_named(place):
    done = run([sys.executable, "-m", "bptt", *OPTIONS], cwd=place, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 1
    assert "MASTER_ADDR, MASTER_PORT is not set: start them by torchrun" in done.stderr


# ----------------------------------------------------------------------- failures on one rank


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("0 text", "error: the text is not here"),
        ("1 model", "rank 1: "),
        ("1 update", "rank 1: "),
        ("0 save", "error: No space left on device"),
        ("1 evaluation", "rank 1: "),
        ("1 killed", "error: rank 1 has ended without a word, perhaps killed"),
        ("1 killed in evaluation", "error: rank 1 has ended without a word, perhaps killed"),
    ],
)
def test_a_failure_on_one_rank_ends_all(place, fault, said):
    begun = time.monotonic()
    done = job(place, *OPTIONS, "--out", "r", fault=fault)
    assert done.returncode != 0
    assert time.monotonic() - begun < 60
    found = OURS.findall(done.stderr)
    if "Error: " in done.stderr and not found:  # a programming error keeps its traceback
        assert fault.split()[1] in ("model", "update", "evaluation")
        assert done.stderr.count("Traceback") == 2  # and torchrun's own
    else:
        (line,) = found
        assert line.startswith(said)


def test_the_process_whose_numbers_are_not_finite_says_where(place):
    done = job(place, *OPTIONS, "--out", "r", fault="1 nan")
    (line,) = OURS.findall(done.stderr)
    assert "training diverged at update 3" in line
    assert "readout" in line
    assert "after update 2, is kept" in line


def test_all_go_back_together(place):
    options = ("--on-divergence", "rewind", "--most-rewinds", "2", "--lr", "1e30", "--clip", "0")
    done = job(place, *OPTIONS, *options, "--out", "r")
    (line,) = OURS.findall(done.stderr)
    assert "after 2 rewinds" in line
    assert done.stdout.count("back here with half the learning rate") == 2


def test_all_run_out_of_patience_together(place):
    options = ("--patience", "2", "--eval-every", "1", "--lr", "0", "--epochs", "50")
    kept = [o for o in OPTIONS if o not in ("--epochs", "2")]
    done = job(place, *kept, *options, "--out", "r")
    assert done.returncode == 0, done.stderr
    assert "Stopped: 2 evaluations brought nothing better." in done.stdout
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_once_and_the_job_goes_on_from_there(place, number):
    straight = job(place, *OPTIONS, "--out", "straight")
    assert straight.returncode == 0
    with running(place, *OPTIONS, "--out", "r") as process:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        process.send_signal(number)
        process.wait(60)
    said = "Interrupted and saved" if number == signal.SIGINT else "SIGTERM came, all is saved"
    printed = (place / "printed").read_text()
    assert printed.count(said) == 1, printed
    assert not OURS.findall(printed)
    assert job(place, "train", "--resume", "r").returncode == 0
    assert same(checkpoint(place / "r"), checkpoint(place / "straight"))


@needs_proc
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_process_ends_the_job_and_a_restart_goes_on(place, rank):
    straight = job(place, *OPTIONS, "--out", "straight", size=3)
    assert straight.returncode == 0
    with running(place, *OPTIONS, "--out", "r", size=3, restarts=1) as process:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        os.kill(ranks_of(process)[rank], signal.SIGKILL)
        process.wait(90)
        assert process.returncode == 0, (place / "printed").read_text()
    printed = (place / "printed").read_text()
    (line,) = OURS.findall(printed)
    assert re.match(rf"(rank \d: )?error: rank {rank} has ended without a word", line)
    assert "Run: r (going on after update" in printed
    assert same(checkpoint(place / "r"), checkpoint(place / "straight"))


def test_a_restart_does_not_take_a_strangers_run(place):
    assert job(place, *OPTIONS, "--out", "r").returncode == 0
    before = (place / "r/checkpoint.safetensors").read_bytes()
    done = job(place, *OPTIONS, "--out", "r", restarts=1)
    assert done.returncode != 0
    lines = OURS.findall(done.stderr)
    assert len(lines) == 2  # of the first try and of the second
    assert all("r already holds a run" in line for line in lines)
    assert (place / "r/checkpoint.safetensors").read_bytes() == before


def test_a_restart_must_find_its_run(place):
    done = job(place, *OPTIONS, restarts=1)
    assert "torchrun --max-restarts needs --out" in done.stderr
    assert not (place / "runs").exists()


# -------------------------------------------------------------------------- without torchrun


def started_by_hand(place, size, port, *arguments):
    """The processes of a job, as Slurm or a script may start them; rank 0 keeps the store."""
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "broken.py"), *arguments],
            cwd=place,
            env=environment(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                FAULT="all slow",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_those_that_no_one_watches(place, rank, unused_port):
    processes = started_by_hand(place, 2, unused_port, *OPTIONS, "--out", "r")
    try:
        wait_for(lambda: (place / "r/metrics.jsonl").exists())
        processes[rank].kill()
        out = [p.communicate(timeout=60) for p in processes]
    finally:
        for p in processes:
            p.kill()
    (line,) = OURS.findall("".join(err for _, err in out))
    assert f"rank {rank} has ended" in line
    assert processes[1 - rank].returncode == 1


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
