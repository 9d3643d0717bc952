"""Each message in docs/how-to/error-messages.md is said: by an example there, or by a call here."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import bptt

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "error-messages.md").read_text()
SECTIONS = dict(re.findall(r"^### (.*)\n((?:(?!##).*\n)*)", PAGE, re.MULTILINE))
NOT_RUN = {
    "The loss does not go down": "is no message",
    "RNN module weights are not part": "said on a GPU",
    "Input and parameter tensors are not": "said on a GPU",
    "the derivative for '_cudnn_rnn_backward'": "said on a GPU",
    "Automatic gradient clipping": "said by a library that is not installed here",
    "Trainer": "said by a library that is not installed here",
    'key "is_init"': "said by a library that is not installed here",
}
"""Why nothing raises what begins so."""


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


def an_update_in_between():
    gru, h = nn.GRU(3, 8), None
    optimizer = torch.optim.SGD(gru.parameters(), lr=0.1)
    for _ in range(2):
        y, h = gru(x(), h)
        y.sum().backward(retain_graph=True)
        optimizer.step()


def output_changed_in_place():
    y, _ = bptt.GRU(3, 8)(x())
    nn.functional.relu(y, inplace=True).sum().backward()


def a_copy_of_what_has_a_graph():
    copy.deepcopy(nn.GRU(3, 8)(x())[1])


def other_sizes():
    nn.GRU(3, 8).load_state_dict(nn.GRU(4, 8).state_dict())


def quantized():
    kinds = {nn.LSTM}
    torch.ao.quantization.quantize_dynamic(nn.Sequential(bptt.LSTM(3, 4)), kinds)


RAISES = {
    "one of the variables": [an_update_in_between, output_changed_in_place],
    "Only Tensors created": [a_copy_of_what_has_a_graph],
    "dropout option adds": [lambda: nn.GRU(3, 8, dropout=0.5)],
    "Error(s) in loading state_dict": [other_sizes],
    "'PackedSequence' object": [lambda: nn.utils.rnn.pack_sequence([x()[:, 0]]).shape],
    "Dynamo": [lambda: torch.compile(nn.GRU(3, 8), fullgraph=True, backend="eager")(x())],
    "the module's outputs": [
        lambda: bptt.unroll(KeepsItsState(), x(), torch.zeros(1, 2, 8), credit="truncated:2")
    ],
    "bptt.convert left": [lambda: bptt.convert(nn.Sequential(Subclass(3, 4)))],
    "torch.ao": [quantized],
}
"""What raises or warns, by the beginning of the heading."""


def said(call):
    """What is raised, and all that is warned of before."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            return "\n".join([*(str(w.message) for w in warned), str(error)])
    return "\n".join(str(w.message) for w in warned)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_message_is_what_is_said(heading):
    """By an example on the page, which the tests of the documentation run, by a call, or not."""
    calls = [calls for beginning, calls in RAISES.items() if heading.startswith(beginning)]
    has_example = "\n>>> " in SECTIONS[heading]
    is_not_run = any(heading.startswith(beginning) for beginning in NOT_RUN)
    assert len(calls) + has_example + is_not_run == 1
    parts = heading.split(": ") if heading.startswith("Error(s)") else [heading]
    for call in (call for each in calls for call in each):
        for part in parts:
            assert part in said(call)


def test_all_are_on_the_page():
    for beginning in (*RAISES, *NOT_RUN):
        assert sum(heading.startswith(beginning) for heading in SECTIONS) == 1
    assert len(SECTIONS) == PAGE.count("\n### ")
