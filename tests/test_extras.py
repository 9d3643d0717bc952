"""What each extra is for, where it is missing."""

import subprocess
import sys

import pytest

HIDDEN = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None
"""
LM = "tokenizers safetensors msgspec rich typer platformdirs sentencex"
EVERY = f"{LM} matplotlib tensorboard"


def run(hidden: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where some packages cannot be imported."""
    command = [sys.executable, "-c", HIDDEN + code, hidden, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_core_needs_no_extra():
    done = run(
        EVERY,
        "import torch\n"
        "from bptt import *\n"
        "lstm, x = LSTM(3, 4), torch.randn(8, 2, 3)\n"
        "y, _ = unroll(lstm, x, credit='randomized:3', memory='recompute:64MB')\n"
        "y.sum().backward()\n"
        "flow = gradient_flow(lstm, x)\n"
        "flow.horizon(), flow.verdict, flow.suggest_truncation(), flow.save_html(sys.argv[1])\n"
        "import bptt\n"
        "print(bptt.kernels.backend().name)\n",
        "/dev/null",
    )
    assert not done.returncode, done.stderr
    assert done.stdout in ("native\n", "twin\n")


@pytest.mark.parametrize("package", LM.split())
def test_what_needs_a_language_models_package_names_the_extra(package):
    code = (
        "import bptt\n"
        "from bptt._src.cli import main\n"
        "try: bptt.LanguageModel, bptt.comparison, bptt.bench, main()\n"
        "except ImportError as e: print(type(e).__name__, e, e.name)\n"
    )
    done = run(package, code)
    said = f"{package} is not installed: pip install 'bptt[lm]'"
    if package == "typer":
        assert (done.returncode, done.stderr) == (1, f"error: {said}\n")
    else:
        assert done.stdout == f"MissingExtraError {said} {package}\n"


@pytest.mark.parametrize(
    "arguments", ["compare", "bench --figure a.png", "flow run --figure a.pdf"], ids=str
)
def test_figures_need_theirs_before_the_work_begins(arguments):
    done = run("matplotlib", "from bptt._src.cli import main\nmain()", *arguments.split())
    said = "error: matplotlib is not installed: pip install 'bptt[plot]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_the_doctor_needs_no_extra():
    code = "from bptt._src.cli import main\nmain()"
    done = run("typer rich", code, "doctor")
    assert "missing" not in done.stdout  # they are there, and hidden from this process
    assert done.stdout.splitlines()[0].startswith("ok       bptt ")
    assert (done.returncode, done.stderr) == (0, "")
    asked = run("typer", code, "doctor", "--json", "-")
    assert asked.stderr == "error: typer is not installed: pip install 'bptt[lm]'\n"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_needs_its_own_before_a_run_is_looked_for(package):
    done = run(package, "from bptt._src.cli import main\nmain()", "export", "run", "model.onnx")
    said = f"error: {package} is not installed: pip install 'bptt[onnx]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_plan_is_drawn_by_an_extra():
    done = run("matplotlib", "import bptt; bptt.Full().plan(3).figure()")
    assert done.stderr.splitlines()[-1] == (
        "bptt.errors.MissingExtraError: matplotlib is not installed: pip install 'bptt[plot]'"
    )


def test_tensorboard_is_an_extra():
    code = "from bptt._src.cli.display import Display\nDisplay().open_tensorboard('nowhere')"
    done = run("tensorboard", code)
    assert "tensorboard is not installed: pip install 'bptt[tensorboard]'" in done.stderr
