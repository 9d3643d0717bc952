"""The layout of windows that overlap, against what each index is said to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import lengths, sizes_of

from bptt._src.engines.windows import Windows, windows_of
from bptt.credit import Block, Truncated


@st.composite
def layouts(draw):
    """The lengths of the sequences of a batch, and blocks of losses."""
    running = draw(lengths(most_steps=7))
    blocks, first = [], 0
    while first < running[0]:
        end = draw(st.integers(first + 1, running[0]))
        blocks.append(Block(first, end, draw(st.integers(0, first))))
        first = end
    return running, tuple(blocks)


def read(windows: Windows, running) -> list[list[tuple[int, int]]]:
    """The windows as lists of (step, sequence), from the last step to the first."""
    sizes = sizes_of(running)
    places = [(t, b) for t, n in enumerate(sizes) for b in range(n)]
    rows = windows.rows.split(windows.steps.sizes)
    return [[places[step[w]] for step in rows if w < len(step)] for w in range(windows.steps.batch)]


@given(layouts())
def test_each_index_is_what_it_is_said_to_be(layout):
    running, blocks = layout
    windows = windows_of(blocks, sizes_of(running))
    found = read(windows, running)

    # A window for each block and each sequence that has a loss in it, and nothing else.
    expected = [
        [(t, b) for t in reversed(range(block.since, min(block.end, n)))]
        for b, n in enumerate(running)
        for block in blocks
        if block.first < n
    ]
    assert sorted(found) == sorted(expected)
    sizes = windows.steps.sizes
    assert list(sizes) == sorted(sizes, reverse=True)
    assert windows.steps.reverse
    assert sum(sizes) == len(windows.rows)

    # Each row's own copy is a copy of it, in the window of the block that its loss belongs to.
    places = [(t, b) for t, n in enumerate(sizes_of(running)) for b in range(n)]
    assert windows.rows[windows.own].tolist() == list(range(len(places)))
    window_of = [w for n in sizes for w in range(n)]
    for (t, b), copy in zip(places, windows.own.tolist(), strict=True):
        (block,) = (k for k in blocks if k.first <= t < k.end)
        mine = found[window_of[copy]]
        assert mine[-1] == (block.since, b)
        assert mine[0] == (min(block.end, running[b]) - 1, b)

    # The final state of each sequence, and what reaches the initial one.
    for b, w in enumerate(windows.last.tolist()):
        assert found[w][0] == (running[b] - 1, b)
        assert w == window_of[windows.own[places.index((running[b] - 1, b))]]
    starting = [w for w, places in enumerate(found) if places[-1][0] == 0]
    assert windows.first.tolist() == starting
    assert windows.of_first.tolist() == [found[w][0][1] for w in starting]


def test_of_windows_with_the_same_last_step_the_losses_own_one_has_the_final_state():
    """With windows of one loss each, only one of them ends with the last step."""
    windows = windows_of((Block(0, 1, 0), Block(1, 2, 0), Block(2, 3, 2)), (2, 2, 1))
    found = read(windows, (3, 2))
    assert [found[w] for w in windows.last.tolist()] == [[(2, 0)], [(1, 1), (0, 1)]]


def test_it_moves_to_a_device_and_stays_where_it_is():
    windows = windows_of((Block(0, 2, 0), Block(2, 4, 1)), (1, 1, 1, 1))
    assert windows.to(torch.device("cpu")) is windows
    moved = windows.to(torch.device("meta"))
    assert moved.steps is windows.steps
    for name in ("rows", "own", "last", "first", "of_first"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(windows, name).shape
        assert getattr(windows, name).dtype == torch.int64


@pytest.mark.parametrize("every", [1, 3])
def test_the_work_is_that_of_the_plan(every):
    """No more rows than steps gone back through: nothing is padded."""
    plan = Truncated(every=every, reach=6).plan(30)
    assert len(windows_of(plan.blocks, (5,) * 30).rows) == 5 * plan.backward_steps
