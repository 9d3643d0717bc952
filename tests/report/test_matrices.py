"""The picture of a plan shows its matrix, the same weight in the same colour everywhere."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from bptt import Full, Plan, Truncated
from bptt._src.report.matrices import draw_plans
from bptt.errors import ConfigError

HEAVY = Plan(6, carry=[1, 3, 0, 0.5, 2, 1])


def images(figure):
    """The pixels of each panel, one a cell, RGBA; white where nothing was drawn."""
    return [a.images[0].to_rgba(a.images[0].get_array()) for a in figure.axes if a.images]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize("steps", [1, 2, 4, 40, 41, 200])
def test_a_panel_a_plan_and_white_is_zero(steps):
    plans = {"full": Full().plan(steps), "two": Truncated(2).plan(steps)}
    figure = draw_plans(plans)
    assert [a.get_title() for a in figure.axes[:2]] == ["full", "two"]
    for pixels, plan in zip(images(figure), plans.values(), strict=True):
        white = (pixels[..., :3] == 1).all(-1)
        np.testing.assert_array_equal(white, plan.matrix() == 0)
    assert png(figure).startswith(b"\x89PNG")


def test_each_weight_has_its_colour_and_one_has_the_same_in_every_figure():
    figure = draw_plans({"a": HEAVY, "b": Full().plan(3), "c": Plan(3, carry=[1, 3, 1])})
    colours = {}
    for pixels, plan in zip(
        images(figure), (HEAVY, Full().plan(3), Plan(3, [1, 3, 1])), strict=True
    ):
        for weight, colour in zip(plan.matrix().ravel(), pixels.reshape(-1, 4), strict=True):
            colours.setdefault(weight, set()).add(tuple(colour))
    assert sorted(colours) == [0, 0.5, 1, 2, 3]
    assert all(len(seen) == 1 for seen in colours.values())
    darkness = [-sum(min(colours[w])[:3]) for w in sorted(colours)]
    assert darkness == sorted(darkness)
    assert len(set(darkness)) == 5
    (alone,) = images(draw_plans({"": Full().plan(2)}))
    assert tuple(alone[0, 0]) in colours[1]


def test_small_weights_are_not_white_and_what_is_off_the_scale_is_said_to_be():
    figure = Plan(4, carry=[1, 1e-9, 1e9, 1]).figure()
    (pixels,) = images(figure)
    assert (pixels[np.tril_indices(4)][:, :3] != 1).any(-1).all()
    assert figure.axes[-1].get_ylabel() == "W[t, s]; white: 0"
    assert png(figure) != png(Plan(4, carry=[1, 1e-3, 1e4, 1]).figure())  # no arrows on its scale


def test_negative_weights_are_drawn_by_their_size_and_the_scale_says_so():
    figure = Plan(3, carry=[1, -0.5, 1]).figure()
    (pixels,) = images(figure)
    (positive,) = images(Plan(3, carry=[1, 0.5, 1]).figure())
    np.testing.assert_array_equal(pixels, positive)
    assert figure.axes[-1].get_ylabel() == "|W[t, s]|; white: 0"


def test_of_weights_for_each_sequence_the_first_are_drawn():
    carry = np.array([[1, 1], [0, 1], [1, 0]])
    figure = draw_plans({"two": Plan(3, carry=carry)})
    np.testing.assert_array_equal(*map(images, (figure, draw_plans({"": Plan(3, carry[:, 0])}))))
    assert figure.axes[0].get_title() == "two\nthe first of 2 sequences"


def test_axes_say_what_they_are_and_rows_go_down():
    (axes, *_) = HEAVY.figure("title").axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "title",
        "credited to step s",
        "loss at step t",
    )
    assert axes.get_ylim() == (5.5, -0.5)
    assert axes.get_xlim() == (-0.5, 5.5)


def test_many_plans_go_on_in_the_next_row():
    figure = draw_plans({str(n): Full().plan(n) for n in range(1, 6)})
    rows = {a.get_subplotspec().rowspan.start for a in figure.axes if a.images}
    assert rows == {0, 1}
    assert len(images(figure)) == 5
    png(figure)


def test_no_plan_is_no_picture():
    with pytest.raises(ConfigError, match="at least one plan, got none"):
        draw_plans({})


def test_drawing_leaves_pyplot_alone_and_importing_bptt_leaves_matplotlib():
    script = (
        "import sys, bptt; assert 'matplotlib' not in sys.modules;"
        "bptt.Full().plan(4).figure().savefig(sys.stdout.buffer, format='png');"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    assert done.stdout.startswith(b"\x89PNG")
