"""What ``import bptt`` costs, and which names it offers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bptt

HEAVY = {
    *("torch._dynamo", "sympy", "tokenizers", "sentencex", "safetensors", "msgspec"),
    *("platformdirs", "matplotlib", "rich", "typer"),
}


def python(code: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_core_loads_nothing_but_torch_and_numpy():
    found = python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import bptt\n"
        "for name in bptt.__all__: getattr(bptt, name)\n"
        "lstm, x = bptt.LSTM(3, 4), torch.randn(6, 2, 3)\n"
        "y, _ = bptt.unroll(lstm, x, credit='truncated:2')\n"
        "(lstm(x)[0] + y).sum().backward()\n"
        "print(*set(sys.modules) - before)"
    ).split()
    assert "bptt._src.recurrent" in found
    assert not HEAVY & {*found}


def test_a_network_does_without_the_tools_that_look_at_it():
    found = python("import sys, bptt\nbptt.LSTM\nprint(*sys.modules)").split()
    parts = {name.split(".")[2] for name in found if name.startswith("bptt._src.")}
    assert "recurrent" in {*parts}
    assert not parts & {"audit", "explain", "flow", "fuse", "module_check", "language_model"}


def test_the_reference_describes_what_is_public_and_nothing_else():
    pages = (Path(__file__).parents[1] / "docs/reference").glob("*.md")
    described = {n for page in pages for n in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    listed = {n for n in dir(bptt) if not n.startswith("_")}
    core = {*bptt.__all__, "LanguageModel"}
    within = {n for n in core if getattr(getattr(bptt, n), "__module__", None) in described}
    within |= {n for n in core if n in getattr(bptt.language_model, "__all__", ())}
    assert {d.split(".")[1] for d in described} | within == listed
    assert not [d for d in described if "._" in d]


@pytest.mark.parametrize("part", bptt._PARTS)
def test_the_reference_describes_every_name_of_a_part(part):
    entries = {}
    for page in (Path(__file__).parents[1] / "docs/reference").glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n?)*)", page.read_text(), re.M):
            entries[name] = re.search(r"members: \[(.*)\]", options)
    for name in getattr(getattr(bptt, part), "__all__", ()):
        if f"bptt.{name}" in entries or f"bptt.{part}.{name}" in entries:
            continue
        members = entries[f"bptt.{part}"]
        assert members is None or name in members[1].split(", "), name


@pytest.mark.parametrize("first", ["", "import bptt.losses", "bptt.LSTM", "bptt.language_model"])
def test_a_part_is_there_whatever_was_imported_before(first):
    code = f"import bptt\n{first}\nprint(bptt.kernels.backend().name, *bptt.bench.SECTIONS)"
    assert python(code).split()[0] in ("native", "twin")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bptt.nothing  # noqa: B018


@pytest.mark.parametrize(
    "part", ["bptt._public", "bptt.language_model", "bptt._src.cli.command_line"]
)
def test_importing_sets_no_environment_variable(part):
    code = "import os, sys\nbefore = dict(os.environ)\n__import__(sys.argv[1])\n"
    assert python(code + "print(before == dict(os.environ))", part).split() == ["True"]


def test_tokenizers_are_kept_from_forking_once_there_is_one(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    bptt.data.Tokenizer.train(["a b"], level="char")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_what_is_compiled_runs_the_loops_as_written():
    """The compiler is loaded after bptt, as wherever torch.compile is first used."""
    python(
        "import sys, torch, bptt\n"
        "lstm = bptt.LSTM(3, 4)\n"
        "def model(x):\n"
        "    y, _ = bptt.unroll(lstm, 2 * x, credit='truncated:2', memory='recompute:64MB')\n"
        "    return (y + lstm(x)[0]).sin().sum()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "compiled = [torch.compile(model, backend='aot_eager')]\n"
        "wrapped = torch.compile(lstm, backend='aot_eager')\n"
        "compiled += [lambda x: wrapped(x)[0].sin().sum()]\n"
        "for found, right in zip(compiled, [model, lambda x: lstm(x)[0].sin().sum()]):\n"
        "    for steps in (4, 6, 7):\n"
        "        x = torch.randn(steps, 2, 3)\n"
        "        pair = [torch.autograd.grad(f(x), lstm.parameters()) for f in (found, right)]\n"
        "        torch.testing.assert_close(*pair)\n"
    )


def test_no_trace_goes_into_the_loop():
    def total(x):
        return bptt.unroll(lambda x, s: (x.cumsum(0), s), x)[0]

    compiled = torch.compile(total, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        compiled(torch.ones(4, 2, 3))
