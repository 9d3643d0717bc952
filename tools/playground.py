"""Write docs/playground/index.html, the page to play with, from its parts in tools/playground/.

``python tools/playground.py`` writes it; with ``--check`` it only says whether the page is up to
date, and exits with 1 if not. The page is one file that loads nothing; it shares its looks and some
of its scripts with the pages that bptt writes.
"""

import re
import sys
from pathlib import Path

from bptt._src.report import page_file

PARTS = Path(__file__).parent / "playground"
PAGE = Path(__file__).parent.parent / "docs" / "playground" / "index.html"
SHARED = ("numbers", "words", "scale", "redraw", "parts", "plots")
OWN = (
    "random",
    "cells",
    "network",
    "through_time",
    "learning",
    "readout",
    "copy_task",
    "copy_learner",
    "sentence_learner",
    "words_of_page",
    "controls",
    "clockwork",
    "view",
    "matrix_view",
    "copy_view",
    "sentence_view",
    "main",
)


def page() -> str:
    """Return the page as text."""
    scripts = [page_file.source(f"{name}.js") for name in SHARED]
    scripts += [_part(f"{name}.js") for name in OWN]
    script = '"use strict";\n(() => {\n' + "\n".join(scripts) + "\n})();\n"
    style = page_file.source("page.css") + "\n" + _part("page.css")
    values = {"policy": page_file.policy(script, style), "style": style, "script": script}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _part("page.html"))


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE} is out of date: run `python tools/playground.py`", file=sys.stderr)
        return 1
    if arguments:
        print(f"usage: python tools/playground.py [--check], got {arguments}", file=sys.stderr)
        return 2
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
