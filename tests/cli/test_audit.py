"""``bptt audit`` as a user runs it: in this process, and on a script of a user."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial

import pytest
from cli.offered import LOOP

MORE = """

def talks():
    train()
    print("trained")

def broken():
    rnn(torch.randn(3, 2, 7))

def needs(model):
    pass

def leaves():
    raise SystemExit(3)

def freed():
    state = None
    for x in torch.randn(8, 2, 3).split(4):
        y, state = rnn(x, state)
        head(y).sum().backward()

def says(x):
    print("\\x1b[2J")
    raise ValueError("\\x1b[2J")

class Own(torch.nn.LSTM):
    pass

def copies():
    own = Own(3, 4)
    own(torch.randn(5, 2, 3))[0].sum().backward()

starts = np.zeros((8, 2), bool)
starts[0] = starts[5] = True

class model:
    encoder = torch.nn.ModuleList([rnn])
"""


@pytest.fixture
def bptt(tmp_path, monkeypatch, in_process):
    """Run the command beside a script; give what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "loop.py").write_text(LOOP + MORE)
    yield partial(in_process, "audit")
    sys.modules.pop("__audited__", None)


@pytest.fixture
def fails(bptt):
    def run(*arguments, status=1):
        _, err = bptt(*arguments, status=status)
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("error: ")
        return err.removeprefix("error: ").strip()

    return run


def test_what_a_loop_credits_and_what_is_written(bptt, tmp_path):
    out, err = bptt(
        "loop.py:talks", "--module", "rnn", "--expect", "truncated:4",
        "--html", "a.html", "--json", "a.json", "--figure", "a.svg",
    )  # fmt: skip
    assert not err
    said, head, *_ = out.splitlines()
    assert said == "trained"
    assert head.startswith("LSTM: 2 calls, 8 steps of 2 sequences")
    assert "\nno faults\n" in out
    assert out.endswith("the credit is Truncated(4)\n")
    assert "<title>Audit: loop.py:talks</title>" in (tmp_path / "a.html").read_text()
    assert "loop.py:talks" in (tmp_path / "a.svg").read_text()
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["target"] == "loop.py:talks"
    assert found["expected"]["is"] is True
    assert found["credit"][4] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_json_on_standard_output_is_alone_there(bptt):
    out, err = bptt("loop.py:talks", "--module", "rnn", "--json", "-")
    assert json.loads(out)["expected"] is None
    assert err == "trained\n"


def test_a_credit_that_is_not_the_expected_one_is_an_error(bptt):
    out, err = bptt("loop.py:train", "--module", "rnn", "--expect", "full", status=1)
    assert "no faults" in out
    assert err == (
        "error: loop.py:train: not Full(): the loss of step 4 credits step 0 with weight 0, "
        "expected 1 (sequence 0)\n"
    )
    out, _ = bptt("loop.py:train", "--module", "rnn", "--expect", "full", "--json", "-", status=1)
    assert json.loads(out)["expected"]["first"] == [4, 0]


def test_a_fault_is_an_error_and_facts_are_none(bptt, tmp_path):
    out, err = bptt(
        "loop.py:train", "--module", "rnn", "--episodes", "starts", "--html", "a.html", status=1
    )
    assert "fault: credit-crosses-episode" in out
    assert err == (
        "error: loop.py:train: 2 faults (memory-crosses-episode, credit-crosses-episode)\n"
    )
    assert (tmp_path / "a.html").exists()
    assert "fact: windows" in bptt("loop.py:train", "--module", "rnn")[0]
    _, err = bptt("loop.py:freed", "--module", "rnn", status=1)
    assert err == "error: loop.py:freed: 1 fault (graph-freed)\n"


@pytest.mark.parametrize(
    "module", ["rnn", "model.encoder.0", "torch.nn.LSTM", "torch.nn.modules.rnn.LSTM"]
)
def test_the_module_is_named_by_a_path_or_a_class(bptt, module):
    out, _ = bptt("loop.py:train", "--module", module)
    assert "LSTM: 2 calls" in out


def test_a_class_of_the_script_and_one_that_it_has_not_imported(bptt):
    assert "Own: 1 call," in bptt("loop.py:copies", "--module", "Own")[0]
    assert "GRU: 2 calls" in bptt("loop.py:train", "--module", "torch.nn.GRU")[0]
    _, err = bptt("loop.py:train", "--module", "bptt.LSTM", status=1)
    assert "never called the module, LSTM" in err


def test_names_of_the_script_are_handed_on(bptt):
    out, _ = bptt("loop.py:train", "--module", "rnn", "--label", "label", "--json", "-", status=1)
    found = json.loads(out)  # in which a step comes again with the state after it
    assert (found["start"], found["steps"]) == (10, 4)
    out, _ = bptt("loop.py:train", "--module", "rnn", "--episodes", "whole", "--json", "-")
    assert json.loads(out)["episodes"] == [[0] * 8] * 2
    out, _ = bptt("loop.py:train", "--module", "rnn", "--steps", 3, "--json", "-")
    assert json.loads(out)["steps"] < 8


def test_what_cannot_be_used_is_one_line(fails, tmp_path):
    rnn = ["--module", "rnn"]
    assert fails("no.py:train", *rnn) == "there is no file no.py"
    for target in ("loop.py", "loop:train", "loop.py:", "train"):
        assert fails(target, *rnn) == (
            f"expected SCRIPT.py:FUNCTION, as train.py:main, got {target}"
        )
    assert "loop.py has no nothing; it has rnn (LSTM), other (GRU), head (Linear)" in fails(
        "loop.py:nothing", *rnn
    )
    assert "needs(model) needs arguments; write a function" in fails("loop.py:needs", *rnn)
    assert "starts is no function but of the type ndarray" in fails("loop.py:starts", *rnn)
    assert "Missing option '--module'" in fails("loop.py:train", status=2)
    for module, said in {
        "model.decoder": "there is no 'decoder' on the path",
        "nix": "--module nix: there is no nix; give a name in loop.py and a path from there",
        "nix.rnn": "No module named 'nix'",
        "torch.nn.LSTN": "has no attribute 'LSTN'",
        "torch.relu": "no class of modules",
        "starts": "expected a module, a class of modules, a predicate",
        "torch.nn.RNN": "never called the module, RNN",
    }.items():
        assert said in fails("loop.py:train", "--module", module)
    for option in ("--label", "--episodes"):
        assert f"{option} nix: loop.py has no nix" in fails("loop.py:train", *rnn, option, "nix")
    assert "unknown credit 'trunc'" in fails("loop.py:train", *rnn, "--expect", "trunc")
    assert "draws other weights" in fails("loop.py:train", *rnn, "--expect", "randomized:3")
    assert fails("loop.py:leaves", *rnn) == "loop.py left Python in leaves, by exit(3)"


def test_what_a_script_raises_is_shown_as_its_user_would_see_it(bptt, tmp_path):
    _, err = bptt("loop.py:broken", "--module", "rnn", status=1)
    assert err.startswith("Traceback")
    assert re.search(r'loop.py", line \d+, in broken\n    rnn\(torch.randn\(3, 2, 7\)\)\n', err)
    assert err.endswith("\nerror: loop.py raised RuntimeError in broken\n")
    (tmp_path / "bad.py").write_text("import nothing_such\n")
    _, err = bptt("bad.py:train", "--module", "rnn", status=1)
    assert err.splitlines()[1].endswith('bad.py", line 1, in <module>')
    assert err.splitlines()[-1] == "error: bad.py raised ModuleNotFoundError while it was loaded"
    (tmp_path / "syntax.py").write_text("x = = 1\n")
    _, err = bptt("syntax.py:train", "--module", "rnn", status=1)
    assert "SyntaxError" in err
    _, err = bptt("loop.py:train", "--module", "rnn", "--label", "says", status=1)
    assert "in says" in err
    assert "\x1b" not in err


def test_a_traceback_begins_in_the_script(bptt, tmp_path):
    """In a process of its own, in which the checks of the tests add no frames."""
    done = subprocess.run(
        [sys.executable, "-m", "bptt", "audit", "loop.py:broken", "--module", "rnn"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.match(r'Traceback .*\n  File ".*loop.py", line \d+, in broken\n', done.stderr)


def test_a_script_finds_what_lies_beside_it_and_is_not_run_as_main(bptt, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside_the_script.py").write_text("from torch.nn import LSTM\n")
    (tmp_path / "sub" / "it.py").write_text(
        "import sys, torch\nfrom dataclasses import dataclass\nimport beside_the_script as b\n"
        "@dataclass\nclass Config:\n    n: int = 3\n"
        "rnn = b.LSTM(Config().n, 4)\n"
        "def train():\n    rnn(torch.randn(5, 2, 3))[0].sum().backward()\n    print(sys.argv)\n"
        "if __name__ == '__main__':\n    print('main')\n"
    )
    out, _ = bptt("sub/it.py:train", "--module", "rnn")
    assert out.startswith("['sub/it.py']\n")
