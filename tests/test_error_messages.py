"""Each message in docs/how-to/error-messages.md is one that is raised, or warned of."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import bptt
from bptt._src.layout import Layout

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "error-messages.md").read_text()
HEADINGS = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
OF_OTHERS = {"Automatic gradient clipping is not supported for manual optimization"}
"""What a library says that is not installed here."""


class KeepsItsState(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.h = nn.GRU(3, 8), None

    def forward(self, x, state):
        y, self.h = self.gru(x, self.h)
        return y, state


class Subclass(nn.LSTM):
    pass


def x():
    return torch.randn(5, 2, 3)


def ours(*arguments, **options):
    return bptt.GRU(3, 8)(*arguments, **options)


def flags(*shape, dtype=torch.bool):
    return torch.zeros(*shape, dtype=dtype)


def twice_through_a_graph():
    gru = nn.GRU(3, 8)
    y, h = gru(x())
    y.sum().backward()
    gru(x(), h)[0].sum().backward()


def an_update_in_between():
    gru, h = nn.GRU(3, 8), None
    optimizer = torch.optim.SGD(gru.parameters(), lr=0.1)
    for _ in range(2):
        y, h = gru(x(), h)
        y.sum().backward(retain_graph=True)
        optimizer.step()


def output_changed_in_place():
    y, _ = ours(x())
    nn.functional.relu(y, inplace=True).sum().backward()


def another_batch():
    credit = bptt.Truncated(every=5, reach=9)
    _, stream = bptt.Stream().advance(gru := bptt.GRU(3, 8), x(), credit=credit)
    stream.advance(gru, x()[:, :1], credit=credit)


def a_window_too_long():
    bptt.Stream().advance(bptt.GRU(3, 8), x(), credit=bptt.Truncated(every=3, reach=6))


def both_ways(library, call):
    credit = bptt.Truncated(every=2, reach=4)
    call(library.GRU(3, 8, bidirectional=True), credit)


def mismatched_targets():
    h = torch.randn(5, 2, 8)
    bptt.losses.linear_cross_entropy(h, torch.randn(4, 8), None, flags(2, 5, dtype=torch.int64))


def quantized():
    kinds = {nn.LSTM}
    torch.ao.quantization.quantize_dynamic(nn.Sequential(bptt.LSTM(3, 4)), kinds)


RAISES = {
    "Trying to backward": [twice_through_a_graph],
    "one of the variables": [an_update_in_between, output_changed_in_place],
    "Expected hidden size": [lambda: nn.GRU(3, 8)(x(), torch.zeros(1, 3, 8))],
    "got an unexpected": [lambda: nn.GRU(3, 8)(x(), resets=flags(5, 2))],
    "linear(): argument": [lambda: nn.Sequential(nn.GRU(3, 8), nn.Linear(8, 1))(x())],
    "Dynamo": [lambda: torch.compile(nn.GRU(3, 8), fullgraph=True, backend="eager")(x())],
    "expected resets": [lambda: ours(x(), resets=flags(2, 5))],
    "resets must be bool, got": [lambda: ours(x(), resets=flags(5, 2, dtype=torch.int64))],
    "so a stream": [a_window_too_long],
    "reach=4": [lambda: bptt.Truncated(every=8, reach=4)],
    "expected a window": [another_batch],
    "a Stream does not": [lambda: setattr(bptt.Stream(), "state", None)],
    "has windows": [lambda: both_ways(bptt, lambda gru, credit: gru(x(), credit=credit))],
    "the module is bi": [lambda: both_ways(nn, lambda g, c: bptt.unroll(g, x(), credit=c))],
    "the module's outputs": [
        lambda: bptt.unroll(KeepsItsState(), x(), torch.zeros(1, 2, 8), credit="truncated:2")
    ],
    "give a credit or carry": [lambda: ours(x(), credit="full", carry=torch.ones(5))],
    "unknown credit": [lambda: ours(x(), credit="tbptt:5")],
    "the input is": [lambda: ours(x().double())],
    "expected targets": [mismatched_targets],
    "bptt.convert left": [lambda: bptt.convert(nn.Sequential(Subclass(3, 4)))],
    "torch.ao": [quantized],
}
"""What raises or warns, by the beginning of the heading."""

SAID_IN_PASSING = {
    "expected an initial state of shape (1, 2, 8) (layers times directions, batch, size), got "
    "(1, 3, 8)": lambda: ours(x(), torch.zeros(1, 3, 8)),
    "resets must be a bool tensor, got ndarray; torch.as_tensor(resets) makes one": (
        # of a call, the tests' type checker would speak first
        lambda: Layout(5, 2, 0, 1, False, True).by_time("resets", flags(5, 2).numpy(), "bptt.GRU")
    ),
}


def said(call):
    """What is raised, and all that is warned of before."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            return "\n".join([*(str(w.message) for w in warned), str(error)])
    return "\n".join(str(w.message) for w in warned)


@pytest.mark.parametrize("heading", [h for h in HEADINGS if h not in OF_OTHERS])
def test_a_message_is_what_is_said(heading):
    calls = [calls for beginning, calls in RAISES.items() if heading.startswith(beginning)]
    assert len(calls) == 1
    for call in calls[0]:
        assert heading in said(call)


@pytest.mark.parametrize("message", SAID_IN_PASSING)
def test_so_is_one_within_the_text(message):
    assert f"`{message}`" in PAGE
    assert message in said(SAID_IN_PASSING[message])


def test_all_are_on_the_page():
    assert set(HEADINGS) > OF_OTHERS
    assert len(HEADINGS) == len(RAISES) + len(OF_OTHERS)
