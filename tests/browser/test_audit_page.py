"""The page of an audit in a real browser."""

import pytest
import torch
from audited import EPISODES, audited, by_cells

import bptt

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
REPORT = audited(episodes=EPISODES)


def cell(page, matrix, t, s):
    """Where an entry is, from the middle of the frame."""
    left, top, wide, width, height = page.run(
        "const [frame, row] = ['', ' .row'].map((w) => document.querySelector("
        "`#map-${arguments[0]} .frame${w}`));"
        "const one = Number(row.getAttribute('height'));"
        "return [Number(row.getAttribute('x')), 22, one, frame.offsetWidth, frame.offsetHeight]",
        matrix,
    )
    return left + (s + 0.5) * wide - width / 2, top + (t + 0.5) * wide - height / 2


def point(page, matrix, t, s):
    page.point(page.find(f"#map-{matrix} .frame"), *map(int, cell(page, matrix, t, s)))


def said(page, matrix):
    return page.text(f"#map-{matrix} .readout")


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(opened_audit, dark):
    page = opened_audit(REPORT, dark=dark)
    assert page.complaints() == []
    assert {address.split(":")[0] for address in page.requests()} <= {"file", "data"}
    assert page.text("h1") == "LSTM"
    assert page.text("#verdict .words") == "2 faults"
    assert (
        page.text("#verdict .module") == "LSTM, 3 calls, 12 steps of 2 sequences, 3 backward passes"
    )


def test_the_findings_are_in_words_faults_first(opened_audit):
    page = opened_audit(REPORT)
    kinds = [e.text for e in page.all("#findings .kind")]
    assert kinds == [f"{'Fault' if f.is_fault else 'Fact'} {f.kind}" for f in REPORT.findings]
    for finding, f in zip(page.all(".finding"), REPORT.findings, strict=True):
        assert f.means in finding.text
        assert f.instead in finding.text
    assert "No faults." in opened_audit(audited()).text("#findings")


def test_pointing_says_the_weight_and_what_the_state_holds(opened_audit):
    page = opened_audit(REPORT)
    point(page, "credit", 6, 4)
    assert said(page, "credit") == (
        "Loss of step 6, step 4: weight 1, of another episode in some sequences."
    )
    assert said(page, "memory") == (
        "State after step 6, step 4: held, of another episode in some sequences."
    )
    point(page, "memory", 9, 4)
    assert said(page, "credit") == "Loss of step 9, step 4: weight 0, of another episode."
    point(page, "memory", 4, 9)  # there is nothing
    assert said(page, "memory") == (
        "State after step 4. Point at a weight, or move with the arrow keys."
    )


def test_a_link_of_a_finding_goes_to_its_place_each_time(opened_audit):
    page = opened_audit(REPORT)
    link = page.find("[data-kind='credit-crosses-episode'] a")
    for _ in range(2):
        page.click(link)
        assert said(page, "credit") == (
            "Loss of step 5, step 4: weight 1, of another episode. Here: credit-crosses-episode."
        )
        assert "credit-crosses-episode" not in said(page, "memory")
        assert page.find("#of").get_attribute("value") == "0"
        assert page.run("return document.activeElement.closest('.map').id") == "map-credit"
        page.press(page.find("#map-credit .frame"), Keys.ESCAPE, Keys.ARROW_UP)
        assert said(page, "credit").startswith("Loss of step 4")
    page.click(page.find("[data-kind='memory-crosses-episode'] a"))
    assert page.run("return document.activeElement.closest('.map').id") == "map-memory"
    assert "Here: memory-crosses-episode" in said(page, "memory")


def test_the_keys_move_and_hold(opened_audit):
    page = opened_audit(audited())
    frame = page.find("#map-memory .frame")
    page.press(frame, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert said(page, "memory") == "State after step 10, step 8: held."
    assert frame.get_attribute("aria-label") == "memory. State after step 10, step 8: held."
    page.press(frame, Keys.HOME)
    assert said(page, "credit") == "Loss of step 10, step 0: weight 0."
    page.press(frame, Keys.ENTER)
    point(page, "credit", 3, 3)  # held
    assert said(page, "credit") == "Loss of step 10, step 0: weight 0."
    page.press(frame, Keys.ESCAPE, Keys.END)
    assert said(page, "credit") == "Loss of step 10, step 10: weight 1."


def test_a_sequence_of_its_own_has_its_own_ends_and_faults(opened_audit):
    page = opened_audit(REPORT)
    assert [len(page.all(f"#map-{m} .end-of-episode")) for m in ("credit", "memory")] == [2, 2]
    assert [e.get_attribute("data-kind") for e in page.all("#map-credit .ring")] == [
        "credit-crosses-episode"
    ]
    page.select("of", "1")
    assert len(page.all("#map-credit .end-of-episode")) == 1
    assert not page.all(".map .ring")
    page.click(page.find("#ends"))
    assert not page.all("#map-credit .end-of-episode")
    assert len(page.all("#map-credit .call")) == 1
    page.click(page.find("#calls"))
    assert not page.all("#map-credit .call")


def test_the_colours_are_those_of_the_weights(opened_audit):
    page = opened_audit(audited(twice=True))
    credit, memory = "#map-credit canvas", "#map-memory canvas"
    left, top, wide = page.run(
        "const r = document.querySelector('#map-credit .row');"
        "return [Number(r.getAttribute('x')), 22, Number(r.getAttribute('height'))]"
    )

    def colour(canvas, t, s):
        return page.pixel(canvas, left + (s + 0.5) * wide, top + (t + 0.5) * wide)

    assert colour(credit, 4, 0) == [0, 0, 0, 0]  # the page itself
    assert colour(credit, 3, 0) != colour(memory, 3, 0)  # 2 and 1
    assert page.text("#weights").split() == ["0", "1", "2"]


def test_a_long_one_fits_a_phone(opened_audit):
    page = opened_audit(audited(steps=256, window=32, batch=16), width=390, height=800)
    assert page.complaints() == []
    assert page.run("return document.documentElement.scrollWidth") <= 390
    page.press(page.find("#map-credit .frame"), Keys.ARROW_LEFT)
    assert said(page, "credit") == "Loss of step 255, step 254: weight 1."


def test_without_calls_or_episodes_there_is_nothing_to_switch(opened_audit):
    page = opened_audit(by_cells())
    assert not page.all("#calls, #ends")
    assert said(page, "credit").startswith("Loss of step 4.")
    page.press(page.find("#map-credit .frame"), Keys.ARROW_UP)
    assert said(page, "credit") == "No loss arrived at step 3."
    assert page.text("#part-maps .main > .legend:last-child").split() == []


def test_a_module_that_reads_both_ways_credits_later_steps(opened_audit):
    lstm = torch.nn.LSTM(3, 4, bidirectional=True)
    page = opened_audit(
        bptt.audit(lambda: lstm(torch.randn(6, 2, 3))[0].sum().backward(), lstm), "#t=1&s=4"
    )
    assert said(page, "credit") == "Loss of step 1, step 4: weight 1."
    page.press(page.find("#map-credit .frame"), Keys.END)
    assert said(page, "credit") == "Loss of step 1, step 5: weight 1."
    assert said(page, "memory") == "State after step 1, step 5: not held."


def test_the_address_says_where_to_begin(opened_audit):
    page = opened_audit(REPORT, "#t=7&s=6&sequence=1&theme=dark")
    assert said(page, "credit") == "Loss of step 7, step 6: weight 1."
    assert page.run("return document.documentElement.dataset.theme") == "dark"
