"""A small call that is like an earlier one: the same bits, and nothing that decides goes unseen."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from sampled import CALLS
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from bptt._src import again
from bptt._src.layers import Layers

T, B, I, H = 3, 2, 5, 4

MODULES: dict[str, Callable[..., Any]] = {
    "RNN": bptt.RNN,
    "relu": lambda *a, **k: bptt.RNN(*a, nonlinearity="relu", **k),
    "GRU": bptt.GRU,
    "LSTM": bptt.LSTM,
    "MGU": lambda *a, **k: bptt.Recurrent(bptt.cells.MGU, *a, **k),
}

pytestmark = pytest.mark.skipif(
    bptt.kernels.backend().name != "native", reason="native kernels alone have such calls"
)


def zeros_or(module: Any, given: str) -> Any:
    """Return an initial state: none, zeros that are one tensor for all of the state, or others."""
    if given == "none":
        return None
    n = module.cell.states
    new = torch.zeros if given == "zeros" else torch.randn
    one = new(1, B, H)
    each = (one,) * n if given == "zeros" else tuple(new(1, B, H) for _ in range(n))
    return each[0] if n == 1 else each


def run(module: Any, x: Tensor, state: Any, how: Any, learns: bool) -> list[Tensor | None]:
    """Run a call, and back; return all that comes of it."""
    x = x.clone().requires_grad_(learns)
    module.zero_grad()
    with nullcontext() if learns else torch.no_grad():
        y, final = module(x, state, **how)
    finals = final if isinstance(final, tuple) else (final,)
    if learns:
        (y.square().sum() + sum(f.sum() for f in finals)).backward()
    return [y.detach(), *finals, x.grad, *(p.grad for p in module.parameters())]


def goes_straight(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> bool:
    """Tell whether a call is run as one like before."""
    went = []
    whole = Layers._run
    with monkeypatch.context() as patch:
        patch.setattr(Layers, "_run", lambda *a: went.append(0) or whole(*a))
        call()
    return not went


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("given", ["none", "zeros", "others"])
@pytest.mark.parametrize(("bias", "batch_first"), [(True, False), (False, True)])
@pytest.mark.parametrize("name", MODULES)
def test_the_same_bits(
    name: str,
    bias: bool,
    batch_first: bool,
    given: str,
    resets: bool,
    learns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the third call on it goes straight, where the input is dense as the kernel has it."""
    module = MODULES[name](I, H, bias=bias, batch_first=batch_first)
    steps = 1 if batch_first else T
    for _ in range(4):
        x = torch.randn(B, steps, I) if batch_first else torch.randn(steps, B, I)
        how = {"resets": torch.rand(x.shape[:2]) < 0.4} if resets else {}
        call = x, zeros_or(module, given), how, learns
        for a, b in zip(run(module, *call), run(copy.deepcopy(module), *call), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    assert goes_straight(monkeypatch, lambda: run(module, *call))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODULES)
def test_acting_under_autocast(
    name: str, dtype: torch.dtype, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that autocast rounded goes into the next call, on the short way as on the long."""
    module = MODULES[name](I, H)
    state, x = zeros_or(module, "others"), torch.randn(T, B, I)

    def both() -> Any:
        for of in (module, copy.deepcopy(module)):
            with torch.autocast("cpu", dtype):
                yield from run(of, x, state, {}, learns)

    for _ in range(4):
        found = list(both())
        half = len(found) // 2
        for a, b in zip(found[:half], found[half:], strict=True):
            assert (a is None and b is None) or (a.dtype is b.dtype and torch.equal(a, b))
        final = tuple(f.detach() for f in found[1 : 1 + module.cell.states])
        state = final[0] if len(final) == 1 else final
    with torch.autocast("cpu", dtype):
        assert goes_straight(monkeypatch, lambda: run(module, x, state, {}, learns))
        x = torch.randn(again.MOST_ROWS_OF_AUTOCAST + 1, 1, I)  # products are rounded
        for _ in range(3):
            run(module, x, None, {}, learns)
        assert not goes_straight(monkeypatch, lambda: run(module, x, None, {}, learns))


@pytest.mark.parametrize("name", MODULES)
def test_the_most_rows_that_autocast_does_not_round(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = MODULES[name](I, H), torch.randn(again.MOST_ROWS_OF_AUTOCAST, 1, I)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            first = run(copy.deepcopy(module), x, None, {}, True)
            for a, b in zip(run(module, x, None, {}, True), first, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        assert goes_straight(monkeypatch, lambda: run(module, x, None, {}, True))


def lstm() -> Any:
    return bptt.LSTM(I, H)


def remembered(module: Any) -> Any:
    """Return a module that has had the calls of the situations below, with a graph and without."""
    x, resets = torch.randn(T, B, I), torch.ones(T, B, dtype=torch.bool)
    for _ in range(3):
        for records in (False, True):
            with torch.set_grad_enabled(records):
                module(x)
                module(x, resets=resets)
                module(x, (torch.ones(1, B, H), torch.zeros(1, B, H)))
                with torch.autocast("cpu", torch.bfloat16):
                    module(x)
                    module(x, resets=resets)
    return module


class Counting(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def counted(m: Any, x: Tensor) -> Any:
    with Counting() as mode:
        y = m(x)[0]
    return y, torch.tensor(mode.seen)


def in_autocast(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return m(x)


def in_half_precision(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.float16):
        return m(x), m(x.half())


def in_autocast_of_another_device(m: Any, x: Tensor) -> Any:
    with torch.autocast("meta", torch.bfloat16):
        return m(x)


def in_autocast_with_resets(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return m(x.bfloat16(), resets=torch.ones(T, B, dtype=torch.bool))


def in_autocast_in_float64(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return m(x.double())


def in_autocast_by_the_twin(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16), bptt.kernels.use("twin"):
        return m(x)


def in_autocast_all_float64(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return m.double()(x.double())


def in_forward_mode(m: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        y = m(forward_ad.make_dual(x, torch.ones_like(x)))[0]
        return tuple(forward_ad.unpack_dual(y))


def with_other_weights(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        m.weight_hh_l0.mul_(2)
    return m(x)


def with_new_weights(m: Any, x: Tensor) -> Any:
    m.weight_ih_l0 = nn.Parameter(m.weight_ih_l0.detach() * 3)
    return m(x)


def with_a_wrong_weight(m: Any, x: Tensor) -> Any:
    m.weight_ih_l0 = nn.Parameter(torch.zeros(7, 7))
    return m(x)


def with_a_frozen_weight(m: Any, x: Tensor) -> Any:
    m.weight_hh_l0.requires_grad_(False)
    y, _ = m(x)
    y.sum().backward()
    return [p.grad for p in m.parameters()]


def without_a_bias(m: Any, x: Tensor) -> Any:
    m.bias = False
    return m(x)


def with_batch_first(m: Any, x: Tensor) -> Any:
    m.batch_first = True
    return m(x)


def with_zoneout(m: Any, x: Tensor) -> Any:
    m.zoneout = 0.5
    torch.manual_seed(1)
    first = m(x), m(x), m(x)
    m.eval()
    then = m(x), m(x), m(x)
    m.train().zoneout = ()
    return first, then, m(x)


def with_freed_memory(m: Any, x: Tensor) -> Any:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return m(x)


def with_resets(m: Any, x: Tensor) -> Any:
    found = []
    for k in range(3):
        m.zero_grad()
        m(x, resets=torch.tensor([[1, 0], [0, 0], [0, 1]]).roll(k, 0).bool())[0].sum().backward()
        found += [p.grad for p in m.parameters()]
    return found


def with_a_hook(m: Any, x: Tensor) -> Any:
    seen: list[Any] = []
    m.register_forward_hook(lambda module, given, found: seen.append(found[0]))
    y = m(x)
    return y, seen


def parametrized(m: Any, x: Tensor) -> Any:
    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    nn.utils.parametrize.register_parametrization(m, "weight_hh_l0", Double())
    return m(x)


def second_derivative(m: Any, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    (d,) = torch.autograd.grad(m(x)[0].square().sum(), x, create_graph=True)
    return torch.autograd.grad(d.square().sum(), x)


def with_saved_hooks(m: Any, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
        y, _ = m(x)
    return torch.autograd.grad(y.sum(), x)


def with_the_twin(m: Any, x: Tensor) -> Any:
    with bptt.kernels.use("twin"):
        return m(x)


def changed_before_backward(m: Any, x: Tensor) -> Any:
    y, _ = m(x)
    with torch.no_grad():
        m.weight_hh_l0.mul_(2)
    y.sum().backward()


def listened(m: Any, x: Tensor) -> Any:
    meter = bptt.FlowMeter(every=1)
    with meter:
        m(x)[0].sum().backward()
    return str(meter)


SITUATIONS: dict[str, Callable[[Any, Tensor], Any]] = {
    "again": lambda m, x: m(x),
    "unbatched": lambda m, x: m(x[:, 0]),
    "other sizes": lambda m, x: m(x[:2]),
    "wrong inputs": lambda m, x: m(x[..., :3]),
    "float64": lambda m, x: m(x.double()),
    "all float64": lambda m, x: m.double()(x.double()),
    "all bfloat16": lambda m, x: m.bfloat16()(x.bfloat16()),
    "strided": lambda m, x: m(x.transpose(0, 1).contiguous().transpose(0, 1)),
    "negative": lambda m, x: m(torch._neg_view(x)),
    "meta input": lambda m, x: m(x.to("meta")),
    "meta module": lambda m, x: m.to("meta")(x),
    "a wrong state": lambda m, x: m(x, (torch.zeros(1, 1, H),) * 2),
    "a state without c": lambda m, x: m(x, torch.zeros(1, B, H)),
    "a list": lambda m, x: m(x, [torch.ones(1, B, H), torch.zeros(1, B, H)]),
    "credit": lambda m, x: m(x, credit="truncated:1")[0].sum().backward(),
    "resets": lambda m, x: m(x, resets=torch.ones(T, B, dtype=torch.bool)),
    "other resets": lambda m, x: [
        m(x, resets=torch.tensor([[1, 0], [0, 0], [0, 1]]).roll(k, 0).bool()) for k in range(3)
    ],
    "learning with resets": with_resets,
    "resets of steps": lambda m, x: m(x, resets=torch.tensor([True, False, True])),
    "resets that are a list": lambda m, x: m(x, resets=[[True, False]] * T),
    "resets that are numbers": lambda m, x: m(x, resets=torch.ones(T, B)),
    "wrong resets": lambda m, x: m(x, resets=torch.ones(B, T, dtype=torch.bool)),
    "strided resets": lambda m, x: m(x, resets=torch.ones(B, T, dtype=torch.bool).t()),
    "resets and carry": lambda m, x: m(
        x, resets=torch.ones(T, B, dtype=torch.bool), carry=torch.zeros(T)
    ),
    "lists": lambda m, x: m(x, ([1], [2])),
    "nothing": lambda m, x: m(x, (None, None)),
    "a generator": lambda m, x: m(x, (torch.ones(1, B, H) for _ in range(2))),
    "all states": lambda m, x: m(x, return_states=True),
    "packed": lambda m, x: m(nn.utils.rnn.pack_padded_sequence(x, [3, 2]))[0].data,
    "functional_call": lambda m, x: functional_call(
        m, {n: 2 * p for n, p in m.named_parameters()}, (x,)
    ),
    "vmap": lambda m, x: vmap(lambda x: m(x)[0])(x[None]),
    "jvp": lambda m, x: jvp(lambda x: m(x)[0], (x,), (torch.ones_like(x),)),
    "a copy": lambda m, x: copy.deepcopy(m)(x),
    "pickled": lambda m, x: pickle.loads(pickle.dumps(m))(x),
    "trace": lambda m, x: torch.jit.trace(m, x, check_trace=False)(x),
    **{
        f.__name__: f
        for f in (
            counted,
            in_autocast,
            in_half_precision,
            in_autocast_of_another_device,
            in_autocast_with_resets,
            in_autocast_in_float64,
            in_autocast_by_the_twin,
            in_autocast_all_float64,
            in_forward_mode,
            with_other_weights,
            with_new_weights,
            with_a_wrong_weight,
            with_a_frozen_weight,
            without_a_bias,
            with_batch_first,
            with_zoneout,
            with_freed_memory,
            with_a_hook,
            parametrized,
            second_derivative,
            with_saved_hooks,
            with_the_twin,
            changed_before_backward,
            listened,
        )
    },
}


def outcome(situation: Callable[[Any, Tensor], Any], module: Any, x: Tensor, learns: bool) -> Any:
    CALLS.begin()  # each situation has its annotations checked
    try:
        with nullcontext() if learns else torch.no_grad():
            return situation(module, x)
    except Exception as e:  # whatever it is, both must raise the same
        return type(e), re.sub(r"\d+", "n", str(e))  # a version of a tensor among them


def flat(found: Any) -> list[Any]:
    if isinstance(found, tuple | list):
        return [one for each in found for one in flat(each)]
    return [found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", SITUATIONS)
def test_whatever_is_different_is_seen(name: str, learns: bool, monkeypatch: Any) -> None:
    """All is as where no call is remembered: errors, and what is done several times, included."""

    def outcomes() -> list[Any]:
        torch.manual_seed(0)
        x = torch.randn(T, B, I)
        first, then = lstm(), remembered(lstm())
        return flat([outcome(SITUATIONS[name], m, x, learns) for m in (first, then) * 3])

    found = outcomes()
    monkeypatch.setattr(again, "like_before", lambda *a: None)
    for a, b in zip(outcomes(), found, strict=True):
        if isinstance(a, Tensor) and not a.is_meta:
            assert torch.equal(a, b)
            assert (a.dtype, a.requires_grad) == (b.dtype, b.requires_grad)
        elif isinstance(a, Tensor):
            assert (b.is_meta, b.shape) == (True, a.shape)
        else:
            assert a == b


def test_large_and_layered_calls_are_not_remembered() -> None:
    for module, x in (
        (bptt.LSTM(I, H, num_layers=2), torch.randn(T, B, I)),
        (bptt.LSTM(I, H, bidirectional=True), torch.randn(T, B, I)),
        (bptt.LSTM(I, H, proj_size=2), torch.randn(T, B, I)),
        (bptt.LSTM(I, H), torch.randn(again.MOST_ROWS + 1, 1, I)),
    ):
        for _ in range(3):
            module(x)
        assert not any(again._known.get(module, {}).values())


def test_a_module_remembers_a_few_kinds_and_goes_with_them() -> None:
    module = lstm()
    for steps in range(1, 3 * again.MOST_CALLS):
        for _ in range(2):
            module(torch.randn(steps, B, I))
        assert len(again._known[module]) <= again.MOST_CALLS
    before = len(again._known)
    del module
    assert len(again._known) == before - 1
