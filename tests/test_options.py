"""No option without effect: each changes the result of some module, or is refused.

The options are read from the signatures, so that a new one without a case is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bptt
from bptt.credit import measure_decay

T, B, I, H = 9, 3, 2, 3
X = torch.linspace(-2, 2, T * B * I).view(T, B, I).cos()
RESETS = torch.arange(T).unsqueeze(1) % torch.tensor([4, 5, 7]) == 3
CREDITS = [bptt.Truncated(2), bptt.Truncated(every=2, reach=5), bptt.Randomized(3), "truncated:3"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Around(nn.Module):
    """A user's network, which says nothing of itself; its cell draws a dropout mask."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.GRU(I, H, batch_first=batch_first)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.network(x, state)


class StateFirst(Around):
    """The same, whose state is [B, L, H]."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y, state = self.network(x, None if state is None else state.transpose(0, 1).contiguous())
        return y, state.transpose(0, 1)


class Cell(nn.Module):
    """A cell whose state is [H, B], or [B, H]."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.turned = nn.GRUCell(I, H), turned

    def forward(self, x: Tensor, state: Any = None) -> Any:
        h = self.cell(x, state.t() if self.turned and state is not None else state)
        return h, h.t() if self.turned else h


def ours(kind: str = "GRU", **how: Any) -> Any:
    torch.manual_seed(0)
    return getattr(bptt, kind)(I, H, **how)


def gradient(module: nn.Module, y: Any) -> list[Tensor]:
    found = torch.autograd.grad((y * y).sum(), list(module.parameters()), allow_unused=True)
    return [y.detach(), *(g for g in found if g is not None)]


def of_unroll(module: Any, *given: Any, **how: Any) -> list[Tensor]:
    torch.manual_seed(1)
    x, *state = given or (X,)
    return gradient(module, bptt.unroll(module, x, *state, **how)[0])


def of_stream(module: Any, x: Tensor = X, time: int = 0, **how: Any) -> list[Tensor]:
    torch.manual_seed(1)
    stream, found = bptt.Stream(), []
    resets, credit = how.pop("resets", None), how.pop("credit", bptt.Truncated(3))
    for n, window in enumerate(x.split(3, dim=time)):
        if resets is not None:
            how["resets"] = resets[3 * n : 3 * n + 3]
        y, stream = stream.advance(module, window, credit=credit, **how)
        found += gradient(module, y)
    return found


def of_share(**of_process: Any) -> list[Tensor]:
    """The gradient of a process's sequences, whose cuts are drawn with those of the others."""
    torch.manual_seed(1)
    y, _ = bptt.Stream(**of_process).advance(module := ours(), X, credit=bptt.Randomized(2))
    return gradient(module, y)


def of_errors(module: Any = None, inputs: Tensor = X, **how: Any) -> list[float]:
    torch.manual_seed(1)
    module = nn.GRU(I, H) if module is None else module
    how = {"credit": bptt.Randomized(3), "loss_fn": lambda y: y.square().sum(), "draws": 3} | how
    found = bptt.estimator_error(module, inputs, **how)
    return [found.draws, found.total.bias, found.total.variance, *map(len, found.parameters)]


def of_decay(module: Any = None, inputs: Tensor = X, **how: Any) -> list[Tensor]:
    how = {"loss": lambda y: y.square().sum(), "lags": 4} | how
    found = measure_decay(ours() if module is None else module, inputs, **how)
    return [torch.tensor(found.norms), torch.tensor(found.sums)]


def of_forward(kind: str = "GRU", x: Tensor = X, **how: Any) -> list[Tensor]:
    torch.manual_seed(1)
    module = ours(kind)
    return gradient(module, module(x, **how)[0])


def remembers(memory: Any) -> int:
    """How many bytes a backward pass has kept."""
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.nbytes), t)[1], lambda t: t
    )
    with hooks:
        bptt.unroll(Around(), X, memory=memory)
    return sum(kept)


def seeded(run: Callable[..., Any], *given: Any, **how: Any) -> tuple[Any, Any]:
    return tuple(run(*given, generator=generator(s), **how) for s in (1, 2))  # type: ignore[return-value]


ONE_SEQUENCE = torch.ones(1, B, H)
Case = Callable[[], tuple[Any, Any]]
UNROLL: dict[str, Case] = {
    "module": lambda: (of_unroll(ours()), of_unroll(ours("LSTM"))),
    "inputs": lambda: (of_unroll(ours(), X), of_unroll(ours(), 2 * X)),
    "state": lambda: (of_unroll(ours()), of_unroll(ours(), X, ONE_SEQUENCE)),
    "memory": lambda: (remembers(None), remembers(bptt.Recompute(2))),
    "generator": lambda: seeded(of_unroll, Around(), credit=bptt.Randomized(3)),
    "per_sequence": lambda: (
        of_unroll(Around(), credit=bptt.Randomized(3), per_sequence=True),
        of_unroll(Around(), credit=bptt.Randomized(3), per_sequence=False),
    ),
    "state_batch_dim": lambda: (
        of_unroll(StateFirst(), X[:, :1].expand(T, B, I), resets=RESETS),
        of_unroll(
            StateFirst(), X[:, :1].expand(T, B, I), resets=RESETS, state_batch_dim=0
        ),
    ),
    "batch_first": lambda: (
        of_unroll(Around(True), X.transpose(0, 1), credit="truncated:2", batch_first=True),
        of_unroll(Around(True), X.transpose(0, 1), credit="truncated:2"),
    ),
}  # fmt: skip
CASES: dict[Callable[..., Any], dict[str, Case]] = {
    bptt.unroll: UNROLL
    | {
        "credit": lambda: (of_unroll(Around()), of_unroll(Around(), credit="truncated:2")),
        "resets": lambda: (of_unroll(Around()), of_unroll(Around(), resets=RESETS)),
    },
    bptt.Stream.advance: {
        "module": lambda: (of_stream(ours()), of_stream(ours("LSTM"))),
        "inputs": lambda: (of_stream(ours()), of_stream(ours(), 2 * X)),
        "credit": lambda: (
            of_stream(ours()),
            of_stream(ours(), credit=bptt.Truncated(every=3, reach=6)),
        ),
        "resets": lambda: (of_stream(ours()), of_stream(ours(), resets=RESETS)),
        "options": lambda: (
            of_stream(ours(), X, credit=bptt.Randomized(3), generator=generator(1)),
            of_stream(ours(), X, credit=bptt.Randomized(3), generator=generator(2)),
        ),
    },
    bptt.Stream.__init__: {
        "state": lambda: (
            bptt.Stream().advance(ours(), X)[0],
            bptt.Stream(ONE_SEQUENCE).advance(ours(), X)[0],
        ),
        "past": lambda: (bptt.Stream(), bptt.Stream(past=X)),
        "before": lambda: tuple(
            bptt.Stream(past=X, before=b).advance(ours(), X, credit="truncated:every=9,reach=18")[0]
            for b in (None, ONE_SEQUENCE)
        ),
        "resets": lambda: tuple(
            bptt.Stream(past=X, resets=r).advance(ours(), X, credit="truncated:every=9,reach=18")[0]
            for r in (None, RESETS)
        ),
        "rank": lambda: tuple(of_share(rank=r, world_size=2) for r in (0, 1)),
        "world_size": lambda: tuple(of_share(rank=1, world_size=n) for n in (2, 3)),
        "batch": lambda: tuple(of_share(rank=1, world_size=2, batch=b) for b in (None, 2 * B + 1)),
    },
    bptt.Stepwise.__init__: {
        "cell": lambda: tuple(
            of_unroll(bptt.Stepwise(cell)) for cell in (Cell(False), nn.LSTMCell(I, H))
        ),
        "state_batch_dim": lambda: tuple(
            of_unroll(bptt.Stepwise(Cell(True), dim), resets=RESETS) for dim in (0, 1)
        ),
    },
    bptt.estimator_error: {
        "module": lambda: (of_errors(), of_errors(ours("LSTM"))),
        "inputs": lambda: (of_errors(), of_errors(inputs=2 * X)),
        "loss_fn": lambda: (of_errors(), of_errors(loss_fn=lambda y: y[-1].sum())),
        "credit": lambda: (of_errors(), of_errors(credit=bptt.Truncated(2))),
        "state": lambda: (of_errors(), of_errors(state=ONE_SEQUENCE)),
        "draws": lambda: (of_errors(), of_errors(draws=4)),
        "generator": lambda: seeded(of_errors),
        "parameters": lambda: (
            of_errors(gru := nn.GRU(I, H)),
            of_errors(gru, parameters={"b": gru.bias_hh_l0}),
        ),
        "options": lambda: (of_errors(), of_errors(resets=RESETS)),
    },
    measure_decay: {
        "module": lambda: (of_decay(), of_decay(ours("LSTM"))),
        "inputs": lambda: (of_decay(), of_decay(inputs=2 * X)),
        "loss": lambda: (of_decay(), of_decay(loss=lambda y: y.sum())),
        "state": lambda: (of_decay(), of_decay(state=ONE_SEQUENCE)),
        "lags": lambda: (of_decay(), of_decay(lags=5)),
        "state_batch_dim": lambda: (
            of_decay(StateFirst(), state_batch_dim=0),
            of_decay(StateFirst(), state_batch_dim=1),
        ),
        "batch_first": lambda: (
            of_decay(Around(True), X.transpose(0, 1), batch_first=True),
            of_decay(Around(True), X.transpose(0, 1)),
        ),
    },
    bptt.LSTM.forward: {
        "input": lambda: (of_forward(), of_forward(x=2 * X)),
        "hx": lambda: (of_forward(), of_forward(hx=ONE_SEQUENCE)),
        "credit": lambda: (of_forward(), of_forward(credit=bptt.Truncated(2))),
        "carry": lambda: (of_forward(), of_forward(carry=torch.full((T,), 0.5))),
        "resets": lambda: (of_forward(), of_forward(resets=RESETS)),
        "generator": lambda: seeded(of_forward, credit=bptt.Randomized(3)),
        "return_states": lambda: (len(ours()(X)), len(ours()(X, return_states=True))),
    },
}


def signature(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__qualname__)
def test_there_is_a_case_for_each_option(function: Callable[..., Any]) -> None:
    assert set(CASES[function]) == set(signature(function))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
    return bool(a == b)


@pytest.mark.parametrize(
    ("function", "option"),
    [(f, option) for f, options in CASES.items() for option in options],
    ids=lambda v: v if isinstance(v, str) else v.__qualname__,
)
def test_an_option_changes_the_result_or_is_refused(function: Any, option: str) -> None:
    try:
        without, given = CASES[function][option]()
    except (ValueError, TypeError) as e:  # of bptt, in a line: never silent
        assert str(e).startswith(("bptt.", "Stream.advance", "estimator_error", "measure_decay"))  # noqa: PT017
        return
    assert not same(without, given)


class Silent(nn.Module):
    """All that a plan could act on lies in the module; what it returns is nothing."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.kept, self.returned = nn.GRU(I, H), None, returned

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y, self.kept = self.network(x, self.kept)
        return y, self.returned


@pytest.mark.parametrize("returned", [None, (), object(), np.zeros(3)], ids=type)
@pytest.mark.parametrize("credit", CREDITS, ids=str)
def test_every_way_in_refuses_a_state_on_which_nothing_acts(returned: Any, credit: Any) -> None:
    message = "without a tensor|cannot be seen"
    for run in (of_unroll, of_stream):
        how = {"credit": credit if run is of_unroll else bptt.Truncated(2)}
        with pytest.raises((ValueError, TypeError), match=message):
            run(Silent(returned), **how)
    for how in ({"resets": RESETS[:, 0]}, {"memory": "recompute:2"}, {"memory": "store"}):
        with pytest.raises((ValueError, TypeError), match=message):
            of_unroll(Silent(returned), **how)
    with pytest.raises((ValueError, TypeError), match=message):
        of_errors(Silent(returned), credit=credit)
