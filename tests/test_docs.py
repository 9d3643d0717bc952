"""The examples in the documentation run, and print what the pages say."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("README.md"))
FENCE = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLANK = re.compile(r"^(?=\n(?!>>>|\n|\Z))", re.MULTILINE)
"""A blank line within what is printed, which doctest wants to be marked."""


def _examples(page: Path) -> str:
    """The page's examples where they are, everything else blank: line numbers stay true."""
    text, kept, end = page.read_text(encoding="utf-8"), [], 0
    for fence in FENCE.finditer(text):
        example = BLANK.sub("<BLANKLINE>", fence[1])
        kept += ["\n" * text.count("\n", end, fence.start(1)), example]
        end = fence.end(1)
    return "".join(kept)


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if FENCE.search(p.read_text(encoding="utf-8"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_examples(page):
    test = doctest.DocTestParser().get_doctest(_examples(page), {}, page.name, str(page), 0)
    report = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=report.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)


def test_a_wrong_example_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Sums\n\n```pycon\n>>> 1 + 1\n3\n```\n\nmore text\n")
    with pytest.raises(AssertionError, match=r"line 4(.|\n)*Expected:\n +3\n +Got:\n +2"):
        test_examples(page)


def test_blank_lines_of_what_is_printed_count(tmp_path):
    page = tmp_path / "page.md"
    right = "# Lines\n\n```pycon\n>>> print('a\\n\\nb')\na\n\nb\n\n>>> 1\n1\n```\n"
    page.write_text(right)
    test_examples(page)
    page.write_text(right.replace("a\n\nb\n\n", "a\nb\n\n"))
    with pytest.raises(AssertionError):
        test_examples(page)


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")
PATH = re.compile(r"`((?:src|tests|docs|benchmarks|examples|tools|_src)/[\w/.-]+)`")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_is_linked_or_named_is_there(name):
    """The documentation's own links are checked where it is built."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    named = {match[1] for match in PATH.finditer(text) if "NAME" not in match[1]}
    named = {f"src/bptt/{path}" if path.startswith("_src") else path for path in named}
    paths = named | {match[1] for match in LINK.finditer(text)}
    assert paths or name == "CHANGELOG.md"
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
