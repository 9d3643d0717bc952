"""A page of the reference is empty until the site is built; it says how it is read until then."""

import pydoc
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
SAYS = re.compile(
    r"<!-- `make docs` fills this page in, as site/reference/([\w-]+)\.html\. In a checkout: "
    r"python -m pydoc ([\w.]+), and so on after each `:::`\. -->"
)


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda p: p.stem)
def test_each_page_says_how_it_is_read_in_a_checkout(page):
    title, _, line, *rest = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")  # first, as the site takes a page's name from there
    assert (found := SAYS.fullmatch(line)), line
    assert found[1] == page.stem
    assert f"::: {found[2]}" == next(line for line in rest if line.startswith(":::"))
    assert pydoc.locate(found[2]).__doc__
