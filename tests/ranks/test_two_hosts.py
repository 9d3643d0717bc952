"""Two machines, as network namespaces, each with a torchrun, a text and a cache of its own."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks.hosts import ADDRESSES, two_hosts, why_not
from ranks.launched import HERE
from ranks.test_same_as_one import same
from ranks.trainings import text, train

NAMES = ("lstm, streams", "two layers, dropout, lines", "adam")
OPTIONS = (
    *("train", "book.txt", "--hidden", "6", "--batch-size", "5", "--steps", "1"),
    *("--optimizer", "sgd", "--eval-every", "1000000", "--out", "r"),
)
LONG = ("--epochs", "10000")
OURS = re.compile(r"(?m)^((?:rank \d+: )?error: .*)$")
REASON = why_not()

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def hosts(tmp_path):
    directories = [tmp_path / "first", tmp_path / "second"]
    for directory in directories:
        directory.mkdir()
        text(directory / "book.txt")
    with two_hosts(directories) as made:
        yield made


def ended(processes, seconds):
    """The statuses of both hosts' torchruns, within so many seconds together."""
    until = time.monotonic() + seconds
    return [p.wait(max(0.1, until - time.monotonic())) for p in processes]


def test_two_machines_give_the_result_of_one_process(hosts, tmp_path, monkeypatch):
    script = str(HERE / "trainings.py")
    processes = [host.torchrun(script, str(host.directory), "train", *NAMES) for host in hosts]
    assert ended(processes, 120) == [0, 0], [host.printed for host in hosts]
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    text(tmp_path / "book.txt")
    torch.set_num_threads(1)
    found = [torch.load(h.directory / f"train-2-{h.number}.pt") for h in hosts]
    for name in NAMES:
        one = train(name, tmp_path / "book.txt", tmp_path / name)
        for of_rank in found:
            same(one, of_rank[name])
    first, second = (host.directory for host in hosts)
    assert (first / f"{NAMES[0]} 2/checkpoint.safetensors").exists()
    assert not (second / f"{NAMES[0]} 2").exists()
    assert cached(first)
    assert cached(first) == cached(second)


def test_machines_without_torchrun(hosts):
    """As Kubernetes starts them: nobody says how many processes a machine has."""
    processes = [
        host.start(
            *(sys.executable, "-m", "bptt", *OPTIONS, "--epochs", "1"),
            RANK=str(host.number),
            WORLD_SIZE="2",
            MASTER_ADDR=ADDRESSES[0],
            MASTER_PORT="29500",
        )
        for host in hosts
    ]
    assert ended(processes, 90) == [0, 0], [host.printed for host in hosts]
    assert "Processes: 2" in hosts[0].printed
    assert not hosts[1].printed
    assert cached(hosts[1].directory)


def cached(directory: Path) -> set[str]:
    return {path.name for path in (directory / "cache/texts").iterdir()}


@pytest.mark.long
def test_texts_that_differ_are_refused(hosts):
    book = hosts[1].directory / "book.txt"
    book.write_text(book.read_text() + "bel.\n")
    assert all(ended([host.torchrun("-m", "bptt", *OPTIONS) for host in hosts], 60))
    (line,) = OURS.findall("".join(host.printed for host in hosts))
    assert "text" in line


def training(hosts, script, **more):
    """Start a job, and wait until it trains."""
    processes = [host.torchrun(str(HERE / script), *OPTIONS, *LONG, **more) for host in hosts]
    until = time.monotonic() + 60
    while not (hosts[0].directory / "r/metrics.jsonl").exists():
        assert time.monotonic() < until, [host.printed for host in hosts]
        time.sleep(0.05)
    return processes


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_that_goes_down_ends_the_job(hosts, number):
    processes = training(hosts, "broken.py", FAULT="all slow")
    hosts[number].kill()
    statuses = ended(processes, 30)
    assert statuses[number] == -signal.SIGKILL
    assert statuses[1 - number] == 1
    (line,) = OURS.findall("".join(host.printed for host in hosts))
    assert f"rank {number} has ended" in line


@pytest.mark.long
def test_a_cable_that_is_pulled_ends_the_job(hosts):
    """Nobody hangs up: it ends by the limit on silence, here of 15 seconds, and by TCP's own."""
    for host in hosts:
        host.give_up_soon()
    processes = training(hosts, "impatient.py")
    hosts[1].pull_cable()
    assert ended(processes, 60) == [1, 1]
    for host in hosts:  # each believes that the other is gone
        (line,) = OURS.findall(host.printed)
        assert f"rank {1 - host.number} has ended" in line
