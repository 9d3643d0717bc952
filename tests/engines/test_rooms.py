"""Large memory is used again when nothing refers to it, and only then."""

from __future__ import annotations

import multiprocessing
import sys

import pytest
import torch

import bptt
from bptt._src.engines import rooms

SIZE = rooms.LARGE // 4
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is kept")


@pytest.fixture(autouse=True)
def empty():
    rooms._blocks.clear()
    yield
    rooms._blocks.clear()


def test_what_is_free_is_used_again():
    t = rooms.memory_for(SIZE, torch.float32)
    assert (t.dtype, t.shape) == (torch.float32, (SIZE,))
    at = t.data_ptr()
    assert rooms.memory_for(SIZE, torch.float32).data_ptr() != at
    del t
    again = rooms.memory_for(SIZE // 2, torch.float64)
    assert again.data_ptr() == at
    assert rooms.held() == 2 * rooms.LARGE


@pytest.mark.parametrize("way", ["view", "detached", "storage", "graph"])
def test_what_is_used_is_not_given_out(way):
    t = rooms.memory_for(SIZE, torch.float32).fill_(1)
    kept = {
        "view": lambda: t[5:6],
        "detached": lambda: t.detach(),
        "storage": lambda: t.untyped_storage(),
        "graph": lambda: t * torch.ones(1, requires_grad=True),
    }[way]()
    at = t.data_ptr()
    del t
    other = rooms.memory_for(SIZE, torch.float32)
    assert other.data_ptr() != at
    del kept, other
    assert rooms.memory_for(SIZE, torch.float32).data_ptr() in {at, rooms_first()}


def rooms_first():
    return torch.frombuffer(rooms._blocks[0], dtype=torch.uint8).data_ptr()


def test_small_memory_and_what_is_too_much_are_the_allocators():
    small = rooms.memory_for(SIZE - 1, torch.float32)
    assert rooms.held() == 0
    many = [rooms.memory_for(rooms.LIMIT // 12, torch.float32) for _ in range(4)]
    assert rooms.held() <= rooms.LIMIT
    assert len(rooms._blocks) == 3
    assert len({t.data_ptr() for t in [small, *many]}) == 5
    del many
    rooms.memory_for(rooms.LIMIT // 4, torch.float32)  # in the place of the others
    assert [len(b) for b in rooms._blocks] == [rooms.LIMIT]


def _change(queue):
    t = rooms.memory_for(SIZE, torch.float32)
    t.fill_(2)
    queue.put(float(t[0]))


def test_a_forked_child_has_its_own():
    t = rooms.memory_for(SIZE, torch.float32).fill_(1)
    view = t[:1]
    del t
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_change, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 2
    child.join()
    assert float(view) == 1


def test_two_graphs_at_the_same_time_do_not_share():
    torch.manual_seed(0)
    module = bptt.LSTM(8, 256)
    inputs = [torch.randn(70, 100, 8) for _ in range(3)]
    alone = [torch.autograd.grad(module(x)[0].sum(), list(module.parameters())) for x in inputs]
    assert rooms.held() > 0
    losses = [module(x)[0].sum() for x in inputs]
    for loss, expected in zip(losses, alone, strict=True):
        for a, b in zip(
            torch.autograd.grad(loss, list(module.parameters())), expected, strict=True
        ):
            assert torch.equal(a, b)
