"""The documentation page quotes what the sources say. (That examples run: tests/test_docs.py.)"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "textbook.md").read_text(encoding="utf-8")
QUOTATIONS = re.findall(r'```python title="(.*?)"\n(.*?)```', PAGE, re.DOTALL)


@pytest.mark.parametrize(("path", "lines"), QUOTATIONS)
def test_quotations(path, lines):
    source = (ROOT / path).read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines.splitlines()]
    left = iter([line.strip() for line in source])
    missing = [line for line in wanted if line not in left]  # in this order, others between
    assert not missing, f"{path} no longer says {missing[0]!r}, which docs/textbook.md quotes"


def test_every_fence_is_one_of_the_two():
    fences = re.findall(r"^```(\S.*)$", PAGE, re.MULTILINE)
    assert set(fences) <= {"pycon", *(f'python title="{path}"' for path, _ in QUOTATIONS)}
    assert len(QUOTATIONS) == PAGE.count('```python title="')


def test_textbook_is_short_and_needs_numpy_only():
    files = [ROOT / "src/bptt/textbook" / f"{name}.py" for name in ("gates", "layer", "model")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert len(text.splitlines()) < 400
    imported = set(re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE))
    assert {name for name in imported if not name.startswith("bptt.textbook")} == {
        "collections.abc",
        "numpy",
        "numpy.typing",
    }


def test_the_reader_of_texts_needs_the_standard_library_only():
    text = (ROOT / "src/bptt/textbook/text.py").read_text(encoding="utf-8")
    assert re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE) == [
        "re",
        "collections",
        "pathlib",
    ]
