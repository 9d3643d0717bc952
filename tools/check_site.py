"""Check a built documentation site: every link leads somewhere and nothing comes from the network.

    python tools/check_site.py site

Looks at each page as a browser would without a network: a script, style sheet, image or frame
must be a file of the site; a link inside the site must lead to a page there, and to an anchor on
it if it names one. Links that a reader may click to other sites are left alone. It also refuses
a formula or a reference that was left as text. Only the standard library is used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself: (element, attribute).
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("iframe", "src"),
    ("embed", "src"),
    ("object", "data"),
    ("image", "href"),
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch"}
CSS_ADDRESS = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")
# A docstring's reference or a formula that nothing rendered.
LEFT_OVER = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):|\\\[|\\\(|\$\$")


@dataclass
class Page(HTMLParser):
    """What one page refers to, and what can be referred to on it."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    formulas: int = 0

    def __post_init__(self) -> None:
        """Read the page."""
        super().__init__()
        self._inside: list[str] = []
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses and anchors of one element."""
        given = {name: value or "" for name, value in attrs}
        self.formulas += tag == "math"
        if tag in ("style", "script", "pre"):
            self._inside.append(tag)
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        self.styles.append(given.get("style", ""))
        for name, value in given.items():
            if (tag, name) in FETCHED:
                self.fetched.append(value)
        if tag == "link" and FETCHED_LINKS & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])

    def handle_data(self, data: str) -> None:
        """Note the text of a style element, and what is neither that nor code."""
        if "style" in self._inside:
            self.styles.append(data)
        elif not self._inside:
            self.prose.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave a style element or a block of code."""
        if tag in self._inside:
            self._inside.remove(tag)


def problems(site: Path) -> Iterator[str]:
    """Say what is wrong with the site, a line for each."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} has no page"
    for path, page in pages.items():
        for problem in _problems_of(page, site, pages):
            yield f"{path.relative_to(site)}: {problem}"
    for path in sorted(site.rglob("*.css")):
        for address in CSS_ADDRESS.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: takes {address} from the network"


def _problems_of(page: Page, site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for address in page.fetched:
        if problem := _problem(address, page.path, site, pages, fetched=True):
            yield problem
    for address in page.links:
        if problem := _problem(address, page.path, site, pages, fetched=False):
            yield problem
    for address in CSS_ADDRESS.findall(" ".join(page.styles)):
        yield f"a style takes {address} from the network"
    for left in sorted(set(LEFT_OVER.findall("".join(page.prose)))):
        yield f"{left} was left as text"


def _problem(
    address: str, page: Path, site: Path, pages: dict[Path, Page], *, fetched: bool
) -> str | None:
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto", "javascript"):
        return None
    if parts.scheme or parts.netloc:
        return f"takes {address} from the network" if fetched else None
    if page.name == "404.html" and parts.path.startswith("/"):  # it is shown at any depth
        target = site / unquote(parts.path).lstrip("/")
    else:
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return f"{address} leads to no file"
    fragment = unquote(parts.fragment)
    if fragment and target in pages and fragment not in pages[target].anchors:
        return f"{address} leads to no such anchor"
    return None


def main(arguments: list[str]) -> int:
    """Print the problems of the site given; return 1 if there are any."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python tools/check_site.py DIRECTORY", file=sys.stderr)
        return 2
    found = list(problems(Path(arguments[0])))
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        pages = [Page(path) for path in Path(arguments[0]).rglob("*.html")]
        formulas = sum(page.formulas for page in pages)
        print(f"site: {len(pages)} pages, {formulas} formulas, every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
