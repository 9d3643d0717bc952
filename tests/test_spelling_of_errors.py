"""The library's messages speak of arguments, which ``spelled()`` makes options for a shell."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bptt
import bptt._src.language_model.model
from bptt.errors import ConfigError, spell_options

ROOT = Path(bptt.__file__).parent
OF_COMMANDS = {"cli", "doctor"}  # whoever runs these is at a shell
LIBRARY = [p for p in sorted(ROOT.rglob("*.py")) if not OF_COMMANDS & {*p.relative_to(ROOT).parts}]
OPTION = re.compile(r"(?<![\w-])--[a-z]")
COMMAND = re.compile(r"\b(bptt [a-z]+|pip install)\b|^ ?--(clip 1|lr |allow-code)")
"""What is to be typed at a shell, whoever reads it; the rest of ``bptt train --resume`` too."""


def texts(node: ast.AST) -> Iterator[str]:
    """Yield every string of a module as its code puts it together, docstrings apart."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        yield "".join(v.value for v in node.values if isinstance(v, ast.Constant))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def help_texts(tree: ast.AST) -> Iterator[str]:
    """Yield what :class:`Config` says for ``--help``, and the names of options in its tables."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_option":
            yield from texts(call)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_message_names_an_option(path):
    tree = ast.parse(path.read_text())
    named = {t for t in texts(tree) if OPTION.search(t) and not COMMAND.search(t)}
    assert not named - {*help_texts(tree)}


@pytest.mark.parametrize(
    ("cause", "argument", "option"),
    [
        (lambda: bptt.data.Tokenizer.train(["a"], level="wrd"), "level must", "--level must"),
        (
            lambda: bptt.data.Tokenizer.train(["a"], level="byte", vocabulary=5),
            "vocabulary=5 was given at level='byte'",
            "--vocabulary 5 was given at --level byte",
        ),
        (
            lambda: bptt._src.language_model.model.check_device("tpu"),
            "device='tpu' cannot",
            "--device tpu cannot",
        ),
    ],
)
def test_an_error_names_what_its_reader_gave(cause, argument, option):
    with pytest.raises(ConfigError) as error:
        cause()
    assert str(error.value).startswith(argument)
    with spell_options(), pytest.raises(ConfigError) as error:
        cause()
    assert str(error.value).startswith(option)
