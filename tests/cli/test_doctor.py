"""``bptt doctor``: on a machine where all is well, and on machines where it is not."""

from __future__ import annotations

import json
import re
import signal
from importlib.metadata import PackageNotFoundError, requires

import pytest

from bptt._src.doctor import Checkup, Diagnosis, checkup, examine, installed, machine, tried
from bptt._src.doctor.tried import Tried, look_at_trial

QUICK = (
    "from bptt._src.doctor import trial; trial.SECONDS = 0; trial.load_of_others = lambda: 0.0; "
)
GO = "trial.main()"
NO_LIBRARY = """
import bptt._src.engines.find as find, bptt._src.engines.kernel_library as kernel_library
def absent(): raise FileNotFoundError("no libbptt_kernels.so in /here: install bptt again")
find.library_path = kernel_library.library_path = absent
"""
DAMAGED = """
import pathlib, tempfile
import bptt._src.engines.find as find, bptt._src.engines.kernel_library as kernel_library
path = pathlib.Path(tempfile.mkdtemp()) / "libbptt_kernels.so"
path.write_bytes(b"no library")
find.library_path = kernel_library.library_path = lambda: path
"""
OLD = "import bptt._src.engines.kernel_library as k; k.INTERFACE += 1\n"
WRONG = """
from bptt._src.engines import native
forward = native.forward
def wrong(call, keep):
    y, *others = forward(call, keep)
    return y.mul_(FACTOR), *others
native.forward = wrong
"""
DIES = """
import os, signal
def dies(*_, **__): os.kill(os.getpid(), signal.SIGILL)
"""


def tried_with(monkeypatch, before: str = "", after: str = "") -> dict[str, Diagnosis]:
    """Look at the trial where something was changed before it, or in it."""
    monkeypatch.setattr(checkup, "TRIAL", f"\n{before}\n{QUICK}\n{after}\n{GO}")
    return {f.name: f for f in look_at_trial(checkup.run_trial())}


@pytest.fixture(scope="module")
def native():
    from bptt import kernels

    if kernels.backend().name != "native":
        pytest.skip("there are no native kernels")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch):
    monkeypatch.delenv("BPTT_KERNELS", raising=False)


# --------------------------------------------------------------------------- the command, whole


def test_the_command(in_process, monkeypatch, tmp_path):
    monkeypatch.setattr(checkup, "TRIAL", f"\n{QUICK}{GO}")
    path = tmp_path / "doctor.json"
    out, err = in_process("doctor", "--json", path)
    assert not err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["ok", "bptt", installed.bptt.__version__ + ","]
    found = json.loads(path.read_text())
    assert lines[-1] == found["verdict"]
    names = [f["name"] for f in found["findings"]]
    assert {"bptt", "torch", "threads", "kernels", "speed", "memory", "bptt[lm]", "bptt[onnx]"} <= {
        *names
    }
    assert len(names) == len({*names})
    for f in found["findings"]:
        assert f["state"] in ("ok", "note", "missing")
        assert any(line.startswith(f"{f['state']:<9}{f['name']} ") for line in lines)
    assert "\x1b" not in out

    out, err = in_process("doctor", "--json", "-")
    assert (json.loads(out).keys(), err) == (found.keys(), "")


def test_what_is_broken_makes_the_status_1(in_process, monkeypatch):
    monkeypatch.setattr(checkup, "TRIAL", "raise SystemExit(3)")
    out, err = in_process("doctor", status=1)
    assert "broken   torch" in out
    assert "the process ended with status 3" in out
    assert out.splitlines()[-1].startswith("Broken: torch.")
    assert not err


@pytest.mark.parametrize("width", [40, 100])
def test_on_a_terminal(in_process, monkeypatch, width):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = Checkup([Diagnosis("kernels", "missing", "none " * 30, "slow", "make \x1b[2J them")])
    monkeypatch.setattr("bptt._src.cli.doctor.examine", lambda: found)
    out, _ = in_process("doctor")
    assert "\x1b[33mmissing" in out
    assert "\\x1b[2J" in out
    monkeypatch.setenv("NO_COLOR", "1")
    out, _ = in_process("doctor")
    assert "\x1b[33m" not in out
    plain = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in out.splitlines()]
    assert max(map(len, plain)) <= width


# -------------------------------------------------------------------------------- what is tried


def test_native_kernels_are_checked_and_timed(native, monkeypatch):
    found = tried_with(monkeypatch)
    kernels = found["kernels"].figures
    assert kernels["name"] == "native"
    assert kernels["deviation"]["float64"] < 1e-12
    assert 1e-12 < kernels["deviation"]["float32"] < 1e-5
    timed = found["speed"].figures
    assert timed["ratios"].keys() == {"twin", "torch.nn"}
    assert all(ms > 0 for ms in timed["milliseconds"].values())
    assert found["kernels"].state in ("ok", "note")


@pytest.mark.parametrize("factor", ["1.001", "float('nan')"])
def test_kernels_that_compute_something_else(native, monkeypatch, factor):
    found = tried_with(monkeypatch, WRONG.replace("FACTOR", factor))["kernels"]
    assert found.state == "broken"
    assert "they do not compute what plain PyTorch does" in found.says
    assert re.search(r"; in float64(,| and) float32", found.says)
    assert "BPTT_KERNELS=twin" in found.remedy
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("stage", ["of_kernels", "deviations", "milliseconds"])
def test_a_crash_is_a_finding_wherever_it_comes(native, monkeypatch, stage):
    found = tried_with(monkeypatch, after=f"{DIES}\ntrial.{stage} = dies")
    broken = [f for f in found.values() if f.state == "broken"]
    assert [f.name for f in broken] == ["speed" if stage == "milliseconds" else "kernels"]
    assert "SIGILL" in broken[0].says


def test_a_torch_that_is_not_there(monkeypatch):
    found = tried_with(monkeypatch, "import sys; sys.modules['torch'] = None")
    assert [*found] == ["torch"]
    assert found["torch"].state == "broken"
    assert "ModuleNotFoundError" in found["torch"].says


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        ("def (", "SyntaxError: invalid syntax ("),
        ("raise OSError('no such thing')", "OSError: no such thing ("),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_bptt_that_cannot_be_imported_is_not_a_broken_torch(monkeypatch, tmp_path, breaks, says):
    package = tmp_path / "bptt"
    package.mkdir()
    (package / "__init__.py").write_text(f"\n{breaks}\n")
    found = tried_with(
        monkeypatch,
        after=f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'bptt']: del sys.modules[name]",
    )
    broken = [f for f in found.values() if f.state == "broken"]
    assert [f.name for f in broken] == ["core"]
    assert says in broken[0].says
    assert says.startswith("SIG") or f"{package / '__init__.py'}, line 2)" in broken[0].says


def test_a_trial_that_hangs(monkeypatch):
    monkeypatch.setattr(checkup, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(checkup, "TRIAL", "import time; time.sleep(60)")
    found = checkup.run_trial()
    assert found == Tried({}, "it did not end in 1 seconds")


def test_without_a_library_it_says_what_that_costs(monkeypatch):
    found = tried_with(monkeypatch, NO_LIBRARY)
    kernels = found["kernels"]
    assert (kernels.state, kernels.remedy) == ("missing", "install bptt again")
    assert kernels.costs.endswith("times as long as with torch.nn, measured just now.")
    ratio = found["speed"].figures["ratios"]["torch.nn"]["RNN"]
    assert f"takes {1 / ratio:.2g}" in kernels.costs or 1 / ratio >= 9.95
    assert found["speed"].figures["in_use"] == "twin"


@pytest.mark.parametrize("how", [DAMAGED, OLD], ids=["damaged", "of another version"])
def test_a_library_that_cannot_be_used(native, monkeypatch, how):
    found = tried_with(monkeypatch, how)["kernels"]
    assert found.state == "broken"
    assert re.search("cannot be used: .*bptt_kernels|of another version", found.says)
    assert "pip's --force-reinstall" in found.remedy


@pytest.mark.parametrize(
    ("chosen", "state", "says"),
    [
        ("twin", "note", "plain PyTorch, because BPTT_KERNELS=twin is set"),
        ("portable", "ok", "native, portable, BPTT_KERNELS=portable is set"),
        ("fast", "broken", "BPTT_KERNELS must be one of"),
    ],
)
def test_with_kernels_chosen(native, monkeypatch, chosen, state, says):
    monkeypatch.setenv("BPTT_KERNELS", chosen)
    found = tried_with(monkeypatch)
    assert found["kernels"].state == state
    assert says in found["kernels"].says
    if chosen == "twin":
        assert found["speed"].figures["ratios"].keys() == {"native", "torch.nn"}
        assert "times as long as natively" in found["kernels"].costs
    assert ("speed" in found) is (state != "broken")


@pytest.mark.parametrize(
    ("counts", "said", "state"),
    [
        ({"torch": 2, "usable": 2, "quota": None}, {}, "ok"),
        ({"torch": 4, "usable": 1, "quota": 1.5}, {}, "note"),
        ({"torch": 1, "usable": 2, "quota": None}, {"OMP_NUM_THREADS": "1"}, "note"),
        ({"torch": 1, "usable": 2, "quota": None}, {}, "ok"),
    ],
)
def test_threads_and_what_limits_them(monkeypatch, counts, said, state):
    for name in tried.OF_THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = tried._threads({"processors": 4, "affinity": 4, **counts})
    assert found.state == state
    assert ("quota worth 1.5" in found.says) is (counts["quota"] is not None)
    if counts["torch"] > counts["usable"]:
        assert "OMP_NUM_THREADS=1" in found.remedy
    if said:
        assert "1 of the processors are not used: OMP_NUM_THREADS=1 is set" in found.costs


def test_ratios_are_written_and_where_there_are_none_the_reason():
    ratios = {"torch.nn": {"RNN": 12.3, "GRU": 2.0, "LSTM": 2.0}}
    timed = {"shape": (1, 2, 3, 4), "milliseconds": {"RNN": 1.0}, "ratios": ratios}
    stages = {"torch": {"version": "2", "cuda": None, "hip": None, "gpus": [], "mps": False}}
    counts = {"processors": 2, "affinity": 2, "quota": None, "usable": 2, "torch": 2}
    stages |= {"threads": counts, "kernels": {"name": "twin", "absent": "none: do"}}

    def looked(timed):
        found = look_at_trial(Tried(stages | {"timed": timed, "end": {}}))
        by_name = {f.name: f for f in found}
        return by_name["speed"], by_name["kernels"]

    speed, kernels = looked(timed)
    assert (speed.state, kernels.costs[-18:]) == ("ok", "measured just now.")
    assert "RNN 1 ms (torch.nn 12×)" in speed.says
    why = {
        "the machine is busy (load 3.25), so nothing was timed": {"load": 3.25},
        "the machine is too busy or too slow: 10 seconds were not enough to time each layer": {
            "late": 10.0
        },
    }
    for says, untimed in why.items():
        busy, kernels = looked(untimed)
        assert (busy.state, busy.says) == ("note", says)
        assert "idle" in busy.remedy
        assert kernels.costs.endswith(f"takes longer; how much longer is not known: {says}.")


def test_a_busy_machine_is_not_timed(monkeypatch):
    at_most = "trial.load_of_others = lambda: trial.BUSY * trial.os.cpu_count()"
    assert "ratios" in tried_with(monkeypatch, after=at_most)["speed"].figures
    never = "trial.milliseconds = None"
    found = tried_with(monkeypatch, after=f"{at_most} + 0.5; {never}")["speed"]
    assert re.fullmatch(r"the machine is busy \(load [\d.]+\), so nothing was timed", found.says)


def test_steps_that_take_too_long_are_not_waited_for(monkeypatch):
    found = tried_with(monkeypatch, after="trial.MOST_SECONDS = 0.0")["speed"]
    assert "0 seconds were not enough" in found.says
    assert "ratios" not in found.figures


# --------------------------------------------------------------------- what is looked at from here


def test_what_each_extra_costs_is_said_of_each():
    extras = installed._by_extra(requires("bptt"))
    assert {e for e in extras if e} == installed.COSTS.keys()
    assert set(extras[""]) == {"torch", "numpy", "jaxtyping", "optree"}


def test_packages_that_are_missing_or_old(monkeypatch):
    def version(package):
        if package in ("onnxscript", "matplotlib"):
            raise PackageNotFoundError(package)
        return "0.1" if package == "tokenizers" else "99.0+local"

    monkeypatch.setattr(installed, "version", version)
    found = {f.name: f for f in installed.look_at_packages()}
    assert found["packages"].state == "ok"
    assert (found["bptt[lm]"].state, found["bptt[lm]"].costs) == (
        "broken",
        "Too old, and may fail: tokenizers >= 0.20.",
    )
    assert found["bptt[plot]"].says == "not installed: matplotlib"
    assert found["bptt[onnx]"].says.startswith(
        "not installed: onnxscript; installed: onnx 99.0+local"
    )
    assert found["bptt[onnx]"].remedy == "pip install --upgrade 'bptt[onnx]'"

    monkeypatch.setattr(installed, "version", lambda _: "0")
    core = installed.look_at_packages()[1]
    assert core.state == "broken"
    assert core.remedy == "pip install --upgrade torch numpy jaxtyping optree"

    def none(_):
        raise PackageNotFoundError

    monkeypatch.setattr(installed, "requires", none)
    assert [f.state for f in installed.look_at_packages()] == ["ok", "note"]


def test_the_memory_of_a_control_group(tmp_path):
    assert machine.memory_limit(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    for place, content in {"a": "3000000\n", "a/b": "max\n"}.items():
        group = tmp_path / "sys/fs/cgroup" / place
        group.mkdir(parents=True)
        (group / "memory.max").write_text(content)
    assert machine.memory_limit(tmp_path) == 3_000_000
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/c\n0::/a/b\n")
    old = tmp_path / "sys/fs/cgroup/memory/c"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("2000000\n")
    assert machine.memory_limit(tmp_path) == 2_000_000


def test_compilers(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert machine.look_at_compiler().state == "note"
    for name, body in {"c++": "exit 1", "g++": "echo a compiler 12"}.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    found = machine.look_at_compiler()
    assert (found.state, found.says) == ("ok", f"{tmp_path / 'g++'}: a compiler 12")


def test_the_machine_is_named():
    assert machine.look_at_memory().figures["total"] > 2**28
    assert machine.look_at_processor().figures["name"]


def test_examine_gives_every_part(monkeypatch):
    monkeypatch.setattr(checkup, "run_trial", lambda: Tried({}, f"ended by {signal.SIGILL.name}"))
    names = [f.name for f in examine().findings]
    assert names[:6] == ["bptt", "torch", "processor", "memory", "compiler", "packages"]
    assert {*names[6:]} == {f"bptt[{extra}]" for extra in installed.COSTS}
