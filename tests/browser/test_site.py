"""The documentation in a real browser, opened from disk: its search, and its width."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.site
SITE = Path(__file__).parents[2] / "site"

FOUND = """
const done = arguments[0];
(function look() {
  const said = document.querySelector('.md-search-result__meta').textContent;
  if (!said.includes('matching')) return setTimeout(look, 50);
  done([...document.querySelectorAll('.md-search-result__item > a')].map((a) => a.href));
})();
"""

TOO_WIDE = """
const column = document.querySelector('.md-content__inner'), found = [];
if (!column) return ['no column'];
// On a phone, blocks of code take the whole width.
const edge = arguments[0] ? innerWidth : column.getBoundingClientRect().right + 4;
const scrolls = (e) =>
  e !== column && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
for (const e of column.querySelectorAll('*'))
  if (e.getBoundingClientRect().right > edge && !scrolls(e))
    found.push(e.tagName + ': ' + e.textContent.slice(0, 60));
if (document.documentElement.scrollWidth > innerWidth) found.push('the page scrolls sideways');
return found;
"""


def found(opened_site, words):
    page = opened_site("index.html", address=f"?q={words}")
    links = page.chrome.execute_async_script(FOUND)
    assert page.complaints() == []
    assert [a for a in page.requests() if not a.startswith(("file:", "data:", "about:"))] == []
    return [link.partition("/site/")[2].partition("?")[0] for link in links]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("DistributedDataParallel", "credit.html"),  # the end of a dotted name there
        ("vanishing", "forgetting.html"),
        ("truncated+backpropagation", "credit.html"),
        ("detach", "credit.html"),
        ("eigenvalue", "tutorials/from-the-equations.html"),
    ],
)
def test_search_finds_words_from_disk(opened_site, words, page):
    assert page in found(opened_site, words)


@pytest.mark.parametrize(
    ("name", "page"), [("measure_decay", "credit"), ("chrono_", "init"), ("Truncated", "credit")]
)
def test_search_finds_a_name_in_the_reference_first(opened_site, name, page):
    assert found(opened_site, name)[0] == f"reference/{page}.html"


def test_search_finds_nothing_that_is_not_there(opened_site):
    assert found(opened_site, "DistributedDataOrthogonal") == []


def test_nothing_runs_out_of_its_column(opened_site):
    pages = [p.relative_to(SITE) for p in sorted(SITE.rglob("*.html"))]
    pages = [p for p in pages if p.parts[0] != "playground"]
    assert len(pages) > 40
    wide = {}
    for p in pages:
        page = opened_site(p)
        wide[p, "wide"] = page.run(TOO_WIDE, False)
        phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        page.command("Emulation.setDeviceMetricsOverride", **phone)
        page.settle()
        wide[p, "phone"] = page.run(TOO_WIDE, True)
    assert {where: found for where, found in wide.items() if found} == {}
