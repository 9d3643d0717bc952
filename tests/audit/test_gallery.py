"""The gallery under the audit: each mistake is found and named, and nothing right is accused."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from audit.gallery import LOOPS
from audit.gallery.streams import numbered, of_features
from problems import CREDITS
from torch import nn

import bptt

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
every_loop = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
ways = pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])


class Heard(NamedTuple):
    """A loop that was audited, once for all tests."""

    report: bptt.Audit
    seconds: float
    credit: Any
    values: list[torch.Tensor]
    random: torch.Tensor


@cache
def heard(loop, is_wrong):
    training = loop(is_wrong=is_wrong)
    torch.manual_seed(1)
    started = time.perf_counter()
    report = bptt.audit(*training.arguments, **training.options)
    seconds = time.perf_counter() - started
    return Heard(report, seconds, training.credit, values_of(training), torch.get_rng_state())


def values_of(training):
    """Parameters, and what is left in their gradients; none if the run makes the model itself."""
    parameters = [] if training.model is None else list(training.model.parameters())
    return parameters + [p.grad for p in parameters if p.grad is not None]


def test_there_are_enough_loops_and_all_kinds_of_faults():
    assert len(LOOPS) >= 24
    assert {loop.fault for loop in LOOPS} == {
        "counted-twice", "state-parts-differ", "other-sequence", "old-graph", "graph-freed",
        "credits-nothing", "shuffled-batches", "credit-crosses-episode", "memory-crosses-episode",
        "reset-late", "reset-early", "not-carried", "rollout-differs",
    }  # fmt: skip


@every_loop
def test_the_right_version_is_not_accused(loop):
    report = heard(loop, False).report
    assert report.faults == ()
    if (credit := heard(loop, False).credit) is not None:
        compared = report.is_(credit)
        assert compared, str(compared)


NOT_YET = {
    "two_losses_of_one_core": "a loss in a second pass, with another one added, is not recognised",
}
"""Wrong versions that are not named as they should be, and why."""


@pytest.mark.parametrize(
    "loop",
    [
        pytest.param(loop, marks=pytest.mark.xfail(reason=NOT_YET[loop.name]))
        if loop.name in NOT_YET
        else loop
        for loop in LOOPS
    ],
    ids=lambda loop: loop.name,
)
def test_the_fault_is_named_where_it_first_is(loop):
    faults = heard(loop, True).report.faults
    kinds = [fault.kind for fault in faults]
    assert loop.fault in kinds
    assert set(kinds) <= {loop.fault, *loop.also}
    fault = faults[kinds.index(loop.fault)]
    assert (fault.t, fault.s) == (loop.t, loop.s)


class Halved(bptt.Credit):
    """Half of what a loss credits to a step goes on to the step before."""

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=[0.5] * steps)


@every_loop
def test_another_credit_is_not_taken_for_the_right_one(loop):
    compared = heard(loop, False).report.is_(Halved())
    assert not compared
    t, s = compared.first
    assert s <= t
    assert compared.expected_weight == pytest.approx(0.5 ** (t - s))
    assert compared.found_weight != pytest.approx(compared.expected_weight)


@every_loop
@ways
def test_the_run_computes_what_it_computes_unheard(loop, is_wrong):
    training = loop(is_wrong=is_wrong)
    torch.manual_seed(1)
    if is_wrong and loop.fault == "graph-freed":
        with pytest.raises(RuntimeError, match="second time"):
            training.run()
    else:
        training.run()
    random = torch.get_rng_state()
    found = heard(loop, is_wrong)
    assert torch.equal(found.random, random)
    for alone, listened in zip(values_of(training), found.values, strict=True):
        assert torch.equal(alone, listened)


def test_the_gallery_is_audited_in_a_minute():
    assert sum(heard(loop, w).seconds for loop in LOOPS for w in (False, True)) < 60


# ------------------------------------------------------------------------------- ours


WAYS = ["module", "unroll", "unroll of torch.nn", "unroll of a cell"]


@pytest.mark.parametrize(
    ("kind", "way"), [("GRU", way) for way in WAYS] + [("LSTM", way) for way in WAYS[:3:2]]
)
@pytest.mark.parametrize("name", CREDITS)
def test_ours_are_not_accused_under_any_credit(name, kind, way):
    credit, x, head = CREDITS[name], torch.randn(7, 3, 4), nn.Linear(5, 1)
    if way == "unroll of torch.nn":
        module = getattr(nn, kind)(4, 5)
    elif way == "unroll of a cell":
        module = bptt.Stepwise(getattr(nn, f"{kind}Cell")(4, 5))
    else:
        module = getattr(bptt, kind)(4, 5)

    def drawn():
        return torch.Generator().manual_seed(5)

    def run():
        if way == "module":
            y, _ = module(x, credit=credit, generator=drawn())
        else:
            y, _ = bptt.unroll(module, x, credit=credit, generator=drawn())
        head(y).square().mean().backward()

    report = bptt.audit(run, module)
    assert report.faults == ()
    # A module of others is run by one plan for all of the batch.
    batch = 3 if way in ("module", "unroll") else 1
    W = credit.plan(7, batch, drawn()).matrix()
    np.testing.assert_allclose(report.credits, np.broadcast_to(W, (3, 7, 7)), atol=1e-5)


@pytest.mark.parametrize("of", ["bptt", "torch.nn", "a cell"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("reach", [3, 6, 7, 100])
def test_a_stream_is_what_it_says(reach, kind, of):
    library = {"bptt": bptt, "torch.nn": nn}.get(of)
    module = (
        bptt.Stepwise(getattr(nn, f"{kind}Cell")(4, 5))
        if library is None
        else getattr(library, kind)(4, 5)
    )
    head, x = nn.Linear(5, 1), numbered(torch.randn(12, 2, 4))
    credit = bptt.Truncated(every=3, reach=reach)

    def run():
        optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], lr=0.1)
        stream = bptt.Stream()
        for window in x.split(3):
            y, stream = stream.advance(module, window, credit=credit)
            optimizer.zero_grad()
            head(y).square().mean().backward()
            optimizer.step()

    report = bptt.audit(run, module, label=of_features)
    assert report.faults == ()
    compared = report.is_(credit)
    assert compared, str(compared)
