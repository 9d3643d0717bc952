"""The page to play with, in a real browser."""

import json
import re

import numpy as np
import pytest
import torch

import bptt

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
INPUTS, HIDDEN, OUTPUTS, STEPS, BATCH = 5, 6, 4, 9, 3
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.fixture
def page(opened_playground):
    return opened_playground()


def example(cell, *, everywhere=True):
    """A network with long gradients, tokens and targets; some steps without a loss."""
    generator = torch.Generator().manual_seed(3)
    net = getattr(torch.nn, cell)(INPUTS, HIDDEN).double()
    head = torch.nn.Linear(HIDDEN, OUTPUTS).double()
    for p in (*net.parameters(), *head.parameters()):
        p.data = 1.6 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.8
    tokens = torch.randint(INPUTS, (STEPS, BATCH), generator=generator)
    targets = torch.randint(OUTPUTS, (STEPS, BATCH), generator=generator)
    if not everywhere:
        targets[[0, 3, 4, 7]] = -1
        targets[5, 1] = -1
    return net, head, tokens, targets


def losses_of(head, y, targets):
    """The losses of each step: sums over the sequences with a target, over the batch size."""
    flat = torch.nn.functional.cross_entropy(
        head(y).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    )
    return flat.reshape(targets.shape).sum(1) / BATCH


def asked(page, cell, net, head, tokens, targets, reach):
    """What the page computes for the same network."""
    parameters = {name: getattr(net, name) for name in NAMES}
    parameters |= dict(head.named_parameters())
    given = {
        "cell": cell,
        "inputs": INPUTS,
        "hidden": HIDDEN,
        "outputs": OUTPUTS,
        "parameters": {name: p.detach().flatten().tolist() for name, p in parameters.items()},
        "tokens": tokens.tolist(),
        "targets": targets.tolist(),
        "reach": reach,
    }
    found = page.run("return window.bptt.gradients(arguments[0])", json.dumps(given))
    return json.loads(found), parameters


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("reach", [1, 4, STEPS - 1, STEPS, 40])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_gradients_are_those_of_bptt(page, cell, reach, everywhere):
    net, head, tokens, targets = example(cell, everywhere=everywhere)
    found, parameters = asked(page, cell, net, head, tokens, targets, reach)
    x = torch.nn.functional.one_hot(tokens, INPUTS).double()
    credit = bptt.Truncated(every=1, reach=reach) if reach < STEPS else bptt.Full()
    y, _ = bptt.unroll(net, x, credit=credit)
    losses = losses_of(head, y, targets)
    losses.sum().backward()
    np.testing.assert_allclose(found["losses"], losses.tolist(), rtol=0, atol=1e-12)
    for name, p in parameters.items():
        theirs = np.reshape(found["gradients"][name], p.shape)
        np.testing.assert_allclose(theirs, p.grad.numpy(), rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_the_truncated_gradient_is_another(page, cell):
    """Otherwise the comparison above could not see a wrong reach."""
    whole, cut, shorter = (
        np.array(asked(page, cell, *example(cell), reach)[0]["gradients"]["weight_hh_l0"])
        for reach in (STEPS, 4, 3)
    )
    assert np.abs(whole - cut).max() > 1e-3
    assert np.abs(cut - shorter).max() > 1e-3


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_the_matrix_is_the_gradient_flow(page, cell):
    net, head, tokens, targets = example(cell)
    found, _ = asked(page, cell, net, head, tokens, targets, 2)  # what is shown is not cut
    x = torch.nn.functional.one_hot(tokens, INPUTS).double()

    def losses(y):
        flat = torch.nn.functional.cross_entropy(
            head(y).flatten(0, 1), targets.flatten(), reduction="none"
        )
        return flat.reshape(STEPS, BATCH)

    own = np.reshape(found["norms"], (STEPS, STEPS))
    assert (own[np.triu_indices(STEPS, 1)] == 0).all()
    np.testing.assert_allclose(own, oracle(net, losses, x), rtol=1e-10, atol=1e-14)


def oracle(net, losses, x):
    """‖∂L_t/∂(h, c)_i‖ by autograd through a loop of single steps, the mean over the sequences."""
    state, states, outputs = None, [], []
    for x_t in x:
        _, state = net(x_t[None], state)
        state = tuple(s.requires_grad_() for s in (state if isinstance(state, tuple) else (state,)))
        states.append(state)
        outputs.append(state[0])
        state = state if len(state) == 2 else state[0]
    found = np.zeros((STEPS, STEPS))
    each = losses(torch.cat(outputs))
    for t in range(STEPS):
        for i in range(t + 1):
            parts = torch.autograd.grad(
                each[t].sum(), states[i], retain_graph=True, materialize_grads=True
            )
            squares = sum(p[0].square().sum(-1) for p in parts)
            found[t, i] = squares.sqrt().mean().item()
    return found


def test_wrong_parameters_are_refused_by_name(page):
    net, head, tokens, targets = example("GRU")
    with pytest.raises(Exception, match=r"parameters\.weight_ih_l0 has 90 numbers, expected 120"):
        asked(page, "LSTM", net, head, tokens, targets, 2)


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(opened_playground, dark):
    page = opened_playground(dark=dark)
    page.run("window.bptt.copying(20); window.bptt.sentences(20)")
    page.click(page.find("#copy-run"))
    page.click(page.find("#sentence-run"))
    page.settle()
    assert page.complaints() == []
    asked_for = [address for address in page.requests() if not address.startswith("data:")]
    assert asked_for == [page.path.as_uri()]
    lightness = sum(map(int, re.findall(r"\d+", page.background(page.find("html")))[:3]))
    assert (lightness < 150) == dark


def letters(page, updates):
    """The shares of right letters and digits of both networks, some updates later."""
    found = page.run("return window.bptt.copying(arguments[0])", updates)
    return [f["letter"] for f in found], [f["digits"] for f in found]


def test_too_short_stays_at_chance_and_long_enough_learns(page):
    assert [page.text(f"#title-{s}") for s in "ab"] == ["Too short by 7 steps", "Long enough"]
    (short, long), digits = letters(page, 500)
    assert 0.15 < short < 0.35
    assert long > 0.95
    assert min(digits) > 0.99
    assert page.text(".scores .bad").strip() == f"{100 * short:.0f} %"
    assert len(page.all("#matrix-a .cut")) == 7 * 8 / 2
    assert not page.all("#matrix-b .cut")
    assert page.text("#copying .clock") == "500 updates"
    short, long = (told(page, side) for side in "ab")
    assert short[0] == long[0] == 1
    assert max(short[-6:]) < 0.4  # forgotten
    assert min(long) > 0.85  # and kept
    assert long[-1] == 1


def told(page, side):
    """The shares of letters that the state tells, step by step."""
    bars = page.run(
        "return [...document.querySelectorAll(`#matrix-${arguments[0]} .told`)]"
        ".map((e) => Number(e.getAttribute('height')))",
        side,
    )
    return [high / 64 for high in bars]


@pytest.mark.parametrize(("cell", "most"), [("GRU", 0.35), ("LSTM", 0.75)])
def test_so_do_the_gated_cells(page, cell, most):
    """An LSTM made to remember keeps a part of the letters by itself."""
    for side in "ab":
        page.select(f"cell-{side}", cell)
    (short, long), _ = letters(page, 700)
    assert short < most
    assert long > 0.95


def test_the_other_examples_do_what_they_say(page):
    page.click(page.find("#preset-itself"))
    assert page.text("#title-a") == "Too short by 5 steps"
    assert min(letters(page, 600)[0]) > 0.95
    page.click(page.find("#preset-vanishing"))
    assert [page.text(f"#title-{s}") for s in "ab"] == ["Long enough"] * 2
    assert max(letters(page, 300)[0]) < 0.4
    assert re.search(r"At the letter, \d\.\d\s·\s10⁻", page.text("#copying .says"))


def test_everything_is_the_same_again_after_reset(page):
    first = letters(page, 30)
    bars = page.run("return document.querySelector('#matrix-a svg').outerHTML")
    page.click(page.find("#copy-reset"))
    assert page.text("#copying .clock") == "0 updates"
    assert letters(page, 30) == first
    assert page.run("return document.querySelector('#matrix-a svg').outerHTML") == bars


def put(page, name, value):
    """Move a slider as a hand does."""
    page.run(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )
    page.settle()


def test_the_sliders_change_what_is_trained(page):
    put(page, "reach-a", 13)
    assert page.text("#title-a") == "Long enough"
    assert not page.all("#matrix-a .cut")
    put(page, "reach-a", 12)
    assert page.text("#title-a") == "Too short by 1 step"
    assert len(page.all("#matrix-a .cut")) == 1
    put(page, "lag", 3)
    assert page.text("#title-a") == "Long enough"
    assert len(page.all("#matrix-a .told")) == 4
    before = letters(page, 20)
    page.select("weights", "torch")
    assert page.text("#copying .clock") == "0 updates"
    assert letters(page, 20) != before


def test_a_short_way_back_is_learnt_and_a_long_one_vanishes(page):
    def john(updates):
        found = page.run("return window.bptt.sentences(arguments[0])", updates)
        return [(f["men"][0], f["norms"][f["name"]] / f["norms"][-1], f["back"]) for f in found]

    (_, near, back), (_, far, further) = john(0)
    assert (back, further) == (8, 30)
    assert near > 1e-3
    assert far < 1e-5
    (short, _, _), (long, left, _) = john(300)
    assert short > 0.95
    assert long < 0.35
    assert left < 1e-5
    said = page.text("#sentences .panel:last-child .says")
    assert said.startswith("John is 30 steps back.")
    assert "10⁻" in said
    page.select("sentence-weights", "remembering")
    assert min(p for p, _, _ in john(300)) > 0.95
    page.click(page.find("#sentence-reset"))
    put(page, "sentence-reach", 12)
    (short, _, _), (long, _, _) = john(300)
    assert short > 0.95
    assert long < 0.35
    assert "the credit ends after 12" in page.text("#sentences .panel:last-child .says")
    assert page.all("#sentences .panel:last-child .name.cut")
    assert not page.all("#sentences .panel:first-child .name.cut")


def test_it_runs_while_the_page_stays_responsive(page):
    page.run(
        "window.longest = 0; let last = performance.now();"
        "(function tick() { const now = performance.now();"
        "window.longest = Math.max(window.longest, now - last); last = now;"
        "requestAnimationFrame(tick) })()"
    )
    page.press(page.find("#copy-run"), Keys.ENTER)
    assert page.text("#copy-run") == "Pause"
    page.chrome.execute_async_script("setTimeout(arguments[0], 1500)")
    page.press(page.find("#copy-run"), Keys.SPACE)
    assert page.text("#copy-run") == "Run"
    updates = int(page.text("#copying .clock").split()[0])
    assert updates > 3
    assert page.run("return window.longest") < 1000  # a frame, on a machine that does other things
    assert page.text("#copy-status").startswith(f"Paused. After {updates} update")
    page.chrome.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#copying .clock") == f"{updates} updates"


def test_the_speed_is_kept(page):
    put(page, "speed", 0)
    page.click(page.find("#copy-run"))
    page.chrome.execute_async_script("setTimeout(arguments[0], 1600)")
    page.click(page.find("#copy-run"))
    assert 1 <= int(page.text("#copying .clock").split()[0]) <= 5


def test_the_keyboard_reaches_everything(page):
    wanted = page.run(
        "return [...document.querySelectorAll('button, input, select')].map((e) => e.id)"
    )
    assert "" not in wanted
    assert len(wanted) == len(set(wanted)) >= 20
    page.run("document.activeElement.blur()")
    reached = []
    for _ in wanted:
        page.chrome.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.run("return document.activeElement.id"))
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached == wanted
    page.press(page.find("#reach-a"), Keys.ARROW_RIGHT)
    assert page.find("#reach-a").get_attribute("aria-valuetext") == "7"
    page.press(page.find("#copy-step"), Keys.ENTER)
    assert page.text("#copy-status").startswith("After 1 update:")


def test_everything_has_a_name(page):
    unnamed = page.run(
        "return [...document.querySelectorAll('input, select')]"
        ".filter((e) => !e.labels.length).map((e) => e.id)"
    )
    assert unnamed == []
    labels = page.run(
        "return [...document.querySelectorAll('svg[role=img]')]"
        ".map((e) => e.getAttribute('aria-label'))"
    )
    assert len(labels) == 3
    assert all(labels)
    ids = page.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("lag", [2, 12, 20])
def test_it_fits_a_phone(opened_playground, lag):
    page = opened_playground(width=360, height=740)
    put(page, "lag", lag)
    page.run("window.bptt.copying(3); window.bptt.sentences(3)")
    assert page.run("return document.documentElement.scrollWidth") <= 360
    wide = page.run(
        "return [...document.querySelectorAll('#page *')].filter((e) => "
        "e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_the_size(page):
    assert page.path.stat().st_size <= 300_000
