"""Each option of each command changes what comes of it; a new one without a case here fails."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from cli import forked, offered
from cli.offered import LEAVE_OUT, RUN, TEXT

from bptt._src.bench.jobs import SECTIONS, USED_BY
from bptt._src.language_model.config import Config, fields_by_name
from bptt._src.language_model.requirements import TOGETHER
from bptt._src.networks import NAMES
from bptt._src.together import Every, Only, With
from bptt.errors import ConfigError


@dataclass
class Change:
    """Two ways to call a command that must not come to the same."""

    to: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)


def to(flag: str, value: Any = None, **beside: Any) -> Change:
    return Change({flag: value}, {"--" + k.replace("_", "-"): v for k, v in beside.items()})


TABLE = {TEXT: "table.csv", "--column": "a"}
OLD = {TEXT: "old.txt", "--encoding": "latin-1"}
SGD = {"--optimizer": "sgd"}
EVALUATED = {"--eval-every": 3, "--epochs": 4, "--lr": 1.0}
WILD = {
    **{"--cell": "rnn", "--nonlinearity": "relu", "--optimizer": "sgd", "--lr": 1e30},
    **{"--clip": 0, "--on-divergence": "rewind", "--most-rewinds": 1},
}

TRAIN = {
    "corpus": Change({TEXT: "other.txt"}),
    "out": to("--out", "elsewhere"),
    "overwrite": Change({"--overwrite": None}, {"--out": "run"}),
    "resume_": Change(dict.fromkeys(offered.BASE["train"], LEAVE_OUT) | {"--resume": "run"}),
    "config": to("--config", "options.json"),
    "stream": Change({"--stream": None}, {"--config": "lines.json", "--steps": LEAVE_OUT}),
    "sentences": Change({"--sentences": None}, {"--steps": LEAVE_OUT}),
    "lines": Change({"--lines": None}, {"--steps": LEAVE_OUT}),
    "allow_code": Change({"--allow-code": None}, {"--config": "code.json"}),
    "quiet": to("--quiet"),
    "column": Change({"--column": "b"}, TABLE),
    "encoding": Change({"--encoding": "cp437"}, OLD),
    "level": to("--level", "char"),
    "vocabulary": to("--vocabulary", 6),
    "tokenizer": to("--tokenizer", "run/tokenizer.json"),
    "lowercase": to("--lowercase"),
    "sampling": to("--sampling", "random"),
    "valid": to("--valid", "other.txt"),
    "valid_fraction": to("--valid-fraction", 0.4),
    "max_tokens": to("--max-tokens", 200),
    "cell": to("--cell", "gru"),
    "nonlinearity": to("--nonlinearity", "relu", cell="rnn"),
    "hidden": to("--hidden", 5),
    "layers": to("--layers", 2),
    "embedding": to("--embedding", 3),
    "tied": to("--tied"),
    "softmax": to("--softmax", "adaptive", level="char"),
    "dropout": to("--dropout", 0.5),
    "zoneout": to("--zoneout", 0.5),
    "init": to("--init", "chrono:9"),
    "radius": to("--radius", 0.5, cell="rnn"),
    "init_range": to("--init-range", 0.01),
    "credit": to("--credit", "truncated:2"),
    "steps": to("--steps", 7),
    "epoch_start": to("--epoch-start", "first", seed=1),
    "batch_size": to("--batch-size", 3),
    "epochs": to("--epochs", 2),
    "optimizer": to("--optimizer", "sgd"),
    "learning_rate": to("--learning-rate", 0.1),
    "momentum": Change({"--momentum": 0.9}, SGD),
    "weight_decay": to("--weight-decay", 0.5),
    "embedding_rows": to("--embedding-rows", "used"),
    "clip": to("--clip", 0.01),
    "loss_sum": to("--loss-sum"),
    "schedule": to("--schedule", "cosine"),
    "keep": to("--keep", "last", epochs=4, lr=9, optimizer="sgd"),
    "warmup": to("--warmup", 20),
    "patience": Change({"--patience": 1}, EVALUATED),
    "eval_every": to("--eval-every", 3),
    "on_divergence": Change(
        {**WILD}, {**WILD, "--on-divergence": "stop", "--most-rewinds": LEAVE_OUT}
    ),
    "most_rewinds": Change({"--most-rewinds": 2}, WILD),
    "seed": to("--seed", 1),
    "device": "--device meta: no device that bptt can use",
    "precision": to("--precision", "bf16"),
    "memory": to("--memory", "recompute:2"),
    "threads": to("--threads", 2),
    "flow_every": to("--flow-every", 3),
    "save_every": to("--save-every", 0),
    "max_minutes": to("--max-minutes", 1e-9),
    "tensorboard": to("--tensorboard"),
}
EVALUATE = {
    "run": Change({RUN: "other"}),
    "corpus": Change({TEXT: "other.txt"}),
    "column": Change({"--column": "b"}, TABLE),
    "encoding": Change({"--encoding": "cp437"}, {RUN: "other", **OLD}),
    "batch_size": to("--batch-size", 3),
    "streams": to("--streams", 3),
    "device": "--device",
    "allow_code": Change({"--allow-code": None}, {RUN: "own"}),
    "json_": to("--json", "-"),
    "per_token": to("--per-token"),
}
SAMPLE = {
    "run": Change({RUN: "other"}),
    "prompt": to("--prompt", "J"),
    "length": to("--length", 13),
    "temperature": to("--temperature", 0.01),
    "top_k": to("--top-k", 1),
    "top_p": to("--top-p", 0.01),
    "seed": to("--seed", 4),
    "interactive": to("--interactive"),
    "device": "--device",
    "allow_code": Change({"--allow-code": None}, {RUN: "own"}),
}
EXPORT = {
    "run": Change({RUN: "other"}),
    "file": Change({TEXT: "elsewhere.onnx"}),
    "overwrite": Change({"--overwrite": None}, {TEXT: "there.onnx"}),
    "allow_code": Change({"--allow-code": None}, {RUN: "own"}),
}
NETWORK = {RUN: LEAVE_OUT, "--cell": "rnn"}
FLOW = {
    "runs": Change({RUN: "other"}),
    "text": to("--text", "John greets"),
    "file": to("--file", "other.txt"),
    "column": Change({"--column": "b"}, {"--file": "table.csv", "--column": "a"}),
    "encoding": Change(
        {"--encoding": "cp437"},
        {RUN: "other", "--file": "old.txt", "--encoding": "latin-1", "--tokens": 40},
    ),
    "tokens": to("--tokens", 7),
    "cell": Change({RUN: LEAVE_OUT, "--cell": "gru"}),
    "nonlinearity": Change({"--nonlinearity": "relu"}, NETWORK),
    "hidden": Change({"--hidden": 5}, NETWORK),
    "layers": Change({"--layers": 2}, NETWORK),
    "seed": Change({"--seed": 1}, NETWORK),
    "init": Change({"--init": "orthogonal"}, NETWORK),
    "radius": Change({"--radius": 0.5}, NETWORK),
    "html": to("--html", "flow.html"),
    "json_": to("--json", "flow.json"),
    "figure": to("--figure", "flow.svg"),
    "device": "--device",
    "allow_code": Change({"--allow-code": None}, {RUN: "own"}),
}
AUDIT = {
    "target": Change({TEXT: "loop.py:by_twos"}),
    "module": to("--module", "torch.nn.GRU"),
    "steps": to("--steps", 3),
    "expect": to("--expect", "truncated:4"),
    "episodes": to("--episodes", "parts"),
    "label": to("--label", "label"),
    "state": to("--state", "kept"),
    "html": to("--html", "audit.html"),
    "json_": to("--json", "audit.json"),
    "figure": to("--figure", "audit.svg"),
}
STREAM = {"--task": "copy-stream", "--lag": LEAVE_OUT}
COMPARE = {
    "task": Change({"--task": "adding", "--lag": LEAVE_OUT}),
    "credit": to("--credit", "truncated:2"),
    "cell": to("--cell", "gru"),
    "seeds": to("--seeds", 2),
    "hidden": to("--hidden", 5),
    "layers": to("--layers", 2),
    "lr": to("--lr", 0.1),
    "updates": to("--updates", 3),
    "target": to("--target", 9),
    "max_minutes": to("--max-minutes", 1e-6),
    "memory": to("--memory", "recompute:1"),
    "threads": to("--threads", 2),
    "out": to("--out", "elsewhere"),
    "overwrite": Change({"--overwrite": None}, {"--out": "compared-before"}),
    "quiet": to("--quiet"),
    "batch_size": to("--batch-size", 3),
    "lag": to("--lag", 6),
    "symbols": to("--symbols", 2),
    "alphabet": to("--alphabet", 3),
    "masked": to("--masked"),
    "shortest": Change({"--shortest": 3}, STREAM),
    "longest": Change({"--longest": 12}, STREAM),
    "steps": Change({"--steps": 21}, STREAM),
    "length": Change({"--length": 12}, {"--task": "adding", "--lag": LEAVE_OUT}),
    "marks": Change({"--marks": "halves"}, {"--task": "adding", "--lag": LEAVE_OUT}),
    "spread": Change({"--spread": 9}, {"--task": "temporal-order", "--lag": LEAVE_OUT}),
    "level": Change({"--level": "char"}, offered.OF_TEXT),
    "vocabulary": Change({"--vocabulary": 6}, offered.OF_TEXT),
    "lowercase": Change({"--lowercase": None}, offered.OF_TEXT),
    "max_tokens": Change({"--max-tokens": 200}, offered.OF_TEXT),
}
BENCH = {
    "shape": to("--shape", "2/1/3/3"),
    "cell": to("--cell", "gru"),
    "only": to("--only", "start", rounds=LEAVE_OUT),
    "threads": to("--threads", 2),
    "rounds": to("--rounds", 2),
    "sentences": Change({"--sentences": 3}, {"--only": "seed", "--rounds": LEAVE_OUT}),
    "search": Change({"--search": 2}, {"--only": "search"}),
    "seed": Change({"--seed": 1}, {"--only": "search", "--search": 1}),
    "quick": to("--quick", LEAVE_OUT, only="start", rounds=LEAVE_OUT),
    "json_": to("--json", "other.json"),
    "figure": to("--figure", "bench.svg"),
}
DOCTOR = {"json_": to("--json", "doctor.json")}
CASES: dict[str, dict[str, Any]] = {
    **{"train": TRAIN, "evaluate": EVALUATE, "sample": SAMPLE},
    **{"export": EXPORT, "flow": FLOW, "audit": AUDIT, "compare": COMPARE, "bench": BENCH},
    "doctor": DOCTOR,
}
ALL = [(o.command, o.name) for o in offered.everything()]


def test_there_is_a_case_for_each():
    assert sorted(ALL) == sorted((c, name) for c, cases in CASES.items() for name in cases)


# ------------------------------------------------------------------------- what comes of a command


@pytest.fixture(scope="module")
def world(world):
    from bptt.language_model import Config, train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(world / "cache"))
        (world / "there.onnx").write_bytes(b"of before")
        (world / "code.json").write_text(json.dumps({"credit": "mine.Own"}))
        (world / "lines.json").write_text(json.dumps({"reading": "lines"}))
        options = {"epochs": 1, "threads": 1, "flow_every": 0, "batch_size": 2, "steps": 5}
        old = {"corpus": (str(world / "old.txt"),), "encoding": "latin-1", "level": "char"}
        train(Config(**old, hidden=5, seed=2, **options), world / "other")
        (world / "own_cell.py").write_text(offered.OWN_CELL)
        patch.chdir(world)
        own = {"corpus": (str(world / "book.txt"),), "cell": "own_cell.LEAKY", "level": "char"}
        train(Config(**own, hidden=5, **options), world / "own")
        del sys.modules["own_cell"]  # commands import it anew
        (world / "compared-before").mkdir()
        (world / "compared-before" / "comparison.json").write_text("{}")
    return world


TIMES = re.compile(
    r"[\d.,]+ (?:s|ms|seconds|tokens/s)\b|\d+(?:\.\d+)?(?:e[+-]\d+)? +[\d.]+ *(?:kB|MB)"
)
TIMED = ("seconds", "figures", "milliseconds", "_of_rounds", "load", "when", "started")
TIMED += ("sha256", "crc32")  # of what holds times


def watched() -> None:
    """Note what leaves no trace in what a command writes; in a process that ends after it."""
    import torch

    import bptt._src.cli.evaluate
    from bptt._src.language_model.run import Run
    from bptt._src.language_model.training import Training

    offered.make_bench_small()

    def noted(owner, name, note):
        original = getattr(owner, name)

        def call(*given, **options):
            result = original(*given, **options)
            with Path("calls").open("a") as file:
                file.write(f"{name} {note(*given, **options)}\n")
            return result

        setattr(owner, name, call)

    noted(torch, "set_num_threads", lambda n: n)
    noted(Run, "save_checkpoint", lambda *_: "")
    noted(Training, "__post_init__", lambda training: training.memory)
    noted(bptt._src.cli.evaluate, "measure", lambda *_, batch_size, **__: batch_size)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not any(t in k for t in TIMED)}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def contents(path) -> Any:
    """A file without times; of pictures and pages that they are there."""
    if path.suffix == ".safetensors":
        import safetensors

        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {k: file.get_tensor(k).tolist() for k in file.keys()}  # noqa: SIM118
        return tensors, _timeless(about)
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "bench.json":
        found = json.loads(path.read_text())
        rows = [[r["section"], r["name"], r["shape"]] for r in found["rows"]]
        rounds = [
            len(c.get("milliseconds_of_rounds", ()))
            for r in found["rows"]
            for c in r["contenders"].values()
        ]
        kept = {
            k: found["conditions"][k]
            for k in ("threads", "rounds", "turn", "sentences", "search", "seed")
        }
        return rows, rounds, kept
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    return path.read_text() if path.name == "calls" else None


@pytest.fixture(scope="module")
def outcome(world, tmp_path_factory):
    """What a command prints and writes, without times, and how it ends."""
    found: dict[str, Any] = {}

    def run(command: str, given: dict[str, Any]) -> Any:
        arguments = offered.arguments(command, given)
        key = repr(arguments)
        if key not in found:
            place = tmp_path_factory.mktemp("here") / "here"
            shutil.copytree(world, place, ignore=lambda _, names: {"cache"} & {*names})
            old = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BPTT_CACHE", str(world / "cache"))
                ended = forked.command(*arguments, where=place, setup=watched)
            assert ended.fault is None, f"{arguments}: {ended.fault}"
            new = [p for p in place.rglob("*") if p.is_file() and old.get(p) != p.read_bytes()]
            files = {
                str(p.relative_to(place)): contents(p)
                for p in sorted(new)
                if p.name != "config.json"
            }
            said = [TIMES.sub("", text) for text in (ended.out, ended.err)]
            found[key] = {"status": ended.status, "said": said, "files": files}
        return found[key]

    return run


MAY_FAIL = {("train", "overwrite"), ("train", "on_divergence"), ("train", "most_rewinds")}
MAY_FAIL |= {("compare", "overwrite"), ("train", "allow_code"), ("export", "overwrite")}
MAY_FAIL |= {(command, "allow_code") for command in ("evaluate", "sample", "export", "flow")}
MAY_FAIL |= {("audit", "episodes"), ("audit", "label"), ("audit", "state")}


# A sample of them is quick, and all together are not.
SOME = [o if n % 4 == 0 else pytest.param(*o, marks=pytest.mark.long) for n, o in enumerate(ALL)]


@pytest.mark.parametrize(("command", "name"), SOME)
def test_it_changes_what_comes_of_the_command(outcome, command, name):
    case = CASES[command][name]
    if isinstance(case, str):  # of devices this machine may have one only
        after = outcome(command, {"--device": "meta"})
        assert after["status"] == 1
        assert "--device" in after["said"][1]
        return
    before, after = outcome(command, case.beside), outcome(command, {**case.beside, **case.to})
    if (command, name) not in MAY_FAIL:
        assert (before["status"], after["status"]) == (0, 0), (before["said"], after["said"])
    assert before != after


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("train", {"--threads": "01"}),
        ("evaluate", {"--device": "cpu"}),
        ("sample", {"--device": "cpu"}),
        ("flow", {"--device": "cpu"}),
        ("audit", {"--steps": "256"}),
        ("compare", {"--seeds": "01"}),
    ],
)
def test_the_same_again_is_the_same(outcome, command, again):
    assert outcome(command, {}) == outcome(command, again)


# ---------------------------------------------------------- options that go with others, by tables

VALUES = {
    **{"column": "a", "encoding": "utf-8", "vocabulary": 300, "sampling": "random"},
    **{"valid_fraction": 0.4, "nonlinearity": "relu", "steps": 7, "momentum": 0.5},
    **{"most_rewinds": 3, "softmax": "adaptive", "embedding_rows": "used"},
    **{"hidden": 5, "layers": 2, "seed": 1, "init": "orthogonal", "radius": 0.5},
    **{"level": "char", "lowercase": True, "epoch_start": "first"},
}


def unfit(rule: Any) -> dict[str, Any]:
    """Options beside which a rule does not hold."""
    if isinstance(rule, Every):
        return unfit(rule.rules[-1])
    if isinstance(rule, Only):
        hint = get_args(get_type_hints(Config)[rule.option]) or NAMES  # of cells
        return {rule.option: next(v for v in hint if v not in rule.values)}
    if isinstance(rule, With):
        return {}
    return {rule.option: "other.txt" if rule.option == "tokenizer" else ("other.txt",)}


@pytest.mark.parametrize("name", TOGETHER)
def test_a_configuration_refuses_what_has_no_effect(name, tmp_path):
    beside, value = unfit(TOGETHER[name]), VALUES[name]
    said = rf"^{name}={value!r} (has no effect|is for) .*: leave {name} out"
    with pytest.raises(ConfigError, match=said):
        Config(**beside, **{name: value})
    with pytest.raises(ConfigError, match=said):
        Config(**beside).changed(**{name: value})


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("at_default", [False, True])
def test_train_refuses_what_has_no_effect(name, at_default, in_process, tmp_path, monkeypatch):
    """At its default, too: it was given."""
    monkeypatch.chdir(tmp_path)
    beside, default = unfit(TOGETHER[name]), fields_by_name()[name].default
    value = default if at_default and default not in (None, False) else VALUES[name]
    flag = "--" + name.replace("_", "-")
    given = [
        f"--{v}" if o == "reading" else f"--{o.replace('_', '-')}={v}" for o, v in _flat(beside)
    ]
    _, err = in_process("train", *given, flag, value, status=1)
    assert re.match(rf"error: {flag} {value} (has no effect|is for) .*: leave {flag} out", err)
    assert not list(tmp_path.iterdir())


def _flat(options: dict[str, Any]):
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield name, one


def test_what_a_file_says_gives_way_to_what_leaves_it_without_effect(
    in_process, world, tmp_path, monkeypatch
):
    monkeypatch.chdir(world)
    monkeypatch.setenv("BPTT_CACHE", str(world / "cache"))
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"steps": 7, "cell": "rnn", "nonlinearity": "relu", "epochs": 0}))
    out = tmp_path / "new"
    in_process(
        "train", "book.txt", "--config", path, "--lines", "--cell", "gru", "--out", out, "-q"
    )
    found = json.loads((out / "config.json").read_text())
    assert (found["steps"], found["nonlinearity"], found["epochs"]) == (None, "tanh", 0)


@pytest.mark.parametrize("command", ["evaluate", "flow"])
def test_other_commands_refuse_what_has_no_effect(command, in_process):
    for name in import_module(f"bptt._src.cli.{command}").TOGETHER:
        value = VALUES[name]
        _, err = in_process(command, "run", f"--{name}", value, status=1)
        assert re.match(rf"error: --{name} {value} has no effect without .*: leave", err)


def test_evaluate_refuses_streams_of_a_run_that_reads_lines(
    in_process, world, tmp_path, monkeypatch
):
    monkeypatch.chdir(world)
    monkeypatch.setenv("BPTT_CACHE", str(world / "cache"))
    out, how = tmp_path / "of-lines", ["--hidden", 4, "--epochs", 0, "--lines", "-q"]
    in_process("train", "book.txt", "--out", out, *how)
    _, err = in_process("evaluate", out, "--streams", 2, status=1)
    assert re.match(r"error: --streams is for a run that reads its text as a stream.*lines: ", err)


@pytest.mark.parametrize("option", USED_BY)
def test_bench_refuses_what_no_part_of_it_uses(option, in_process):
    value = {"shape": "1/2/3/4", "cell": "gru", "figure": "a.svg"}.get(option, 3)
    for section in SECTIONS:
        if section not in USED_BY[option]:
            _, err = in_process("bench", "--only", section, f"--{option}", value, status=1)
            assert f"error: --{option} has no effect on {section}: leave it out, or add" in err


def test_a_run_that_is_resumed_refuses_what_cannot_change(world, in_process, monkeypatch):
    from bptt._src.language_model.session import MAY_CHANGE

    monkeypatch.chdir(world)
    changes = {
        n: c.to for n, c in TRAIN.items() if not isinstance(c, str) and n in fields_by_name()
    }
    changes["level"] = {"--level": "word"}  # the run has the other
    for name in sorted(changes.keys() - MAY_CHANGE - {"corpus"}):
        (given,) = [[f, v] for f, v in changes[name].items()]
        _, err = in_process(
            "train", "--resume", "run", *[g for g in given if g is not None], status=1
        )
        assert err.startswith("error: --"), (name, err)
        assert "cannot change" in err or "leave" in err, (name, err)
    _, err = in_process("train", "book.txt", "--resume", "run", status=1)
    assert "goes on with the run's own text" in err
