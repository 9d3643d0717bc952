"""The hook that runs the tutorials and makes their pages."""

import logging

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient, of the group docs, is not installed")
from tools import mkdocs_notebooks as hook  # noqa: E402

pytestmark = pytest.mark.site

SOURCE = """\
# %% [markdown]
# # Sums
#
# See [credit](../credit.md), [below](#sums) and [elsewhere](https://example.org/).
# [![A picture](../images/picture.png)](../playground/index.html)

# %%
import matplotlib.pyplot as plt

print("one")
print("two")
1 + 1

# %% alt="A line"
plt.plot([1, 2])
plt.show()
"""


def run(tmp_path, source):
    path = tmp_path / "sums.py"
    path.write_text(source)
    return hook.run(path)


def test_a_page_shows_code_what_it_printed_and_figures(tmp_path):
    figures = {}
    page = hook.to_markdown(run(tmp_path, SOURCE), "sums", figures)
    download = "[This page as a notebook](sums.ipynb){: download}, with its results."
    assert page.startswith(f"# Sums\n\n{download}\n\nSee [credit]")
    assert 'print("two")\n1 + 1\n```\n\n```{.text .printed}\none\ntwo\n```\n' in page
    assert "```{.text .printed}\n2\n```" in page
    assert page.endswith("![A line](sums-1.svg)")
    assert figures["sums-1.svg"].startswith("<?xml")


def test_the_notebook_has_its_results_and_no_links_that_lead_nowhere(tmp_path):
    notebook = hook.without_links(run(tmp_path, SOURCE))
    words, code, _ = notebook.cells
    assert words.source.endswith(
        "See credit, [below](#sums) and [elsewhere](https://example.org/).\n"
    )
    assert code.outputs[0]["text"] == "one\ntwo\n"
    assert notebook.metadata["kernelspec"]["name"] == "python3"  # any Jupyter opens it


def test_a_cell_that_fails_stops_the_build(tmp_path):
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="assert 1 == 2"):
        run(tmp_path, "# %%\nassert 1 == 2\n")


def test_a_warning_fails_a_strict_build(tmp_path, caplog):
    notebook = run(tmp_path, "# %%\nimport warnings\nwarnings.warn('late')\n")
    with caplog.at_level(logging.WARNING):
        hook.to_markdown(notebook, "sums", {})
    assert "late" in caplog.text
