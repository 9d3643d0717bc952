"""Processes that die on purpose, and what is left of a run then.

A server imports everything once, also what torch and bptt import at first use; for each request it
forks a child, which does what is asked and may be killed before the n-th thing that it does to the
file system, or after some time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import safetensors

TESTS = Path(__file__).parent
CHANGES = {
    *("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"),
    *("os.link", "os.symlink"),
}
"""Audit events of what changes a file system; opening to write, writing and syncing come apart."""


class Server:
    """Runs the functions of :data:`CHILDREN`, each call in a process of its own."""

    def __init__(self, cache: Path) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import dying; dying.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "BPTT_CACHE": str(cache),
                "OMP_NUM_THREADS": "1",
            },
        )

    def __call__(self, function: str, *, die_after: float | None = None, **arguments):
        """Return what the function does, and whether it was killed before that."""
        request = {"name": function, "die_after": die_after, "arguments": arguments}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        status, result = json.loads(self.process.stdout.readline())
        if status == -signal.SIGKILL:
            return None, True
        assert status == 0, f"{function}{arguments}: {result}"
        return result, False

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    """Answer requests until there are no more."""
    import torch._dynamo  # a second's work, which the first optimizer or model of a child would do

    import bptt._src.cli.command_line  # all that children may need
    import bptt._src.data.rules
    import bptt._src.language_model.session
    import bptt.language_model

    torch.set_num_threads(1)
    bptt._src.data.rules._ours()
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _child(request, write)
        os.close(write)
        with os.fdopen(read) as answer:
            if request["die_after"] is not None:
                ready, _, _ = select.select([answer], [], [], request["die_after"])
                if not ready:
                    os.kill(child, signal.SIGKILL)
            found = answer.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        result = json.loads(found) if found else None
        os.write(answers, (json.dumps([status, result]) + "\n").encode())


def _child(request, write: int) -> None:
    status = 0
    try:
        result = CHILDREN[request["name"]](**request["arguments"])
    except BaseException:
        result, status = traceback.format_exc(), 1
    with os.fdopen(write, "w") as file:
        json.dump(result, file)
    os._exit(status)


# --------------------------------------------------------------------- dying at an event


class Dying:
    """Counts what this process does to the file system, and kills it before the n-th thing.

    Of a write it does the first half before, every other time.
    """

    def __init__(self, within: str, at: int | None) -> None:
        self.within, self.at, self.count, self.names = within, at, 0, []
        sys.addaudithook(self._heard)
        real_fsync, real_write = os.fsync, os.write

        def fsync(descriptor):
            self._event("fsync")
            return real_fsync(descriptor)

        def write(descriptor, data):
            self._event("write", lambda: real_write(descriptor, memoryview(data)[: len(data) // 2]))
            return real_write(descriptor, data)

        os.fsync, os.write = fsync, write

    def _heard(self, event, arguments) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or isinstance(path, int):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if isinstance(path, int) or os.fsdecode(path).startswith(self.within):
            self._event(event)

    def _event(self, name, halfway=lambda: None) -> None:
        if self.count == self.at:
            if self.count % 2:
                halfway()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        self.names.append(name)


# ------------------------------------------------------------------------------- children


def make(out: str, config: dict, *, overwrite: bool = False, at: int | None = None) -> int:
    """Train a new run to its end; return how many events there were."""
    from bptt.language_model import Config, train

    dying = Dying(str(Path(out).parent), at)
    train(Config(**_tuples(config)), out, overwrite=overwrite)
    return dying.count


def go_on(out: str, *, at: int | None = None) -> int:
    """Resume a run and train it to its end."""
    from bptt.language_model import resume

    dying = Dying(str(Path(out).parent), at)
    with contextlib.closing(resume(Path(out))) as training:
        training.fit()
    return dying.count


def begin(out: str, config: dict, updates: int) -> None:
    """Train a new run for some updates."""
    from bptt.language_model import Config, start

    with contextlib.closing(start(Config(**_tuples(config)), Path(out))) as training:
        training.fit(lambda: "stop" if training.progress.updates >= updates else None)


def imports_of(out: str, config: dict) -> list[str]:
    """Train a new run, resume and load it; return what had to be imported for that."""
    before = set(sys.modules)
    make(out, config)
    go_on(out)
    bits_of(out)
    hidden_of(out)
    return sorted(set(sys.modules) - before)


def hidden_of(out: str) -> int | None:
    """The hidden units of the run that is here; None where there is cleanly none."""
    from bptt.errors import CheckpointError
    from bptt.language_model import LanguageModel

    try:
        return LanguageModel.load(out).config.hidden
    except CheckpointError as e:
        if "there is no run at" in str(e) or "is not a run: it has no config.json" in str(e):
            return None
        raise


def bits_of(out: str) -> str:
    """A digest of all that training leads to, without the seconds that it took."""
    from bptt.language_model import Run

    run = Run(Path(out))
    tensors, about = run.load_checkpoint()
    model = run.load_model().state_dict()
    found = hashlib.sha256()
    for named in (tensors, model):
        for name in sorted(named):
            found.update(name.encode() + named[name].contiguous().numpy().tobytes())
    del about["progress"]["seconds"], about["sha256"]
    lines = [{k: v for k, v in m.items() if k != "seconds"} for m in run.metrics()]
    found.update(json.dumps([about, lines], sort_keys=True).encode())
    return found.hexdigest()


def _tuples(config: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


# -------------------------------------------------------------------------------- damage


def damage(out: str, name: str, cases: list[tuple[str, int, int]]) -> dict:
    """Damage a file in each of these ways, use the run, and put the file back.

    Returns:
        How often it was found, how often it changed nothing, and what happened otherwise.
    """
    place = Path(out)
    whole = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
    expected = _used(place, name)
    result: dict = {"found": 0, "harmless": 0, "wrong": []}
    for how, where, bits in cases:
        data = bytearray(whole[name])
        if how == "flip":
            data[where] ^= bits
        else:
            del data[where:]
        (place / name).write_bytes(data)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = _used(place, name)
            except Exception as e:
                found = e
        _judge(result, f"{how} {where} {bits}", expected, found, said)
        for other, content in whole.items():
            if (place / other).read_bytes() != content:
                (place / other).write_bytes(content)
    return result


def _judge(result: dict, case: str, expected, found, said) -> None:
    from bptt.errors import BpttWarning, CheckpointError, ConfigError

    if isinstance(found, CheckpointError | ConfigError) and "\n" not in str(found):
        result["found"] += 1
    elif isinstance(found, Exception):
        result["wrong"].append(f"{case}: {found!r}")
    elif found == expected:
        result["harmless"] += 1
    elif any(issubclass(w.category, BpttWarning) for w in said) and _less(found, expected):
        result["found"] += 1
    else:
        result["wrong"].append(f"{case}: another result in silence")


def _less(found, expected) -> bool:
    """Whether only measurements are missing."""
    return found[1:] == expected[1:] and all(m in expected[0] for m in found[0])


def _used(place: Path, name: str):
    """What a run gives: its measurements, the model, and where training would go on."""
    import torch

    from bptt.language_model import LanguageModel, Run, resume

    run = Run(place)
    measured = run.metrics() if name == "metrics.jsonl" else []
    model = LanguageModel.load(place)
    state = ""
    if name != "model.safetensors":
        with contextlib.closing(resume(place)) as training:
            tensors, about = training.checkpoint()
            del about["progress"]["measurements"]
            state = json.dumps(about, sort_keys=True)
            state += "".join(_digest(tensors[k]) for k in sorted(tensors))
    weights = "".join(_digest(w) for w in model.state_dict().values())
    ids = model.tokenizer.encode("John sees Jane again.")
    torch.manual_seed(0)
    return measured, weights, state, ids, repr(model.config)


def _digest(tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


# ------------------------------------------------------------------------------ strangers


def mutate(out: str, name: str, cases: list) -> dict:
    """Put values into a file of a run, seal it again, and use the run.

    Args:
        out: the run's directory.
        name: which file.
        cases: for each the path of the entry, and the value, or nothing to take the entry away.
    """
    from bptt.errors import BpttError

    place = Path(out)
    whole = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
    result: dict = {"refused": 0, "used": 0, "wrong": []}
    for path, *value in cases:
        _put(place, name, path, value)
        started = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _trained_on(place)
            result["used"] += 1
        except BpttError as e:
            if "\n" in str(e):
                result["wrong"].append(f"{path} {str(value)[:80]}: not one line: {str(e)[:300]}")
            result["refused"] += 1
        except Exception:
            trace = traceback.format_exc().splitlines()
            result["wrong"].append(f"{path} {str(value)[:80]}: {trace[-3:]}"[:600])
        if time.monotonic() - started > 20:
            result["wrong"].append(f"{path} {str(value)[:80]}: it took too long")
        for other, content in whole.items():
            (place / other).write_bytes(content)
    return result


def about_of(path: Path) -> dict:
    """What the header of a file of tensors holds beside them."""
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])


def _put(place: Path, name: str, path: list, value: list) -> None:
    from bptt._src.documents import sealed, unseal
    from bptt._src.language_model.tensors import read_tensors, write_tensors

    target = place / name
    if name.endswith(".safetensors"):
        tensors, about = read_tensors(target, lambda found: None)
        write_tensors(target, tensors, _changed(about, path, value))
    elif name == "tokenizer.json":
        content = json.dumps(_changed(json.loads(target.read_text()), path, value)).encode()
        target.write_bytes(content)
        text = unseal(json.loads((place / "text.json").read_text()))
        text["tokenizer_sha256"] = hashlib.sha256(content).hexdigest()
        (place / "text.json").write_text(sealed(text))
    else:
        target.write_text(sealed(_changed(unseal(json.loads(target.read_text())), path, value)))


def _changed(document, path: list, value: list):
    document = json.loads(json.dumps(document))
    *before, last = path
    inner = document
    for key in before:
        inner = inner[key]
    if value:
        inner[last] = value[0]
    else:
        del inner[last]
    return document


def _trained_on(place: Path) -> None:
    """Load, sample, and take three updates, an evaluation and a checkpoint from where it is."""
    from bptt.language_model import LanguageModel, resume

    LanguageModel.load(place).sample("John", length=2, seed=0)
    with contextlib.closing(resume(place)) as training:
        until = training.progress.updates + 3
        training.fit(lambda: "stop" if training.progress.updates >= until else None)
        training.evaluate()
        training.save()


CHILDREN = {
    f.__name__: f for f in (make, go_on, begin, imports_of, hidden_of, bits_of, damage, mutate)
}
