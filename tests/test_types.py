"""What mypy and pyright see of the modules, and what they complain of."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bptt

ROOT = Path(__file__).parents[1]
SOURCE = """
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import bptt

Pair = tuple[torch.Tensor, torch.Tensor]
x, packed = torch.zeros(5, 2, 3), pack_sequence([torch.zeros(5, 3)])
lstm, gru, rnn = bptt.LSTM(3, 4, proj_size=2), bptt.GRU(3, 4), bptt.RNN(3, 4, nonlinearity="relu")

y, (h, c) = lstm(x, credit="truncated:2", resets=x[:, 0, 0] > 0)
assert_type(y, torch.Tensor)
assert_type(c, torch.Tensor)
assert_type(lstm.forward(x, (h, c)), tuple[torch.Tensor, Pair])
assert_type(lstm(packed), tuple[PackedSequence, Pair])
assert_type(
    lstm(x, return_states=True), tuple[torch.Tensor, Pair, list[tuple[torch.Tensor, ...]]]
)
assert_type(gru(x, h, credit=bptt.Truncated(2)), Pair)
assert_type(gru(packed)[0].data, torch.Tensor)
assert_type(rnn(x, carry=torch.ones(5)), Pair)
assert_type(bptt.Recurrent(bptt.cells.MGU, 3, 4)(x)[0], torch.Tensor)
assert_type(bptt.convert(torch.nn.Linear(3, 4)), torch.nn.Linear)


def of_either(x: torch.Tensor | PackedSequence) -> None:
    output, state = gru(x)


bptt.LSTM(3, 4, hidden=3)  # wrong
bptt.GRU(3, 4, proj_size=2)  # wrong
bptt.RNN("3", 4)  # wrong
lstm(x, crdit="truncated:2")  # wrong
lstm(x, h)  # wrong
gru(x, (h, c))  # wrong
rnn(x, credit=35)  # wrong
"""
WRONG = [n for n, line in enumerate(SOURCE.splitlines(), 1) if line.endswith("# wrong")]


def checked(directory, *command):
    """The lines in which a type checker finds errors; it sees this checkout and its environment."""
    (directory / "calls.py").write_text(SOURCE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy(tmp_path):
    found = checked(tmp_path, "mypy", tmp_path / "calls.py")
    lines = [int(n) for n in re.findall(r"calls\.py:(\d+): error", found)]
    assert sorted(set(lines)) == WRONG, found


def test_pyright(tmp_path):
    settings = {
        "typeCheckingMode": "standard",
        "pythonVersion": "3.10",
        "extraPaths": [str(ROOT / "src")],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    options = ["--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    found = json.loads(checked(tmp_path, "basedpyright", *options))["generalDiagnostics"]
    lines = {d["range"]["start"]["line"] + 1 for d in found if d["severity"] == "error"}
    assert sorted(lines) == WRONG, found


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_signature_has_the_arguments_of_torch_and_they_are_described(name):
    kind = getattr(bptt, name)
    given = inspect.signature(kind).parameters
    described = re.findall(r"^ {8}(\w+):", kind.__doc__, re.M)
    assert list(given) == described
    own = {"RNN": ["nonlinearity"], "LSTM": ["proj_size"], "GRU": []}[name] + ["zoneout"]
    assert set(given) - set(own) == {
        *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
        *("bidirectional", "device", "dtype"),
    }
    forward = inspect.signature(kind.forward).parameters
    asked = ["credit", "carry", "resets", "generator", "return_states"]
    assert list(forward) == ["self", "input", "hx", *asked]


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_projection_is_refused_as_torch_does(name):
    for library in (torch.nn, bptt):
        with pytest.raises(ValueError, match=r"proj_size .*LSTM, not .*RNN or GRU"):
            getattr(library, name)(3, 4, proj_size=2)
    with pytest.raises(TypeError):
        getattr(bptt, name)(3, 4, hidden=2)
