"""Spellings: what a credit writes is read as an equal one; every error is one line."""

from __future__ import annotations

import sys

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt import Adaptive, Full, Randomized, Truncated
from bptt.credit import as_credit, parse
from bptt.errors import ConfigError


def make(kind, *arguments, **options):
    # Made in the test itself: the check of the types draws random numbers; a strategy must not.
    return lambda: kind(*arguments, **options)


lengths = st.integers(1, 10**6)


@st.composite
def adaptives(draw):
    most = draw(st.integers(3, 1000))
    start = draw(st.integers(1, most))
    return make(
        Adaptive,
        draw(st.floats(0, 10, exclude_min=True)),
        start=start,
        least=draw(st.integers(1, start)),
        most=most,
        tau=draw(st.none() | st.integers(1, most - 1)),
        adapt_every=draw(st.none() | lengths),
    )


probabilities = st.floats(0, 1, exclude_min=True)
randomized_options = {
    "tail": st.sampled_from(["heavy", "constant"]),
    "alpha": st.floats(2, 100, exclude_min=True),
    "shared": st.booleans(),
}
CREDITS = st.one_of(
    st.just(Full),
    lengths.map(lambda k: make(Truncated, k)),
    st.tuples(lengths, lengths).map(lambda k: make(Truncated, every=min(k), reach=max(k))),
    st.builds(make, st.just(Randomized), st.floats(1, 1e9, exclude_min=True), **randomized_options),
    st.builds(
        make,
        st.just(Randomized),
        pi=probabilities | st.lists(probabilities, min_size=1, max_size=4).map(tuple),
        **randomized_options,
    ),
    adaptives(),
)


@given(CREDITS)
def test_what_a_credit_writes_is_read_as_an_equal_one(made):
    credit = made()
    read = parse(credit.spelling)
    assert type(read) is type(credit)
    assert read == credit
    assert read.spelling == credit.spelling


@pytest.mark.parametrize(
    ("spelling", "credit", "usual"),
    [
        ("full", Full(), "full"),
        ("FULL", Full(), "full"),
        (" truncated: 35 ", Truncated(35), "truncated:35"),
        ("truncated:k=35", Truncated(35), "truncated:35"),
        ("truncated:reach=35, every = 10", Truncated(every=10, reach=35), None),
        ("randomized:35", Randomized(35), None),
        ("randomized:mean=35,tail=constant", Randomized(35, tail="constant"), None),
        ("randomized:35,'constant'", Randomized(35, tail="constant"), None),
        ("randomized:35,shared=True,tail=heavy", Randomized(35, shared=True), None),
        ("randomized:pi=0.97", Randomized(pi=0.97), None),
        ("randomized:pi=[0.5,1],alpha=3", Randomized(pi=[0.5, 1], alpha=3), None),
        ("randomized:pi=(0.5, 1)", Randomized(pi=(0.5, 1)), None),
        ("adaptive", Adaptive(0.1), "adaptive:0.1"),
        ("adaptive:0.05,start=20,most=50", Adaptive(0.05, start=20, most=50), None),
    ],
)
def test_may_be_written_in_several_ways(spelling, credit, usual):
    assert parse(spelling) == credit
    assert usual is None or parse(spelling).spelling == usual


@pytest.fixture
def types_unchecked():
    """As users run it: what the package itself says of a wrong type."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


HOW = "use full, truncated:35, truncated:every=10,reach=35"


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("", f"unknown credit ''; {HOW}"),
        ("fulll", f"unknown credit 'fulll'; {HOW}"),
        ("35", f"unknown credit '35'; {HOW}"),
        ("0.5", f"unknown credit '0.5'; {HOW}"),
        (".mine", "unknown credit"),
        ("mine.", "unknown credit"),
        ("a..b", "unknown credit"),
        ("full:3", f"Full takes 1 positional argument but 2 were given; {HOW}"),
        ("truncated", "Truncated takes a length"),
        ("truncated:", "Truncated takes a length"),
        ("truncated:0", "k must be a positive integer, got 0"),
        ("truncated:3.5", "k must be a positive integer, got 3.5"),
        ("truncated:True", "k must be a positive integer, got True"),
        ("truncated:many", "k must be a positive integer, got 'many'"),
        ("truncated:every=10", "Truncated takes a length"),
        ("truncated:every=10,reach=9", "use reach >= 10"),
        ("truncated:1,2,3,4", "takes from 1 to 4 positional arguments but 5 were given"),
        ("truncated:steps=3", "Truncated got an unexpected keyword argument 'steps'"),
        ("truncated:=3", "Truncated got an unexpected keyword argument ''"),
        ("truncated:every=3,every=4,reach=9", "has every= twice: give it once"),
        ("truncated:3,k=4", "Truncated got multiple values for argument 'k'"),
        ("randomized", "Randomized takes a mean length"),
        ("randomized:1", "mean must be above 1"),
        ("randomized:35,tail=long", "tail must be heavy or constant, got 'long'"),
        ("randomized:pi=0", "pi must be above 0"),
        ("adaptive:0", "tolerance must be above 0, got 0"),
        ("adaptive:-0.1", "tolerance must be above 0, got -0.1"),
        ("adaptive:nan", "tolerance must be above 0, got 'nan'"),
        ("adaptive:tight", "tolerance must be above 0, got 'tight'"),
        ("adaptive:0.1,start=0", "start must be a positive integer, got 0"),
        ("adaptive:0.1,start=2.5", "start must be a positive integer, got 2.5"),
        ("adaptive:0.1,adapt_every=often", "adapt_every must be a positive integer"),
        ("adaptive:0.1,most=10", "got least=2, start=15, most=10"),
        ("adaptive:0.1,least=20", "got least=20, start=15, most=100"),
        ("adaptive:0.1,start=2,most=2", "3 lags, got most=2"),
        ("adaptive:0.1,tau=100", "tau must be below most=100, got 100"),
        ("adaptive:0.1,reach=7", "Adaptive got an unexpected keyword argument 'reach'"),
        ("nowhere.Mine", "No module named 'nowhere'; run in the directory of nowhere.py"),
        ("os.path", "os.path must be a class derived from bptt.Credit"),
        ("os.nothing", "module 'os' has no attribute 'nothing'"),
        ("bptt.credit.Credit", "must be a class derived from bptt.Credit with a method plan"),
        ("bptt.credit.Plan:3", "must be a class derived from bptt.Credit"),
    ],
)
def test_every_error_is_one_line_that_says_what_to_write(types_unchecked, spelling, message):
    with pytest.raises(ConfigError) as caught:
        parse(spelling)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


OWN = """
from dataclasses import dataclass
import numpy as np
import bptt

@dataclass(frozen=True, repr=False)
class Fading(bptt.Credit):
    strength: float = 0.9
    shape: str = "plain"

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=np.full(steps, self.strength))

class Outer:
    class Inner(Fading):
        pass

class Fails(Fading):
    def __init__(self):
        raise RuntimeError("cannot\\nbe so")

class Planless(bptt.Credit):
    pass

class Stranger:
    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps)

made = Fading(0.5)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with credits in the directory where we are, and nowhere else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_credits.py").write_text(OWN)
    (tmp_path / "broken_credits.py").write_text("import bptt\n1 / 0\n")
    (tmp_path / "unwritten_credits.py").write_text("class Fading(\n")
    (tmp_path / "needing_credits.py").write_text("import what_there_is_not\n")
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in ("my_credits", "broken_credits", "unwritten_credits", "needing_credits"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "spelling",
    [
        "my_credits.Fading:0.9",
        "my_credits.Fading:0.25",
        "my_credits.Fading:0.9,shape=round",
        "my_credits.Outer.Inner:0.5",
    ],
)
def test_a_class_of_ones_own_beside_us(own, spelling):
    credit = parse(spelling)
    assert type(credit).__module__ == "my_credits"
    assert credit.spelling == spelling
    assert parse(credit.spelling) == credit
    assert credit.plan(3).matrix()[2, 1] == credit.strength


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("my_credits.Fadng", "AttributeError: module 'my_credits' has no attribute 'Fadng'"),
        ("my_credits.Fading:0.9,hue=3", "Fading got an unexpected keyword argument 'hue'"),
        ("my_credits.Fails", "cannot be made, RuntimeError: cannot be so"),
        ("my_credits.Planless", "must be a class derived from bptt.Credit with a method plan"),
        ("my_credits.Stranger", "must be a class derived from bptt.Credit"),
        ("my_credits.made", "must be a class derived from bptt.Credit"),
        ("my_credits.Outer", "must be a class derived from bptt.Credit"),
        ("my_credits.Outer.None_", "has no attribute 'None_'"),
        ("my_credits.deep.er", "has no attribute 'deep'"),
        ("broken_credits.Fading", "cannot be imported, ZeroDivisionError: division by zero"),
        ("unwritten_credits.Fading", "cannot be imported, SyntaxError"),
        ("needing_credits.Fading", "No module named 'what_there_is_not'"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(own, spelling, message):
    with pytest.raises(ConfigError) as caught:
        parse(spelling)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_spelling_is_a_credit_wherever_one_is_taken():
    x, torch_lstm, ours = torch.randn(20, 2, 3), torch.nn.LSTM(3, 4), bptt.LSTM(3, 4)

    def gradient(module, run):
        module.zero_grad()
        run(module)[0].sum().backward()
        return module.weight_hh_l0.grad.clone()

    credit, spelled = bptt.Truncated(5), "truncated:5"
    pairs = [
        (ours, lambda of: lambda m: m(x, credit=of)),
        (torch_lstm, lambda of: lambda m: bptt.unroll(m, x, credit=of)),
        (torch_lstm, lambda of: lambda m: bptt.Stream().advance(m, x, credit=of)),
    ]
    for module, how in pairs:
        assert torch.equal(gradient(module, how(credit)), gradient(module, how(spelled)))
    error = bptt.estimator_error(ours, x, lambda y: y.sum(), spelled)
    assert error.credit == credit
    kept = gradient(torch_lstm, lambda m: bptt.unroll(m, x, credit=spelled, memory="recompute:2"))
    assert torch.equal(
        kept,
        gradient(torch_lstm, lambda m: bptt.unroll(m, x, credit=credit, memory=bptt.Recompute(2))),
    )


@pytest.mark.parametrize("given", [3, Truncated, object()])
def test_what_is_no_credit_is_named(given):
    with pytest.raises(TypeError, match=r"expected a credit, .*bptt\.Truncated\("):
        as_credit(given)


def test_anything_with_a_plan_is_one():
    class Own:
        def plan(self, steps, batch=1, generator=None):
            return bptt.Plan(steps)

    y, stream = bptt.Stream().advance(torch.nn.GRU(3, 4), torch.randn(6, 1, 3), credit=Own())
    assert y.shape == (6, 1, 4)
    assert stream.past is None
