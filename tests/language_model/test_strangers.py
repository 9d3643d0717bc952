"""A run that somebody else has made: what it asks for is refused in one line, or does no harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bptt._src.documents import sealed
from bptt._src.language_model import lock
from bptt._src.language_model.tensors import read_tensors, write_tensors
from bptt.errors import BpttWarning, CheckpointError, ConfigError
from bptt.language_model import LanguageModel, Run, resume, start, train


def refused(load, path: Path, match: str) -> None:
    """Be refused in one line."""
    with pytest.raises((CheckpointError, ConfigError), match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def put_tokenizer(run: Run, **parts) -> None:
    """Put a tokenizer with other parts into a run, with the right digest."""
    path = run.path / "tokenizer.json"
    content = json.dumps({**json.loads(path.read_text()), **parts}).encode()
    path.write_bytes(content)
    text = {**run.text(), "tokenizer_sha256": hashlib.sha256(content).hexdigest()}
    (run.path / "text.json").write_text(sealed(text))


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"pre_tokenizer": SPLIT}, "regular expression"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}}, "regular expression"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}},
            "regular expression",
        ),
        ({"model": {"type": "WordLevel", "vocab": {"a": 10**9}, "unk_token": "a"}}, "numbered"),
        ({"model": {"type": "WordLevel", "vocab": {"a": True}, "unk_token": "a"}}, "numbered"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, "regular expression"),
        ({"model": None}, "no vocabulary"),
        ({"pre_tokenizer": {"type": "Unheard"}}, "pre_tokenizer is of the kind 'Unheard'"),
        (
            {
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5},
            },
            "dropout",
        ),
    ],
)
def test_a_tokenizer_has_the_rules_of_ours(run, parts, match):
    put_tokenizer(run, **parts)
    refused(LanguageModel.load, run.path, match)
    refused(resume, run.path, match)


@pytest.mark.parametrize("level", ["word", "whitespace", "char", "byte", "bpe"])
@pytest.mark.parametrize("reading", ["stream", "sentences"])
def test_ours_are_taken(small, tmp_path, level, reading):
    vocabulary = 300 if level == "bpe" else None
    config = small.changed(level=level, reading=reading, vocabulary=vocabulary, lowercase=True)
    start(config, tmp_path / "run").close()
    assert Run(tmp_path / "run").tokenizer().level == level


def test_documents_that_are_nested_deeply_or_name_something_twice(run):
    for name, load in (
        ("config.json", LanguageModel.load),
        ("text.json", LanguageModel.load),
        ("tokenizer.json", LanguageModel.load),
    ):
        path = run.path / name
        whole = path.read_bytes()
        for content in (b"[" * 100_000, b'{"a":' * 5000, b"[" * 60 + b"]" * 60, b"1" * 5000):
            path.write_bytes(content)
            refused(load, run.path, f"{name} is (missing or )?damaged")
        path.write_bytes(whole.replace(b"{", b'{"version": 1, "version": 1,', 1))
        refused(load, run.path, name)
        path.write_bytes(whole)


def remake(path: Path, change) -> None:
    """Write a file of tensors with other bytes in its header, and the digest of those."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + length])
    body = data[8 + length :]
    digest = json.loads(json.loads(header)["__metadata__"]["about"])["sha256"].encode()
    blank = header.replace(digest, b"0" * 64)
    size = len(blank).to_bytes(8, "little")
    new = hashlib.sha256(size + blank + body).hexdigest().encode()
    path.write_bytes(size + header.replace(digest, new) + body)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h.replace(b'"F32"', b'"F8_E4M3"', 1), "type F8_E4M3"),
        (lambda h: h.replace(b'"F32"', b'"F64"', 1), "type F64"),
        (lambda h: h.replace(b'"F32"', b"NaN", 1), "type nan"),
        (lambda h: h.replace(b'"shape":[', b'"shape":[-', 1), "has the shape"),
        (lambda h: h.replace(b'"shape":[', b'"shape":[1' + b"0" * 30 + b",", 1), "has the shape"),
        (lambda h: h.replace(b'"shape":[', b'"shape":[1000000000,', 1), "bytes, but its header"),
        (lambda h: h.replace(b'"readout.bias":', b'"embedding.weight":'), "there twice"),
        (lambda h: h.replace(b'"data_offsets":[0', b'"data_offsets":[8', 1), "cannot be used"),
        (lambda h: h.replace(b'"data_offsets":[0', b'"data_offsets":["0"', 1), "cannot be used"),
    ],
)
def test_headers_that_lie(run, change, match):
    path = run.path / "model.safetensors"
    remake(path, lambda header: header)
    LanguageModel.load(run.path)  # that is what a right one looks like
    remake(path, change)
    refused(LanguageModel.load, run.path, match)


def other_shape(t):
    return torch.cat([t, t])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"optimizer.0.exp_avg": torch.zeros(2, 3)}),
        lambda t: t.update({"optimizer.0.exp_avg": t["optimizer.0.exp_avg"].long()}),
        lambda t: t.update({"optimizer.0.step": torch.zeros(5)}),
        lambda t: t.update({"optimizer.0.step": torch.tensor(float("nan"))}),
        lambda t: t.update({"optimizer.77.step": torch.zeros(())}),
        lambda t: t.update({"optimizer.x.step": torch.zeros(())}),
        lambda t: t.pop("optimizer.1.exp_avg"),
        lambda t: t.update({"state.0": other_shape(t["state.0"])}),
        lambda t: t.update({"state.0": t["state.0"] * float("inf")}),
        lambda t: t.update({"state.2": t["state.0"].clone()}),
        lambda t: t.pop("state.1"),
        lambda t: t.update({"past": torch.full((3, 4), 10**6)}),
        lambda t: t.update({"past": torch.zeros(3, 4)}),
        lambda t: t.update({"random.cpu": torch.zeros(7, dtype=torch.uint8)}),
        lambda t: t.update({"random.cpu": torch.full((5056,), 255, dtype=torch.uint8)}),
        lambda t: t.pop("random.cpu"),
        lambda t: t.update({"model.more": torch.zeros(1)}),
        lambda t: t.pop("model.readout.bias"),
    ],
)
def test_tensors_of_a_checkpoint_that_do_not_fit(small, tmp_path, change):
    with closing(start(small, tmp_path / "run")) as training:
        training.fit(lambda: "stop" if training.progress.updates == 3 else None)
    path = tmp_path / "run" / "checkpoint.safetensors"
    tensors, about = read_tensors(path, lambda found: None)
    assert about["progress"]["updates"] == 3
    change(tensors)
    write_tensors(path, tensors, about)
    refused(resume, tmp_path / "run", "checkpoint.safetensors")


def test_the_files_of_another_run(run, small, tmp_path, story):
    book = tmp_path / "other.txt"
    book.write_text(story(seed=1))
    other = train(small.changed(corpus=(str(book),)), tmp_path / "other")
    for name, load in (
        ("model.safetensors", LanguageModel.load),
        ("checkpoint.safetensors", resume),
    ):
        whole = (run.path / name).read_bytes()
        shutil.copy(other.path / name, run.path / name)
        refused(load, run.path, f"{name} (belongs to another run|cannot be used)")
        (run.path / name).write_bytes(whole)


def test_a_run_from_before_there_were_digests(run):
    path = run.path / "config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in options.items() if k != "sha256"}))
    refused(LanguageModel.load, run.path, "it has no sha256, which every file of a run has")
    path.write_text(json.dumps(options))  # as pretty as one likes
    model = run.path / "model.safetensors"
    tensors = safetensors.torch.load_file(model)
    safetensors.torch.save_file(tensors, model, {"about": '{"format": "bptt-1"}'})
    refused(LanguageModel.load, run.path, "format bptt-2")


def test_options_that_were_edited(run):
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"hidden": 16', '"hidden": 17'))
    refused(LanguageModel.load, run.path, "was edited: .*`bptt train --resume`")


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", ".lock", "checkpoint.safetensors", "tensorboard"]
)
def test_symbolic_links_are_not_written_through(run, tmp_path, name):
    target = tmp_path / "mine"
    if name == "tensorboard":
        target.mkdir()
    else:
        shutil.move(run.path / name, target)
    before = target.stat().st_mtime_ns
    (run.path / name).symlink_to(target)
    refused(resume, run.path, "is a symbolic link, which training does not write through")
    assert target.stat().st_mtime_ns == before


def test_what_is_no_file_is_not_waited_for(run):
    for name in ("model.safetensors", "config.json"):
        (run.path / name).unlink()
        os.mkfifo(run.path / name)
        refused(LanguageModel.load, run.path, f"{name}")


def test_sizes_are_bounded_before_memory_is_taken(run):
    run.save_config(run.config().changed(hidden=10**9))
    refused(LanguageModel.load, run.path, "not enough memory for hidden=1000000000")
    run.save_config(run.config().changed(hidden=100))
    with (run.path / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    refused(LanguageModel.load, run.path, r"it does not fit|bytes, but its header says")


# ------------------------------------------------------------------------ where a run may be


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
@pytest.mark.parametrize("name", [b"caf\xe9", b"a b", b"a\nb", b"~mine", b"-x", "日本".encode()])
def test_directories_of_any_name(small, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path(os.fsdecode(name))
    shutil.copy(small.corpus[0], "own.txt")
    run = train(small.changed(corpus=("own.txt",), epochs=1), out)
    assert run.load_model().sample("John", length=2)
    with closing(resume(out, {"epochs": 2})) as training:
        training.fit()


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_a_text_of_any_name(small, tmp_path):
    book = tmp_path / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(small.corpus[0], book)
    run = train(small.changed(corpus=(str(book),), epochs=1), tmp_path / "run")
    assert run.config().corpus == (str(book),)


def test_a_run_that_is_removed_while_it_trains(small, tmp_path):
    with closing(start(small.changed(save_every=0), tmp_path / "run")) as training:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FileNotFoundError) as caught:
            training.fit()
    assert str(tmp_path / "run") in str(caught.value.filename)
    assert not (tmp_path / "run").exists()


def test_where_there_are_no_locks(small, tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.warns(BpttWarning, match=r"cannot be locked here \(Operation not supported\)"):
        start(small, tmp_path / "run").close()


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(tmp_path, monkeypatch):
    real, calls = lock.fcntl.flock, []

    def flock(descriptor, how):
        if not calls:  # another process lets go, removes the file, and a third one takes it
            (tmp_path / ".lock").unlink()
        calls.append(how)
        real(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    held = lock.Lock(tmp_path)
    assert len(calls) == 2
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="another process"):
        lock.Lock(tmp_path)
    held.release()


def test_an_interrupted_replacement_is_finished_by_who_comes_next(run, small, monkeypatch):
    (run.path / "notes.txt").write_text("mine")
    (run.path / ".bptt-new").mkdir()  # of a creation that was killed
    real = Path.replace

    def replace(path, target):
        if path.parent.name == ".bptt-next" and path.name == "config.json":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        start(small.changed(hidden=17), run.path, overwrite=True)
    monkeypatch.undo()
    assert LanguageModel.load(run.path).config.hidden == 17
    assert {p.name for p in run.path.iterdir()} == {
        *("config.json", "tokenizer.json", "text.json", "checkpoint.safetensors"),
        *(".lock", "notes.txt"),
    }


def test_another_process_that_replaces_the_run_is_waited_for(run, small, monkeypatch):
    (run.path / ".bptt-next").mkdir()
    monkeypatch.setattr("bptt._src.language_model.making._PATIENCE", 0.05)
    held = lock.Lock(run.path)
    refused(LanguageModel.load, run.path, "another process is replacing the run")
    held.release()
