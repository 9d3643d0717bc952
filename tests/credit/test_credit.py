"""The base class: what a credit is if it says nothing else, and how it writes itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bptt
from bptt import Adaptive, Credit, Full, Plan, Randomized, Truncated
from bptt.errors import ConfigError


class Mine(Credit):
    def plan(self, steps, batch=1, generator=None):
        return Plan(steps)


def test_a_plan_is_all_that_a_credit_needs():
    credit = Mine()
    assert (credit.window, credit.history, credit.adapt_every) == (None, 0, None)
    assert credit.state_dict() == {}
    credit.load_state_dict({})

    def probe(lags):
        raise AssertionError("nothing asked for a measurement")

    credit.adapt(probe)
    lstm, x = bptt.LSTM(2, 3), torch.randn(4, 1, 2)
    torch.testing.assert_close(lstm(x, credit=credit)[0], lstm(x)[0], rtol=0, atol=0)


def test_without_a_plan_it_says_so():
    class Nothing(Credit):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must define plan"):
        Nothing().plan(3)


@pytest.mark.parametrize(
    ("credit", "window", "history"),
    [
        (Full(), None, 0),
        (Truncated(7), 7, 0),
        (Truncated(every=3, reach=3), 3, 0),
        (Truncated(every=3, reach=10), 3, 7),
        (Randomized(5), None, 0),
        (Adaptive(0.1), 15, 15),
        (Adaptive(0.1, start=4), 4, 4),
    ],
    ids=repr,
)
def test_on_a_stream_each_asks_for_its_own_windows(credit, window, history):
    assert (credit.window, credit.history) == (window, history)
    if window is None:
        return
    # What they say together is the plan: block after block, each with its history.
    W = credit.plan(5 * window).matrix()
    for first in range(0, 5 * window, window):
        block = W[first : first + window]
        reached = np.flatnonzero(block.any(0))
        assert reached[0] == max(0, first - history)


@dataclass(frozen=True, repr=False)
class Weighted(Mine):
    factors: tuple[float, ...] = (1.0,)
    name: str | None = None
    times: int = 3
    strength: float = 0.5


@pytest.mark.parametrize(
    ("credit", "written"),
    [
        (Full(), "Full()"),
        (Truncated(35), "Truncated(35)"),
        (Truncated(every=10, reach=35), "Truncated(every=10, reach=35)"),
        (Randomized(35), "Randomized(35)"),
        (Randomized(35.5, tail="constant"), "Randomized(35.5, tail='constant')"),
        (Randomized(pi=0.97), "Randomized(pi=0.97)"),
        (Randomized(pi=(0.5, 1.0)), "Randomized(pi=(0.5, 1.0))"),
        (Randomized(1 / 3 + 1), f"Randomized({1 / 3 + 1!r})"),  # not 1.33333
        (Weighted(), "Weighted((1.0,))"),
        (Weighted((1.0, 2.0), times=4), "Weighted((1.0, 2.0), times=4)"),
        (Weighted(name="it"), "Weighted((1.0,), name='it')"),
        (Mine(), "Mine()"),
    ],
)
def test_it_writes_itself_as_python_makes_it(credit, written):
    assert repr(credit) == written


def test_an_array_is_written_too():
    @dataclass(repr=False)
    class Arrayed(Mine):
        factors: Any = None
        more: Any = None

    array = np.array([0.5, 1.0])
    assert repr(Arrayed(array, array)) == "Arrayed(array([0.5, 1. ]), more=array([0.5, 1. ]))"


def not_refused():
    """Yield the options of credits that take what they cannot mean, or refuse it unclearly."""
    usual = {Truncated: {"k": 5}, Randomized: {"mean": 5.0}, Adaptive: {}}
    every_reach = {"every": 3, "reach": 9}
    for kind, f in [(k, f) for k in usual for f in fields(k) if f.init]:
        others = every_reach if f.name in every_reach else {} if f.name == "pi" else usual[kind]
        for bad in ("false", "abc", True, 0.5, -1, [1, "a"]):
            if (f.name, bad) in [("shared", True), ("pi", 0.5), ("tolerance", 0.5)]:
                continue
            try:
                kind(**{**others, f.name: bad})
            except ConfigError as e:
                if str(e).startswith(kind.__name__):
                    continue
            except (TypeError, ValueError):
                pass
            yield f"{kind.__name__}.{f.name}={bad!r}"


def test_no_option_of_a_credit_takes_what_it_cannot_mean():
    """In a process of its own: here the annotations are checked before the options are."""
    text = "from credit.test_credit import not_refused; print(*not_refused(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n") == ["", ""]
