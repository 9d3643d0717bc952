"""What a measurement leaves behind: nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bptt
from bptt import gradient_flow

T, B = 8, 4


class Normed(nn.Module):
    """A network with everything that a forward pass changes: statistics, counts, memories."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.rnn = nn.utils.parametrizations.spectral_norm(nn.RNN(2, 3), "weight_hh_l0")
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("ahead", None)
        self.calls, self.last = 0, None

    def forward(self, x, state=None):
        self.count += 1
        self.calls += 1
        self.last = x
        self.fresh = x
        if self.ahead is not None:
            raise RuntimeError("asked to fail")
        y, state = self.rnn(self.drop(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])), state)
        return y, state


def squares(y):
    return y.square().mean()


def each(y):
    return y.square().sum(2)


MEASUREMENTS = {
    "gradient_flow": lambda module, x: gradient_flow(module, x, each),
    "gradient_flow with dynamics": lambda module, x: gradient_flow(module, x, dynamics=True),
    "FlowMeter": lambda module, x: bptt.FlowMeter(module).look(x, each),
    "vanishing_penalty": lambda module, x: bptt.vanishing_penalty(module, x, squares).backward(),
    "lyapunov_exponents": lambda module, x: bptt.lyapunov_exponents(module, x),
    "suggest_truncation": lambda module, x: gradient_flow(module, x, each).suggest_truncation(),
}


def as_it_is(module):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "tensors": {name: (id(v), v.detach().clone()) for name, v in tensors.items()},
        "requires": [p.requires_grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "calls": getattr(module, "calls", None),
        "last": getattr(module, "last", None),
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def assert_same(now, before):
    now, before = dict(now), dict(before)
    now_tensors, before_tensors = now.pop("tensors"), before.pop("tensors")
    assert now == before
    for name, (identity, values) in before_tensors.items():
        assert now_tensors[name][0] == identity
        assert torch.equal(now_tensors[name][1], values), name


def modules():
    frozen = Normed()
    frozen.rnn.parametrizations.weight_hh_l0.original.requires_grad_(False)
    part = Normed().train()
    part.norm.eval()
    return {
        "foreign": Normed(),
        "foreign, evaluating": Normed().eval(),
        "partly frozen": frozen,
        "partly evaluating": part,
        "ours": bptt.LSTM(2, 3, num_layers=2, dropout=0.5),
        "torch.nn": nn.GRU(2, 3, num_layers=2, dropout=0.5),
    }


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("kind", modules())
def test_a_measurement_leaves_the_module_and_the_generators_as_they_were(kind, measurement):
    module, x = modules()[kind], torch.randn(T, B, 2)
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    grads = [p.grad for p in module.parameters()]
    generator, before = torch.get_rng_state(), as_it_is(module)
    MEASUREMENTS[measurement](module, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same(as_it_is(module), before)
    if measurement != "vanishing_penalty":  # whose own backward pass this is
        for p, g in zip(module.parameters(), grads, strict=True):
            assert p.grad is g
            assert g is None or (g == 1).all()


@pytest.mark.parametrize("measurement", [m for m in MEASUREMENTS if m != "suggest_truncation"])
@pytest.mark.parametrize("at", [1, 3, 9])
def test_an_exception_leaves_nothing_behind(measurement, at):
    module, x = Normed(), torch.randn(T, B, 2)
    calls = []

    def hook(module, args):
        calls.append(module.training)
        if len(calls) == at:
            raise KeyboardInterrupt

    module.register_forward_pre_hook(hook)
    generator, before = torch.get_rng_state(), as_it_is(module)
    with pytest.raises(KeyboardInterrupt):
        MEASUREMENTS[measurement](module, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same(as_it_is(module), before)


def test_a_loss_function_that_raises_leaves_nothing_behind():
    module, x = Normed(), torch.randn(T, B, 2)
    before = as_it_is(module)

    def broken(y):
        raise ValueError("a loss of mine")

    for measure in (
        lambda: gradient_flow(module, x, broken),
        lambda: bptt.FlowMeter(module).look(x, broken),
        lambda: bptt.vanishing_penalty(module, x, broken),
    ):
        with pytest.raises(ValueError, match="a loss of mine"):
            measure()
        assert_same(as_it_is(module), before)


def test_measurements_follow_one_another_without_a_trace():
    """Each says what it says alone, and training goes on to the same bits with them."""
    x, alone = torch.randn(T, B, 2), {}
    module = Normed()
    for name, measure in MEASUREMENTS.items():
        if name != "vanishing_penalty":
            alone[name] = repr(measure(module, x))
    for name, measure in reversed(MEASUREMENTS.items()):
        if name != "vanishing_penalty":
            assert repr(measure(module, x)) == alone[name]
    other = copy.deepcopy(module)
    for network, measures in ((module, MEASUREMENTS), (other, {})):
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            for name, measure in measures.items():
                if name != "vanishing_penalty":
                    measure(network, x)
            optimizer.zero_grad()
            network(x)[0].square().sum().backward()
            optimizer.step()
    for (name, a), (_, b) in zip(
        module.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_buffers_that_are_one_tensor_stay_one():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            scale = torch.ones(1)
            self.register_buffer("a", scale)
            self.register_buffer("b", scale)
            self.rnn = nn.RNN(2, 3)

        def forward(self, x, state=None):
            self.a += 1
            assert torch.equal(self.a, self.b)
            return self.rnn(x, state)

    module = Shared()
    gradient_flow(module, torch.randn(T, B, 2))
    assert module.a is module.b
    assert module.a == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_keeps_its_buffers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor, state: torch.Tensor):
            self.count += 1
            h = torch.tanh(x[0] + 0.5 * state)
            return h.unsqueeze(0), h

    module = torch.jit.script(Counting())
    flow = gradient_flow(module, torch.randn(T, B, 2), state=torch.zeros(B, 2), state_batch_dim=0)
    assert (flow.norms[5, :5] > 0).all()
    assert module.count == 0
