"""``bptt export``: what it writes, checks and refuses."""

from __future__ import annotations

import json
import sys

import onnxruntime
import pytest
import tokenizers
import torch

import bptt
from bptt._src.cli import export
from bptt._src.language_model import elsewhere


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(world / "run")
    return tmp_path


def names(where):
    return {path.name for path in where.iterdir()}


def test_a_text_goes_through_the_file_as_through_the_model(here, in_process):
    out, err = in_process("export", "run", "model.onnx")
    assert not err
    assert "checked  in onnxruntime, 64 tokens one by one" in out
    assert names(here) == {"run", "model.onnx"}
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    said = json.loads(about["language_model.json"])
    assert (said["cell"], said["hidden"], said["bptt"]) == ("lstm", 6, bptt.__version__)
    ids = tokenizers.Tokenizer.from_str(about["tokenizer.json"]).encode("Jane greets").ids
    state = {n: torch.zeros(1, 1, 6).numpy() for n in ("h_0", "c_0")}
    for token in [said["first_token"], *ids]:  # as a program without bptt would
        y, h, c = session.run(None, {"tokens": torch.tensor([[token]]).numpy(), **state})
        state = {"h_0": h, "c_0": c}
    model = bptt.LanguageModel.load("run")
    expected, _ = model(
        torch.tensor([said["first_token"], *model.tokenizer.encode("Jane greets")]).unsqueeze(1)
    )
    torch.testing.assert_close(torch.from_numpy(y[0]), expected[-1], rtol=1e-4, atol=1e-5)


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(here, in_process):
    (here / "model.onnx").write_bytes(b"before")
    _, err = in_process("export", "run", "model.onnx", status=1)
    assert err == (
        "error: FILE model.onnx exists already: replace it by --overwrite, or choose another name\n"
    )
    assert (here / "model.onnx").read_bytes() == b"before"
    in_process("export", "run", "model.onnx", "--overwrite")
    onnxruntime.InferenceSession("model.onnx")


def test_without_onnxruntime_it_says_that_nothing_was_checked(here, in_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out, _ = in_process("export", "run", "model.onnx")
    assert "not checked: onnxruntime is not installed: pip install 'bptt[onnx]'" in out
    assert (here / "model.onnx").exists()


def test_a_file_that_fails_the_check_is_not_written(here, in_process, monkeypatch):
    monkeypatch.setattr(elsewhere, "TOLERANCE", 1e-12)
    _, err = in_process("export", "run", "model.onnx", status=1)
    assert err.startswith("error: the file of ONNX computes other numbers than the model: off by")
    assert names(here) == {"run"}


def test_where_it_cannot_be_written_nothing_is_left(here, in_process, monkeypatch):
    def full(path, *content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export, "write_whole", full)
    _, err = in_process("export", "run", "model.onnx", status=1)
    assert len(err.splitlines()) == 1
    assert "No space left on device" in err
    assert names(here) == {"run"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("elsewhere", "model.onnx"), "there is no run at elsewhere"),
        (("run", "nowhere/model.onnx"), "FILE nowhere/model.onnx: make the directory nowhere"),
        (("run", "run"), "FILE run is a directory"),
        (("run", "-"), "FILE -: only --json writes to the standard output"),
    ],
)
def test_what_cannot_be_is_one_line(here, in_process, given, says):
    _, err = in_process("export", *given, status=1)
    assert err.startswith(f"error: {says}")
    assert len(err.splitlines()) == 1
    assert names(here) == {"run"}
