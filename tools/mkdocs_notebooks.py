"""Run the tutorials and make their pages while the documentation is built.

A tutorial is a notebook that is kept without outputs, as ``docs/tutorials/NAME.py`` in jupytext's
percent format. This MkDocs hook runs it in a fresh kernel and adds to the site its page and, to
download, the notebook with its outputs. A cell that raises stops the build; one that prints to
stderr, as a warning does, fails a strict build.
"""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.notebooks")  # a warning fails a strict build

LONGEST = 300
"""Seconds that a cell may take."""
HEADING = re.compile(r"^# .*\n", re.MULTILINE)
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)")
TO_TUTORIAL = re.compile(r"\(((?:[./]*tutorials/)?[\w-]+)\.py(#[^)]*)?\)")
RELATIVE_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)")


def on_files(files: Files, /, *, config: MkDocsConfig) -> Files:
    """Put the page, the figures and the notebook of each tutorial in the place of its source."""
    sources = [f for f in files if re.fullmatch(r"tutorials/[^/]+\.py", f.src_uri)]
    with ThreadPoolExecutor(2) as pool:
        notebooks = pool.map(run, [Path(str(source.abs_src_path)) for source in sources])
    for source, notebook in zip(sources, notebooks, strict=True):
        files.remove(source)
        figures: dict[str, str] = {}
        name = source.src_uri.removesuffix(".py")
        made = {f"{name}.md": to_markdown(notebook, Path(name).name, figures)}
        made[f"{name}.ipynb"] = nbformat.writes(without_links(notebook))
        made |= {f"tutorials/{figure}": svg for figure, svg in figures.items()}
        for uri, content in made.items():
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, /, **_: Any) -> str:
    """Turn links to a tutorial's source, as they are in a checkout, into links to its page."""
    return TO_TUTORIAL.sub(r"(\1.md\2)", markdown)


def run(source: Path) -> Any:
    """Run a notebook in a fresh kernel; return it with its outputs."""
    notebook = jupytext.read(source)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    # A figure is as sharp as the page around it.
    options = ["--InlineBackend.figure_formats=svg", "--log-level=ERROR", "--colors=nocolor"]
    log.info("running %s", source)
    return nbclient.execute(
        notebook,
        timeout=LONGEST,
        extra_arguments=options,
        coalesce_streams=True,
    )


def to_markdown(notebook: Any, name: str, figures: dict[str, str]) -> str:
    """Return the page of a notebook that has been run; its figures go into ``figures``, as SVG."""
    parts = [part for cell in notebook.cells for part in _parts(cell, name, figures)]
    download = f"[This page as a notebook]({name}.ipynb){{: download}}, with its results."
    return HEADING.sub(rf"\g<0>\n{download}\n", "\n\n".join(parts), count=1)


def _parts(cell: Any, name: str, figures: dict[str, str]) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.outputs:
        if output.get("name") == "stderr":
            log.warning("%s: a cell printed to stderr: %s", name, output["text"].strip())
        if svg := output.get("data", {}).get("image/svg+xml"):
            figure = f"{name}-{len(figures) + 1}.svg"
            figures[figure] = svg
            yield f"![{cell.metadata['alt']}]({figure})"
        else:
            text = output["text"] if "text" in output else output["data"]["text/plain"]
            yield f"```{{.text .printed}}\n{text.rstrip()}\n```"


def without_links(notebook: Any) -> Any:
    """Return a copy without the links and pictures that a file taken elsewhere would miss."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = RELATIVE_LINK.sub(r"\1", IMAGE.sub("", cell.source))
    return copy
