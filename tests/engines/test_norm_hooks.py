"""What the backward passes report of the state's gradient, beside autograd step by step."""

from __future__ import annotations

import pytest
import torch

import bptt
from bptt._src.engines import norm_hooks
from bptt._src.steps import Steps

T, B, I, H = 7, 3, 4, 5


@pytest.fixture(params=["native", "twin"])
def engine(request):
    if request.param == "native" and bptt.kernels.backend().name != "native":
        pytest.skip("no native kernels here")
    with bptt.kernels.use(request.param):
        yield request.param


def module_of(kind, **options):
    torch.manual_seed(0)
    module = kind(I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.6)
    return module


def loss_of(y):
    weights = torch.linspace(0.5, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return (weights * y * y).sum()


def by_autograd(module, x, keep=lambda t: True):
    """‖∂L/∂h_t‖ of each layer as step t + 1 hands it down, [layers][T]; 0 after the last step."""
    state, entering, outputs = None, [], []
    for t, x_t in enumerate(x):
        y, state = module(x_t.unsqueeze(0), state)
        outputs.append(y)
        parts = (state,) if isinstance(state, torch.Tensor) else state
        parts = [s if keep(t) else s.detach() for s in parts]
        parts = [s.view_as(s) for s in parts]
        entering.append(parts[0])
        state = parts[0] if len(parts) == 1 else tuple(parts)
    found = torch.autograd.grad(
        loss_of(torch.cat(outputs)),
        [h for h in entering if h.requires_grad],
        allow_unused=True,
    )
    norms, each = [], iter(found)
    for h in entering:
        d = next(each) if h.requires_grad else None
        norms.append(torch.zeros(module.num_layers) if d is None else d.flatten(1).norm(dim=1))
    return torch.stack(norms, dim=1).tolist()


MODULES = {
    "tanh": (bptt.RNN, {}),
    "sigmoid, 2 layers": (bptt.RNN, {"nonlinearity": "sigmoid", "num_layers": 2}),
    "gru": (bptt.GRU, {}),
    "lstm, 2 layers": (bptt.LSTM, {"num_layers": 2}),
}


@pytest.mark.parametrize(("kind", "options"), MODULES.values(), ids=MODULES.keys())
def test_the_norms_are_those_of_autograd(engine, kind, options):
    module = module_of(kind, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with norm_hooks.listen() as heard:
        loss_of(module(x)[0]).backward()
    expected = by_autograd(module, x)
    assert len(heard) == module.num_layers
    for report, norms in zip(heard, expected[::-1], strict=True):  # the top layer comes first
        assert report.by_step() == pytest.approx(norms, rel=1e-9)
        assert max(norms) > 1e-3
    names = [n for r in heard for n, p in module.named_parameters() if p is r.weight]
    assert names == [f"weight_hh_l{n}" for n in reversed(range(module.num_layers))]


def test_a_sequence_that_ends_early_counts_until_then(engine):
    module = module_of(bptt.GRU)
    lengths = [T, 4, 2]
    x = torch.randn(T, B, I, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    with norm_hooks.listen() as heard:
        module(packed)[0].data.square().sum().backward()
    squares = torch.zeros(T, dtype=torch.float64)
    for b, length in enumerate(lengths):
        with norm_hooks.listen() as one:
            module(x[:length, b : b + 1])[0].square().sum().backward()
        squares[:length] += torch.tensor(one[0].by_step(), dtype=torch.float64).square()
    assert heard[0].by_step() == pytest.approx(squares.sqrt().tolist(), rel=1e-9)


def test_windows_that_overlap_report_by_their_own_steps(engine):
    """Of a single window it is what the sequence reports; of several, steps before their end."""
    module = module_of(bptt.LSTM)
    x = torch.randn(6, B, I, dtype=torch.float64)
    with norm_hooks.listen() as plain:
        loss_of(module(x)[0][4:]).backward()
    with norm_hooks.listen() as windowed:
        loss_of(module(x, credit=bptt.Truncated(every=2, reach=6))[0][4:]).backward()
    assert windowed[0].by_step() == pytest.approx(plain[0].by_step(), rel=1e-9)


def test_cuts_are_heard(engine):
    module = module_of(bptt.RNN)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with norm_hooks.listen() as heard:
        loss_of(module(x, credit=bptt.Truncated(3))[0]).backward()
    expected = by_autograd(module, x, keep=lambda t: (t + 1) % 3)
    assert heard[0].by_step() == pytest.approx(expected[0], rel=1e-9)


def test_nobody_listens_by_default_and_each_hears_what_happens_within(engine):
    module = module_of(bptt.RNN)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with norm_hooks.listen() as outer:
        loss_of(module(x)[0]).backward()
        with norm_hooks.listen() as inner:
            loss_of(module(x)[0]).backward()
        with pytest.raises(ZeroDivisionError), norm_hooks.listen() as broken:
            raise ZeroDivisionError
        loss_of(module(x)[0]).backward()
    loss_of(module(x)[0]).backward()
    assert [len(heard) for heard in (outer, inner, broken)] == [3, 1, 0]
    assert not norm_hooks._listeners
    assert norm_hooks.room(Steps((1,)), 1, torch.device("cpu")) is None


def test_listening_changes_no_gradient(engine):
    module = module_of(bptt.LSTM)
    x = torch.randn(T, B, I, dtype=torch.float64)
    loss_of(module(x)[0]).backward()
    without = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    with norm_hooks.listen():
        loss_of(module(x)[0]).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), without, strict=True))
