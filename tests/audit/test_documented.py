"""The tables of docs/audit.md have every kind of finding, and no other, faults apart from facts."""

import ast
import re
from pathlib import Path

import bptt._src.audit

HERE = Path(bptt._src.audit.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/audit.md"


def strings(node):
    found = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return {v for v in found if isinstance(v, str)}


def kinds():
    """The kinds in the calls of Finding(kind, is_fault, ...) in the code."""
    found = set()
    for path in HERE.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            named = {
                n.targets[0].id: strings(n.value)
                for n in ast.walk(function)
                if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
            }
            for n in ast.walk(function):
                if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Finding":
                    kind, is_fault = n.args[:2]
                    of = named[kind.id] if isinstance(kind, ast.Name) else strings(kind)
                    found |= {
                        (k, is_fault.value) for k in of if re.fullmatch(r"[a-z]+(-[a-z]+)*", k)
                    }
    return found


def documented():
    text = PAGE.read_text().split("## All findings")[1].split("\n## ")[0]
    faults, facts = text.split("\nFacts:\n")
    return {
        (kind, is_fault)
        for part, is_fault in ((faults, True), (facts, False))
        for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        for kind in re.findall(r"`([a-z-]+)`", row)
    }


def test_every_kind_of_finding_is_in_the_tables():
    assert len(kinds()) > 20
    assert documented() == kinds()
