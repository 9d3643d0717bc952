"""Jobs killed at random: any process, at any moment, and started again until they are done."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from datetime import timedelta

import pytest
import safetensors.torch
import torch
from ranks.launched import Forked
from ranks.trainings import text

from bptt._src.language_model import job

OPTIONS = ("book.txt", "--hidden", "6", "--batch-size", "5", "--epochs", "2", "--save-every", "0")
KINDS = {
    "streams": ("--steps", "7", "--optimizer", "sgd"),
    "lines, adam, dropout": ("--lines", "--dropout", "0.3", "--layers", "2", "--cell", "gru"),
    "earlier steps run again": ("--credit", "truncated:every=6,reach=13", "--flow-every", "5"),
    "adaptive": ("--credit", "adaptive:0.5,start=8,most=12", "--optimizer", "sgd"),
    "randomized": ("--steps", "9", "--credit", "randomized:4", "--cell", "rnn"),
}
KILLS = 8  # of each kind


def checkpoint(run):
    return safetensors.torch.load_file(run / "checkpoint.safetensors")


def close(found, expected, *, exactly):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if exactly or not tensor.is_floating_point():
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-3)


def impatient(rank):
    """Not ten minutes, where nobody watches the processes and one is killed before it joins."""
    job._JOINING = job._CONNECTING = timedelta(seconds=10)


def in_jobs(place, draw, sizes, kind, kills):
    """Train in jobs of changing sizes, each but the last killed in some way; count the kills."""
    done = 0
    while True:
        new = not (place / "r/config.json").exists()
        what = (*OPTIONS, *KINDS[kind], "--out", "r") if new else ("--resume", "r")
        size = draw.choice(sizes)
        started = Forked(place, "train", *what, size=size, setup=impatient)
        if done < kills:
            began, after = time.monotonic(), draw.uniform(0, 2.5)
            while time.monotonic() - began < after and not started.ended:
                time.sleep(0.005)
            rank = draw.randrange(size)
            if not started.ended:
                started.kill(rank, signal.SIGKILL)
                done += 1
        started.wait(60)
        if started.status == [0] * size:
            return done
        lines = re.findall(r"(?m)^(?:rank \d: )?error: (.*)", started.err)
        # Before they have found each other, each reports for itself.
        alone = ["the other processes cannot be reached" in line for line in lines]
        assert len(lines) == (size > 1) or all(alone), started.err


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(3,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_processes_of_jobs(kind, sizes, tmp_path, monkeypatch, survived):
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    text(tmp_path / "book.txt")
    draw = random.Random(f"{kind} {sizes}")
    in_jobs(tmp_path, draw, (3,), kind, 0)
    whole = checkpoint(tmp_path / "r")
    lines = len((tmp_path / "r/metrics.jsonl").read_text().splitlines())
    shutil.rmtree(tmp_path / "r")
    kills = in_jobs(tmp_path, draw, sizes, kind, KILLS)
    close(checkpoint(tmp_path / "r"), whole, exactly=sizes == (3,))
    numbered = [json.loads(x) for x in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert len(numbered) == lines
    survived("kills of a process of a job", kills)
