"""Imports, read from the source: nothing private is shared, and none hides a cycle."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import bptt

ROOT = Path(bptt.__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in (ROOT / "bptt").rglob("*.py")
}
HIDDEN_CYCLES = {
    # LanguageModel.load and Run.load_model are two ways to say the same.
    ("bptt._src.language_model.model", "bptt._src.language_model.run"),
    # Not imported: the function is the text of a new process.
    ("bptt._src.bench.fresh", "bptt._src.bench.ranks"),
    ("bptt._src.bench.fresh", "bptt._src.bench.together"),
}
"""Imports inside a function, of a module that imports this one in turn."""


def imports(node, within_function=False):
    """Yield the imports that are carried out, and whether each is inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, within_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, within_function or is_function)


def targets(node):
    """Yield the modules of bptt that an import loads; the package's own names load the core."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif (node.module or "").partition(".")[0] == "bptt":
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            own = "bptt._public" if node.module == "bptt" else node.module
            yield inner if inner in MODULES else own


def reached(edges, start):
    """Return all modules that a module loads, directly or not."""
    found, todo = set(), [start]
    while todo:
        new = edges[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_no_import_inside_a_function_hides_a_cycle():
    edges, lazy = defaultdict(set), []
    for name, tree in MODULES.items():
        for node, within_function in imports(tree):
            for target in targets(node):
                edges[name].add(target)
                if within_function:
                    lazy.append((name, target))
    assert len(lazy) > 5
    hidden = {(a, b) for a, b in lazy if a in reached(edges, b)}
    assert hidden == HIDDEN_CYCLES


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in ("_src", "_public")


@pytest.mark.parametrize("name", MODULES)
def test_nothing_private_is_taken_from_another_module(name):
    tree, aliases = MODULES[name], {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("bptt"):
            continue
        for alias in node.names:
            assert not is_private(alias.name), f"{node.module}.{alias.name}"
            if f"{node.module}.{alias.name}" in MODULES:
                aliases[alias.asname or alias.name] = node.module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            taken = f"{node.value.id}.{node.attr}"
            assert node.value.id not in aliases or not is_private(node.attr), taken


def test_no_two_classes_share_a_name():
    found = defaultdict(list)
    for name, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    assert len(found) > 100
    shared = {name for name, modules in found.items() if len(modules) > 1}
    assert shared <= {"Found", "Terms", "_ByHand"}  # what private functions return
