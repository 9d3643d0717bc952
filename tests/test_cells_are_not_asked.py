"""The core asks no cell for its name: not by a literal, nor by what a module calls its mode."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bptt
from bptt.cells import CELLS

SRC = Path(bptt.__file__).parent
CORE = ("engines", "unroll", "credit", "flow")
FILES = [
    *(path for part in CORE for path in sorted((SRC / "_src" / part).glob("*.py"))),
    *(SRC / "_src" / name for name in ("layers.py", "autograd.py", "layout.py", "steps.py")),
    *(SRC / name for name in ("init.py", "losses.py", "memory.py")),
]
NAMES = {name for cell in CELLS for name in (cell.name, cell.kind)}
NAMED = {"name", "kind"}


def asked(source: str) -> list[int]:
    """The lines where a cell's name is written, or compared, or looked up."""
    found = set()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in prose:
            found.add(node.lineno)
        if isinstance(node, ast.Compare | ast.Subscript | ast.Match):
            asks = [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
            if any(n.attr == "mode" or (n.attr in NAMED and _is_a_cell(n.value)) for n in asks):
                found.add(node.lineno)
    return sorted(found)


def _is_a_cell(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("cell", "module", "rnn", "recurrent", "layer", "d")


# The library's table of cells is by name: that is how it is asked which number a cell has. And a
# graph that torch records names its cells in text, and ONNX has an operator for some of them.
BY_NAME = {
    "native.py": r"cells\(\)",
    "kernel_library.py": r"cells\(\)",
    "recording.py": "BY_NAME",
    "onnx_operators.py": r"OnnxOperator\(|in OPERATORS",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_cell_is_asked_for_its_name(path):
    lines = asked(path.read_text())
    if path.name in BY_NAME:
        text = path.read_text().splitlines()
        lines = [n for n in lines if not re.search(BY_NAME[path.name], text[n - 1])]
    assert lines == []


@pytest.mark.parametrize(
    "line",
    [
        'if cell.name == "GRU": pass',
        'x = {"LSTM": 4}[kind]',
        "if self.recurrent.mode in modes: pass",
        "f = BY_NAME[module.mode]",
        'name.startswith("RNN")',
    ],
)
def test_what_asks_is_found(line):
    assert asked(line) == [1]


def test_prose_is_not():
    assert asked('"""LSTM"""') == []
    assert asked('x = f"{cell.name} is refused"') == []
