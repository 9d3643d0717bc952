"""What cannot be fused is refused, with the operation's name and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from users_cells import Cell, Gru, H, I

import bptt
from bptt._src.fuse.independence import _groups
from bptt.errors import FuseError


class Remembers(Cell):
    """Keeps a part of its state in itself."""

    last: Any = None

    def forward(self, x: Tensor, h: Tensor) -> Any:
        a = self.of_x(x) + self.of_h(h)
        if self.last is not None and self.last.shape == a.shape:
            a = a + self.last.detach()
        self.last = a
        return a.tanh(), a.tanh()


class Counts(Cell):
    """Does something else at each call."""

    calls = 0

    def forward(self, x: Tensor, h: Tensor) -> Any:
        self.calls += 1
        h = torch.tanh(self.of_x(x) + self.of_h(h) * (1 + 0.1 * self.calls))
        return h, h


class Buffer(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(H))

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(x) + self.of_h(h))
        self.seen += h.detach().mean(0)
        return h, h


class Odd(Cell):
    """A cell that is a function of x, h and itself."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm1d(H)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(x) + self.function(self, x, h))
        return h, h


def _if(m: Any, x: Tensor, h: Tensor) -> Tensor:
    return m.of_h(h) if h.sum() > 0 else h


def _in_place(m: Any, x: Tensor, h: Tensor) -> Tensor:
    a = m.of_h(h)
    with torch.no_grad():
        a.mul_(2)
    return a


REFUSED = {
    "a product of two states": (lambda m, x, h: (h @ h.t()) @ h, r"first dimension|changes"),
    "a mean of h over the batch": (lambda m, x, h: m.of_h(h - h.mean(0)), r"aten.mean.*sequences"),
    "a mean of x over the batch": (lambda m, x, h: m.of_h(h) - m.of_x(x).mean(0), "aten.mean"),
    "a shift within the batch": (lambda m, x, h: m.of_h(h.roll(1, 0)), "another one of the batch"),
    "the largest of the batch": (
        lambda m, x, h: m.of_h(h) - h.amax(0, keepdim=True),
        "aten.amax makes one tensor",
    ),
    "batch norm": (lambda m, x, h: m.norm(m.of_h(h)), "in place|batch"),
    "a decision on a value": (_if, "torch.where"),
    "dropout": (lambda m, x, h: m.of_h(m.dropout(h)), "random numbers.*eval"),
    "dropout of x": (lambda m, x, h: m.of_h(h) + m.dropout(m.of_x(x)), "random numbers"),
    "noise": (lambda m, x, h: m.of_h(h) + torch.randn_like(h), "random numbers"),
    "a function without an instruction": (
        lambda m, x, h: torch.lgamma(m.of_h(h)),
        "aten.lgamma has no instruction: compute it before the loop",
    ),
    "a cumulative sum": (lambda m, x, h: m.of_h(h).cumsum(-1), "aten.cumsum"),
    "units chosen by the state": (
        lambda m, x, h: h.gather(1, (h > 0).long()),
        "aten.gather.*has no instruction",
    ),
    "a product of heads first": (
        lambda m, x, h: (
            torch.bmm(h.view(-1, 2, 3).transpose(0, 1), m.of_h.weight.view(-1, 3, 3)[:2])
            .transpose(0, 1)
            .flatten(1)
        ),
        r"torch\.einsum\('bhd,hde->bhe'",
    ),
    "what is changed in place without a gradient": (_in_place, "no_grad"),
    "sorting": (lambda m, x, h: m.of_h(h).sort(-1).values, "aten.sort"),
    "a matrix made of the state": (
        lambda m, x, h: (h.unsqueeze(2) * h.unsqueeze(1) * m.of_h.weight).sum(-1),
        r"shape \[6, 6\]",
    ),
    "a matrix made of the input": (
        lambda m, x, h: linear(h, m.of_x(x).t() @ m.of_x(x)),
        "first dimension|of all the sequences",
    ),
    "the size of the batch": (lambda m, x, h: m.of_h(h) / len(h), "batch"),
    "a choice by the batch": (
        lambda m, x, h: m.of_h(h) if len(h) < 12 else m.of_h(h).relu(),
        "something else for a batch|more for some sizes",
    ),
    "a change of the state in place": (lambda m, x, h: m.of_h(h.mul_(0.5)), "in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(FuseError, match=message) as e:
        bptt.fuse(Odd(function), torch.randn(4, I), torch.randn(4, H))
    assert str(e.value).startswith("bptt.fuse: ")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [Remembers, Counts, Buffer])
def test_what_a_cell_keeps_in_itself(kind: type[Cell]) -> None:
    with pytest.raises(FuseError, match=r"in place|itself|x_t or the state"):
        bptt.fuse(kind(), torch.randn(4, I), torch.randn(4, H))


def test_a_parameter_that_is_not_seen() -> None:
    hidden = [torch.randn(H, H, requires_grad=True)]
    with pytest.raises(FuseError, match=r"nn\.Parameter of an nn\.Module"):
        bptt.fuse(
            lambda x, h: ((new := torch.tanh(x + h @ hidden[0])), new),
            torch.randn(4, H),
            torch.randn(4, H),
        )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(4), r"\[batch, units\]"),
        (torch.zeros(4, H, 2), r"\[batch, units\]"),
        (torch.zeros(4, H, dtype=torch.long), "floating-point"),
        ((), "tensor"),
        (None, "tensor"),
    ],
)
def test_states_of_another_kind(state: Any, message: str) -> None:
    with pytest.raises(FuseError, match=message):
        bptt.fuse(lambda x, h: (x, h), torch.randn(4, H), state)


def test_results_of_another_kind() -> None:
    x, h = torch.randn(4, H), torch.randn(4, H)
    with pytest.raises(TypeError, match="must return"):
        bptt.fuse(lambda x, h: x + h, x, h)
    with pytest.raises(FuseError, match="another form"):
        bptt.fuse(lambda x, h: (x, (h, h)), x, h)
    with pytest.raises(FuseError, match="state after a step"):
        bptt.fuse(lambda x, h: (x, h[:, :2]), x, h)


def test_inputs_of_another_kind() -> None:
    module = bptt.fuse(Gru(3), torch.randn(4, I), torch.randn(4, H))
    with pytest.raises(ValueError, match="no steps"):
        module(torch.randn(0, 4, I))
    with pytest.raises(ValueError, match=r"\[T, B"):
        module(torch.randn(4))
    with pytest.raises(ValueError, match="another form"):
        module([torch.randn(2, 4, I)])
    with pytest.raises(ValueError, match="4 sequences"):
        module(torch.randn(2, 4, I), torch.randn(3, H))


@pytest.mark.parametrize("kind", [nn.LSTM, bptt.GRU])
def test_what_runs_over_sequences_is_no_step(kind):
    with pytest.raises(FuseError, match="which runs over sequences already"):
        bptt.fuse(kind(3, 4), torch.zeros(2, 3), torch.zeros(2, 4))


def test_an_example_of_a_whole_sequence():
    with pytest.raises(FuseError, match=r"got \[9, 2, 3\] and \[2, 4\]: .* give inputs\[0\]"):
        bptt.fuse(nn.GRUCell(3, 4), torch.zeros(9, 2, 3), torch.zeros(2, 4))


def test_groups_of_sequences_tell_any_two_apart() -> None:
    groups = _groups(11)
    for a in range(11):
        for b in range(11):
            assert a == b or any(a in g and b not in g for g in groups)


def test_another_step_in_another_dtype() -> None:
    def step(x: Tensor, h: Tensor) -> Any:  # units in float64, in which it is compared
        h = torch.tanh(x + h.roll(1, 1 if h.dtype == torch.float64 else 0))
        return h, h

    with pytest.raises(FuseError, match=r"something else in torch\.float32 than in torch\.float64"):
        bptt.fuse(step, torch.randn(4, H), torch.randn(4, H))
