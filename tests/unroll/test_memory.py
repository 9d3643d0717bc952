"""The plans against a dynamic programme, a machine that follows them, and by hand."""

import re
from functools import cache
from itertools import islice
from math import comb
from time import perf_counter

import jaxtyping
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bptt import memory
from bptt.errors import ConfigError
from bptt.memory import Action, Memory, Recompute, Schedule, Store, parse


@cache
def _least_advances(l, s):
    """Of all places for the next state, the best: run up to it, then what follows, then this."""
    if l == 1:
        return 0
    if s == 1:
        return l * (l - 1) // 2
    return min(k + _least_advances(l - k, s - 1) + _least_advances(k, s) for k in range(1, l))


class Machine:
    """Follows a plan on whole numbers and insists on each action's precondition."""

    def __init__(self, schedule):
        self.left = schedule.segments  # to be reversed
        self.states = 0 if schedule.states is None else schedule.states
        self.current, self.stored, self.graphs = 0, set(), set()
        self.runs = np.zeros(schedule.segments, dtype=int)
        self.recorded, self.advanced, self.most_stored = [], 0, 0
        for action in schedule.actions():
            assert action.kind == "advance" or action.to == -1
            getattr(self, action.kind)(action)
        assert self.left == 0
        assert sorted(self.recorded) == list(range(schedule.segments))
        assert not self.stored
        assert not self.graphs

    def keep(self, action):
        assert self.current == action.segment
        assert action.segment not in self.stored
        self.stored.add(action.segment)
        self.most_stored = max(self.most_stored, len(self.stored))
        assert len(self.stored) <= self.states

    def advance(self, action):
        assert self.current == action.segment < action.to < self.left
        self.runs[action.segment : action.to] += 1
        self.advanced += action.to - action.segment
        self.current = action.to

    def restore(self, action):
        assert action.segment in self.stored
        assert action.segment != self.current  # else there was no need
        self.current = action.segment

    def drop(self, action):
        self.stored.remove(action.segment)

    def record(self, action):
        assert self.current == action.segment < self.left
        self.runs[action.segment] += 1
        self.recorded.append(action.segment)
        self.graphs.add(action.segment)
        self.current += 1

    def reverse(self, action):
        assert action.segment == self.left - 1
        self.graphs.remove(action.segment)
        self.left -= 1
        assert all(state < self.left for state in self.stored)  # none that is not needed any more


@pytest.mark.parametrize("s", range(1, 9))
def test_no_plan_advances_less(s):
    for l in range(1, 41):
        schedule = memory.schedule(l, s)
        assert schedule.advances == _least_advances(l, s)
        assert Machine(schedule).advanced == _least_advances(l, s)


def test_five_segments_with_two_states_by_hand():
    assert list(memory.schedule(5, 2).actions()) == [
        Action("keep", 0),
        Action("advance", 0, 3),
        Action("keep", 3),
        Action("advance", 3, 4),
        Action("record", 4),
        Action("reverse", 4),
        Action("restore", 3),
        Action("drop", 3),
        Action("record", 3),
        Action("reverse", 3),
        Action("restore", 0),
        Action("advance", 0, 1),
        Action("keep", 1),
        Action("advance", 1, 2),
        Action("record", 2),
        Action("reverse", 2),
        Action("restore", 1),
        Action("drop", 1),
        Action("record", 1),
        Action("reverse", 1),
        Action("restore", 0),
        Action("drop", 0),
        Action("record", 0),
        Action("reverse", 0),
    ]


def test_one_segment_by_hand():
    assert list(memory.schedule(1, 3).actions()) == [
        Action("keep", 0),
        Action("drop", 0),
        Action("record", 0),
        Action("reverse", 0),
    ]


def test_a_state_for_each_segment_runs_each_twice():
    schedule = memory.schedule(6, 6)
    assert schedule.runs.tolist() == [2, 2, 2, 2, 2, 1]
    # The last segment is recorded as soon as it is reached: its state need not be stored.
    assert Machine(schedule).most_stored == 5
    assert list(memory.schedule(6, 100).actions()) == list(schedule.actions())


@given(l=st.integers(1, 2000), s=st.integers(1, 2000))
@example(l=2000, s=1)
@example(l=2000, s=2)
@example(l=comb(13, 3), s=3)
@example(l=comb(13, 3) + 1, s=3)
def test_every_plan_can_be_followed(l, s):
    schedule = memory.schedule(l, s)
    machine = Machine(schedule)
    runs = schedule.runs
    assert machine.advanced == schedule.advances == schedule.recomputed
    assert runs.tolist() == machine.runs.tolist()
    assert runs.sum() == schedule.advances + l
    most, average = re.search(r"at most (\d+) times?, ([\d.]+) on average", str(schedule)).groups()
    assert int(most) == runs.max()
    assert float(average) == pytest.approx(runs.mean(), abs=0.005)


@given(l=st.integers(1, 300), s=st.integers(1, 12))
def test_a_plan_is_a_forward_sweep_and_then_one_segment_at_a_time(l, s):
    actions = list(memory.schedule(l, s).actions())
    kinds = [action.kind for action in actions]
    forward = kinds.index("record")
    assert actions[0] == Action("keep", 0)
    assert actions[forward] == Action("record", l - 1)
    assert {"restore", "reverse"}.isdisjoint(kinds[:forward])
    recorded = [i for i, kind in enumerate(kinds) if kind == "record"]
    assert [actions[i].segment for i in recorded] == list(reversed(range(l)))
    assert all(actions[i + 1] == Action("reverse", actions[i].segment) for i in recorded)
    assert kinds.count("reverse") == l


def test_kept_graphs_by_hand():
    schedule = Schedule(4, states=1, kept=2)
    assert [str(a) for a in schedule.actions()] == [
        *("keep 0", "advance 0 to 1", "record 1", "record 2", "record 3"),
        *("reverse 3", "reverse 2", "reverse 1"),
        *("restore 0", "drop 0", "record 0", "reverse 0"),
    ]
    assert schedule.runs.tolist() == [2, 1, 1, 1]
    assert str(schedule) == (
        "4 segments, 1 stored state, 2 graphs kept: each is run at most 2 times, 1.25 on average"
    )


@given(l=st.integers(1, 300), s=st.integers(1, 12), data=st.data())
def test_every_plan_with_kept_graphs_can_be_followed(l, s, data):
    kept = data.draw(st.integers(0, l - 1))
    schedule = Schedule(l, s, kept)
    machine = Machine(schedule)
    assert machine.advanced == schedule.advances == memory.schedule(l - kept, s).advances
    assert machine.runs.tolist() == schedule.runs.tolist()
    assert (machine.runs[l - kept :] == 1).all()


def test_what_a_budget_has_left_over_keeps_graphs():
    def schedule(segments, budget):
        return Recompute(budget).schedule(segments, state_bytes=10, segment_bytes=1000)

    assert schedule(100, "11kB") == Schedule(100, 100, 7)  # 2 in work, 100 states; 7 of 8 kept
    assert schedule(100, "4kB") == Schedule(100, 100, 0)
    assert schedule(100, "2.5kB") == Schedule(100, 50, 0)
    assert schedule(100, "150kB") == Schedule(100, 100, 99)  # never all: that is Store()
    assert schedule(1, "1GB") == Schedule(1, 1, 0)


@pytest.mark.parametrize("kept", [-1, 5, 6])
def test_kept_graphs_are_some_of_the_segments(kept):
    with pytest.raises(ConfigError, match="of 5 segments 0 to 4 can keep"):
        Schedule(5, 2, kept)


def test_a_million_segments_are_planned_as_they_are_asked_for():
    start = perf_counter()
    schedule = memory.schedule(1_000_000, 10)
    assert comb(22, 10) < 1_000_000 <= comb(23, 10)  # 13 sweeps are needed
    assert schedule.advances == 13 * 1_000_000 - comb(23, 11)
    first = list(islice(schedule.actions(), 1000))
    for states in (1, 2, 10**5, 10**8):
        list(islice(memory.schedule(10**9, states).actions(), 1000))
        assert memory.schedule(10**9, states).advances > 0
    assert perf_counter() - start < 2  # far less; but not what a list of them would take
    assert [a.kind for a in first[:3]] == ["keep", "advance", "keep"]
    assert Action("record", 999_999) in first


def test_store_keeps_every_graph():
    schedule = Store().schedule(3, state_bytes=8, segment_bytes=100)
    assert list(schedule.actions()) == [
        *(Action("record", i) for i in (0, 1, 2)),
        *(Action("reverse", i) for i in (2, 1, 0)),
    ]
    assert Machine(schedule).runs.tolist() == schedule.runs.tolist() == [1, 1, 1]
    assert schedule.runs.dtype == np.int64
    assert schedule.advances == schedule.recomputed == 0
    assert str(schedule) == "3 segments, every graph kept: each is run once"


def test_a_schedule_reads_well_for_one():
    assert (
        str(memory.schedule(1, 1))
        == "1 segment, 1 stored state: each is run at most 1 time, 1.00 on average"
    )


@pytest.mark.parametrize(("steps", "states"), [(0, 1), (-1, 1), (3, 0), (3, -2)])
def test_nothing_to_plan_or_to_plan_with(steps, states):
    given_wrongly = steps if steps < 1 else states
    with pytest.raises(ConfigError, match=rf"at least 1 .*got {given_wrongly}:"):
        memory.schedule(steps, states)
    with pytest.raises(ConfigError, match="got 0: leave an empty sequence out"):
        Store().schedule(0, state_bytes=1, segment_bytes=1)


def test_a_number_of_states_is_the_budget():
    sizes = {"state_bytes": 10**9, "segment_bytes": 10**9}
    assert Recompute(3).schedule(10, **sizes) == Schedule(10, 3)
    assert Recompute(30).schedule(10, **sizes) == Schedule(10, 10)


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        ("1kB", 1000),
        ("200KB", 200_000),
        ("64MB", 64_000_000),
        ("0.1 GB", 100_000_000),
        ("3kib", 3072),
        ("2 MiB", 2_097_152),
        ("1.5 GiB", 1_610_612_736),
        ("1.0019kb", 1001),
    ],
)
def test_a_budget_of_bytes_is_for_states_and_a_segment_twice(budget, size):
    def states(state, segment):
        memory = Recompute(budget)
        return memory.schedule(10**10, state_bytes=state, segment_bytes=segment).states

    assert states(1, 0) == size
    assert states(1, 100) == size - 200
    assert states(7, 100) == (size - 200) // 7
    assert states(size - 200, 100) == 1
    with pytest.raises(ConfigError):
        states(size - 199, 100)
    assert Recompute(budget).schedule(5, state_bytes=1, segment_bytes=1).states == 5


def test_states_without_bytes_are_all_stored():
    assert Recompute("1kB").schedule(9, state_bytes=0, segment_bytes=0).states == 9


@given(state=st.integers(1, 10**12), segment=st.integers(1, 10**12))
def test_a_budget_too_small_names_one_that_is_enough(state, segment):
    with pytest.raises(ConfigError, match="smaller segment") as error:
        Recompute("0.001kB").schedule(9, state_bytes=state, segment_bytes=segment)
    assert "\n" not in str(error.value)
    least = re.search(r"take ([\d.]+[kMG]B);", str(error.value))[1]
    assert Recompute(least).schedule(9, state_bytes=state, segment_bytes=segment).states >= 1


@pytest.mark.parametrize(
    "budget",
    [
        *(0, -1, True, False),
        *("", "64", "MB", "-1MB", "0MB", "0.0001kB", "nan", "nanMB", "infGB", "1e3MB", "64TB"),
        *("64 M", "64B", "1,5MB", "64MB ", "1..5MB", "\u0663MB"),
        pytest.param("9" * 5000 + "MB", id="more digits than int() reads"),
    ],
)
def test_other_budgets_are_refused(budget):
    with pytest.raises(ConfigError, match=r"states.*kB, MB, GB, KiB, MiB, GiB.*got ") as error:
        Recompute(budget)
    assert "\n" not in str(error.value)
    assert repr(budget) in str(error.value)


@pytest.mark.parametrize("segment", [0, -4, True])
@pytest.mark.parametrize("make", [Store, lambda segment: Recompute(8, segment=segment)])
def test_other_segments_are_refused(make, segment):
    with pytest.raises(ConfigError, match=f"from 1, .*got {segment}:"):
        make(segment=segment)


@pytest.fixture
def _types_unchecked():
    """As for the user, for whom nothing checks the annotations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("_types_unchecked")
def test_other_types_are_refused():
    for wrong in (float("nan"), 8.0, None, b"64MB"):
        with pytest.raises(ConfigError, match=f"a budget must be .*got {wrong!r}"):
            Recompute(wrong)
    for wrong in (2.5, "16"):
        with pytest.raises(ConfigError, match=f"a segment must have .*got {wrong!r}"):
            Store(wrong)


@pytest.mark.parametrize(
    ("memory", "written", "spelling"),
    [
        (Store(), "Store()", "store"),
        (Store(segment=4), "Store(segment=4)", "store,segment=4"),
        (Recompute("64MB"), "Recompute('64MB')", "recompute:64MB"),
        (Recompute("1.5 GiB"), "Recompute('1.5 GiB')", "recompute:1.5 GiB"),
        (Recompute(8), "Recompute(8)", "recompute:8"),
        (Recompute(8, segment=16), "Recompute(8, segment=16)", "recompute:8,segment=16"),
        (Recompute("2kB", 1), "Recompute('2kB', segment=1)", "recompute:2kB,segment=1"),
    ],
)
def test_spellings_are_read_back(memory, written, spelling):
    assert repr(memory) == written
    assert eval(written) == memory
    assert memory.spelling == spelling
    assert parse(spelling) == memory
    assert isinstance(memory, Memory)


@pytest.mark.parametrize(
    "spelling",
    [
        *("", "Store", "stored", "store:8", "recompute", "recompute:", "keep:8", "recompute 8"),
        *("recompute:8,16", "recompute:8,segment=", "recompute:8,segment=-1", "recompute:8,"),
        *("segment=8", "recompute:8,segment=8,segment=9", "store\n"),
    ],
)
def test_other_spellings_are_refused(spelling):
    named = r"store, recompute:64MB .*recompute:8 .*,segment=16"
    with pytest.raises(ConfigError, match=named) as error:
        parse(spelling)
    assert repr(spelling) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_spelling_of_numbers_that_cannot_be():
    for spelling in ("recompute:0", "recompute:-3", "recompute:64M", "recompute:x"):
        with pytest.raises(ConfigError, match="a budget must be"):
            parse(spelling)
    for spelling in ("recompute:8,segment=0", "store,segment=0"):
        with pytest.raises(ConfigError, match="a segment must have"):
            parse(spelling)
