import numpy as np
import pytest
from audited import EPISODES, audited, by_cells

from bptt._src.report.audit_figure import CALL, EPISODE


def lines(axes, colour):
    """The places (s, t) of all lines of a colour."""
    return [
        list(zip(*(np.asarray(x) + 0.5 for x in line.get_data()), strict=True))
        for line in axes.lines
        if line.get_color() == colour and line.get_zorder() > 3
    ]


def rings(axes):
    return {line.get_gid(): tuple(float(x[0]) for x in line.get_data()) for line in axes.lines
            if not str(line.get_gid()).startswith("_") and line.get_gid()}  # fmt: skip


def test_the_matrices_with_calls_ends_and_the_faults_where_they_were_seen():
    report = audited(episodes=EPISODES)
    left, right, *_ = report.figure().axes
    for axes, W in ((left, report.credit), (right, report.memory)):
        assert np.array_equal(axes.images[0].get_array().filled(0), W)
        corners = [[(a, a), (a, a + 4), (a + 4, a + 4)] for a in (0, 4, 8)]
        assert sorted(lines(axes, CALL)) == corners
        assert sorted(lines(axes, EPISODE)) == [[(0, t), (t, t), (t, 12)] for t in (5, 8)]
    memory, credit = report.faults
    assert rings(left) == {"credit-crosses-episode": (credit.s, credit.t)}
    assert rings(right) == {"memory-crosses-episode": (memory.s, memory.t)}
    assert [axes.get_title() for axes in (left, right)] == ["credit", "memory"]


def test_an_end_that_all_sequences_have_is_drawn_full():
    one, all_ = EPISODES.copy(), EPISODES.copy()
    one[8:, 1] = 0
    all_[:, 1] = all_[:, 0]
    strength = [
        next(line.get_alpha() for line in audited(episodes=e).figure().axes[0].lines
             if line.get_color() == EPISODE)
        for e in (one, all_)
    ]  # fmt: skip
    assert strength == [0.625, 1]


def test_the_legend_names_what_there_is():
    def named(report):
        figure = report.figure()
        return [t.get_text() for legend in figure.legends for t in legend.get_texts()]

    assert named(audited()) == ["1", "0", "a call"]
    assert named(by_cells()) == ["1", "0"]
    assert named(audited(twice=True))[-2:] == ["a call", "fault: counted-twice"]
    assert named(audited(episodes=EPISODES))[3:] == [
        "an episode begins",
        "fault: memory-crosses-episode, credit-crosses-episode",
    ]


def test_the_title_and_the_numbers_of_the_steps():
    report = audited(label=lambda x: (np.arange(2), 100 + np.arange(len(x))[:, None]), steps=4)
    assert report.start == 100
    figure = report.figure("of $mine$")
    assert figure.get_suptitle() == "of $mine$"
    assert audited().figure().get_suptitle() == (
        "LSTM: 3 calls, 12 steps of 2 sequences, 3 backward passes"
    )
    figure.canvas.draw()
    assert {t.get_text() for t in figure.axes[0].get_xticklabels()} >= {"100", "103"}
    assert {t.get_text() for t in figure.axes[1].get_yticklabels()} >= {"100", "103"}


@pytest.mark.parametrize("report", [audited(twice=True), by_cells()], ids=["twice", "cells"])
def test_it_can_be_drawn(report):
    report.figure().canvas.draw()
