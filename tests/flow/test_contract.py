"""Modules whose state, or its gradient, cannot be followed: found, and said with the way out."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

import bptt
from bptt import gradient_flow

T, B = 12, 3


def squares(y):
    return y.square().mean()


MEASUREMENTS = {
    "gradient_flow": lambda module, x: gradient_flow(module, x),
    "FlowMeter": lambda module, x: bptt.FlowMeter(module).look(x),
    "vanishing_penalty": lambda module, x: bptt.vanishing_penalty(module, x, squares),
    "lyapunov_exponents": lambda module, x: bptt.lyapunov_exponents(module, x),
    "dynamics": lambda module, x: gradient_flow(module, x, dynamics=True).dynamics,
}


class Of(nn.Module):
    """A network as the body of a foreign module: ``forward(self, rnn, x, state)``."""

    def __init__(self, forward, kind=nn.LSTM):
        super().__init__()
        self.rnn, self.kept, self.body = kind(2, 4), None, forward

    def forward(self, x, state=None):
        return self.body(self, x, state)


def detaches(self, x, state):
    y, (h, c) = self.rnn(x, state)
    return y, (h.detach(), c.detach())


def detaches_what_comes(self, x, state):
    state = None if state is None else tuple(s.detach() for s in state)
    return self.rnn(x, state)


def detaches_the_cell(self, x, state):
    y, (h, c) = self.rnn(x, state)
    return y, (h, c.detach())


def detaches_the_cell_that_comes(self, x, state):
    return self.rnn(x, None if state is None else (state[0], state[1].detach()))


def is_without_graph(self, x, state):
    with torch.no_grad():
        return self.rnn(x, state)


def returns_outputs_only(self, x, state):
    y, self.kept = self.rnn(x, self.kept)
    return y


def keeps_its_state(self, x, state):
    y, self.kept = self.rnn(x, self.kept)
    return y, self.kept


def keeps_its_state_behind_another(self, x, state):
    y, self.kept = self.rnn(x, self.kept)
    return y, (x.new_zeros(1, x.shape[1], 1) if state is None else state)


def returns_no_state(self, x, state):
    y, self.kept = self.rnn(x, self.kept)
    return y, None


def returns_whole_numbers(self, x, state):
    return self.rnn(x)[0], torch.zeros(1, x.shape[1], 4, dtype=torch.long)


class Hidden:
    def __init__(self, h):
        self.h = h


def returns_an_object(self, x, state):
    y, h = self.rnn(x, None if state is None else state.h)
    return y, Hidden(h)


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (detaches, ValueError, "detaches the state that it returns .*detach the state outside"),
        (detaches_what_comes, ValueError, "detaches the state that it is handed"),
        (detaches_the_cell, ValueError, "detaches a part of the state"),
        (detaches_the_cell_that_comes, ValueError, "detaches a part of the state"),
        (is_without_graph, ValueError, "detaches the state that it returns"),
        (returns_outputs_only, TypeError, "got a Tensor; .*init_hidden=False"),
        (keeps_its_state, ValueError, "keeps a state in itself; take the state as an argument"),
        (keeps_its_state_behind_another, ValueError, "keeps a state in itself"),
        (returns_no_state, TypeError, "got None; .*init_hidden=False"),
        (returns_whole_numbers, TypeError, "floating-point numbers from the module, got Tensor"),
        (returns_an_object, TypeError, "Hidden, whose tensors cannot be seen; make it a"),
    ],
)
def test_a_state_that_cannot_be_followed_is_refused(measurement, body, error, message):
    with pytest.raises(error, match=message):
        MEASUREMENTS[measurement](Of(body), torch.randn(T, B, 2))


def test_outputs_in_one_tensor_of_two_sequences_are_no_pair():
    """Of B = 2 a tensor can be unpacked as if it were outputs and a state."""
    with pytest.raises(TypeError, match=r"the module must return \(outputs, state\)"):
        gradient_flow(lambda x, s: x[0], torch.randn(4, 2, 3))


# ------------------------------------------------------------------- states of every other form

Pair = namedtuple("Pair", "h c")


@dataclass
class Fields:
    h: torch.Tensor
    c: torch.Tensor
    steps: int = 0


@dataclass(frozen=True)
class Frozen:
    h: torch.Tensor
    c: torch.Tensor


class Registered:
    def __init__(self, h, c):
        self.h, self.c = h, c


torch_pytree.register_pytree_node(
    Registered, lambda r: ([r.h, r.c], None), lambda values, _: Registered(*values)
)


@pytest.mark.parametrize("form", [Pair, Fields, Frozen, Registered])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_a_state_of_another_form_is_followed(measurement, form):
    def body(self, x, state):
        y, (h, c) = self.rnn(x, None if state is None else (state.h, state.c))
        return y, form(h, c)

    def as_tuple(self, x, state):
        return self.rnn(x, state)

    module, x = Of(body), torch.randn(T, B, 2)
    same = Of(as_tuple)
    same.load_state_dict(module.state_dict())
    found, expected = (MEASUREMENTS[measurement](m, x) for m in (module, same))
    if measurement == "gradient_flow":
        found, expected = (torch.stack([s.norms for s in f.states]) for f in (found, expected))
        assert expected.nan_to_num()[:, :, 5, 2].gt(0).all()
    elif measurement == "lyapunov_exponents":
        found, expected = found.exponents, expected.exponents
    elif measurement == "dynamics":
        found, expected = found[0].jacobian_norms, expected[0].jacobian_norms
    elif measurement == "FlowMeter":
        found, expected = (torch.tensor(f.by_lag) for f in (found, expected))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_resets_reach_a_state_of_another_form():
    def body(self, x, state):
        y, (h, c) = self.rnn(x, None if state is None else (state.h, state.c))
        return y, Fields(h, c)

    flow = gradient_flow(Of(body), torch.randn(T, B, 2), resets=torch.arange(T) == 5)
    assert (flow.norms[5:, :5] == 0).all()
    assert (flow.norms[4, :4] > 0).all()


def test_a_statistic_without_a_gradient_may_be_part_of_a_state():
    def body(self, x, state):
        h, mean = (None, x.new_zeros(1, B, 2)) if state is None else state
        outputs = []
        for x_t in x:
            with torch.no_grad():
                mean = 0.9 * mean + 0.1 * x_t
            y, h = self.rnn((x_t - mean), h)
            outputs.append(y)
        return torch.cat(outputs), (h, mean)

    x = torch.randn(T, B, 2)
    flow = gradient_flow(Of(body, nn.GRU), x)
    assert (flow.of(name="0")[5, :5] > 0).all()
    assert (flow.of(name="1")[5, :5] == 0).all()


def test_a_module_that_changes_its_state_in_place_is_followed():
    def in_place(x, state):
        h = x.new_zeros(B, 2) if state is None else state
        h.mul_(0.5).add_(x[0])
        return h.unsqueeze(0).clone(), h

    def copying(x, state):
        h = 0.5 * (x.new_zeros(B, 2) if state is None else state) + x[0]
        return h.unsqueeze(0), h

    x, given = torch.randn(T, B, 2), torch.ones(B, 2)
    flows = [gradient_flow(f, x, state=given, state_batch_dim=0) for f in (in_place, copying)]
    torch.testing.assert_close(flows[0].norms, flows[1].norms, equal_nan=True)
    assert (given == 1).all()


def test_a_state_that_grows_is_refused():
    def growing(x, state):
        state = () if state is None else state
        return x + sum(state), (*state, x[0])

    with pytest.raises(ValueError, match="has 1 tensors after step 0, and 2 after step 1"):
        gradient_flow(growing, torch.randn(T, B, 2), state_batch_dim=0)


def test_complex_states_are_followed():
    """|∂L_t/∂h_s| of h_t = λ h_{t-1} + x_t and L_t = Re h_t is |λ|^(t-s)."""
    turn = 0.9 * torch.exp(1j * torch.tensor(0.7, dtype=torch.float64))

    def module(x, state):
        h = x.new_zeros(B, 1) + 0j if state is None else state
        outputs = []
        for x_t in x:
            h = turn * h + x_t
            outputs.append(h.real)
        return torch.stack(outputs), h

    x = torch.randn(T, B, 1, dtype=torch.float64)
    flow = gradient_flow(module, x, lambda y: y.sum(2), state_batch_dim=0, dynamics=True)
    t, s = torch.tril_indices(T, T, -1)
    torch.testing.assert_close(flow.norms[t, s], 0.9 ** (t - s).double())
    (layer,) = flow.dynamics
    torch.testing.assert_close(layer.jacobian_norms[:, 1:], torch.full((B, T - 1), 0.9).double())


def test_states_of_two_dtypes_keep_them():
    def module(x, state):
        if state is None:
            state = (x.new_zeros(B, 2), x.new_zeros(B, 2, dtype=torch.float64))
        assert [s.dtype for s in state] == [torch.float32, torch.float64]
        h = torch.tanh(state[0] + 0.1 * state[1].float() + x[0])
        return h.unsqueeze(0), (h, 0.5 * state[1] + h)

    x = torch.randn(T, B, 2)
    flow = gradient_flow(module, x, state_batch_dim=0, dynamics=True)
    assert flow.dynamics[0].jacobian_norms[:, 1:].isfinite().all()
