"""CONTRIBUTING's steps for a new cell, followed with one that is thrown away.

Two files and two lines: nothing else may be needed for all tests of the registered cells to pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import with_own_kernels

ROOT = Path(__file__).parents[1]
CELLS, CSRC = "src/bptt/cells", "src/bptt/_src/engines/csrc"
STEPS = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a cell\n")[1].split("\n## ")[0]

PYTHON = '''
"""A leaky unit that is thrown away: h_t = σ(u) ⊙ h_{t-1} + (1 - σ(u)) ⊙ tanh(a_t)."""

from __future__ import annotations

import torch

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`."""
    kept = torch.sigmoid(units[0])
    return (kept * state[0] + (1 - kept) * torch.tanh(x[0] + h[0]),)


LEAKY = Cell("LEAKY", 1, 1, equations, units=1, is_native=IS_NATIVE)
'''

NATIVE = """
#pragma once
#include "../cell.h"

namespace {

// n = tanh(a); h = k h_before + (1 - k) n; k = sigmoid(u)
struct Leaky : Cell {
    static constexpr const char *NAME = "LEAKY";
    static constexpr int GATES = 1, UNITS = 1;
    static constexpr bool DIRECT = true;

    template <class T> static void forward(ForwardStep<T, Leaky> &s) {
        const V<T> n = tanh_<T>(s.gate[0]), k = sigmoid<T>(s.unit[0]);
        s.gate[0] = n;
        s.after[0] = k * s.before[0] + (T(1) - k) * n;
    }

    template <class T> static void backward(BackwardStep<T, Leaky> &s) {
        const V<T> n = s.gate[0], k = sigmoid<T>(s.unit[0]), dh = s.d_state[0];
        s.d_gate[0] = dh * (T(1) - k) * (T(1) - n * n);
        s.d_unit[0] = dh * (s.before[0] - n) * k * (T(1) - k);
        s.d_state[0] = dh * k;
    }
};

}  // namespace
"""


def add_line(place: Path, pattern: str, replacement: str) -> None:
    text, found = re.subn(pattern, replacement, place.read_text(), count=1)
    assert found == 1, f"{place} has changed, and so must CONTRIBUTING.md"
    place.write_text(text)


def add_cell(root: Path, native: bool) -> None:
    """Follow the steps in a copy of the sources."""
    (root / CELLS / "leaky.py").write_text(PYTHON.lstrip().replace("IS_NATIVE", str(native)))
    cells = root / CELLS / "__init__.py"
    add_line(cells, r"(from bptt\.cells import \(\n)", r"\1    leaky,\n")
    add_line(cells, r"(\nCELLS = \(\n)", r"\1    leaky.LEAKY,\n")
    if native:
        (root / CSRC / "cells/leaky.h").write_text(NATIVE.lstrip())
        add_line(root / CSRC / "cells/list.h", r"(\nusing Cells = List<)", r"\1Leaky, ")
        add_line(root / CSRC / "cells/list.h", r'(\n#include "lstm\.h")', r'\n#include "leaky.h"\1')


def copied(to: Path) -> Path:
    for part in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "page")
        shutil.copytree(ROOT / part, to / part, ignore=ignored)
    for name in ("pyproject.toml", "CMakeLists.txt", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, to)
    return to


def run(root: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "src")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def passed(root: Path, kernels: str, *tests: str) -> int:
    """Run the tests of one cell; return how many there were."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "LEAKY")
    out = run(root, *command, *tests, BPTT_KERNELS=kernels)
    found = re.search(r"(\d+) passed", out)
    assert found is not None, out
    return int(found[1])


def test_the_steps_name_what_is_changed():
    for name in ("src/bptt/cells/NAME.py", "src/bptt/cells/__init__.py", "CELLS", "is_native=True"):
        assert name in STEPS
    for name in (f"{CSRC}/cells/NAME.h", "csrc/cells/list.h"):
        assert name in STEPS


def test_a_cell_from_its_equations(tmp_path):
    root = copied(tmp_path)
    add_cell(root, native=False)
    tests = ("tests/cells", "tests/test_any_cell.py", "tests/engines/test_native.py")
    assert passed(root, "twin", *tests) >= 3


@pytest.mark.long  # compiles the kernels
def test_a_cell_with_kernels_of_its_own(tmp_path):
    root = copied(tmp_path)
    add_cell(root, native=True)
    with_own_kernels(root, root / "src/bptt", root / "build")
    tests = ("tests/engines/test_sequence.py", "tests/engines/test_native.py")
    assert passed(root, "native", *tests) > 60
