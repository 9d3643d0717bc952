"""Training: what it computes, that it goes on to the same bits, that each option does something."""

from __future__ import annotations

import math
import resource
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bptt._src.language_model import training as training_module
from bptt._src.language_model.tensors import read_tensors, write_tensors
from bptt._src.networks import NAMES
from bptt.data import Tokenizer
from bptt.errors import CheckpointError, ConfigError, DivergedError, KernelError
from bptt.kernels import backend
from bptt.language_model import LanguageModel, Run, resume, start, train


def weights(run: Run, name: str = "checkpoint.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.path / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(training, updates: int):
    return lambda: "stop" if training.progress.updates == updates else None


def without_time(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in m.items() if k != "seconds"} for m in metrics]


@pytest.mark.parametrize("cell", NAMES)
def test_an_untrained_model_knows_nothing_and_a_trained_one_something(small, tmp_path, cell):
    training = start(small.changed(cell=cell, epochs=5), tmp_path / "run")
    V = training.text.tokenizer.size
    first = training.evaluate().loss
    assert first == pytest.approx(math.log(V), abs=0.05)
    training.fit()
    assert training.progress.best_valid < 0.7 * first
    assert training.progress.best_valid < math.log(training.run.text()["unigram_perplexity"])


VARIANTS = {
    **{f"{name}, adam": {"cell": name, "layers": 2, "dropout": 0.2} for name in NAMES},
    "lstm, adam, one layer": {},
    "rnn, sgd with momentum": {"cell": "rnn", "optimizer": "sgd", "momentum": 0.9, "clip": 0.1},
    "sgd, which touches only the embeddings that are used": {"optimizer": "sgd"},
    "adam of the rows that are used": {"embedding_rows": "used"},
    "gru, adamw, dropout, two layers": {
        "cell": "gru",
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "dropout": 0.3,
        "layers": 2,
        "schedule": "cosine",
        "warmup": 5,
    },
    "tied, random windows": {"tied": True, "sampling": "random"},
    "sentences": {"reading": "sentences"},
    "lines, characters": {"reading": "lines", "level": "char"},
    "adaptive softmax": {"softmax": "adaptive", "dropout": 0.2},
    **({"bf16": {"precision": "bf16", "dropout": 0.3}} if backend().bf16 else {}),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_stopped_and_resumed_it_comes_to_the_same_bits(small, tmp_path, variant):
    """Stopped in the first epoch, again at its last update, and in the second one."""
    config = small.changed(eval_every=17, flow_every=7, **variant)
    whole = train(config, tmp_path / "whole")
    updates = whole.load_checkpoint()[1]["progress"]["updates"]
    assert updates > 20

    parts = start(config, tmp_path / "parts")
    for stop_at in (3, updates // 2, updates // 2 + 1, updates - 1):
        assert parts.fit(stop_after(parts, stop_at)) == "stop"
        parts.close()
        torch.manual_seed(12345)  # nothing may hang on what this process remembers
        parts = resume(parts.run.path)
        assert parts.progress.updates == stop_at
    parts.fit()
    assert same(weights(whole), weights(parts.run))
    assert same(weights(whole, "model.safetensors"), weights(parts.run, "model.safetensors"))
    assert without_time(whole.metrics()) == without_time(parts.run.metrics())


def test_a_stop_evaluates_without_changing_where_it_goes_on(small, tmp_path):
    whole = train(small, tmp_path / "whole")
    parts = start(small, tmp_path / "parts")
    parts.fit(stop_after(parts, 5))
    assert not (parts.run.path / "model.safetensors").exists()
    parts.evaluate_unsaved()
    assert (parts.run.path / "model.safetensors").exists()
    parts.close()
    parts = resume(parts.run.path)
    parts.fit()
    assert same(weights(whole), weights(parts.run))
    assert same(weights(whole, "model.safetensors"), weights(parts.run, "model.safetensors"))


def test_more_epochs_later_are_as_good_as_at_once(small, tmp_path):
    whole = train(small.changed(epochs=4), tmp_path / "whole")
    first = train(small, tmp_path / "parts")
    parts = resume(first.path, {"epochs": 4})
    parts.fit()
    assert same(weights(whole), weights(parts.run))
    assert parts.run.config().epochs == 4


OPTIONS = [
    {"vocabulary": 8},
    {"lowercase": True},
    {"level": "char"},
    {"level": "byte"},
    {"level": "bpe", "vocabulary": 270},
    {"reading": "sentences"},
    {"reading": "lines"},
    {"sampling": "random"},
    {"valid_fraction": 0.3},
    {"max_tokens": 500},
    *({"cell": name} for name in NAMES if name != "lstm"),  # the default
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "rnn", "nonlinearity": "sigmoid"},
    {"hidden": 15},
    {"layers": 2},
    {"embedding": 5},
    {"tied": True},
    {"softmax": "adaptive"},
    {"dropout": 0.5},
    {"steps": 9},
    {"batch_size": 5},
    {"epochs": 2},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.5},
    {"optimizer": "adamw", "weight_decay": 0.1},  # without a decay it is adam
    {"embedding_rows": "used"},
    {"learning_rate": 0.01},
    {"weight_decay": 0.1},
    {"clip": 0.01},
    {"schedule": "linear"},
    {"schedule": "cosine"},
    {"warmup": 50},
    {"seed": 1},
    *([{"precision": "bf16"}] if backend().bf16 else []),
]


@pytest.mark.filterwarnings("ignore:.* of the tokens of .* are unknown")  # few are known
def test_every_option_changes_the_result(small, tmp_path, story):
    (tmp_path / "book.txt").write_text(story(120))
    small = small.changed(epochs=1)
    found: dict[str, dict] = {}
    for number, options in enumerate([{}, *OPTIONS]):
        run = train(small.changed(**options), tmp_path / str(number))
        model = weights(run, "model.safetensors")
        for other, theirs in found.items():
            assert not same(model, theirs), f"{options} gives what {other} gives"
        found[str(options)] = model


def rates(training):
    """The rate of each update."""
    seen = []
    step = training.optimizer.step

    def note():
        seen.append(training.optimizer.param_groups[0]["lr"])
        return step()

    training.optimizer.step = note
    training.fit()
    return seen


def test_linear_and_cosine_schedules_end_near_nothing_and_warmup_rises(small, tmp_path):
    config = small.changed(learning_rate=1e-3, warmup=4, epochs=3)
    for schedule in ("linear", "cosine"):
        seen = rates(start(config.changed(schedule=schedule), tmp_path / schedule))
        assert seen[:4] == sorted(seen[:4])
        assert seen[0] == pytest.approx(0.25e-3, rel=0.05)
        assert all(a >= b for a, b in pairwise(seen[4:]))
        assert seen[-1] < 0.05e-3
        middle = seen[len(seen) // 2]
        assert middle == pytest.approx(0.5e-3, rel=0.1)
    seen = rates(start(config.changed(schedule="constant"), tmp_path / "constant"))
    assert set(seen[4:]) == {1e-3}


def test_the_rate_is_halved_each_time_the_validation_loss_rises(small, tmp_path, monkeypatch):
    losses = iter([2.0, 1.5, 1.7, 1.6, 1.9, 1.9, 1.0])
    real = training_module.evaluate_shared

    def told(*arguments, **options):
        score = real(*arguments, **options)
        return type(score)(**{**score.__dict__, "nats": next(losses) * score.tokens})

    monkeypatch.setattr(training_module, "evaluate_shared", told)
    training = start(small.changed(epochs=7, learning_rate=0.8), tmp_path / "run")
    seen = rates(training)
    per_epoch = len(seen) // 7
    # Lower, higher, lower, higher, equal, lower: halved after the third and the fifth.
    expected = [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert [seen[i * per_epoch + 3] for i in range(7)] == pytest.approx(expected)


def test_patience_ends_training_and_the_best_model_is_kept(small, tmp_path, monkeypatch):
    losses = iter([2.0, 1.5, 1.7, 1.6, 1.9, 1.9, 1.0])
    real = training_module.evaluate_shared
    kept = {}

    def told(model, *arguments, **options):
        score = real(model, *arguments, **options)
        loss = next(losses)
        kept[loss] = {k: v.clone() for k, v in model.state_dict().items()}
        return type(score)(**{**score.__dict__, "nats": loss * score.tokens})

    monkeypatch.setattr(training_module, "evaluate_shared", told)
    training = start(small.changed(epochs=7, patience=2), tmp_path / "run")
    assert training.fit() == "patience"
    assert list(kept) == [2.0, 1.5, 1.7, 1.6]
    assert same(weights(training.run, "model.safetensors"), kept[1.5])
    assert same(training.run.load_model().state_dict(), kept[1.5])
    training.close()
    assert resume(training.run.path).fit() == "patience"


def test_divergence_stops_and_keeps_the_last_good_weights(small, tmp_path, monkeypatch):
    training = start(small.changed(save_every=0), tmp_path / "run")
    calls = 0
    real = LanguageModel.hidden

    def hidden(self, tokens, state=None, **how):
        nonlocal calls
        calls += 1
        h, state = real(self, tokens, state, **how)
        return (h * float("nan") if calls == 7 else h), state

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    with pytest.raises(DivergedError, match="diverged at update 7: the loss is nan"):
        training.fit()
    assert training.run.load_checkpoint()[1]["progress"]["updates"] == 6
    assert all(w.isfinite().all() for w in weights(training.run).values())


def test_an_infinite_gradient_never_reaches_the_weights(small, tmp_path, monkeypatch):
    training = start(small.changed(clip=0.0), tmp_path / "run")
    monkeypatch.setattr(training.step, "norm", lambda: math.inf)  # as of an overflow
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    with pytest.raises(DivergedError, match="gradient's norm inf"):
        training.fit()
    assert same(before, training.model.state_dict())


# --------------------------------------------------------------------- the run's directory


def test_what_a_run_holds(run):
    names = {p.name for p in run.path.iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "text.json",
        "model.safetensors",
        "checkpoint.safetensors",
        "metrics.jsonl",
        ".lock",
    }
    first, *_, last = run.metrics()
    assert first["update"] == 1
    assert first["loss"] == pytest.approx(math.log(run.text()["vocabulary"]), abs=0.1)
    assert "valid_perplexity" in last
    assert last["rate"] > 0
    assert isinstance(Tokenizer.load(run.path / "tokenizer.json"), Tokenizer)


def test_the_runs_own_config_makes_the_same_run_again(run, tmp_path):
    again = train(run.config(), tmp_path / "again")
    assert same(weights(run), weights(again))


def test_a_run_is_not_overwritten_unless_told(run):
    with pytest.raises(ConfigError, match=r"already holds a run.*with resume "):
        start(run.config(), run.path)
    assert start(run.config(), run.path, overwrite=True).progress.updates == 0
    assert not (run.path / "model.safetensors").exists()


def damage(path, how):
    content = path.read_bytes()
    {
        "missing": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "cut short": lambda: path.write_bytes(content[: len(content) // 2]),
        "noise": lambda: path.write_bytes(bytes(range(256)) * 20),
        "another format": lambda: path.write_bytes(safetensors.torch.save({"a": torch.ones(1)})),
    }[how]()


@pytest.mark.parametrize("how", ["missing", "empty", "cut short", "noise", "another format"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "text.json", "checkpoint.safetensors"]
)
def test_damage_is_named_when_resuming(run, name, how):
    damage(run.path / name, how)
    with pytest.raises(CheckpointError) as caught:
        resume(run.path)
    assert name.split(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["empty", "cut short", "noise", "another format"])
def test_a_damaged_model_is_named_when_loading(run, how):
    damage(run.path / "model.safetensors", how)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        LanguageModel.load(run.path)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(run, number):
    for path, name, load in (
        (run.path / "model.safetensors", "recurrent.weight_hh_l0", LanguageModel.load),
        (run.path / "checkpoint.safetensors", "model.recurrent.weight_hh_l0", resume),
    ):
        tensors, about = read_tensors(path, lambda found: None)
        tensors[name][1, 2] = number
        write_tensors(path, tensors, about)
        with pytest.raises(CheckpointError, match=r"recurrent\.weight_hh_l0 holds numbers"):
            load(run.path)


def test_a_model_of_other_sizes_is_named(run):
    run.save_config(run.config().changed(hidden=17))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors cannot be used: it does not fit"
    ):
        LanguageModel.load(run.path)


def test_no_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run at"):
        LanguageModel.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"is not a run: it has no config\.json"):
        LanguageModel.load(tmp_path)


def test_a_full_disk_loses_nothing(small, tmp_path, monkeypatch):
    training = start(small.changed(save_every=0), tmp_path / "run")
    training.fit(stop_after(training, 5))
    before = {p.name: p.read_bytes() for p in training.run.path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        training.save()
    assert {p.name: p.read_bytes() for p in training.run.path.iterdir()} == before


def test_only_what_may_change_changes_when_resuming(run):
    with pytest.raises(ConfigError, match="hidden cannot change when a run is resumed"):
        resume(run.path, {"hidden": 17})


def test_resuming_needs_the_same_text(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "another"))
    resume(run.path)  # read again
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "a third"))
    book = tmp_path / "book.txt"
    book.write_text(book.read_text() + "And so on.\n")
    with pytest.raises(CheckpointError, match="has changed since"):
        resume(run.path)


def test_measurements_after_the_checkpoint_are_taken_back(small, tmp_path):
    """Whether of a later update, of the checkpoint's own, or cut short by a kill."""
    training = start(small, tmp_path / "run")
    training.fit(stop_after(training, 5))
    training.close()
    path = training.run.path / "metrics.jsonl"
    before = path.read_text()
    training.evaluate()
    path.write_text(path.read_text() + '{"update": 9, "loss": 1.0}\n{"update": 10, "lo')
    again = resume(training.run.path)
    assert path.read_text() == before
    again.evaluate()
    again.save()
    again.close()
    assert len(resume(training.run.path).run.metrics()) == 2


def test_tied_weights_are_stored_once(small, tmp_path):
    run = train(small.changed(tied=True), tmp_path / "run")
    assert "readout.weight" not in weights(run, "model.safetensors")
    model = run.load_model()
    assert model.readout.weight is model.embedding.weight


@pytest.mark.parametrize("name", ["nonsense", "meta", "cpu:", "vulkan"])
def test_no_device_of_that_name(small, tmp_path, name):
    with pytest.raises(ConfigError, match=f"device='{name}' cannot be used here: use cpu, cuda"):
        start(small.changed(device=name), tmp_path / "run")


def test_too_large_for_the_memory(small, tmp_path):
    for hidden in (10**9, 10**15):
        with pytest.raises(ConfigError, match=f"not enough memory for hidden={hidden}"):
            start(small.changed(hidden=hidden), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kernels_that_there_are_not_are_refused_before_there_is_a_run(small, tmp_path, monkeypatch):
    def backend():
        raise KernelError("BPTT_KERNELS must be ...")

    monkeypatch.setattr("bptt._src.language_model.session.backend", backend)
    with pytest.raises(KernelError):
        start(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_machine_has_no_room_for_is_asked_of_the_system_not_of_the_words(
    small, tmp_path, monkeypatch
):
    """An error of the model stays what it is, whatever it says."""

    def broken(*_):
        raise RuntimeError("cannot allocate, an overflow")

    with monkeypatch.context() as patch:
        patch.setattr("bptt._src.language_model.setup.LanguageModel", broken)
        with pytest.raises(RuntimeError, match=r"^cannot allocate, an overflow$"):
            start(small, tmp_path / "broken")

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr("bptt._src.language_model.setup.LanguageModel", out_of_memory)
        with pytest.raises(ConfigError, match=r"^not enough memory for hidden="):
            start(small, tmp_path / "large")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_limit_on_the_process_is_a_limit_on_the_model(small):
    from bptt._src.language_model.expected import check_memory

    before = resource.getrlimit(resource.RLIMIT_AS)
    large = small.changed(hidden=6000, embedding=10)  # 0.6 GB of weights
    check_memory(large, 10)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        with pytest.raises(ConfigError, match="not enough memory for hidden=6000"):
            check_memory(large, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_lack_of_memory_is_no_damage(small, tmp_path, monkeypatch, error):
    run = train(small.changed(epochs=1), tmp_path / "run")

    def fail(*_):
        raise error("no room")

    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", fail)
    with pytest.raises(error, match=r"^no room$"):
        resume(run.path)


@pytest.mark.parametrize("name", NAMES)
def test_memory_for_the_weights_is_counted_beforehand(small, tmp_path, name, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(
        "bptt._src.language_model.expected._may_have", lambda n: asked.append(n) or True
    )
    made = start(small.changed(cell=name, layers=3, embedding=7), tmp_path / "run")
    weights = sum(p.numel() for p in made.model.parameters())
    assert asked[0] == 4 * 4 * weights  # for Adam, four numbers of four bytes
