"""The examples run, and show what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGER = {"audit_a_loop.py", "draw_tutorials.py", "who_is_john.py"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # small networks, and tests beside each other
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_an_example_is_read_at_a_glance():
    long = {p.name for p in EXAMPLES if len(p.read_text().splitlines()) > 60}
    assert long == LONGER


def test_the_documentation_names_each_example_and_no_other():
    pages = [p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"examples/[\w/]+\.py", page)}
    found = {p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").rglob("*.py")}
    assert named - found == set()
    assert found - named == set()
