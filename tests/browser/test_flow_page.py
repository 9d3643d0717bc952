"""The page of a gradient flow in a real browser."""

import re
from itertools import pairwise

import numpy as np
import pytest
from flow_factories import SENTENCES, five_flows, made_flow

from bptt import Truncated

UNTAME = [
    "plain", "<script>window.ran=1</script>", "</script><script>window.ran=2</script>",
    "<img/src=x/onerror='window.ran=3'>", "<!--", "&amp;", "\"'`${1}", "{{data}}", "\u2028", "\n",
    "\t", "", " ", "\x00", "שלום", "\u202e", "\u0301a", "👩‍👩‍👧", "\ud800", "é", "last",
]  # fmt: skip
SEEN = {
    8: "U+2028",
    9: "↵",
    10: "⇥",
    11: "∅",
    12: "␣",
    13: "␀",
    15: "U+202E",
    16: "◌\u0301a",
    18: "U+D800",
}


def norms(flow, state=0):
    return np.array(flow["states"][state]["norms"], np.float64)


def colours(page):
    return [numbers(page.background(w)) for w in page.all("#text0 .word")]


def numbers(colour):
    """The numbers of rgb(…) or rgba(…)."""
    return [float(x) for x in re.findall(r"[\d.]+", colour)]


def luminance(rgb):
    """Of sRGB, 0 to 255, by WCAG."""
    x = np.asarray(rgb, float)[..., :3] / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def contrast(one, other):
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def shown_value(text):
    """The value in bold of a readout as a number."""
    digits = text.replace("−", "-").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    return float(digits.replace("\u00a0·\u00a010", "e"))


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(opened, dark):
    page = opened(*five_flows(), dark=dark)
    assert page.complaints() == []
    assert {address.split(":")[0] for address in page.requests()} <= {"file", "data"}
    assert len([a for a in page.requests() if a.startswith("file")]) <= 1
    assert page.text("h1") == "tanh"
    assert "multiplied by about 0.72" in page.text("#verdict .words")
    assert [e.text for e in page.all(".card .name")] == ["tanh", "sigmoid", "relu", "gru", "lstm"]


def test_requests_would_be_seen(opened, tmp_path):
    page = opened(made_flow())
    (tmp_path / "other.html").write_text("<img src='file:///nowhere.png'>")
    page.path = tmp_path / "other.html"
    page.open()
    assert any(address.endswith("nowhere.png") for address in page.requests())
    assert page.complaints() != []


def test_the_policy_forbids_what_others_would_add(opened):
    page = opened(made_flow())
    page.run(
        "const s = document.createElement('script'); s.appendChild(document.createTextNode("
        "'window.ran = 9')); try { document.body.append(s) } catch (e) {}"
        "const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i);"
    )
    page.settle()
    assert page.run("return window.ran === undefined")
    assert any("Content Security Policy" in said for said in page.complaints())


def test_a_corpus_that_holds_markup_is_shown_and_runs_nothing(opened):
    flow = made_flow("<i>name</i>", words=UNTAME)
    flow["verdict"]["words"] = "<b>words</b>"
    flow["advice"][0]["text"] = "<script>window.ran = 4</script>"
    flow["advice"][0]["text"] += " Use bptt.init.chrono_(module, longest=35), before training."
    page = opened(flow)
    assert page.complaints() == []
    assert page.run("return window.ran === undefined")
    assert page.text("#advice code") == "bptt.init.chrono_(module, longest=35)"
    assert page.run("return document.querySelectorAll('script').length") == 2
    for n, word in enumerate(UNTAME):
        assert page.run("return arguments[0].textContent", page.word(n)) == SEEN.get(n, word)
    assert page.text("h1") == "<i>name</i>"
    assert "<b>words</b>" in page.text("#verdict")
    assert "<script>window.ran = 4</script>" in page.text("#advice")
    page.point(page.word(2))
    assert UNTAME[2] in page.readout()
    assert page.run("return window.ran === undefined")


def test_pointing_at_a_word_shows_how_far_its_loss_reaches(opened):
    flow = made_flow(beta=0.6)
    page = opened(flow)
    assert SENTENCES[page.chosen()] == "Anna"  # the last one that is no full stop
    before = colours(page)
    page.point(page.word(31))  # the loss of predicting it is that of step 30
    assert page.chosen() == 31
    assert "at step 30, of predicting" in page.readout()
    assert f"{flow['losses'][30]:.2f} nats" in page.readout()
    after = colours(page)
    assert after != before
    # As strong as its norms: at each loss's own largest full, four decades below faded out.
    row = norms(flow)[30, :31]
    order = np.argsort(np.clip(row / row.max(), 1e-4, None), kind="stable")
    light = luminance(np.array([c[:3] for c in after[:31]]))[order]
    assert (np.diff(light) <= 1e-3).all()
    assert light[0] > 0.85
    assert light[-1] < 0.1
    assert all(c[3:] == [0] for c in after[32:])  # later words are not reached


def test_a_word_that_is_held_stays_and_earlier_ones_tell_their_values(opened):
    flow = made_flow()
    page = opened(flow)
    page.click(page.word(31))
    assert "held" in page.word(31).get_attribute("class")
    page.point(page.word(12))
    assert page.chosen() == 31
    assert shown_value(page.text("#texts .readout b")) == pytest.approx(
        norms(flow)[30, 12], rel=0.05
    )
    assert "At step 12, " in page.readout()
    attribution = shown_value(page.text("#texts .attributed"))
    assert attribution == pytest.approx(flow["attribution"][30][12], rel=0.05)
    page.point(page.word(40))
    assert page.chosen() == 31
    page.click(page.word(31))
    page.point(page.word(40))
    assert page.chosen() == 40


def test_arrow_keys_move_along_the_text(opened):
    page = opened(made_flow(), address="#t=30")
    words = page.find("#text0")
    assert page.chosen() == 31
    page.press(words, "\ue012")  # left
    assert page.chosen() == 30
    page.press(words, "\ue014", "\ue014")  # right
    assert page.chosen() == 32
    page.press(words, "\ue011")  # home
    assert page.chosen() == 1
    page.press(words, "\ue012")
    assert page.chosen() == 1
    page.press(words, "\ue010")  # end
    assert page.chosen() == len(SENTENCES) - 1
    tops = [w.rect["y"] for w in page.all("#text0 .word")]
    page.press(words, "\ue013")  # up
    up = page.chosen()
    assert tops[up] < tops[-1]
    page.press(words, "\ue015")  # down
    assert tops[page.chosen()] > tops[up]
    assert words.get_attribute("aria-activedescendant") == page.word(page.chosen()).get_attribute(
        "id"
    )
    page.press(words, "\ue007")  # enter
    assert "held" in page.word(page.chosen()).get_attribute("class")


def test_only_losses_that_were_followed_can_be_chosen(opened):
    flow = made_flow(times=[3, 20, 40])
    page = opened(flow)
    assert page.chosen() == 41
    page.press(page.find("#text0"), "\ue012")
    assert page.chosen() == 21
    page.press(page.find("#text0"), "\ue014")
    assert page.chosen() == 41
    page.point(page.word(30))
    assert page.chosen() == 21


def test_the_heat_map_shows_the_same_and_is_linked(opened):
    flow = made_flow(seed=4)
    page = opened(flow, address="#t=30&credit=full")
    words = colours(page)
    for s in (0, 7, 19, 25, 30):
        x, y = page.cell(30, s)
        assert page.pixel("#maps canvas", x, y)[:3] == words[s][:3]
    x, y = page.cell(30, 35)
    assert page.pixel("#maps canvas", x, y)[3] == 0  # nothing where s > t
    canvas = page.find("#maps .frame")
    box = canvas.rect

    def point(t, s):
        x, y = page.cell(t, s)
        page.point(canvas, round(x - box["width"] / 2), round(y - box["height"] / 2))

    point(20, 25)  # where s > t
    assert page.chosen() == 21
    assert page.all("#text0 .pointed") == []
    for aside in (-0.3, 0.3):
        point(44, 9 + aside)
        assert page.chosen() == 45
        assert [w.get_attribute("data-word") for w in page.all("#text0 .pointed")] == ["9"]
    assert shown_value(page.text(".map .readout b")) == pytest.approx(norms(flow)[44, 9], rel=0.05)
    page.press(canvas, "\ue013", "\ue014")  # up, right
    assert page.chosen() == 44
    assert "At step 10, " in page.text(".map .readout")


@pytest.mark.parametrize(
    ("kind", "every"),
    [("blocks", lambda k: k), ("half", lambda k: -(-k // 2)), ("window", lambda k: 1)],
)
@pytest.mark.parametrize("cells", [False, True])
def test_the_slider_shows_the_share_of_credit_that_is_lost(opened, kind, every, cells):
    flow = made_flow("lstm", beta=0.93, cells=True, seed=7)
    page = opened(flow)
    if cells:
        page.select("measure", "0/cell")
    page.click(page.find(f"input[value='{kind}']"))
    sizes = np.nan_to_num(norms(flow, int(cells)))
    edges = []
    for reach in (1, 2, 9, 48):
        page.slide(reach)
        W = Truncated(every=every(reach), reach=reach).plan(flow["steps"]).matrix()
        lost = float(page.find("#lost strong").get_attribute("data-lost"))
        assert lost == pytest.approx((sizes * (W == 0)).sum() / sizes.sum(), abs=1e-4)
        assert f"{reach} of 48 steps" in page.text("#reach-now")
        edges.append(page.find(".frame .edge").get_attribute("d"))
    assert lost == pytest.approx(0, abs=1e-9) or kind == "half"
    assert len(set(edges)) == 4
    page.click(page.find("input[value='full']"))
    assert page.all(".frame .edge") == []
    assert float(page.find("#lost strong").get_attribute("data-lost")) == 0


def test_what_the_credit_leaves_out_is_framed_where_its_matrix_is_zero(opened):
    page = opened(made_flow(), address="#t=47&credit=blocks&reach=10")
    xs = {s: page.cell(47, s)[0] for s in (39, 40)}
    edge = [
        float(x) for x in re.findall(r"H([\d.]+)", page.find(".frame .edge").get_attribute("d"))
    ]
    assert xs[39] < max(edge) < xs[40]  # the last block begins with step 40


def test_states_are_told_apart(opened):
    flow = made_flow("lstm", cells=True, layers=2)
    page = opened(flow, address="#t=40&s=5")
    keys = [o.get_attribute("value") for o in page.all("#measure option")]
    assert keys == ["0/hidden", "0/cell", "1/hidden", "1/cell", "attribution"]
    for n, key in enumerate(keys[:4]):
        page.select("measure", key)
        value = shown_value(page.text("#texts .readout b"))
        assert value == pytest.approx(norms(flow, n)[40, 5], rel=0.05)
    page.select("measure", "attribution")
    value = shown_value(page.text("#texts .readout b"))
    assert value == pytest.approx(flow["attribution"][40][5], rel=0.05)
    assert [p.get_attribute("data-state") for p in page.all(".profile path.state")] == keys[:4]


@pytest.mark.parametrize(
    ("name", "value"), [("scale", "matrix"), ("decades", "2"), ("decades", "8")]
)
def test_the_colours_options_change_the_colours(opened, name, value):
    page = opened(made_flow(), address="#t=30")
    before = colours(page)
    legend = page.text(".scale")
    page.select(name, value)
    assert colours(page) != before
    assert page.text(".scale") != legend


@pytest.mark.parametrize("dark", [False, True])
def test_the_colour_scale_is_even_and_only_gets_stronger(opened, dark):
    page = opened(made_flow(), dark=dark)
    rgb = page.run(
        "const c = document.querySelector('.scale .bar');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, 1).data]"
    )
    rgb = np.array(rgb).reshape(-1, 4)[::15, :3]
    lab = cielab(rgb)
    light = lab[:, 0] if dark else -lab[:, 0]
    assert (np.diff(light) > 0).all()
    assert np.ptp(light) > 65
    steps = np.array([np.linalg.norm(b - a) for a, b in pairwise(lab)])
    assert steps.max() / steps.min() < 2.5


def cielab(rgb):
    x = rgb / 255
    x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    f = np.cbrt(np.maximum(x @ np.array(to_xyz).T / [0.9505, 1, 1.089], 1e-6))
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("measure", ["0/hidden", "attribution"])
def test_all_text_can_be_read(opened, dark, measure):
    page = opened(made_flow(beta=0.75), dark=dark, address=f"#measure={measure}")
    found = page.run(
        "const ground = getComputedStyle(document.documentElement).backgroundColor;"
        "const from = (e) => { for (; e; e = e.parentElement) {"
        "  const c = getComputedStyle(e).backgroundColor;"
        "  if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } return ground; };"
        "const all = '.word, p, dt, dd span, td, th, h1, h2, button, label, li, code';"
        "return [...document.querySelectorAll(all)]"
        ".filter((e) => e.textContent.trim() && e.offsetParent)"
        ".map((e) => [e.textContent.slice(0, 30), getComputedStyle(e).color, from(e)])"
    )
    assert len(found) > 80
    for said, ink, ground in found:
        assert contrast(numbers(ink), numbers(ground)) >= 4.5, (said, ink, ground)


def test_dark_and_light_follow_the_system_until_one_is_chosen(opened):
    page = opened(made_flow())
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    light = page.run(ground)
    assert luminance(numbers(light)) > 0.8
    cell = page.pixel("#maps canvas", *page.cell(47, 44))
    page.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    page.settle()
    dark = page.run(ground)
    assert luminance(numbers(dark)) < 0.05
    assert page.pixel("#maps canvas", *page.cell(47, 44)) != cell
    assert page.text("#theme") == "Light"
    page.click(page.find("#theme"))
    assert page.run(ground) == light
    assert page.pixel("#maps canvas", *page.cell(47, 44)) == cell
    assert page.text("#theme") == "Dark"


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("address", ["", "#all=1"])
def test_narrow_screens_need_no_scrolling_to_the_side(opened, width, address):
    words = [*SENTENCES, "x" * 90]
    page = opened(*five_flows(words=words), width=width, height=800, address=address)
    root = "document.documentElement"
    assert page.run(
        f"return {root}.scrollWidth <= {root}.clientWidth && {root}.clientWidth <= {width}"
    )
    outside = page.run(
        "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide, svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className || e.tagName)"
    )
    assert outside == []
    if width < 600:
        page.click(page.word(12))  # a tap
        assert page.chosen() == 12
    assert page.complaints() == []


def test_runs_side_by_side(opened):
    page = opened(*five_flows(), address="#t=30")
    assert len(page.all("#texts .reading")) == len(page.all("#maps .map")) == 1
    assert len(page.all("#by-lag path[data-run]")) == 5
    page.press(page.find(".card[data-run='0']"), "\ue014")
    assert page.text("h1") == "sigmoid"
    assert page.find(".card[data-run='1']").get_attribute("aria-checked") == "true"
    assert page.chosen(1) == 31
    page.click(page.find(".card[data-run='4']"))
    assert page.text("h1") == "lstm"
    page.click(page.find("#all"))
    assert len(page.all("#texts .reading")) == len(page.all("#maps .map")) == 5
    assert len(page.all("#lost li")) == 5
    assert "0/cell" in [o.get_attribute("value") for o in page.all("#measure option")]
    page.point(page.word(20, run=2))
    assert [page.chosen(n) for n in range(5)] == [20] * 5
    assert page.complaints() == []


@pytest.mark.parametrize("address", ["", "#all=1"])
def test_side_by_side_each_run_begins_at_its_last_word(opened, address):
    long, short = made_flow("long"), made_flow("short", words=["a", "b", "c", "d"])
    last = opened(long).chosen()
    page = opened(short, long, address=address)
    if not address:
        assert page.chosen() == 3
        page.click(page.find("#all"))
    assert [page.chosen(n) for n in range(2)] == [3, last]
    page.press(page.find("#text0"), "\ue012")  # to the left, in the short one
    assert [page.chosen(n) for n in range(2)] == [2, 2]
    page.click(page.find(".card[data-run='1']"))
    page.point(page.word(last, run=1))
    page.click(page.find(".card[data-run='0']"))
    page.point(page.word(last, run=1))
    page.click(page.find("#all"))
    assert page.chosen() == 3
    assert page.complaints() == []


def test_runs_of_different_lengths(opened):
    long, short = made_flow("long"), made_flow("short", words=["a", "b", "c", "d"])
    page = opened(long, short, address="#reach=40")
    page.click(page.find(".card[data-run='1']"))
    assert page.chosen(1) == 3
    assert "3 of 3 steps" in page.text("#reach-now")
    page.click(page.find("#all"))
    page.point(page.word(40))
    assert page.chosen(0) == 40
    assert page.complaints() == []


def points(path):
    return np.array([float(x) for x in re.findall(r"-?[\d.]+", path.get_attribute("d"))]).reshape(
        -1, 2
    )


def test_the_curve_by_lag_and_its_lines(opened):
    flow = made_flow(beta=0.8, bound=0.9)
    page = opened(flow)
    means = np.log(flow["by_lag"]["mean"])
    curve = points(page.find("#by-lag path[data-run]"))
    down = np.diff(curve[:, 1]) / np.diff(means)
    assert down == pytest.approx(down.mean() * np.ones(47), rel=0.2)  # pixels for each e-fold
    bound, fit = points(page.find("#by-lag .bound")), points(page.find("#by-lag .fit"))
    per_lag = np.log(0.9) * down.mean()
    assert bound[10, 1] - bound[0, 1] == pytest.approx(10 * per_lag, rel=0.02)
    assert fit[1, 1] - fit[0, 1] == pytest.approx(23 * np.log(0.8) * down.mean(), rel=0.02)
    mark = float(page.find("#by-lag [data-mark='horizon']").get_attribute("x1"))
    assert mark == pytest.approx(curve[flow["horizon"]["lag"], 0], abs=0.2)
    two = opened(made_flow(layers=2, bound=0.9))
    assert points(two.find("#by-lag .bound")).tolist() == [[0, 0]]  # none, of two layers


def test_the_plot_ends_where_the_curves_leave_it(opened):
    page = opened(made_flow(beta=0.1))
    ticks = [t.text for t in page.all("#by-lag .tick.middle")]
    assert 8 <= float(ticks[-1]) <= 12
    page = opened(made_flow(beta=0.1), made_flow(beta=0.9))
    ticks = [t.text for t in page.all("#by-lag .tick.middle")]
    assert float(ticks[-1]) == 45


def test_many_runs_or_long_names_are_told_in_a_legend(opened):
    names = [f"network {n}" for n in range(10)]
    page = opened(*[made_flow(name, seed=n) for n, name in enumerate(names)])
    assert [item.text for item in page.all("#by-lag .names li")] == names
    lines = page.all("#by-lag path[data-run]")
    looks = {(p.get_attribute("stroke"), p.get_attribute("stroke-dasharray")) for p in lines}
    assert len(looks) == 10
    few = opened(*five_flows())
    assert few.all("#by-lag .names li") == []
    assert {t.text for t in few.all("#by-lag .name")} == {"tanh", "sigmoid", "relu", "gru", "lstm"}


def test_relative_to_the_first_lag(opened):
    one, other = made_flow("one"), made_flow("other", seed=9)
    for key in ("mean", "low", "high"):
        other["by_lag"][key] = [100 * x for x in other["by_lag"][key]]
    page = opened(one, other)
    starts = [points(p)[0, 1] for p in page.all("#by-lag path[data-run]")]
    assert starts[0] == pytest.approx(starts[1], abs=0.2)
    page.click(page.find("#relative"))
    starts = [points(p)[0, 1] for p in page.all("#by-lag path[data-run]")]
    assert abs(starts[0] - starts[1]) > 20


def test_where_next_to_nothing_is_known(opened):
    flow = made_flow(attribution=False)
    flow.update(tokens=None, targets=None, dynamics=None, decay=None, advice=[], horizon=None)
    flow.update(suggested_reach=None, losses=[None] * 48)
    for state in flow["states"]:
        state["norms"] = [[None] * 48 for _ in range(48)]
    for key in ("mean", "low", "high"):
        flow["by_lag"][key] = [None] * 48
    page = opened(flow)
    assert page.complaints() == []
    page.point(page.word(30))
    assert page.chosen() == 30  # numbered, and a step's loss is its own
    page.press(page.find("#maps .frame"), "\ue012")
    assert "not followed" in page.text(".map .readout")
    page.slide(3)
    assert float(page.find("#lost strong").get_attribute("data-lost")) == 0
    assert "Not measured" in page.text("#dynamics")
    assert page.complaints() == []


def test_blocks_whose_rows_and_columns_do_not_meet(opened):
    words = [f"w{n}" for n in range(401)]
    flow = made_flow(words=words, times=range(1, 400), lags=50, attribution=False)
    page = opened(flow, address="#t=300&s=290")
    assert page.complaints() == []
    value = shown_value(page.text("#texts .readout b"))
    assert value == pytest.approx(norms(flow)[298:300, 290:292].mean(), rel=0.05)
    assert "the mean of 2 steps" in page.readout()


def is_seen(page, word):
    """Whether a word is within what is seen of its list."""
    return page.run(
        "const e = arguments[0];"
        "const [w, l] = [e, e.parentNode].map((x) => x.getBoundingClientRect());"
        "return w.top >= l.top - 1 && w.bottom <= l.bottom + 1",
        word,
    )


def test_dynamics_of_which_little_is_known(opened):
    flow = made_flow(layers=2)
    nothing = dict.fromkeys(flow["dynamics"][0])
    norms_of = [None, 0.5, *[0.7] * 46]
    flow["dynamics"] = [
        {**nothing, "layer": 0, "dead": 0.0},
        {**nothing, "layer": 1, "jacobian_norms": norms_of, "lyapunov": [-0.25, None]},
    ]
    flow["dynamics"][1].update(lyapunov_errors=[0.013, None], gates={"forget": [0.125, None]})
    page = opened(flow)
    assert page.complaints() == []
    first, second, gate = [row.text for row in page.all("#dynamics tbody tr")]
    assert first == "1 – – – – – – – 0 % –"
    assert second == "2 0.696 0.700 – – – – – – −0.250 ± 0.013, –"
    assert gate == "2 forget 13 % –"
    assert len(page.all("#jacobians path.curve")) == 2


def test_a_thousand_steps_open_in_blocks(opened):
    T = 1000
    flow = made_flow(words=[f"w{n}" for n in range(T + 1)], lags=60, beta=0.9, attribution=False)
    page = opened(flow, address="#t=999&credit=window&reach=8")
    assert page.complaints() == []
    assert "means of 4 steps" in page.text("#verdict")
    assert len(page.all("#text0 .word")) == T + 1
    page.press(page.find("#text0"), "\ue011")  # home
    assert is_seen(page, page.word(1))
    page.point(page.word(500))
    assert page.chosen() == 500
    page.press(page.find("#text0"), "\ue010")  # end
    assert is_seen(page, page.word(T))
    sizes = np.nan_to_num(norms(flow))
    W = Truncated(every=1, reach=8).plan(T).matrix()
    lost = float(page.find("#lost strong").get_attribute("data-lost"))
    assert lost == pytest.approx((sizes * (W == 0)).sum() / sizes.sum(), abs=0.05)
