"""What is checked: layouts, precisions, states; and what is refused."""

import copy

import pytest
import torch
from module_check import broken
from torch import nn

import bptt


def everything_of(module: nn.Module) -> dict:
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "ids": [id(p) for p in module.parameters()],
        "grads": [p.grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "names": [sorted(vars(m)) for m in module.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name])
    assert torch.equal(before.pop("random"), after.pop("random"))
    before.pop("state"), after.pop("state")
    assert before == after


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("called", ["module", "function"])
def test_the_module_and_the_random_state_are_left_as_they_were(train, called):
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "gru": nn.GRU(3, 4, 2, dropout=0.5)})
    module.train(train)
    module["gru"].eval()

    def run(x, state=None):
        return module["gru"](module["norm"](x.flatten(0, 1)).view_as(x), state)

    before = everything_of(module)
    x, h = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
    before["random"] = torch.get_rng_state()
    x_before, h_before = x.clone(), h.clone()
    found = bptt.check_module(run if called == "function" else module["gru"], x, h)
    assert found
    assert_same(before, everything_of(module))
    assert torch.equal(x, x_before)
    assert torch.equal(h, h_before)


def test_a_module_that_remembers_is_left_as_it_was():
    module = broken.RemembersTheLastCall(3, 4)
    module(torch.randn(5, 3, 3))
    before = copy.deepcopy(module.h)
    assert not bptt.check_module(module, steps=3)
    assert torch.equal(module.h, before)


def test_it_runs_without_a_graph_and_under_autocast():
    with torch.no_grad(), torch.autocast("cpu"):
        assert bptt.check_module(nn.LSTM(3, 4), steps=2)
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        bptt.check_module(nn.LSTM(3, 4))


def test_sizes_of_drawn_inputs():
    found = bptt.check_module(nn.GRU(3, 4), steps=3, batch=2)
    assert (found.steps, found.batch) == (3, 2)


def test_a_function_is_run_in_its_own_precision_and_says_so():
    module = nn.LSTM(3, 4)
    found = bptt.check_module(lambda x, s=None: module(x, s), torch.randn(5, 2, 3))
    assert found
    assert found.precision == "float32 (a function is not copied)"
    assert "4 parameters" in found["gradients of outputs"].says


def test_a_module_that_cannot_be_cast_is_run_in_its_own_precision_and_says_so():
    class Single(nn.GRU):
        def forward(self, x, state=None):
            y, h = super().forward(x, state)
            return y @ torch.eye(4), h

    found = bptt.check_module(Single(3, 4), steps=3)
    assert found
    assert found.precision.startswith("float32 (not in double precision: ")


def test_a_wrong_gradient_is_found_in_a_function_too():
    module = broken.GateWithWrongDerivative()
    found = bptt.check_module(lambda x, s=None: module(x, s), torch.randn(2, 2, 3))
    assert found.wrong[0].name == "gradients of outputs"


def test_the_batch_of_a_state_is_found_by_its_size():
    cell = nn.GRUCell(3, 4)

    class Layered(nn.Module):
        def forward(self, x, state=None):
            h = x.new_zeros(x.shape[0], 1, 4) if state is None else state
            outputs = []
            for x_t in x.unbind(1):
                h = cell.to(x.dtype)(x_t, h[:, 0])[:, None]
                outputs.append(h[:, 0])
            return torch.stack(outputs, 1), h

    x = torch.randn(3, 6, 3)
    assert bptt.check_module(Layered(), x, batch_first=True)["batch"].verdict == "passed"
    with pytest.raises(ValueError, match="none of its dimensions 1 is the batch of 3"):
        bptt.check_module(Layered(), x, batch_first=True, state_batch_dim=1)


def test_a_state_that_is_given_is_the_only_one():
    found = bptt.check_module(nn.GRU(3, 4), torch.randn(5, 2, 3), torch.randn(1, 2, 4))
    assert found["repeats, no state"].verdict == "does not apply"
    with pytest.raises(KeyError, match="there are: "):
        found["gradients, no state"]


def test_inputs_without_a_batch():
    found = bptt.check_module(nn.LSTM(3, 4), torch.randn(5, 3))
    assert found
    assert found.batch is None
    assert found["batch"].verdict == "does not apply"


REFUSED = {
    "takes single steps": (lambda x, h=None: (x, x), {"inputs": torch.randn(5, 3, 4)}, TypeError),
    "bptt.Stepwise": (lambda x, h=None: (x, x), {"inputs": torch.randn(5, 3, 4)}, TypeError),
    "has no integer input_size": (bptt.Stepwise(lambda x, h: (x, x)), {}, TypeError),
    "must return": (lambda x, h=None: x, {"inputs": torch.randn(5, 3, 4)}, TypeError),
    "tensors in the state": (
        lambda x, h=None: (x, None), {"inputs": torch.randn(5, 3, 4)}, TypeError
    ),
    "two steps at least": (nn.GRU(3, 4), {"inputs": torch.randn(1, 3, 3)}, ValueError),
    "must be time": (
        lambda x, h=None: (x[-1], x[-1]), {"inputs": torch.randn(5, 3, 4)}, ValueError
    ),
    "leave it out": (nn.GRU(3, 4), {"batch_first": True}, ValueError),
    "does not take both": (nn.Linear(3, 4), {}, TypeError),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_checked_is_refused(words):
    module, options, error = REFUSED[words]
    with pytest.raises(error, match=words):
        bptt.check_module(module, **options)
