"""The examples of "Check your own backward pass" print what the page says."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "own-backward-pass.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def printed(text):
    """Yield what the page says, and what its examples print, one after the other."""
    names = {}
    for code, says in EXAMPLE.findall(text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        yield says, out.getvalue()


def test_the_examples_print_what_the_page_says():
    text = PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLE.findall(text)) == text.count("```python") == 5
    for says, prints in printed(text):
        assert says == prints


if __name__ == "__main__":  # writes the outputs into the page
    text = PAGE.read_text(encoding="utf-8")
    outputs = iter([prints for _, prints in printed(text)])
    write = EXAMPLE.sub(lambda m: f"```python\n{m[1]}```\n\n```text\n{next(outputs)}```", text)
    PAGE.write_text(write, encoding="utf-8")
