"""What is run again: the same bits, in the planned order, and all as autograd would do it."""

import copy
import gc
import io
import os
import pickle
import threading

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from unrolled import B, H, I, T, given_inputs, make, noise, prepared

import bptt
from bptt import Full, Plan, Randomized, Recompute, Store, Truncated
from bptt._src.unroll.replay import Replay
from bptt.errors import ConfigError

WINDOWS = Truncated(every=2, reach=5)
AGAIN = [Store(segment=2), Recompute(1, segment=2), Recompute(3, segment=1)]


def gradients(module, x, state=None, *, score=torch.Tensor.square, **options):
    module.zero_grad()
    y, _ = bptt.unroll(module, x, state, **options)
    score(y).sum().backward()
    return [p.grad for p in module.parameters()]


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def assert_near(got, want, tolerance=1e-10):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Step(nn.Module):
    """A tanh cell; what a subclass does differently is the test."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(I, H), nn.Linear(H, H)

    def forward(self, x, h):
        h = torch.tanh(self.a(x) + self.b(h))
        return h, h


def network(step=Step):
    return prepared(bptt.Stepwise(step()))


def there_and_back(module, x, memory):
    bptt.unroll(module, x, noise(B, H), memory=memory)[0].sum().backward()


# -------------------------------------------------------------------------------- the same bits


class DroppingStep(Step):
    def forward(self, x, h):
        h = nn.functional.dropout(torch.tanh(self.a(x) + self.b(h)), 0.4, self.training)
        return h, h


DROPPING = {
    "nn.LSTM": (lambda: prepared(nn.LSTM(I, H, 2, dropout=0.5)), None),
    "bptt.LSTM": (lambda: prepared(bptt.LSTM(I, H, 2, dropout=0.5)), None),
    "cell": (lambda: network(DroppingStep), noise(B, H)),
}


@pytest.mark.parametrize("segment", [1, 2, 3, None])
@pytest.mark.parametrize("credit", [Full(), Truncated(3), WINDOWS, Randomized(3)], ids=str)
@pytest.mark.parametrize("kind", DROPPING)
def test_whatever_is_stored_the_bits_are_the_same(kind, credit, segment):
    build, state = DROPPING[kind]
    module, x = build(), given_inputs()
    found = []
    for memory in (Store(segment), *(Recompute(s, segment) for s in (1, 2, 3)), Recompute("1MB")):
        if memory == Recompute("1MB") and segment is not None:
            continue
        torch.manual_seed(11)
        generator = torch.Generator().manual_seed(2)
        grads = gradients(module, x, state, credit=credit, memory=memory, generator=generator)
        found.append([*grads, torch.get_rng_state()])
        assert grads[0].any()
    for other in found[1:]:
        assert_same(other, found[0])


def test_dropout_differs_from_step_to_step_and_is_what_a_call_of_the_module_draws():
    module, x = network(DroppingStep), given_inputs()
    torch.manual_seed(11)
    want = module(x, noise(B, H))[0]
    for memory in (None, Store(segment=1), Recompute(1, segment=1)):
        torch.manual_seed(11)
        assert torch.equal(bptt.unroll(module, x, noise(B, H), memory=memory)[0], want)
    lstm = DROPPING["nn.LSTM"][0]()
    torch.manual_seed(11)
    want = lstm(x)[0]
    for memory in (None, Store(segment=T)):
        torch.manual_seed(11)
        assert torch.equal(bptt.unroll(lstm, x, memory=memory)[0], want)


def test_what_is_drawn_between_the_passes_goes_on_as_if_nothing_had_been():
    module, x = network(DroppingStep), given_inputs()
    drawn = []
    for memory in (Store(segment=1), Recompute(1, segment=1)):
        torch.manual_seed(11)
        y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
        between = torch.rand(1)
        y.sum().backward()
        drawn.append((between, torch.rand(1)))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_an_error_in_the_module_comes_out_and_leaves_the_generator():
    class Failing(DroppingStep):
        calls, last = 0, 10**6

        def forward(self, x, h):
            self.calls += 1
            if self.calls > self.last:
                raise OverflowError("too far")
            return super().forward(x, h)

    module, x = network(Failing), given_inputs()
    module.cell.last = 4
    with pytest.raises(OverflowError, match="too far"):
        bptt.unroll(module, x, noise(B, H), memory=Recompute(1, segment=1))
    module.cell.calls, module.cell.last = 0, 10
    y, _ = bptt.unroll(module, x, noise(B, H), memory=Recompute(1, segment=1))
    torch.rand(3)
    before = torch.get_rng_state()
    with pytest.raises(OverflowError, match="too far"):
        y.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------ the trace


class Tracing(nn.Module):
    """Says which step it is at, from its input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.calls = []

    def forward(self, x, h):
        self.calls.append((int(x[0]), torch.is_grad_enabled()))
        new = torch.sin(self.w * h + x)
        return new, new


@pytest.mark.parametrize("states", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_the_steps_are_evaluated_in_the_planned_order(steps, states):
    tracing = Tracing()
    x = torch.arange(steps, dtype=torch.float64)[:, None]
    h = torch.ones(1, dtype=torch.float64)
    y, _ = bptt.unroll(bptt.Stepwise(tracing), x, h, memory=Recompute(states, segment=1))
    forward = len(tracing.calls)
    y.sum().backward()
    schedule = bptt.memory.schedule(steps, min(states, steps))
    expected = []
    for kind, i, to in schedule.actions():
        if kind == "advance":
            expected += [(t, False) for t in range(i, to)]
        elif kind == "record":
            expected.append((i, True))
    expected[0] = (0, True)  # run with a graph, to see how large it is
    assert tracing.calls == expected
    assert forward == steps
    assert len(tracing.calls) == schedule.advances + steps == schedule.runs.sum()


@pytest.mark.parametrize("states", [1, 2, 4, 7])
def test_the_states_stored_are_as_many_as_allowed_and_no_more(states, monkeypatch):
    most, do = [], Replay._do

    def watched(self, action):
        do(self, action)
        most.append(len(self.stored))
        assert len(self.graphs) <= 1

    monkeypatch.setattr(Replay, "_do", watched)
    steps = 30
    x = torch.randn(steps, B, I, dtype=torch.float64)
    y, _ = bptt.unroll(network(), x, noise(B, H), memory=Recompute(states, segment=1))
    y.sum().backward()
    assert max(most) == states
    assert most[-1] == 0


class Unbatchable(torch.autograd.Function):
    """As a kernel of one's own: NumPy knows nothing of batches."""

    @staticmethod
    def forward(ctx, h):
        return 1.0 * h

    @staticmethod
    def backward(ctx, d):
        return torch.from_numpy(d.numpy().copy())


class OfNumpy(Step):
    def forward(self, x, h):
        h = torch.tanh(self.a(x) + self.b(Unbatchable.apply(h)))
        return h, h


def replays(monkeypatch):
    """All replays that are made from now on."""
    made, original = [], Replay.__post_init__

    def noted(self):
        original(self)
        made.append(self)

    monkeypatch.setattr(Replay, "__post_init__", noted)
    return made


@pytest.mark.parametrize("credit", [WINDOWS, Truncated(every=1, reach=4)], ids=str)
@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_gradients_travel_together_where_they_can_and_else_one_by_one(memory, credit, monkeypatch):
    made, calls, found = replays(monkeypatch), [], []
    together, single = bptt._src.unroll.replay.vjp_together, bptt._src.unroll.replay.vjp
    monkeypatch.setattr(
        bptt._src.unroll.replay,
        "vjp_together",
        lambda *a: (calls.append(len(a[2])), together(*a))[1],
    )
    monkeypatch.setattr(
        bptt._src.unroll.replay, "vjp", lambda *a, **k: (calls.append(1), single(*a, **k))[1]
    )
    x = torch.randn(9, B, I, dtype=torch.float64)
    for step in (Step, OfNumpy):
        calls.clear()
        found.append(gradients(network(step), x, noise(B, H), credit=credit, memory=memory))
        assert made[-1].together is (step is Step)
        batched = [n for n in calls if n > 1]
        if step is Step:  # a batch, and what belongs to all, for each segment; or just the latter
            assert len(calls) == len(made[-1].segments) + len(batched)
            assert max(batched) > 1
        else:
            assert len(batched) == 1  # the one that failed
    assert_near(found[0], found[1], 1e-13)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_windows_cost_what_they_reach_and_no_more(every, monkeypatch):
    """Through each step go as many gradients as windows hold it; the plan says so."""
    steps = 32
    for reach in (8, 16):
        gone = []
        each = Replay._differentiate

        def counted(self, graph, dy, first, end, each=each, gone=gone):
            gone.append((end - first) * len(self.flows))
            assert all(f.block.since <= first < f.block.end for f in self.flows)
            return each(self, graph, dy, first, end)

        monkeypatch.setattr(Replay, "_differentiate", counted)
        x = torch.randn(steps, 1, I, dtype=torch.float64)
        credit = Truncated(every=every, reach=reach)
        for memory in (None, Recompute(2, segment=4)):
            gone.clear()
            gradients(network(), x, noise(1, H), credit=credit, memory=memory)
            plan = credit.plan(steps)
            assert sum(gone) == plan.backward_steps <= steps * reach / every
        monkeypatch.setattr(Replay, "_differentiate", each)


# ---------------------------------------------------------------------- as autograd would do it


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_hooks_of_parameters_and_inputs_see_the_whole_gradient_once(memory):
    seen, accumulated = [], []
    for credit in (Full(), WINDOWS):
        module, x, h = network(), given_inputs().requires_grad_(), noise(B, H).requires_grad_()
        want = [2 * g for g in gradients(module, x, h, credit=credit, memory=memory)]
        want_x, x.grad = x.grad, None
        seen.clear()
        accumulated.clear()
        for p in module.parameters():
            p.register_hook(lambda g: (seen.append(1), 2 * g)[1])
            p.register_post_accumulate_grad_hook(lambda p: accumulated.append(1))
        x.register_hook(lambda g: (seen.append(1), 2 * g)[1])
        assert_same(gradients(module, x, h, credit=credit, memory=memory), want)
        assert_same([x.grad], [2 * want_x])
        assert len(seen) == 5
        assert len(accumulated) == 4


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_hooks_are_there_after_an_error_too(memory):
    class Failing(Step):
        fail = False

        def forward(self, x, h):
            h = super().forward(x, h)[0]
            if h.requires_grad:
                h.register_hook(self.hook)
            return h, h

        def hook(self, g):
            if self.fail:
                raise OverflowError("too far")

    module, x, called = network(Failing), given_inputs(), []
    module.cell.a.weight.register_hook(lambda g: called.append(1))
    module.cell.fail = True
    y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
    with pytest.raises(OverflowError):
        y.sum().backward()
    module.cell.fail = False
    assert not called
    gradients(module, x, noise(B, H), memory=memory)
    assert called == [1]


@pytest.mark.parametrize("memory", [Store(segment=T), *AGAIN], ids=str)
def test_what_changes_between_the_passes_is_noticed(memory):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.step = nn.Embedding(5, I), Step()
            self.scale = nn.Parameter(torch.ones(H), requires_grad=False)

        def forward(self, words, state):
            h, count = state
            y, h = self.step(self.table(words), h * self.scale * count[:, None])
            return y * h, (h, count)  # the product needs the final state

    def change(what):
        module = network(Words)
        words, state = torch.ones(T, B, dtype=torch.int64), (noise(B, H), torch.ones(B).long())
        resets = torch.zeros(T, B) > 0
        resets[3, 1] = what == "resets"  # it cuts; the final state is to be of the first segment
        y, final = bptt.unroll(module, words, state, memory=memory, resets=resets)
        weight, scale = module.cell.step.b.weight, module.cell.scale
        tensors = {
            "inputs": words, "state": state[0], "count": state[1], "parameter": weight,
            "frozen": scale, "resets": resets, "final": final[0],
        }  # fmt: skip
        if what:
            tensors[what].detach().zero_()
        y.sum().backward()

    change(None)
    for what in ("inputs", "state", "count", "parameter", "frozen", "resets", "final"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            change(what)


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_a_second_backward_pass_and_second_derivatives_are_refused(memory):
    for credit in (Full(), WINDOWS):
        x = given_inputs().requires_grad_()
        module = network()
        y, _ = bptt.unroll(module, x, noise(B, H), credit=credit, memory=memory)
        y.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"a second time.*run unroll again.*memory=None"):
            y.sum().backward()
        for score in (torch.sum, lambda y: y.square().sum()):
            y, _ = bptt.unroll(module, x, noise(B, H), credit=credit, memory=memory)
            (g,) = torch.autograd.grad(score(y), x, create_graph=True)
            assert g.any()
            with pytest.raises(RuntimeError, match=r"no second derivative.*use memory=None"):
                (g.square().sum() + x.sum()).backward()
    y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_a_product_under_autograd_has_second_derivatives():
    module, h0 = network(), noise(B, H)

    def f(x):
        return bptt.unroll(module, x, h0, credit=Plan(3, [1, 1, 1]))[0]

    x = given_inputs()[:3].requires_grad_()
    assert torch.autograd.gradgradcheck(f, x)
    g = torch.func.grad(lambda x: f(x).sum())(x.detach())
    assert_near([g], torch.autograd.grad(f(x).sum(), x))
    h = torch.func.vmap(lambda x: f(x).sum())(torch.stack([x.detach(), 2 * x.detach()]))
    assert_near([h[1]], [f(2 * x.detach()).sum()])


@pytest.mark.parametrize("options", [{"memory": Store()}, {"credit": WINDOWS}], ids=str)
def test_transforms_are_refused(options):
    module, h0 = network(), noise(B, H)

    def f(x):
        return bptt.unroll(module, x, h0, **options)[0].sum()

    for transform in (torch.func.grad, torch.func.vmap):
        x = torch.stack([given_inputs()] * 2) if transform is torch.func.vmap else given_inputs()
        with pytest.raises(NotImplementedError, match=r"torch.func.*memory=None.*Truncated\(k\)"):
            transform(f)(x)


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_without_gradients(memory):
    module, x = network(DroppingStep).eval(), given_inputs()
    want = module(x, noise(B, H))[0].detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y, h = bptt.unroll(module, x, noise(B, H), credit=WINDOWS, memory=memory)
        assert not y.requires_grad
        assert torch.equal(y, want)
        assert torch.equal(h, want[-1])
    module.requires_grad_(False)
    y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
    assert not y.requires_grad
    x.requires_grad_()
    y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
    y.sum().backward()
    assert x.grad.any()
    assert not any(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("memory", [None, *AGAIN], ids=str)
def test_some_parameters_unused_frozen_or_given_as_the_state_too(memory):
    class Learnt(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.h0 = Step(), nn.Parameter(noise(H))
            self.tied = self.step
            self.spare = nn.Parameter(torch.ones(3))

        def forward(self, x, h):
            h = torch.tanh(self.step.a(x) + self.tied.b(h) + self.h0)
            return h, h

    module = network(Learnt)
    module.cell.step.a.weight.requires_grad_(False)
    h0, x = module.cell.h0.expand(B, H), given_inputs()
    want = module(x, h0)[0].square().sum()
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    want = torch.autograd.grad(want, list(named.values()), allow_unused=True)
    y, _ = bptt.unroll(module, x, module.cell.h0.expand(B, H), memory=memory)
    y.square().sum().backward()
    for (name, p), g in zip(named.items(), want, strict=True):
        if name == "cell.spare":
            assert p.grad is None
        else:
            assert_near([p.grad], [g])
    assert module.cell.step.a.weight.grad is None


@pytest.mark.parametrize("memory", [None, *AGAIN], ids=str)
def test_the_same_tensor_given_twice(memory):
    class Twice(Step):
        def forward(self, x, state):
            h = torch.tanh(self.a(x[0]) * x[1][..., :1] + self.b(state[0]) * state[1])
            return h, (h, h)

    module = network(Twice)
    grads = []
    for m in (None, memory):
        x, h = given_inputs().requires_grad_(), noise(B, H).requires_grad_()
        y, _ = bptt.unroll(module, (x, x), (h, h), memory=m)
        grads.append(torch.autograd.grad(y.square().sum(), (x, h)))
    assert_near(*grads)


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_a_state_that_the_module_counts_in_place(memory):
    class Counting(Step):
        def forward(self, x, state):
            h, count = state
            count += 1
            h = torch.tanh(self.a(x) + self.b(h) * torch.cos(count.to(h.dtype)))
            return h, (h, count)

    module, found = network(Counting), []
    for m in (None, memory):
        state = noise(B, H), torch.zeros((), dtype=torch.int64)
        y, (_, count) = bptt.unroll(module, given_inputs(), state, memory=m)
        found.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
        assert count == T
    assert_near(*found)


# -------------------------------------------------------------------------- the module as it was


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_the_mode_of_the_forward_pass_holds_in_the_backward_pass(memory):
    found = []
    for switch in (False, True):
        module = network(DroppingStep)
        torch.manual_seed(3)
        y, _ = bptt.unroll(module, given_inputs(), noise(B, H), memory=memory)
        module.train(not switch)
        y.sum().backward()
        assert module.cell.training is (not switch)
        found.append([p.grad for p in module.parameters()])
    assert_same(*found)


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_parameters_that_functional_call_put_in(memory, leaf):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = network()
            self.register_buffer("start", noise(B, H))

        def forward(self, x, memory):
            return bptt.unroll(self.cell, x, self.start, credit=Truncated(4), memory=memory)[0]

    model, x, found = Model(), given_inputs(), []
    fast = {n: (1.3 * p.detach()).requires_grad_() for n, p in model.named_parameters()}
    for m in (None, memory):
        inner = fast if leaf else {n: p * 1 for n, p in fast.items()}
        y = torch.func.functional_call(model, inner, (x, m))
        found.append(torch.autograd.grad(y.square().sum(), list(fast.values())))
    assert_near(*found)
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("memory", [Store(segment=2), Recompute(1, segment=2)], ids=str)
def test_a_tensor_from_outside_cannot_be_run_again(memory):
    step, x = Step().double(), given_inputs()
    outside = step.b.weight * 2

    def always(x, h):
        h = torch.tanh(x @ step.a.weight.T + h @ outside)
        return h, h

    def later(x, h):
        weight = outside if torch.equal(x, x_late) else step.b.weight
        h = torch.tanh(x @ step.a.weight.T + h @ weight)
        return h, h

    x_late = x[4]
    match = r"computed outside of it .by MulBackward0.*compute it inside, or use memory=None"
    for function in (always, later):
        for module in (bptt.Stepwise(function), bptt.Stepwise(function).forward):
            with pytest.raises(RuntimeError, match=match):
                there_and_back(module, x, memory)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("at", range(T))
def test_a_parameter_that_shows_up_late_is_found_or_refused(at, plain):
    """A plain function's parameters are found in the segments that the forward pass records."""
    step, x = Step().double(), given_inputs()
    late = nn.Parameter(torch.full((H,), 0.7, dtype=torch.float64))

    def cell(x_t, h):
        h = torch.tanh(step.a(x_t) + step.b(h))
        return (h * late if torch.equal(x_t, x[at]) else h), h

    module = bptt.Stepwise(cell)
    module = module.forward if plain else module
    (want,) = torch.autograd.grad(bptt.unroll(module, x, noise(B, H))[0].sum(), late)
    for memory in (Store(segment=2), Recompute(1, segment=1)):
        y, _ = bptt.unroll(module, x, noise(B, H), memory=memory)
        if isinstance(memory, Recompute) and at not in (0, T - 1):
            with pytest.raises(RuntimeError, match=rf"steps {at} to {at} use.*\(4,\).*Parameter"):
                y.sum().backward()
        else:
            assert_near(torch.autograd.grad(y.sum(), late), [want])


@pytest.mark.parametrize("memory", [Store(segment=2), Recompute(1, segment=2)], ids=str)
def test_a_module_that_keeps_a_graph_from_call_to_call_is_refused(memory):
    module = network()
    weight_norm(module.cell.a)
    with parametrize.cached(), pytest.raises(RuntimeError, match="computed outside of it"):
        there_and_back(module, given_inputs(), memory)
    want = torch.autograd.grad(module(given_inputs(), noise(B, H))[0].sum(), module.parameters())
    y, _ = bptt.unroll(module, given_inputs(), noise(B, H), memory=memory)
    assert_near(torch.autograd.grad(y.sum(), module.parameters()), want)


def test_one_unroll_inside_another():
    class Outer(nn.Module):
        def __init__(self, memory):
            super().__init__()
            self.inner, self.memory = network(), memory

        def forward(self, x, h):
            return bptt.unroll(self.inner, x, h, memory=self.memory)

    x, h = given_inputs(), noise(B, H)
    want = gradients(network(), x, h, credit=Truncated(4))
    for inner in (None, Store(segment=1), Recompute(1, segment=1)):
        for outer in AGAIN:
            got = gradients(Outer(inner), x, h, credit=Truncated(4), memory=outer)
            assert_near(got, want)


# ------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("memory", AGAIN, ids=str)
def test_what_is_run_again_is_run_under_the_same_autocast(memory):
    seen = []

    class Mixed(Step):
        def forward(self, x, h):
            a = self.a(x)
            seen.append(a.dtype)
            with torch.autocast("cpu", enabled=False):
                h = torch.tanh(a.float() + self.b(h.float()))
            return h, h

    x, h = given_inputs().float(), noise(B, H).float()
    module = network(Mixed).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = module(x, h)[0].sum()
    want = torch.autograd.grad(want, list(module.parameters()))
    seen.clear()
    for earlier in (False, True):
        for inside in (False, True):
            module.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                if earlier:  # a copy of the weight, cast before, without a graph
                    with torch.no_grad():
                        module.cell.a(x)
                y, _ = bptt.unroll(module, x, h, memory=memory)
                if inside:
                    y.sum().backward()
            if not inside:
                y.sum().backward()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    assert module.cell.a(x).requires_grad
            got = [p.grad for p in module.parameters()]
            for n, (a, b) in enumerate(zip(got, want, strict=True)):
                exact = n > 1 and not inside  # what is outside of autocast has all digits
                torch.testing.assert_close(a, b, rtol=1e-6 if exact else 0.04, atol=1e-5)
    assert set(seen) == {torch.bfloat16}

    def plain(x, h):
        return module(x, h)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.cell.a(x)
        y, _ = bptt.unroll(plain, x, h, memory=memory)  # the earlier cast is not "from outside"
    y, _ = bptt.unroll(module, x, h, memory=memory)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.sum().backward()
    assert set(seen) <= {torch.float32}


def test_loops_with_scaled_losses_accumulated_gradients_and_clipping():
    x = torch.randn(3, T, B, I, dtype=torch.float64)

    def train(memory):
        module = network()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            for x_n in x:  # accumulated
                y, _ = bptt.unroll(module, x_n, noise(B, H), credit=WINDOWS, memory=memory)
                (1024 * y.square().mean()).backward()
            for p in module.parameters():
                p.grad /= 1024
            assert nn.utils.clip_grad_norm_(module.parameters(), 0.1) > 0.1
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in module.parameters()]

    want = train(None)
    for memory in AGAIN:
        assert_near(train(memory), want)


# ----------------------------------------------------------------------- threads and processes


def test_threads():
    modules = [network() for _ in range(4)]
    x = [given_inputs(n) for n in range(4)]
    want = [gradients(m, v, noise(B, H), credit=WINDOWS) for m, v in zip(modules, x, strict=True)]
    got = [None] * 4

    def work(n):
        for _ in range(5):
            memory = Recompute(1, segment=1)
            got[n] = gradients(modules[n], x[n], noise(B, H), credit=WINDOWS, memory=memory)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(got, want, strict=True):
        assert_near(a, b)


def test_a_backward_pass_in_another_thread():
    module, x = network(), given_inputs()
    want = gradients(module, x, noise(B, H))
    module.zero_grad()
    h = noise(B, H).requires_grad_()
    for _ in range(300):
        h = h * 1  # so that this thread counts higher than the new one
    y, _ = bptt.unroll(lambda x, s: module(x, s), x, h, memory=Recompute(1, segment=1))
    errors = []

    def work():
        try:
            y.square().sum().backward()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert_near([p.grad for p in module.parameters()], want)


class _Distributed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = network(), nn.Linear(H, 1).double()

    def forward(self, x):
        memory = Recompute(2, segment=1)
        y, _ = bptt.unroll(self.cell, x, noise(1, H), credit=WINDOWS, memory=memory)
        return self.head(y).square().mean()


def _worker(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(_Distributed())
    for _ in range(2):
        model.zero_grad()
        model(given_inputs(rank)[:, :1]).backward()
    torch.save([p.grad for p in model.parameters()], f"{path}/{rank}.pt")
    # At once: torch's own clearing up waits for gloo's threads with the GIL in its hands, and now
    # and then for ever.
    os._exit(0)


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")),
    reason="needs gloo and fork",
)
def test_two_processes_find_the_mean_of_their_gradients(tmp_path):
    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    model = _Distributed()
    (sum(model(given_inputs(rank)[:, :1]) for rank in (0, 1)) / 2).backward()
    want = [p.grad for p in model.parameters()]
    for rank in (0, 1):
        assert_near(torch.load(tmp_path / f"{rank}.pt"), want)


@pytest.mark.filterwarnings("default")
def test_a_compiled_module_may_call_it():
    class Model(nn.Module):
        def __init__(self, memory):
            super().__init__()
            self.cell, self.head, self.memory = network(), nn.Linear(H, 2).double(), memory

        def forward(self, x):
            y, _ = bptt.unroll(self.cell, x * 1, noise(B, H), credit=WINDOWS, memory=self.memory)
            return self.head(y)

    for memory in (None, Recompute(2, segment=2)):
        model = Model(memory)
        found = []
        for run in (model, torch.compile(model, backend="eager")):
            model.zero_grad()
            run(given_inputs()).square().sum().backward()
            found.append([p.grad for p in model.parameters()])
        assert_near(*found)


# ----------------------------------------------------------------------------- what is left over


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("kind", ["nn-LSTM-2-projected", "bptt-RNN-1", "nested", "lambda"])
def test_nothing_of_it_stays(kind, backward):
    case = make(kind)

    def run(memory):
        x, s, _ = case.leaves()
        y, final = bptt.unroll(
            case.wrap(case.module), x, s, credit=WINDOWS, memory=memory, **case.options
        )
        if backward:
            case.losses(y, final).sum().backward()
        case.module.zero_grad()

    def tensors():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    memories = None, Store(segment=1), Recompute(2, segment=2), Recompute(1)
    for memory in memories:  # what is laid out for a shape is kept for the next time
        run(memory)
    gc.collect()
    before = tensors()
    gc.disable()  # nothing waits for the collector
    try:
        for memory in memories:
            run(memory)
        assert tensors() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("memory", [*AGAIN, Recompute("1MB")], ids=str)
def test_after_the_backward_pass_only_what_was_given_is_held(memory, monkeypatch):
    made = replays(monkeypatch)
    y, _ = bptt.unroll(network(), given_inputs(), noise(B, H), credit=WINDOWS, memory=memory)
    y.sum().backward(retain_graph=True)
    (replay,) = made
    assert not replay.graphs
    assert not replay.stored
    assert not replay.flows
    assert replay.ready is None
    assert replay.joined is None


def test_the_module_is_left_as_it_is():
    module = network()
    before = set(vars(module)), set(vars(module.cell))
    y, _ = bptt.unroll(module, given_inputs(), noise(B, H), credit=WINDOWS, memory=Recompute(2))
    y.sum().backward()
    assert (set(vars(module)), set(vars(module.cell))) == before
    other = copy.deepcopy(module)
    third = pickle.loads(pickle.dumps(module))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    assert_same([*other.parameters(), *third.parameters()], [*module.parameters()] * 2)


# -------------------------------------------------------------------------------------- budgets


def test_a_budget_that_is_too_small_says_how_much_it_takes():
    x = torch.randn(20, 50, I, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"1kB is too small.*at least that, or a smaller"):
        bptt.unroll(network(), x, torch.zeros(50, H).double(), memory=Recompute("1kB"))


def test_a_budget_is_measured_in_the_graph_of_a_segment_and_the_states():
    asked = []

    class Asking(Store):
        def schedule(self, segments, *, state_bytes, segment_bytes):
            asked.append((segments, state_bytes, segment_bytes))
            return super().schedule(segments, state_bytes=state_bytes, segment_bytes=segment_bytes)

    x, h = given_inputs(), noise(B, H)
    random = torch.get_rng_state().nbytes
    bptt.unroll(network(), x, h, memory=Asking(1))
    bptt.unroll(network(), x, h, memory=Asking(2))
    bptt.unroll(network(), x, h, memory=Asking())
    state = 8 * B * H
    assert [a[:2] for a in asked] == [(n, state + random) for n in (7, 4, 3)]
    # Of each step tanh's result is needed; of the first, the initial state, too, which is h0.
    assert [a[2] for a in asked] == [2 * state, 3 * state, 4 * state]


@pytest.mark.parametrize(("steps", "segments"), [(1, 1), (2, 1), (9, 3), (10, 3), (300, 17)])
def test_segments_are_as_many_as_long_where_nothing_is_said(steps, segments, monkeypatch):
    made = replays(monkeypatch)
    state = torch.zeros(1, 1)
    bptt.unroll(lambda x, s: (x, s), torch.zeros(steps, 1), state, memory=Store())
    assert len(made[0].segments) == segments
    bptt.unroll(lambda x, s: (x, s), torch.zeros(128 * 130, 1), state, memory=Store())
    assert len(made[1].segments) == 130
