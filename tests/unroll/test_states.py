"""A state that credit, resets and memory cannot act on is refused, never passed over."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bptt

T, B, I, H = 12, 3, 2, 4
ACTING = [
    {"credit": "truncated:4"},
    {"credit": bptt.Randomized(3)},
    {"credit": "truncated:every=2,reach=5"},
    {"resets": torch.arange(T) == 5},
    {"memory": "recompute:2"},
    {"memory": "store"},
]


@dataclasses.dataclass
class State:
    h: Tensor
    count: int = 0


class Registered:
    def __init__(self, h: Tensor) -> None:
        self.h = h


torch.utils._pytree.register_pytree_node(
    Registered, lambda s: ([s.h], None), lambda h, _: Registered(*h)
)
Namespace = types.SimpleNamespace
SEEN = {
    "tuple": (lambda h: (h,), lambda s: s[0]),
    "dict": (lambda h: {"b": h, 2: None}, lambda s: s["b"]),
    "dataclass": (State, lambda s: s.h),
    "registered": (Registered, lambda s: s.h),
}


class Cell(nn.Module):
    """The same network, whatever its state is packed in."""

    def __init__(self, wrap: Any = lambda h: h, open: Any = lambda s: s) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.wrap, self.open = nn.Linear(I + H, H), wrap, open

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = torch.zeros(len(x), H) if state is None else self.open(state)
        h = torch.tanh(self.linear(torch.cat([x, h], 1)))
        return h, self.wrap(h)


class Keeps(nn.Module):
    """A cell that keeps its state in itself, as snnTorch's with init_hidden=True."""

    def __init__(self, returns: Any, detach: bool = False) -> None:
        super().__init__()
        self.cell, self.returns, self.detach = Cell(), returns, detach
        self.kept: Any = None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, self.kept = self.cell(x, self.kept)
        if self.detach:
            self.kept = self.kept.detach()
        return y, self.returns(y, state)


class Detaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.RNN(I, H)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return y, state.detach()


def run(cell: Any, **how: Any) -> list[Tensor]:
    torch.manual_seed(3)
    y, _ = bptt.unroll(bptt.Stepwise(cell), torch.linspace(-1, 1, T * B * I).view(T, B, I), **how)
    found = torch.autograd.grad(y.square().sum(), list(cell.parameters()))
    return [y.detach(), *found]


@pytest.mark.parametrize("how", ACTING, ids=str)
def test_the_same_network_whatever_its_state_is_packed_in(how: Any) -> None:
    right, plain = run(Cell(), **how), run(Cell())
    assert "memory" in how or not torch.allclose(right[1], plain[1], rtol=1e-3)
    for kind in SEEN.values():
        for a, b in zip(run(Cell(*kind), **how), right, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("how", ACTING, ids=str)
def test_a_state_that_cannot_be_seen(how: Any) -> None:
    for wrap, name in ((lambda h: Namespace(h=h), "SimpleNamespace"), (lambda h: {h}, "set")):
        with pytest.raises(TypeError, match=rf"state that the module returned.*{name}.*register"):
            run(Cell(wrap, lambda s: next(iter(s)) if isinstance(s, set) else s.h), **how)


@pytest.mark.parametrize("how", ACTING, ids=str)
@pytest.mark.parametrize("nothing", [None, (), {"a": 3}])
def test_a_state_without_a_tensor(how: Any, nothing: Any) -> None:
    cell = Keeps(lambda y, s: nothing)
    with pytest.raises(ValueError, match=r"state without a tensor.*return the state.*snnTorch"):
        run(cell, **how)


def test_without_anything_to_act_a_state_may_be_where_it_is() -> None:
    right = run(Cell())
    cell = Keeps(lambda y, s: None)
    for a, b in zip(run(cell), right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", ACTING, ids=str)
@pytest.mark.parametrize("detach", [False, True])
def test_a_second_state_that_the_module_keeps_in_itself(how: Any, detach: bool) -> None:
    cell = Keeps(lambda y, s: y * 1.0, detach)
    message = r"keeps a state in itself|computed outside of it|detached state"
    unseen = detach and how.get("memory") != "recompute:2"
    if unseen:  # a detached attribute leaves no trace: the page on credit says so
        return
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(cell, **how)


def test_estimator_error_reports_no_bias_of_a_credit_without_effect() -> None:
    x = torch.randn(T, B, I)
    for credit in (bptt.Truncated(3), bptt.Truncated(every=2, reach=5), bptt.Randomized(3)):
        cell = Keeps(lambda y, s: None)
        with pytest.raises(ValueError, match="state without a tensor"):
            bptt.estimator_error(bptt.Stepwise(cell), x, lambda y: y.sum(), credit)


# ----------------------------------------------------------------------------------- detached

REACHING = [
    {"credit": "truncated:every=5,reach=10"},
    {"credit": bptt.Plan(T, carry=[1.0] * 6 + [0.5] * 6)},
    {"memory": "recompute:2"},
    {"resets": torch.arange(T).unsqueeze(1) == torch.tensor([3, 4, 5])},
]


@pytest.mark.parametrize("how", REACHING, ids=lambda how: next(iter(how)))
def test_a_detached_state_is_refused_where_the_credit_reaches_further(how: Any) -> None:
    with pytest.raises(ValueError, match=r"returns a detached state.*the credit reaches further"):
        bptt.unroll(Detaches(), torch.randn(T, B, I), **how)


def test_a_detached_state_where_the_credit_reaches_no_further() -> None:
    module, x = Detaches(), torch.randn(T, B, I)
    for how in ({}, {"credit": "truncated:5"}, {"resets": torch.arange(T) == 4}):
        y, _ = bptt.unroll(module, x, **how)
        right, _ = bptt.unroll(module.rnn, x, **how)
        for a, b in zip(
            torch.autograd.grad(y.square().sum(), list(module.parameters())),
            torch.autograd.grad(right.square().sum(), list(module.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_a_cell_that_detaches() -> None:
    cell = Cell(lambda h: h.detach())
    with pytest.raises(ValueError, match=r"detached state.*beyond one step"):
        run(cell)
    run(cell, credit="truncated:1")  # no further than the cell lets it


def test_a_reservoir_has_nothing_to_learn_in_its_state() -> None:
    readout, cell = nn.Linear(H, 1), Cell().requires_grad_(False)
    counts = nn.BatchNorm1d(1)

    def network(x: Tensor, state: Any) -> Any:
        h, state = cell(x, state)
        return counts(readout(h)), state

    x = torch.randn(T, B, I)
    for how in ({}, *REACHING):
        y, _ = bptt.unroll(bptt.Stepwise(network), x, **how)
        assert torch.autograd.grad(y.square().sum(), readout.weight)[0].norm() > 0
    assert counts.num_batches_tracked == T * (1 + len(REACHING))  # the second looks do not count


# ------------------------------------------------------------------------ what is returned


@pytest.mark.parametrize("how", [{}, *ACTING], ids=str)
def test_a_module_that_returns_outputs_only(how: Any) -> None:
    linear = nn.Linear(I, H)
    for rows in (2, T):
        message = r"must return \(outputs, state\), got a tensor of shape"
        with pytest.raises(TypeError, match=message):
            bptt.unroll(lambda x, s: linear(x), torch.randn(rows, B, I))
    with pytest.raises(TypeError, match="got a tuple of 3"):
        bptt.unroll(lambda x, s: (x, s, s), torch.randn(T, B, I), **how)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_cell_that_returns_one_tensor(batch: int) -> None:
    cell = nn.Linear(I, H)
    with pytest.raises(TypeError, match=r"cell must return \(output, state\).*got a tensor"):
        bptt.unroll(bptt.Stepwise(lambda x, s: cell(x)), torch.randn(T, batch, I))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_cells_are_cells_of_torch() -> None:
    cell, x = nn.LSTMCell(I, H), torch.randn(T, B, I)
    torch._dynamo.reset()
    compiled = torch.compile(cell, backend="aot_eager")
    for how in ({}, {"credit": "truncated:5"}, {"credit": "truncated:every=2,reach=5"}):
        y, _ = bptt.unroll(bptt.Stepwise(compiled), x, **how)
        right, _ = bptt.unroll(bptt.Stepwise(cell), x, **how)
        torch.testing.assert_close(y, right)
        if "every" not in str(how):
            y.sum().backward()
    with pytest.raises(RuntimeError, match=r"single backward pass.*donated_buffer = False before"):
        y.sum().backward()
    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=False):
        y, _ = bptt.unroll(bptt.Stepwise(compiled), x, credit="truncated:every=2,reach=5")
        y.sum().backward()
    with pytest.raises(TypeError, match=r"got a LSTMCell.*Stepwise"):
        bptt.unroll(compiled, x)


# ------------------------------------------------------------------------------- the call


def test_calls_that_cannot_be_meant() -> None:
    lstm, x = bptt.LSTM(I, H), torch.randn(T, B, I)
    with pytest.raises(TypeError, match=r"as the state; write credit=Truncated\(2\)"):
        bptt.unroll(lstm, x, bptt.Truncated(2))
    with pytest.raises(TypeError, match=r"got 10: is bptt.Truncated\(10\)"):
        bptt.unroll(nn.LSTM(I, H), x, credit=10)
    with pytest.raises(TypeError, match=r"Linear does not take both; give it a state"):
        bptt.unroll(nn.Linear(I, H), x)
    with pytest.raises(bptt.errors.ConfigError, match=r"must return a scalar, got"):
        bptt.estimator_error(lstm, x, lambda y: y.mean(-1), bptt.Truncated(2))


def test_an_error_of_the_module_is_its_own() -> None:
    """Nothing of the user's is caught: not in the forward pass, not on the way back."""

    class OutOfMemory(RuntimeError):
        pass

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise OutOfMemory("CUDA out of memory")

    gru, x = nn.GRU(I, H), torch.randn(T, B, I)

    def module(x: Tensor, state: Any) -> Any:
        y, state = gru(x, state)
        return y, Fails.apply(state)

    for how in ({"credit": "truncated:every=2,reach=6"}, {"memory": "recompute:2"}):
        y, _ = bptt.unroll(module, x, **how)
        with pytest.raises(RuntimeError, match="out of memory"):
            y.sum().backward()


class TakesCarry(nn.Module):
    """As the page on credit says: a module that takes ``carry`` and ``resets`` itself."""

    takes_carry = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = bptt.LSTM(I, H)

    def forward(self, x: Any, state: Any = None, *, carry: Any = None, resets: Any = None) -> Any:
        return self.rnn(x, state, carry=carry, resets=resets)


@pytest.mark.parametrize("how", [{}, *ACTING], ids=str)
def test_takes_carry_is_called_as_it_is_documented(how: Any) -> None:
    module, x = TakesCarry(), torch.randn(T, B, I)
    found = []
    for m in (module, module.rnn):
        torch.manual_seed(5)
        y, _ = bptt.unroll(m, x, **how)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
