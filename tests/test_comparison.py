"""Credits side by side: that the conditions are the same, and the figures what they say."""

from __future__ import annotations

import io
import json
import math
import statistics
import time

import numpy as np
import pytest
import torch
from problems import Fading
from rich.console import Console

import bptt
from bptt._src.comparison.compare import _Course
from bptt._src.comparison.measures import gradient_error, peak_bytes, plans_of
from bptt._src.comparison.result import CreditResult
from bptt._src.comparison.tasks import TaskModel, TaskSetting, TaskTraining
from bptt._src.engines import native
from bptt._src.networks import NAMES
from bptt._src.numbers import number, size
from bptt.comparison import Comparison, ComparisonWatch, Trial, compare, print_comparison
from bptt.credit import Credit, Plan
from bptt.data import TASKS, Adding, Copy, make_task
from bptt.errors import ConfigError

SMALL = {"seeds": 1, "hidden": 4, "updates": 3, "batch_size": 2}
COPY = {**SMALL, "lag": 5, "symbols": 2}


def losses(found):
    return {c.spelling: [t.losses for t in c.trials] for c in found.credits}


def in_order(found):
    return list(losses(found).values())


@pytest.mark.parametrize("task", ["adding", "copy-stream"])
def test_all_credits_begin_alike_and_those_that_mean_the_same_stay_so(task):
    credits = ["full", "truncated:1000", "truncated:2", "randomized:3", "adaptive:0.5"]
    found = in_order(compare(task, credits, **{**SMALL, "seeds": 2}))
    for seed in (0, 1):
        assert len({trials[seed][0] for trials in found}) == 1
    full, same, cut, drawn, _ = found
    assert full == same
    assert full != cut
    assert full != drawn
    assert full[0] != full[1]  # the seeds differ


def test_a_credit_meets_the_same_conditions_whatever_it_is_compared_with():
    together = losses(compare("copy", ["randomized:3", "truncated:2", "full"], **COPY))
    alone = losses(compare("copy", ["truncated:2"], **COPY))
    assert together["truncated:2"] == alone["truncated:2"]
    assert (
        losses(compare("copy", ["randomized:3"], **COPY))["randomized:3"]
        == (together["randomized:3"])
    )


def test_training_is_adam_on_clipped_gradients():
    """The update, written out."""
    task = Copy(lag=5, symbols=2, batch_size=2)
    credit = bptt.Plan(task.steps, carry=[20.0] * task.steps)  # so that there is much to clip
    found = in_order(compare(task, [credit], seeds=1, hidden=4, updates=4))
    setting = TaskSetting(task, "lstm", 4, 1, 0.01, 4, 0.1, None)
    run = TaskTraining(setting, credit, 0)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=0.01)
    expected = []
    batches = run.batches
    for _ in range(4):
        batch = next(batches)
        h, _ = bptt.unroll(run.model.recurrent, batch.inputs, credit=credit)
        loss = task.loss(run.model.readout(h), batch)
        optimizer.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0) > 2
        optimizer.step()
        expected.append(float(loss.detach()))
    assert found[0][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "peephole-lstm"])
def test_forget_gates_begin_with_a_bias_of_one(cell):
    setting = TaskSetting(Copy(), cell, 4, 2, 0.01, 4, 0.1, None)
    for name, p in TaskModel(setting).recurrent.named_parameters():
        if name.startswith("bias"):
            assert (p[4:8] == (1.0 if "_ih_" in name else 0.0)).all()
            assert (p[:4] != p[0]).any()


OPTIONS = {
    "cell": "gru",
    "hidden": 5,
    "layers": 2,
    "learning_rate": 0.1,
    "batch_size": 3,
    "lag": 6,
    "symbols": 3,
    "alphabet": 3,
    "masked": True,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_result(option):
    plain = in_order(compare("copy", ["full"], **COPY))
    assert in_order(compare("copy", ["full"], **{**COPY, option: OPTIONS[option]})) != plain


def test_memory_is_counted_while_the_same_kernels_run():
    if bptt.kernels.backend().name != "native":
        pytest.skip("there are no native kernels here")
    rnn, x, heard = bptt.LSTM(3, 4), torch.randn(6, 2, 3), []
    assert peak_bytes(lambda: heard.append(rnn(x)[0].grad_fn.engine)) > 0
    assert heard == [native]


def test_memory_changes_what_is_kept_and_no_loss():
    options = {**COPY, "lag": 60}
    plain = compare("copy", ["full"], **options)
    less = compare("copy", ["full"], memory="recompute:2", **options)
    assert in_order(plain)[0][0] == pytest.approx(in_order(less)[0][0], rel=1e-5)
    peaks = [f.figures(f.credits[0]).peak_bytes for f in (plain, less)]
    assert peaks[1] < 0.7 * peaks[0]
    assert less.conditions["memory"] == "recompute:2"


def test_a_run_ends_when_it_has_been_solved_for_a_while():
    found = compare("copy", ["full"], **{**COPY, "updates": 200}, target=100.0)
    (trial,) = found.credits[0].trials
    assert trial.ended == "solved"
    assert trial.made == 149  # the first mean is one of 50 losses, and it is low 100 times
    figures = found.figures(found.credits[0])
    assert (figures.solved, figures.updates) == (1, 50)
    assert figures.seconds == trial.seconds[49]


def test_the_time_may_be_limited():
    found = compare("copy", ["full", "truncated:2"], **{**COPY, "updates": 10**6}, max_minutes=0.01)
    assert [t.ended for c in found.credits for t in c.trials] == ["time"] * 2
    assert all(0 < c.trials[0].made < 10**6 for c in found.credits)
    assert "time was up" in found.verdicts()["full"]
    began = time.monotonic()
    shares = _Course(1, 4.0, ComparisonWatch(), lambda: None)
    assert shares._until(began, 4) == pytest.approx(began + 60, abs=1)
    assert shares._until(began - 120, 2) == pytest.approx(began + 60, abs=1)
    assert shares._until(began - 1000, 2) == pytest.approx(began, abs=1)


class Stubborn(bptt.Credit):
    """A credit with a memory of its own."""

    adapt_every = 2

    def __init__(self):
        self.decays = []

    def plan(self, steps, batch=1, generator=None):
        return Plan(steps)

    def adapt(self, probe):
        self.decays.append(probe(4))

    def state_dict(self):
        return {"measured": len(self.decays)}


@pytest.mark.parametrize("task", TASKS)
def test_a_credit_that_adapts_is_asked_to_and_each_run_has_its_own(task):
    credit = Stubborn()
    found = compare(task, [credit], **{**SMALL, "updates": 5, "seeds": 2})
    assert [t.state for t in found.credits[0].trials] == [{"measured": 3}] * 2
    assert credit.decays == []
    assert "it ended as" in next(iter(found.verdicts().values()))


def test_a_probe_measures_the_last_loss_on_sequences_of_its_own():
    task = make_task("temporal-order", spread=5, batch_size=3)
    run = TaskTraining(TaskSetting(task, "gru", 4, 1, 0.01, 4, 0.1, None), bptt.Full(), 0)
    decay = run.probe(6)
    assert decay.norms.shape == (3, 6)
    assert (decay.norms.max(0) > 0).all()
    assert run.losses == []


def test_adaptive_is_measured_and_says_so():
    found = compare("copy", ["adaptive:0.5"], **COPY)
    (trial,) = found.credits[0].trials
    assert trial.state["measurements"] == 1
    assert "assumed" not in trial.credit
    assert trial.credit in found.verdicts()["adaptive:0.5"]


def test_divergence_of_one_leaves_the_others():
    class Exploding(bptt.Credit):
        spelling = "exploding"

        def plan(self, steps, batch=1, generator=None):
            return Plan(steps, carry=[1e25] * steps)

    found = compare("copy", [Exploding(), "full"], **{**COPY, "seeds": 2, "lag": 9})
    bad, good = found.credits
    assert [t.ended for t in bad.trials] == ["diverged"] * 2
    figures = found.figures(bad)
    assert (figures.diverged, figures.loss, figures.bias) == (2, None, None)
    assert "diverged at the first update" in found.verdicts()["exploding"]
    assert [t.ended for t in good.trials] == ["updates"] * 2
    json.dumps(found.to_dict(), allow_nan=False)
    assert "diverged" in str(found)
    found.figure().canvas.draw()


def test_stopped_it_keeps_the_runs_that_are_finished():
    class Stops(ComparisonWatch):
        def __init__(self):
            self.told = []

        def begun(self, credit, seed, number, runs, updates):
            self.told.append((credit, seed, number, runs, updates))

        def finished(self, credit, trial):
            assert isinstance(trial, Trial)

    watch = Stops()
    found = compare(
        "copy", ["full", "truncated:2"], **{**COPY, "seeds": 2}, watch=watch,
        stop=lambda: "enough" if len(watch.told) == 4 else None,
    )  # fmt: skip
    assert watch.told == [
        ("full", 0, 0, 4, 3), ("truncated:2", 0, 1, 4, 3), ("full", 1, 2, 4, 3),
        ("truncated:2", 1, 3, 4, 3),
    ]  # fmt: skip
    assert found.interrupted
    assert [len(c.trials) for c in found.credits] == [2, 1]


def test_a_stream_s_state_is_carried_and_what_that_means_is_said():
    task = make_task("copy-stream", steps=6, batch_size=3)
    run = TaskTraining(TaskSetting(task, "gru", 4, 1, 0.01, 4, 0.1, None), bptt.Full(), 0)
    first, second = next(run.batches), next(run.batches)
    run.backward(first)
    state = run.state
    assert not state.requires_grad
    carried = run.backward(second)
    h, _ = run.model.recurrent(second.inputs, state)
    assert carried == pytest.approx(float(task.loss(run.model.readout(h), second).detach()))
    run.state = torch.zeros_like(state)
    assert run.backward(second) != carried
    found = compare("copy-stream", ["full", "truncated:every=2,reach=4"], **SMALL)
    assert "within windows of 20 steps" in found.notes[0]
    assert "truncated:every=2,reach=4 would reach" in found.notes[1]
    assert all(note.split()[0] in str(found) for note in found.notes)
    assert not compare("copy", ["full"], **COPY).notes


# ------------------------------------------------------------------------------- the figures


def trial(losses, *, seed=0, ended="updates", **options):
    n = len(losses)
    return Trial(
        seed=seed, updates=list(range(1, n + 1)), losses=losses, ended=ended, made=n,
        seconds=[0.1 * i for i in range(1, n + 1)], **options,
    )  # fmt: skip


def result(credit, *trials):
    made = bptt.credit.parse(credit)
    plans = plans_of(made, 12, 2, torch.Generator().manual_seed(0))
    return CreditResult(credit, plans, list(trials))


def comparison(*credits, **options):
    how = {
        "task": "copy", "options": {"batch_size": 2, "lag": 10}, "steps": 12, "lag": 10,
        "conditions": {
            "cell": "lstm", "hidden": 4, "layers": 1, "optimizer": "adam", "learning_rate": 0.01,
            "updates": 100,
        },
        "baseline": 1.0, "target": 0.1, "window": 2, "is_text": False, "seeds": 2, "notes": [],
    }  # fmt: skip
    return Comparison(**{**how, **options}, credits=list(credits))


def test_the_figures_of_runs():
    one = trial([1.0, 0.3, 0.1, 0.1, 0.06], bias=0.5, bias_noise=0.0, variance=0.0, peak_bytes=7)
    other = trial([1.0, 0.1, 0.08], seed=1, bias=0.7, bias_noise=0.2, variance=4.0, peak_bytes=9)
    found = comparison(result("full", one, other))
    f = found.figures(found.credits[0])
    assert (f.runs, f.diverged, f.solved) == (2, 0, 2)
    assert f.loss == pytest.approx(statistics.fmean([0.08, 0.09]))
    assert (f.loss_least, f.loss_most) == pytest.approx((0.08, 0.09))
    assert f.updates == round(statistics.median([4, 3]))
    assert f.seconds == pytest.approx(0.35)
    assert f.milliseconds == pytest.approx(100)
    assert (f.peak_bytes, f.bias, f.bias_noise, f.variance) == (9, 0.6, 0.1, 2.0)


def test_a_run_that_does_not_get_there_counts_as_the_longest():
    good, bad = trial([0.1, 0.1]), trial([1.0, 1.0], seed=1)
    found = comparison(result("full", good, bad))
    assert found.figures(found.credits[0]).updates is None
    found = comparison(result("full", good, bad, good))
    assert found.figures(found.credits[0]).updates == 2


def test_a_text_is_shown_as_perplexities():
    found = comparison(
        result("full", trial([math.log(9), math.log(8)])), is_text=True, window=1, baseline=3.0
    )
    f = found.figures(found.credits[0])
    assert f.loss == pytest.approx(8)
    assert "perplexity" in str(found)
    assert found.verdicts()["full"] == (
        "full reached a perplexity of 8.0; a unigram model's is 20.1."
    )


VERDICTS = {
    "solved": (
        [[0.1, 0.1], [0.1, 0.1]],
        "truncated:4 solved the task both times, after 2 updates, as many as full.",
    ),
    "later": (
        [[1.0, 1.0, 1.0, 0.1, 0.1], [1.0, 1.0, 1.0, 0.1, 0.1]],
        "truncated:4 solved the task both times, after 5 updates, 2.5 times as many as full.",
    ),
    "partly": ([[0.1, 0.1], [1.0, 1.0]], "truncated:4 solved the task in 1 of 2 runs."),
    "baseline": (
        [[1.0, 1.02]],
        "truncated:4 stayed at the loss of a model without memory, 1: its losses reach 3 steps "
        "back, the answer lies 10 back.",
    ),
    "between": (
        [[0.5, 0.5]],
        "truncated:4 got to a loss of 0.5, between that of a model without memory, 1, and the "
        "target, 0.1: its losses reach 3 steps back, the answer lies 10 back.",
    ),
    "above": (
        [[2.0, 2.0]],
        "truncated:4 ended at a loss of 2, above that of a model without memory, 1: its losses "
        "reach 3 steps back, the answer lies 10 back.",
    ),
}


@pytest.mark.parametrize(("curves", "says"), VERDICTS.values(), ids=VERDICTS.keys())
def test_verdicts_follow_from_the_figures(curves, says):
    full = result("full", trial([0.1, 0.1]))
    found = comparison(full, result("truncated:4", *map(trial, curves)))
    assert found.verdicts()["truncated:4"] == says


def test_a_credit_that_reaches_the_answer_is_not_said_to_fall_short():
    found = comparison(result("truncated:11", trial([1.0, 1.0])), steps=12)
    assert found.credits[0].plans.reach == 11
    assert "reach" not in found.verdicts()["truncated:11"]
    found = comparison(result("truncated:10", trial([1.0, 1.0])), steps=12)
    assert "reach 9 steps back, the answer lies 10 back" in found.verdicts()["truncated:10"]


def test_json_holds_all_of_it_and_comes_back():
    found = compare("copy", ["full", "randomized:3", "adaptive:0.5"], **COPY)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Comparison.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert str(again) == str(found)
    said = json.loads(text)
    assert said["format"] == "bptt-comparison-1"
    for c in said["credits"]:
        assert set(c) >= {"credit", "exact", "reach", "figures", "verdict", "plan", "trials"}
        assert len(c["trials"][0]["losses"]) == 3


def test_the_table_has_what_json_has():
    found = compare("copy", ["full", "truncated:2", "randomized:3"], **{**COPY, "seeds": 2})
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    for c in found.to_dict()["credits"]:
        (line,) = (x for x in text.splitlines() if x.split()[:1] == [c["credit"]] and "of 2" in x)
        f = c["figures"]
        for figure in ("loss", "loss_least", "loss_most", "milliseconds", "bias", "variance"):
            assert number(f[figure]) in line
        assert size(f["peak_bytes"]) in line
        assert f"{f['solved']} of 2" in line
    flat = " ".join(text.split())
    for sentence in found.verdicts().values():
        assert sentence in flat


def test_where_the_table_is_too_wide_the_range_is_left_out_and_no_name_is_cut():
    wide = trial([6.1e-4, 8.3e-4], bias=0.0286, bias_noise=0.0164, variance=0.0071)
    other = trial([6.1e-4, 6.1e-4], bias=0.0286, bias_noise=0.0164, variance=0.0071, seed=1)
    found = comparison(result("randomized:17", wide, other, wide))
    (line,) = (x for x in str(found).splitlines() if " of 3" in x)
    assert line.split()[0] == "randomized:17"
    assert max(map(len, str(found).splitlines())) <= 100


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_a_terminal(width):
    long = trial([0.1234, 0.1234], bias=1234.5, bias_noise=123.4, variance=1e-7, peak_bytes=10**9)
    found = comparison(*(result(c, long) for c in ("truncated:12", "randomized:10")))
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False
    )
    print_comparison(found, console)
    written = console.file.getvalue()
    assert "…" not in written
    assert max(map(len, written.splitlines())) <= width
    assert "randomized:10" in written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "-"), (0, "0"), (0.18102, "0.181"), (0.00234, "0.0023"), (1.234, "1.23"),
        (12.34, "12.3"), (1234.5, "1,234"), (1e-7, "1.0e-07"), (3.4e9, "3.4e+09"), (-0.5, "-0.500"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, written):
    assert number(value) == written


def test_the_figure_has_a_curve_a_band_and_a_matrix_for_each():
    found = compare(
        "copy", ["full", "truncated:2", "randomized:3"], **{**COPY, "seeds": 2}, target=100.0
    )
    figure = found.figure()
    figure.canvas.draw()
    curves, *panels = figure.axes
    assert [a.get_title() for a in panels[:3]] == ["full", "truncated:2", "randomized:3, one draw"]
    names, labels = curves.get_legend_handles_labels()
    assert [label.split("\n")[0] for label in labels] == ["full", "truncated:2", "randomized:3"]
    for line, credit in zip(names, found.credits, strict=True):
        mean = sum(t.smoothed(found.window) for t in credit.trials) / 2
        assert list(line.get_ydata()) == pytest.approx(list(mean))
    assert len(curves.collections) == 3
    levels = {line.get_ydata()[0] for line in curves.lines if len(set(line.get_ydata())) == 1}
    assert {found.baseline, found.target} <= levels


# ------------------------------------------------------------------------------ the measures


def test_peak_memory_counts_what_is_there_at_once():
    def run():
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b + 1
        d = c.view(10, 100)  # no memory of its own
        del b, c
        return d.clone()

    assert peak_bytes(run) == 2 * 4000
    kept = torch.zeros(1000)
    assert peak_bytes(lambda: kept.add_(1)) == 0
    assert peak_bytes(lambda: kept + 1) == 4000


def test_peak_memory_counts_what_autograd_keeps():
    w = torch.zeros(1000, requires_grad=True)

    def run():
        y = w
        for _ in range(5):
            y = y.sin()  # each keeps its input
        y.sum().backward()

    run()  # the gradient of w is there
    assert 5 * 4000 <= peak_bytes(run) <= 8 * 4000


def test_peak_memory_counts_the_rows_of_a_sparse_gradient():
    table = torch.nn.Embedding(1000, 10, sparse=True)

    def run():
        table.weight.grad = None
        table(torch.arange(3)).sum().backward()

    assert 3 * (10 * 4 + 8) <= peak_bytes(run) < 1000
    assert table.weight.grad.is_sparse


def test_plans_are_looked_at():
    generator = torch.Generator().manual_seed(0)
    assert plans_of(bptt.Full(), 9, 4, generator)[:3] == (True, 9, False)
    assert plans_of(bptt.Truncated(4), 9, 4, generator)[:3] == (False, 4, False)
    assert plans_of(Fading(), 9, 4, generator)[:3] == (False, 9, False)
    drawn = plans_of(bptt.Randomized(3), 9, 4, generator)
    assert drawn.drawn
    assert not drawn.exact
    assert drawn.example.batch is None
    assert 4 < drawn.reach <= 9


# -------------------------------------------------------------------------------- the errors

ERRORS = {
    "a task there is not": (["cpy", ["full"]], {}, "neither a task nor a file cpy:.*copy-stream"),
    "a credit there is not": (["copy", ["fll"]], {}, "credit 'fll'"),
    "twice": (["copy", ["full", "full"]], {}, "full is given twice"),
    "another task's option": (["adding", ["full"]], {"lag": 3}, "adding has no option lag"),
    "an option of a made task": ([Adding(), ["full"]], {"length": 3}, "made already"),
    "seeds": (["copy"], {"seeds": 0}, "seeds must be from 1 to 1000000, got 0"),
    "hidden": (["copy"], {"hidden": 0}, "hidden must be from 1 to"),
    "layers": (["copy"], {"layers": 0}, "layers must be from 1 to"),
    "updates": (["copy"], {"updates": 0}, "updates must be from 1 to"),
    "rate": (["copy"], {"learning_rate": math.nan}, "learning_rate must be above 0"),
    "minutes": (["copy"], {"max_minutes": 0}, "max_minutes must be above 0"),
    "target": (["copy"], {"target": -1.0}, "target must be above 0"),
    "threads": (["copy"], {"threads": 0}, "threads must be from 1 to"),
    "cell": (["copy"], {"cell": "cnn"}, f"cell must be one of {', '.join(NAMES)}"),
    "memory": (["copy"], {"memory": "none"}, "memory must be"),
}


@pytest.mark.parametrize(("given", "options", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(given, options, says):
    with pytest.raises(ConfigError, match=says):
        compare(*given, **options)


def test_torch_is_left_as_it_was():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    compare("copy", ["randomized:3"], **COPY, threads=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# -------------------------------------------------------------------------------------- texts


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    names = ["John", "Jane", "Mary", "Anne"]
    path = tmp_path / "book.txt"
    path.write_text(
        "".join(f"{names[i % 4]} greets {names[(i * i + 1) % 4]} again.\n" for i in range(120))
    )
    return path


TEXT = {"seeds": 1, "hidden": 4, "updates": 6, "batch_size": 3, "steps": 8}


def test_a_text(book):
    credits = ["full", "truncated:1000", "truncated:2", "randomized:3", "adaptive:0.5"]
    found = compare(str(book), credits, **TEXT)
    assert found.is_text
    full, same, cut, drawn, adaptive = in_order(found)
    assert full == same
    assert len({tuple(x[0]) for x in (full, cut, drawn)}) == 3
    assert len(full[0]) == 6  # of 20 evaluations there is one an update
    assert adaptive
    best = found.figures(found.credits[0]).loss
    assert found.shown(found.target) == pytest.approx(1.05 * best)
    for c in found.credits:
        f = found.figures(c)
        assert f.peak_bytes > 0
        assert f.milliseconds > 0
    assert found.figures(found.credits[0]).bias == 0
    assert found.figures(found.credits[2]).bias > 0
    again = Comparison.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert str(again) == str(found)
    assert "windows of 8 steps" in str(found)
    found.figure().canvas.draw()


TEXT_OPTIONS = {
    "level": "char",
    "vocabulary": 4,
    "lowercase": True,
    "max_tokens": 300,
    "steps": 5,
    "batch_size": 2,
    "cell": "gru",
    "hidden": 5,
    "layers": 2,
    "learning_rate": 0.1,
}


@pytest.mark.filterwarnings("ignore:.* of the tokens of .* are unknown")  # few are known
@pytest.mark.parametrize("option", TEXT_OPTIONS)
def test_every_option_of_a_text_changes_the_result(book, option):
    options = {**TEXT, "updates": 2}
    plain = compare(str(book), ["full"], **options)
    other = compare(str(book), ["full"], **{**options, option: TEXT_OPTIONS[option]})
    assert in_order(other) != in_order(plain) or other.options != plain.options
    if option != "lowercase":  # which leaves these words apart as they were
        assert in_order(other) != in_order(plain)


def test_a_text_s_target_and_time(book):
    found = compare(str(book), ["full"], **TEXT, target=1e6)
    assert found.target == pytest.approx(math.log(1e6))
    first, second = in_order(compare(str(book), ["full"], **{**TEXT, "seeds": 2}))[0]
    assert first != second
    assert found.figures(found.credits[0]).updates == 1
    short = compare(str(book), ["full"], **{**TEXT, "updates": 10**6}, max_minutes=0.01)
    assert short.credits[0].trials[0].ended == "time"
    assert compare(str(book), ["full"], **TEXT, stop=lambda: "enough").credits == []


def test_a_text_s_divergence(book):
    found = compare(str(book), ["full"], **{**TEXT, "updates": 50}, learning_rate=1e38)
    assert [t.ended for t in found.credits[0].trials] == ["diverged"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_text_has_no_lag(book):
    with pytest.raises(ConfigError, match="a text has no option lag"):
        compare(str(book), ["full"], lag=3)


def test_only_a_gradient_of_zero_has_no_error():
    gru, x, generator = bptt.GRU(2, 3), torch.randn(4, 1, 2), torch.Generator()
    found = gradient_error(gru, x, lambda y: 0 * y.sum(), bptt.Truncated(2), generator)
    assert found == {"bias": None, "bias_noise": None, "variance": None}
    with pytest.raises(ConfigError, match="loss_fn must return a scalar"):
        gradient_error(gru, x, lambda y: y, bptt.Truncated(2), generator)


def test_the_matrix_of_a_credit_that_plans_for_each_sequence_is_drawn(tmp_path):
    class One(Credit):
        def plan(self, steps, batch=1, generator=None):
            return Plan(steps, carry=np.full((steps, batch), 0.5))

    found = compare("copy", ["full", One()], **{**COPY, "seeds": 1})
    found.figure().savefig(tmp_path / "comparison.png")
