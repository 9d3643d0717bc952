"""A run's directory: made whole or not at all, and by one process at a time."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import safetensors.torch

from bptt._src.documents import line_of
from bptt.errors import BpttWarning, CheckpointError, ConfigError
from bptt.language_model import Run, resume, start


def everything(directory: Path) -> dict[str, bytes]:
    """All files under a directory, hidden ones too."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


@pytest.fixture
def full_disk(monkeypatch):
    """Writing fails from the given file on."""

    def fill(name):
        real = os.replace

        def replace(a, b):
            if Path(b).name == name:
                raise OSError(28, "No space left on device")
            return real(a, b)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(Path, "replace", replace)

    return fill


@pytest.mark.parametrize("name", ["tokenizer.json", "checkpoint.safetensors", "config.json"])
@pytest.mark.parametrize("there", ["nothing", "a directory", "a run"])
def test_a_start_that_fails_leaves_all_as_it_was(small, tmp_path, full_disk, there, name):
    out = tmp_path / "runs" / "mine"
    if there == "a run":
        start(small, out).close()
        (out / "metrics.jsonl").write_text("{}\n")
    elif there == "a directory":
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    before = everything(tmp_path)
    full_disk(name)
    with pytest.raises(OSError, match="No space left") as caught:
        start(small.changed(hidden=17), out, overwrite=True)
    assert caught.value.filename == str(out)
    assert everything(tmp_path) == before


def test_an_overwritten_run_is_gone_and_what_else_was_there_stays(run, small):
    (run.path / "notes.txt").write_text("mine")
    (run.path / ".metrics.jsonl.abc.new").write_text("cut short")
    (run.path / "tensorboard").mkdir()
    start(small.changed(hidden=17), run.path, overwrite=True)
    assert {p.name for p in run.path.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "text.json",
        "checkpoint.safetensors",
        ".lock",
        "notes.txt",
    }
    assert run.config().hidden == 17
    assert [p.name for p in run.path.parent.iterdir() if p.name.startswith(".")] == []


def test_the_old_run_is_put_back_when_the_new_one_cannot_come(run, small, monkeypatch):
    before = everything(run.path)
    real = Path.rename

    def rename(path, target):
        if path.name == ".bptt-new":
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        start(small, run.path, overwrite=True)
    assert everything(run.path) == before


def test_a_run_in_a_directory_that_is_there_already(small, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    start(small, out).close()
    assert (out / "notes.txt").read_text() == "mine"
    assert resume(out).progress.updates == 0


def test_files_of_the_names_of_a_runs_are_not_replaced_unless_told(small, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "model.safetensors").write_text("mine, or of a run whose config.json was deleted")
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.safetensors is in the way of a new run"):
        start(small, out)
    assert everything(tmp_path) == before
    start(small, out, overwrite=True).close()
    assert not (out / "model.safetensors").exists()


def test_the_model_of_another_program_is_not_replaced(small, tmp_path):
    out = tmp_path / "theirs"
    out.mkdir()
    (out / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "n_layer": 12}')
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.json: choose another out"):
        start(small, out, overwrite=True)
    assert everything(tmp_path) == before


def test_a_new_run_may_be_read_by_others(small, tmp_path):
    mask = os.umask(0o022)
    try:
        start(small, tmp_path / "run")
    finally:
        os.umask(mask)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "run" / "config.json").stat().st_mode & 0o777 == 0o644


def test_a_file_is_no_directory(small, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file; choose a directory"):
        start(small, tmp_path / "run")


# ----------------------------------------------------------------------------------- the lock


def test_a_run_is_trained_once_at_a_time(small, tmp_path):
    first = start(small, tmp_path / "run")
    message = "another process is training .*run: wait for it or stop it"
    with pytest.raises(ConfigError, match=message):
        resume(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        start(small, tmp_path / "run", overwrite=True)
    first.close()
    second = resume(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        resume(tmp_path / "run")
    del second
    gc.collect()
    resume(tmp_path / "run")


def test_a_resumption_that_fails_does_not_keep_the_run(run):
    path = run.path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(CheckpointError) as kept:
        resume(run.path)
    path.write_bytes(whole)
    resume(run.path)
    assert kept


def test_an_overwriting_start_holds_the_new_run(run, small):
    training = start(small, run.path, overwrite=True)
    with pytest.raises(ConfigError, match="another process"):
        resume(run.path)
    training.close()


def test_a_model_can_be_used_while_it_is_trained(small, tmp_path):
    training = start(small, tmp_path / "run")
    assert training.run.load_model().sample("John", length=3)


# ----------------------------------------------------------------------------------- resuming


def test_what_a_kill_left_half_written_is_removed(run):
    for name in (".checkpoint.safetensors.abc.new", ".config.json.x_y.new", ".mine.new"):
        (run.path / name).write_text("half")
    resume(run.path)
    assert [p.name for p in run.path.glob(".*.new")] == [".mine.new"]


def test_another_torch_is_said(run):
    tensors, about = run.load_checkpoint()
    run.save_checkpoint(tensors, {**about, "torch": "1.0"})
    with pytest.warns(BpttWarning, match=r"trained with torch 1\.0, this is .*same bits"):
        resume(run.path)


def test_a_checkpoint_is_read_once(run, monkeypatch):
    calls = []
    real = Run.load_checkpoint
    monkeypatch.setattr(Run, "load_checkpoint", lambda self: calls.append(1) or real(self))
    resume(run.path)
    assert calls == [1]


def test_a_measurement_is_a_line(run):
    path = run.path / "metrics.jsonl"
    before = path.read_text()
    number = before.count("\n")
    run.append_metrics(number, {"update": 9})
    assert path.read_text() == before + line_of(number, {"update": 9}) + "\n"
    assert run.metrics()[-1] == {"update": 9}


@pytest.mark.parametrize("damage", [b"\xff\xfe\x80 no text\n", b"5\n", b'{"update": 3'])
def test_what_is_no_measurement_is_left_out(run, damage):
    path = run.path / "metrics.jsonl"
    whole = run.metrics()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + b"\n" + b"".join(lines[1:]))
    assert run.metrics() == whole
    resume(run.path)


@pytest.mark.parametrize("damage", ["changed", "gone", "joined", "cut in two"])
def test_a_damaged_measurement_costs_itself_and_is_said(run, damage):
    path = run.path / "metrics.jsonl"
    whole = run.metrics()
    assert len(whole) == 5
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = {
        "changed": lines[2].replace(b"epoch", b"epocH"),
        "gone": b"",
        "joined": lines[2].replace(b"\n", b"!"),
        "cut in two": lines[2].replace(b"epoch", b"\n"),
    }[damage]
    path.write_bytes(b"".join(lines))
    if damage == "joined":
        assert run.metrics() == whole
        return
    rest = [*whole[:2], *whole[3:]]
    with pytest.warns(BpttWarning, match=r"metrics\.jsonl is damaged: 1 of its 5 measurements"):
        assert run.metrics() == rest
    with pytest.warns(BpttWarning, match=r"metrics\.jsonl is damaged: 1 of its 5 measurements"):
        resume(run.path)
    assert run.metrics() == rest  # and it was said


def test_tensors_are_those_of_the_first_moment(small, tmp_path):
    training = start(small, tmp_path / "run")
    saved = safetensors.torch.load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert (saved["model.embedding.weight"] == training.model.embedding.weight).all()
