"""tools/check_site.py sees what would break a page without a network, and passes what is fine."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "check_site.py"

FINE = """
<link rel="stylesheet" href="style.css"><link rel="canonical" href="https://example.org/">
<script src="a.js"></script><img src="data:image/png;base64,AAAA"><h2 id="here">1</h2>
<a href="#here">1</a> <a href="other.html#there">2</a> <a href="sub/">3</a>
<a href="https://example.org/">elsewhere</a> <pre>:func:`f` costs $$ in \\(code\\)</pre>
"""


def _check(tmp_path, body, style="a { background: url(data:image/png;base64,AAAA) }"):
    (tmp_path / "index.html").write_text(body)
    (tmp_path / "other.html").write_text('<a id="there"></a>')
    (tmp_path / "a.js").write_text("")
    (tmp_path / "style.css").write_text(style)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<a href="../other.html#there">up</a>')
    return subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=60
    )


def test_a_sound_site_passes(tmp_path):
    done = _check(tmp_path, FINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "site: 3 pages, 0 formulas, every link leads somewhere\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<script src="https://cdn.example.org/x.js"></script>', "takes https://cdn"),
        ('<script src="//cdn.example.org/x.js"></script>', "takes //cdn"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "takes https://example"),
        ('<link rel="preconnect" href="https://example.org">', "takes https://example"),
        ('<img src="https://example.org/x.png">', "takes https://example"),
        ("<style>@import 'https://example.org/x.css';</style>", "takes https://example"),
        ('<p style="background: url(https://example.org/x.png)">', "takes https://example"),
        ('<script src="b.js"></script>', "b.js leads to no file"),
        ('<a href="nowhere.html">', "nowhere.html leads to no file"),
        ('<a href="other.html#nowhere">', "other.html#nowhere leads to no such anchor"),
        ('<a href="#nowhere">', "#nowhere leads to no such anchor"),
        ("<p>see :class:<code>RNN</code></p>", ":class: was left as text"),
        ("<p>with \\(x\\)</p>", "was left as text"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, body, said):
    done = _check(tmp_path, FINE + body)
    assert done.returncode == 1
    assert done.stderr.startswith("index.html: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_style_sheet_must_not_fetch(tmp_path):
    done = _check(tmp_path, FINE, style="@font-face { src: url('https://example.org/f.woff2') }")
    assert done.returncode == 1
    assert done.stderr == "style.css: takes https://example.org/f.woff2 from the network\n"


def test_no_site_is_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "none"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "usage" in done.stderr
