"""Cells on the command line: all of bptt's, and one's own as ``module.CELL``."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from cli import offered
from cli.test_commands import SMALL, alone, fails, here, story  # noqa: F401  # a fixture
from cli.test_commands import bptt as run

import bptt
from bptt._src.networks import NAMES, cell_of
from bptt.errors import ConfigError
from bptt.language_model import Config, Run, resume, train

TRAIN = ["train", "book.txt", *SMALL, "--epochs", 1, "--flow-every", 0]


@pytest.fixture
def own(here):  # noqa: F811
    """A module with cells in the current directory, which no process has imported."""
    (here / "own_cell.py").write_text(offered.OWN_CELL)
    yield here
    sys.modules.pop("own_cell", None)


QUICK = ("indrnn", "slstm", "lif")


@pytest.mark.parametrize(
    "cell", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in NAMES]
)
def test_every_cell_is_a_language_model(here, cell):  # noqa: F811
    (here / "book.txt").write_text(story(40))
    out, _ = run(*TRAIN, "--cell", cell, "--out", "run")
    assert cell.upper() in out
    out, _ = run("sample", "run", "--length", 5, "--prompt", "John")
    assert out.startswith("John")


def test_a_cell_of_ones_own_is_trained_and_loaded_again(own):
    out, _ = alone(*TRAIN, "--cell", "own_cell.LEAKY", "--out", "run")
    assert "1 × own_cell.LEAKY of 16" in out
    assert json.loads((own / "run/config.json").read_text())["cell"] == "own_cell.LEAKY"
    out, _ = alone("evaluate", "run", "--allow-code")
    assert "perplexity" in out
    out, _ = alone("sample", "run", "--allow-code", "--length", 5, "--prompt", "John")
    assert out.startswith("John")
    out, _ = alone("flow", "run", "--allow-code", "--tokens", 8)
    assert "verdict" in out
    out, _ = alone("train", "--resume", "run", "--epochs", 2, "--allow-code")
    assert "epoch 2/2" in out


def test_a_run_imports_nothing_unless_it_is_allowed_to(own):
    (own / "own_cell.py").write_text(offered.OWN_CELL + "open('seen', 'w').close()\n")
    run(*TRAIN, "--cell", "own_cell.LEAKY", "--out", "run")
    (own / "seen").unlink()
    said = r"names the cell 'own_cell.LEAKY', which runs code of a module: use "
    for command in (["evaluate"], ["sample"], ["flow"], ["train", "--epochs", 2, "--resume"]):
        assert said + "--allow-code if you trust it" in fails(*command, "run")
    (own / "copied.json").write_text((own / "run/config.json").read_text())
    assert said in fails("train", *SMALL, "--config", "copied.json", "--out", "new")
    for load in (
        lambda: bptt.LanguageModel.load("run"),
        lambda: Run(own / "run").load_checkpoint(),
        lambda: resume(own / "run", {"epochs": 2}),
    ):
        with pytest.raises(ConfigError, match=said + "allow_code if"):
            load()
    assert not (own / "seen").exists()
    run("evaluate", "run", "--allow-code")
    assert (own / "seen").exists()


def test_in_python_a_module_that_is_imported_needs_no_leave(own, monkeypatch):
    monkeypatch.syspath_prepend(own)
    options = {"hidden": 6, "steps": 5, "epochs": 1, "batch_size": 2, "threads": 1}
    config = Config(corpus=("book.txt",), cell="own_cell.LEAKY", flow_every=0, **options)
    trained = train(config, own / "run")
    del sys.modules["own_cell"]
    with pytest.raises(ConfigError, match="use allow_code"):
        bptt.LanguageModel.load(trained.path)
    import own_cell  # type: ignore[import-not-found]

    model = bptt.LanguageModel.load(trained.path)
    assert model.recurrent.cell is own_cell.LEAKY
    del sys.modules["own_cell"]
    assert bptt.LanguageModel.load(trained.path, allow_code=True).recurrent.cell.name == "LEAKY"


def test_a_cell_of_bptt_by_its_dotted_name(here):  # noqa: F811
    assert cell_of("bptt.cells.SLSTM") is bptt.cells.SLSTM
    run(*TRAIN, "--cell", "bptt.cells.MGU", "--out", "one")
    run(*TRAIN, "--cell", "mgu", "--out", "other")
    run("evaluate", "one")  # its module is imported anyway
    one, other = (bptt.LanguageModel.load(name).state_dict() for name in ("one", "other"))
    for name, weights in one.items():
        assert torch.equal(weights, other[name])


def test_an_untrained_one_and_a_comparison(own):
    out, _ = run("flow", "--cell", "own_cell.LEAKY", "--cell", "slstm", "--hidden", 8)
    assert "own_cell.LEAKY 8" in out
    assert "SLSTM 8" in out
    without = "--allow-code has no effect without a run: leave it out"
    assert without in fails("flow", "--cell", "own_cell.LEAKY", "--allow-code")
    few = ["--seeds", 1, "--updates", 2, "--hidden", 4, "--lag", 5, "--credit", "full"]
    out, _ = run("compare", *few, "--cell", "own_cell.LEAKY", "--out", "compared")
    assert "own_cell.LEAKY of 4" in out


LISTED = f"must be one of {', '.join(NAMES)}, or your own as module.CELL, got"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("lstn", f"--cell {LISTED} 'lstn'"),
        ("own_cell.", f"--cell {LISTED} 'own_cell.'"),
        (".LEAKY", f"--cell {LISTED} '.LEAKY'"),
        ("own cell.LEAKY", f"--cell {LISTED} 'own cell.LEAKY'"),
        (
            "no_such.LEAKY",
            "--cell no_such.LEAKY cannot be imported: No module named 'no_such'; run in the "
            "directory of no_such.py, or add it to PYTHONPATH",
        ),
        (
            "own_cell.NONE",
            "--cell own_cell.NONE cannot be imported, AttributeError: module 'own_cell' has no "
            "attribute 'NONE'",
        ),
        ("broken.CELL", "--cell broken.CELL cannot be imported, ZeroDivisionError: division by"),
        (
            "own_cell.NUMBER",
            "--cell own_cell.NUMBER: own_cell.NUMBER must be a bptt.Cell, as bptt.Cell(...) makes "
            "it, got 7",
        ),
        ("own_cell.MIXES", "--cell own_cell.MIXES: bptt.Recurrent: the equations of MIXES mix"),
    ],
)
def test_what_is_no_cell(own, cell, said):
    (own / "broken.py").write_text("1 / 0\n")
    assert said in fails(*TRAIN, "--cell", cell, "--out", "run")
    assert not (own / "run").exists()
    if "must be one of" not in said:
        assert said in fails("flow", "--cell", cell)
        assert said in fails("compare", "--cell", cell, "--seeds", 1, "--updates", 2)


def test_a_run_whose_module_has_gone(own):
    run(*TRAIN, "--cell", "own_cell.LEAKY", "--out", "run")
    (own / "own_cell.py").unlink()
    for command in (["evaluate"], ["sample"], ["flow"], ["train", "--epochs", 2, "--resume"]):
        said = fails(*command, "run", "--allow-code")
        assert "--cell own_cell.LEAKY cannot be imported: No module named 'own_cell'; run" in said
