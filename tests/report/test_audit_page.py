import json
import re
import stat
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from audited import EPISODES, audited, by_cells

import bptt
from bptt._src.report import audit_page, page_file
from bptt._src.report.audit_data import in_runs, packed


def data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(rows):
    """What the page's script unpacks."""
    W = np.zeros((len(rows), len(rows)))
    for t, runs in enumerate(rows):
        s = 0
        for n, value in zip(runs[::2], runs[1::2], strict=True):
            W[t, s : s + n] = value
            s += n
    return W


@pytest.mark.parametrize(
    "W",
    [
        np.zeros((3, 3)),
        np.eye(4),
        np.tril(np.ones((5, 5))),
        np.random.default_rng(0).standard_normal((6, 6)),
        np.array([[2.0, 0, 0], [0, 0, 0], [0, 0.5, -1]]),
    ],
)
def test_a_matrix_comes_back_from_its_runs(W):
    assert unpacked(json.loads(json.dumps(in_runs(W)))) == pytest.approx(W, rel=1e-5)


def test_the_page_holds_the_report():
    report = audited(episodes=EPISODES)
    kept = data(audit_page.page(report, "mine.py:train"))
    assert kept["title"] == "mine.py:train"
    assert kept["module"] == "LSTM"
    for name, mean, each in (
        ("credit", report.credit, report.credits),
        ("memory", report.memory, report.memories),
    ):
        assert np.array_equal(unpacked(kept[name]["mean"]), mean)
        assert all(map(np.array_equal, map(unpacked, kept[name]["each"]), each))
    assert kept["calls"] == [[[0, 4], [4, 8], [8, 12]]] * 2
    assert kept["ends"] == [[5], [8]]
    assert [f["kind"] for f in kept["findings"]] == [f.kind for f in report.findings]
    assert kept["findings"][0]["matrices"] == ["memory"]
    assert kept["findings"][1]["matrices"] == ["credit"]


def test_calls_of_one_step_are_not_told_apart():
    assert packed(by_cells())["calls"] == [[], []]


def test_calls_lie_where_their_labels_are():
    def label(x):
        return np.array([7, 3]), x[:, :1, 0].long() + 100

    rnn = torch.nn.GRU(1, 2)

    def run():
        for start in (4, 0):
            x = (start + torch.arange(4.0))[:, None, None].expand(4, 2, 1)
            rnn(x)[0].sum().backward()

    kept = packed(bptt.audit(run, rnn, label=label))
    assert kept["sequences"] == ["3", "7"]
    assert kept["start"] == 100
    assert kept["calls"] == [[(0, 4), (4, 8)]] * 2


def test_a_large_report_takes_little():
    report = audited(steps=256, window=32, batch=16)
    assert len(audit_page.page(report)) < 400_000


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_a_title_is_data_and_never_markup():
    evil = "</script><script>alert(1)</script>\ud800<!--"
    page = audit_page.page(audited(), evil)
    page.encode()
    assert Tags(page).found == Tags(audit_page.page(audited())).found
    assert data(page)["title"] == evil
    assert page.count("<script") == 2
    assert not re.search(r"\{\{\w+\}\}", page)


def test_the_sources_ask_for_nothing_and_make_no_markup_from_text():
    for name in ("audit.css", *(f"{name}.js" for name in audit_page.SCRIPTS)):
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
        assert not re.search(r"url\((?!#)|@import|src=", text), name


def test_it_is_written_whole(tmp_path):
    path = tmp_path / "audit.html"
    path.write_text("before")
    audited().save_html(str(path), "mine")
    assert "<title>Audit: mine</title>" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) & 0o044
    with pytest.raises(OSError, match="missing"):
        audited().save_html(tmp_path / "missing" / "audit.html")
