import base64
import json
import re
import stat
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from flow_factories import five_flows, made_flow

from bptt._src.report import flow_data, flow_page, page_file
from bptt.errors import ConfigError

UNTAME = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--",
    "]]>",
    "&amp;",
    "\"'`${x}",
    "{{script}}",
    "\u2028",
    "\n",
    "\t",
    "",
    " ",
    "\x00\x1b",
    "שלום",
    "\u202e",
    "\u0301",
    "👩‍👩‍👧",
    "\ud800",
    "</style>",
]


class Elements(HTMLParser):
    """The elements of a page, as a browser tells them apart, and what is in them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            self.found[-1][2] += data

    def of(self, tag):
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def data(page):
    ((_, text),) = [e for e in Elements(page).of("script") if e[0].get("id") == "data"]
    return json.loads(text)


def matrix(flow, key, state=0):
    """What the page's script unpacks."""
    text = flow["attribution"] if key == "attribution" else flow["states"][state]["norms"]
    values = np.frombuffer(base64.b64decode(text), "<f4").astype(float)
    last = [flow["times"][min(len(flow["times"]), (n + 1) * flow["rows"]) - 1] for n in range(
        -(-len(flow["times"]) // flow["rows"]))]  # fmt: skip
    full = np.full((len(last), -(-flow["steps"] // flow["block"])), np.nan)
    at = 0
    for row, t in enumerate(last):
        width = t // flow["block"] + 1
        full[row, :width] = values[at : at + width]
        at += width
    assert at == len(values)
    return full


def test_the_matrices_come_back(tmp_path):
    flow = made_flow("lstm", cells=True, layers=2, times=[3, 20, 47], lags=30)
    flow_page.write(tmp_path / "flow.html", flow)
    (kept,) = data((tmp_path / "flow.html").read_text())
    for n, state in enumerate(flow["states"]):
        norms = np.array(state["norms"], np.float64)
        assert 10 ** matrix(kept, "norms", n) == pytest.approx(norms, rel=1e-5, nan_ok=True)
    attribution = np.array(flow["attribution"], np.float64)
    assert matrix(kept, "attribution") == pytest.approx(attribution, rel=1e-6, nan_ok=True)
    for key in ("name", "tokens", "targets", "times", "by_lag", "verdict", "advice", "dynamics"):
        assert kept[key] == flow[key]


def test_an_object_is_asked_for_its_dict():
    class Written:
        def to_dict(self):
            return made_flow("asked")

    assert data(flow_page.page(Written(), made_flow("given")))[0]["name"] == "asked"


def test_the_text_is_data_and_never_markup():
    flow = made_flow("<b>&'\ud800", words=UNTAME)
    flow["verdict"]["words"] = flow["advice"][0]["text"] = "</script><script>alert(2)</script>"
    page = flow_page.page(flow)
    page.encode()  # can be written, lone surrogates and all
    elements = Elements(page)
    tags = [tag for tag, _, _ in elements.found]
    assert tags == [
        "html", "head", "meta", "meta", "meta", "meta", "link", "title", "style", "body", "header",
        "p", "span", "button", "main", "noscript", "p", "script", "script",
    ]  # fmt: skip
    assert "<b>&" in elements.of("title")[0][1]
    kept = data(page)[0]
    assert kept["tokens"] + [kept["targets"][-1]] == UNTAME
    assert kept["name"] == flow["name"]
    raw = page[page.index('id="data"') : page.index("</script>", page.index('id="data"'))]
    assert not set("<&\u2028") & set(raw.split(">", 1)[1])


def test_the_policy_lets_run_what_was_written_and_nothing_else():
    page = flow_page.page(made_flow())
    elements = Elements(page)
    (policy,) = [a["content"] for a, _ in elements.of("meta") if "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy
    (script,) = [text for a, text in elements.of("script") if not a]
    ((_, style),) = elements.of("style")
    assert rules["script-src"] == page_file.hash_of(script)
    assert rules["style-src"] == page_file.hash_of(style)


def test_the_sources_ask_for_nothing_and_make_no_markup_from_text():
    names = ["page.html", "page.css", "flow.css", *(f"{name}.js" for name in flow_page.SCRIPTS)]
    for name in names:
        text = page_file.source(name)
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "fetch(",
        ):
            assert word not in text, name
        addresses = set(re.findall(r"https?://[^\s\"']+", text))
        assert addresses <= {
            "http://www.w3.org/2000/svg",
            "https://bottosson.github.io/posts/oklab/",
        }
        assert not re.search(r"url\((?!#)|@import|src=", text), name


def test_two_hundred_tokens_in_two_layers_of_lstm_take_less_than_two_megabytes(tmp_path):
    words = [f"word{n}" for n in range(201)]
    flow_page.write(tmp_path / "flow.html", made_flow(words=words, layers=2, cells=True))
    assert (tmp_path / "flow.html").stat().st_size < 1_000_000


def test_what_is_long_is_shown_in_blocks():
    T = 305
    flow = made_flow(words=["w"] * (T + 1), beta=0.99, seed=1)
    kept = flow_data.packed(flow_data.as_dict(flow))
    assert (kept["block"], kept["rows"]) == (2, 2)
    norms = np.array(flow["states"][0]["norms"], np.float64)
    means = 10 ** matrix(kept, "norms")
    assert means.shape == (153, 153)
    assert means[100, 20] == pytest.approx(norms[200:202, 40:42].mean(), rel=1e-5)
    assert means[50, 50] == pytest.approx(np.nanmean(norms[100:102, 100:102]), rel=1e-5)
    assert means[152, 0] == pytest.approx(norms[304, :2].mean(), rel=1e-5)  # the last has one row
    assert len(flow_page.page(flow)) < 2_000_000
    few = flow_data.packed(flow_data.as_dict(made_flow(words=["w"] * (T + 1), times=[5, 304])))
    assert (few["block"], few["rows"]) == (2, 1)
    assert np.isfinite(matrix(few, "norms")).sum(1).tolist() == [3, 153]


def test_numbers_that_are_not_finite_are_null():
    flow = made_flow()
    flow["losses"][3] = float("nan")
    flow["decay"] = {"beta": np.inf, "error": None, "first": 1, "last": 2}
    flow["states"][0]["norms"][10][4] = float("inf")
    flow["states"][0]["norms"][10][5] = 0.0
    flow["states"][0]["norms"][10][6] = 1e200
    kept = data(flow_page.page(flow))[0]
    assert kept["losses"][3] is None
    assert kept["decay"]["beta"] is None
    row = matrix(kept, "norms")[10]
    assert np.isnan(row[4])
    assert row[5] == -np.inf
    assert row[6] == pytest.approx(200)


def broken(**changes):
    return {**made_flow(), **changes}


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ({}, "its format is None, not 'bptt.flow'"),
        (broken(format="x"), "its format is 'x'"),
        (broken(version=1), "version 1, .* version 2"),
        (broken(states=[]), "no states"),
        (broken(verdict=None, losses=None), "lacks losses, verdict"),
        (broken(times=[3, 2]), r"rise within 0 to steps - 1 = 47, got \[3, 2\]"),
        (broken(times=[48]), "must rise"),
        (broken(attribution=[[1.0]]), r"attribution: expected 48 rows of 48, got 1 of \[1\]"),
        (broken(tokens=["a"]), "tokens: expected 48 of them, got 1"),
        (broken(by_lag={"lag": [0], "mean": [], "low": [], "high": []}), "equally long"),
        (SimpleNamespace(to_dict=lambda: [1]), "its format is 'list'"),
    ],
)
def test_what_is_no_flow_is_refused_and_the_old_file_stays(tmp_path, flow, said):
    path = tmp_path / "flow.html"
    path.write_text("before")
    with pytest.raises(ConfigError, match=said):
        flow_page.write(path, made_flow(), flow)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_no_flow_at_all_and_places_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        flow_page.write(tmp_path / "flow.html")
    with pytest.raises(OSError, match="missing"):
        flow_page.write(tmp_path / "missing" / "flow.html", made_flow())
    flow_page.write(str(tmp_path / "flow.html"), *five_flows())
    assert stat.S_IMODE((tmp_path / "flow.html").stat().st_mode) & 0o044


def test_every_part_of_the_template_is_filled():
    page = flow_page.page(made_flow())
    assert not re.search(r"\{\{\w+\}\}", page)
    assert page.count("<script") == 2
