"""The gallery's loops by themselves: they are what the tests of the audit stand on."""

from __future__ import annotations

import pytest
from audit.gallery import LOOPS


@pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_it_runs_twice_and_only_a_freed_graph_raises(loop, is_wrong):
    training = loop(is_wrong=is_wrong)
    for _ in range(2):
        if is_wrong and loop.fault == "graph-freed":
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                training.run()
        else:
            training.run()


def test_there_are_enough_loops_and_all_kinds_of_faults():
    assert len(LOOPS) >= 24
    assert {loop.fault for loop in LOOPS} >= {
        "counted-twice", "state-parts-differ", "other-sequence", "old-graph", "graph-freed",
        "credits-nothing", "shuffled-batches", "memory-crosses-episode", "reset-late",
        "reset-early", "credit-crosses-episode", "not-carried", "rollout-differs",
    }  # fmt: skip
