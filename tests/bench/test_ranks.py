"""Language models timed in one process and in two."""

from __future__ import annotations

import pytest

from bptt._src.bench import fresh, jobs, ranks
from bptt._src.bench.ranks import APART, ONE, SEVERAL, how, measure_ranks, share_of_sum
from bptt._src.bench.result import IN_PROCESSES, OURS, TORCH, Row
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace, Stopped
from bptt.bench import Limits, bench
from bptt.errors import ConfigError

LITTLE = Effort(rounds=2, turn=0.0, steps=3)
TINY = ModelShape("rnn", 1, vocabulary=30, hidden=6, batch=1, steps=4)
NAMES = [how(who, trained) for who in (OURS, TORCH) for trained in IN_PROCESSES]


def test_one_process_and_two_train_alike():
    """One sequence cannot be shared, so there are two."""
    row = measure_ranks(TINY, LITTLE, Pace())
    assert {name: len(times) for name, times in row.seconds.items()} == dict.fromkeys(NAMES, 2)
    assert row.shape == "30/6/2/4"
    assert row.tokens == 8
    assert row.notes[0].endswith("they agree")
    assert list(row.losses) == [how(w, t) for w in (OURS, TORCH) for t in (ONE, SEVERAL)]
    assert row.losses[how(OURS, SEVERAL)] == pytest.approx(row.losses[how(OURS, ONE)], rel=1e-6)


def test_who_trains_otherwise_does_not_agree(monkeypatch):
    losses = {how(OURS, ONE): 2.0, how(OURS, SEVERAL): 2.01, how(TORCH, ONE): 2.0}
    found = {"seconds": {}, "losses": losses}
    monkeypatch.setattr(fresh, "run_fresh", lambda *given: found)
    assert measure_ranks(TINY, LITTLE, Pace()).notes[0].endswith("they DO NOT AGREE")


def test_the_share_of_the_sum():
    times = {how(OURS, SEVERAL): [4.0, 5.0, 8.0], how(OURS, APART): [3.0, 4.0, 7.0]}
    assert share_of_sum(Row("ranks", "", "", None, times), OURS) == pytest.approx(0.2)


def test_it_can_be_stopped_before():
    class Ended(Pace):
        def stopped(self):
            return True

    with pytest.raises(Stopped):
        measure_ranks(TINY, LITTLE, Ended())


def test_two_processes_need_two_processors(monkeypatch):
    monkeypatch.setattr(jobs, "measure_ranks", lambda *given: pytest.fail("it was measured"))
    monkeypatch.setattr(jobs, "measure_limits", lambda seconds: Limits(1.0, None, {}))
    monkeypatch.setattr(jobs.sharing, "processors_to_choose", lambda: [3])
    found = bench(only=["ranks"], effort=LITTLE)
    assert found.notes[-1] == "ranks: not measured, 2 processes on 1 processor say nothing"
    monkeypatch.setattr(jobs.torch.distributed, "is_available", lambda: False)
    monkeypatch.setattr(jobs.sharing, "processors_to_choose", lambda: [3, 4])
    assert "no gloo" in bench(only=["ranks"], effort=LITTLE).notes[-1]


def test_it_has_threads_of_its_own():
    with pytest.raises(ConfigError, match="no effect on ranks and threads"):
        bench(only=["ranks", "threads"], threads=2)


def test_the_number_of_processes_is_in_the_names():
    assert all(str(ranks.PROCESSES) in name for name in IN_PROCESSES[1:])
