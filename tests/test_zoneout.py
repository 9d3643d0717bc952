"""Zoneout: any cell against a loop in plain torch with the same masks, however it is called."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from bptt._src.dropout import numbered
from bptt._src.layers import Layers
from bptt._src.stepping import SingleSteps, takes
from bptt.cells import CELLS
from bptt.errors import ConfigError

I, H, T, B = 3, 5, 9, 4
F64 = {"dtype": torch.float64}
BOTH = ("native", "twin") if bptt.kernels.backend().name == "native" else ("twin",)
WINDOWS = "truncated:every=2,reach=4"


def own(x, h, state, u):
    slow = torch.sigmoid(x[1]) * state[1] + torch.tanh(x[0] + h[0] + u[0] * state[1])
    return torch.tanh(slow) + 0.1 * state[0], slow


OWN = bptt.Cell("OWN", gates_x=2, gates_h=1, equations=own, states=2, units=1)


@pytest.fixture
def drawn(monkeypatch):
    """The masks that are drawn, in order, each [T, B, masks·H] or [N, masks·H]."""
    found, draw = [], Layers._masks

    def listening(self, like, rows):
        found.append(draw(self, like, rows))
        return found[-1]

    monkeypatch.setattr(Layers, "_masks", listening)
    return found


def masks_of_states(cell, rates, masks):
    """For each tensor of the state its mask, [..., H], by the definition, or None."""
    each, found = iter(masks.split(H, -1)), []
    for s, p in enumerate(rates):
        tied = [r for r in range(s) if r in cell.tied and s in cell.tied]
        found.append(found[tied[0]] if tied else next(each) if p else None)
    assert next(each, None) is None
    return found


def plain(module, x, rates, masks, sizes=None, resets=None, start=None):
    """A loop over the steps of all layers and directions, with these masks."""
    cell, sizes, masks = module.cell, sizes or [B] * T, iter(masks)
    rows = list(x.split(sizes))
    directions = (False, True) if module.bidirectional else (False,)
    finals = []
    for layer in range(module.num_layers):
        outputs = []
        for reverse in directions:
            w, of_each = module._weights(layer, reverse), masks_of_states(cell, rates, next(masks))
            each = [None if m is None else m.reshape(-1, H).split(sizes) for m in of_each]
            n = len(finals)
            state = [
                torch.zeros(B, H, **F64) if start is None else s[n]
                for s in start or [0] * cell.states
            ]
            y = [None] * len(rows)
            for t in reversed(range(len(rows))) if reverse else range(len(rows)):
                boundary = t + 1 if reverse else t
                if resets is not None and boundary < len(rows):
                    state = [torch.where(resets[boundary].unsqueeze(1), 0.0, s) for s in state]
                before = tuple(s[: sizes[t]] for s in state)
                after = cell.step(rows[t], before, w)
                after = [
                    a if m is None else m[t] * b + (1 - m[t]) * a
                    for m, b, a in zip(each, before, after, strict=True)
                ]
                y[t] = after[0]
                state = [torch.cat([a, s[sizes[t] :]]) for a, s in zip(after, state, strict=True)]
            outputs.append(y)
            finals.append(state)
        rows = [torch.cat(each, -1) for each in zip(*outputs, strict=True)]
    return [torch.cat(rows), *(torch.stack(s) for s in zip(*finals, strict=True))]


def gradients(results, leaves):
    """All results, and all gradients of a loss that weighs each number differently."""
    loss = sum(
        (r * torch.arange(1.0, r.numel() + 1, **F64).sin().view_as(r)).sum() for r in results
    )
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    zeros = (torch.zeros_like(t) if d is None else d for d, t in zip(found, leaves, strict=True))
    return [*results, *zeros]


def rows_of(module, x, **options):
    y, final = module(x, **options)
    y = y.data if isinstance(y, PackedSequence) else y.flatten(0, 1)
    return [y, *(final if isinstance(final, tuple) else (final,))]


def check(module, x, expected, found):
    leaves = [x, *module.parameters()]
    for a, b in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def inputs():
    torch.manual_seed(0)
    return torch.randn(T, B, I, **F64, requires_grad=True)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("cell", [*CELLS, OWN], ids=lambda cell: cell.name)
def test_every_cell_is_a_plain_loop_with_the_same_masks(cell, kernels, drawn):
    x, module = inputs(), bptt.Recurrent(cell, I, H, zoneout=0.3, **F64)
    with bptt.kernels.use(kernels):
        found = rows_of(module, x)
        assert kernels == "twin" or bptt.kernels.not_native(module) is None
        check(module, x, plain(module, x.flatten(0, 1), module.zoneout, drawn), found)
    assert 0.1 < drawn[0].mean() < 0.5


MODULES = {
    "rnn": lambda **o: bptt.RNN(I, H, zoneout=0.4, **F64, **o),
    "gru": lambda **o: bptt.GRU(I, H, zoneout=0.4, **F64, **o),
    "lstm": lambda **o: bptt.LSTM(I, H, zoneout=(0.2, 0.5), **F64, **o),
    "c alone": lambda **o: bptt.LSTM(I, H, zoneout=(0, 0.5), **F64, **o),
    "own": lambda **o: bptt.Recurrent(OWN, I, H, zoneout=0.4, **F64, **o),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}]
)
def test_layers_directions_and_resets(name, options, drawn):
    x, module = inputs(), MODULES[name](**options)
    resets = torch.rand(T, B) < 0.3
    masks = drawn
    expected = lambda: plain(module, x.flatten(0, 1), module.zoneout, masks, resets=resets)  # noqa: E731
    found = rows_of(module, x, resets=resets)
    assert len(drawn) == module.num_layers * (1 + module.bidirectional)
    check(module, x, expected(), found)


def test_packed_sequences_hold_what_has_ended(drawn):
    torch.manual_seed(0)
    lengths, module = (3, 9, 6, 5), MODULES["lstm"](num_layers=2, bidirectional=True)
    packed = pack_sequence([torch.randn(n, I, **F64) for n in lengths], enforce_sorted=False)
    x = packed.data.detach().requires_grad_()
    y, *final = rows_of(module, packed._replace(data=x))
    sizes = packed.batch_sizes.tolist()
    expected = plain(module, x, module.zoneout, drawn, sizes)
    expected[1:] = [s.index_select(1, packed.unsorted_indices) for s in expected[1:]]
    check(module, x, expected, [y, *final])


def step_of(module, rates):
    """One step of a layer in plain torch, whose masks come beside its input."""

    def step(inputs, state):
        x, *masks = inputs
        state = state if isinstance(state, tuple) else (state,)
        after = module.cell.step(x, tuple(s[0] for s in state), module._weights(0, False))
        after = [m * b[0] + (1 - m) * a for m, b, a in zip(masks, state, after, strict=True)]
        return after[0], tuple(a[None] for a in after)

    return bptt.Stepwise(step, state_batch_dim=1)


@pytest.mark.parametrize("credit", ["truncated:3", WINDOWS, "truncated:every=1,reach=5"])
@pytest.mark.parametrize("name", ["lstm", "own"])
def test_a_credit_is_that_of_a_plain_step_with_the_same_masks(name, credit, drawn):
    x, module = inputs(), MODULES[name]()
    y, final = module(x, credit=credit)
    masks = masks_of_states(module.cell, module.zoneout, drawn[0].detach())
    zeros = tuple(torch.zeros(1, B, H, **F64) for _ in range(2))
    expected = bptt.unroll(step_of(module, None), (x, *masks), zeros, credit=credit)
    check(module, x, [expected[0], *expected[1]], [y, *final])


def test_in_a_stack_the_copies_of_a_step_in_several_windows_have_the_same_masks(drawn):
    """They differ in gradient alone, so that outputs are those of one pass without windows."""
    x, module = inputs(), MODULES["lstm"](num_layers=3)
    found = rows_of(module, x, credit=WINDOWS)
    expected = plain(module, x.flatten(0, 1), module.zoneout, drawn)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.manual_seed(1)
    whole = gradients(rows_of(module, x), [x, *module.parameters()])
    torch.manual_seed(1)  # windows that reach all the way lose nothing
    reaching = rows_of(module, x, credit=f"truncated:every=2,reach={T + 1}")
    for a, b in zip(gradients(reaching, [x, *module.parameters()]), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_carry_is_a_factor_of_the_gradient_that_crosses(drawn):
    x, module = inputs(), MODULES["lstm"]()
    carry = (torch.arange(T) % 4 != 0).double()
    found = rows_of(module, x, carry=carry)
    masks, state, parts = drawn[0], None, []
    for t in range(0, T, 4):
        piece = plain_part(module, x[t : t + 4], masks[t : t + 4], state)
        parts.append(piece[0])
        state = [s.detach() for s in piece[1:]]
    expected = [torch.cat(parts), *piece[1:]]
    check(module, x, expected, found)


def plain_part(module, x, masks, state):
    sizes = [B] * len(x)
    return plain(module, x.flatten(0, 1), module.zoneout, [masks], sizes, start=state)


def test_memory_recomputes_with_the_same_masks(drawn):
    module, x = MODULES["lstm"](num_layers=2), inputs()
    y, (h, c) = bptt.unroll(module, x, memory="recompute:30KB,segment=2")
    forward = len(drawn)
    masks = [torch.cat(drawn[:forward][layer::2]) for layer in (0, 1)]
    expected = plain(module, x.flatten(0, 1), module.zoneout, masks)
    check(module, x, expected, [y.flatten(0, 1), h, c])
    assert forward == 2 * 5  # segments of two steps, of nine
    assert len(drawn) > forward  # some of them were drawn again


def test_torchs_seed_decides_and_every_call_draws_anew():
    module, x, found = MODULES["gru"](), inputs(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append([module(x)[0], module(x)[0]])
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][0], found[2][0])


def test_masks_of_numbered_sequences_belong_to_the_sequences():
    module, x = MODULES["lstm"](num_layers=2), inputs().detach()
    whole = []
    for rows in (slice(0, 4), slice(2, 4)):
        torch.manual_seed(5)
        with numbered(range(7 + rows.start, 7 + rows.stop)):
            whole.append(module(x[:, rows])[0])
    torch.testing.assert_close(whole[0][:, 2:], whole[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kernels", BOTH)
def test_evaluation_is_the_mean_over_the_masks(kernels):
    """s_t = p s_{t-1} + (1 - p) s'_t, by the equations of an LSTM written out."""
    module, x = bptt.LSTM(I, H, zoneout=(0.2, 0.5), **F64).eval(), inputs()
    h, c, y = torch.zeros(B, H, **F64), torch.zeros(B, H, **F64), []
    W, U = module.weight_ih_l0, module.weight_hh_l0
    for x_t in x:
        a = x_t @ W.t() + module.bias_ih_l0 + h @ U.t() + module.bias_hh_l0
        i, f, g, o = a.chunk(4, 1)
        new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h, c = 0.2 * h + 0.8 * o.sigmoid() * new.tanh(), 0.5 * c + 0.5 * new
        y.append(h)
    with bptt.kernels.use(kernels):
        check(module, x, [torch.cat(y), h[None], c[None]], rows_of(module, x))
        assert torch.equal(module(x)[0], module(x)[0])


def test_the_mean_over_many_masks_is_that_of_evaluation():
    """Exactly so for one step from a given state; 20,000 sequences that differ in their masks."""
    module, many = bptt.LSTM(I, H, zoneout=(0.2, 0.6), **F64), 20_000
    torch.manual_seed(0)
    x = torch.randn(1, 1, I, **F64).expand(1, many, I)
    state = tuple(torch.randn(1, 1, H, **F64).expand(1, many, H).contiguous() for _ in range(2))
    with torch.no_grad():
        _, drawn = module(x, state)
        _, mean = module.eval()(x, state)
    for some, expected in zip(drawn, mean, strict=True):
        error = some.std(1) / many**0.5
        assert bool(((some.mean(1) - expected[:, 0]).abs() < 4.5 * error).all())
        assert bool((error > 0).all())


def test_masks_are_new_for_each_state_step_sequence_unit_layer_and_direction(drawn):
    module = bptt.LSTM(I, 50, num_layers=2, bidirectional=True, zoneout=(0.1, 0.4))
    module(torch.randn(40, 30, I))
    every = torch.stack(drawn).unflatten(-1, (2, 50))  # [4, 40, 30, 2, 50]
    assert every.shape == (4, 40, 30, 2, 50)
    assert bool(((every == 0) | (every == 1)).all())
    shares = every.mean((0, 1, 2, 4))
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.4]), atol=0.005, rtol=0)
    for dim in (0, 1, 2, 4):  # neighbours agree as often as chance has it
        n = every.shape[dim] - 1
        same = (every.narrow(dim, 0, n) == every.narrow(dim, 1, n)).float().mean((0, 1, 2, 4))
        torch.testing.assert_close(same, torch.tensor([0.82, 0.52]), atol=0.01, rtol=0)
    h, c = every.unbind(3)
    assert abs(float((h == c).float().mean()) - (0.9 * 0.6 + 0.1 * 0.4)) < 0.01


def test_tied_tensors_of_a_state_are_kept_together():
    module = bptt.Recurrent(bptt.cells.LRU, I, H, zoneout=0.5, **F64)
    start = tuple(torch.randn(1, B, H, **F64) for _ in range(2))
    _, (h, k) = module(torch.randn(1, B, I, **F64), start)
    kept = h == start[0]
    assert torch.equal(kept, k == start[1])
    assert 0 < int(kept.sum()) < kept.numel()


OUTPUTS = {
    "relu": (bptt.cells.RATE, torch.relu),
    "tanh": (bptt.cells.make_rate(0.4, torch.tanh), torch.tanh),
    "learnt": (bptt.cells.make_rate(None, torch.tanh), torch.tanh),
    "spikes": (bptt.cells.make_lif(beta=0.8), lambda v: (v > 1).double()),
}


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_is_a_function_of_the_state_remains_so(name, training, kernels):
    (cell, phi), x = OUTPUTS[name], 3 * inputs()
    module = bptt.Recurrent(cell, I, H, zoneout=0.4, **F64).train(training)
    with bptt.kernels.use(kernels):
        assert kernels == "twin" or bptt.kernels.not_native(module) is None
        r, last, ((_, v),) = module(x, return_states=True)
    torch.testing.assert_close(r, phi(v), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last[0], phi(last[1]), rtol=1e-12, atol=1e-12)
    assert r.abs().sum() > 0
    kept = (v[1:] == v[:-1]).double().mean()
    assert (0.3 < kept < 0.5) if training else kept == 0


def test_in_evaluation_the_current_is_the_mean_and_the_rate_is_its_function():
    """x_t = p x_{t-1} + (1 - p) x'_t and r_t = φ(x_t), with all gradients."""
    cell = bptt.cells.make_rate(0.4, torch.tanh)
    module, x = bptt.Recurrent(cell, I, H, zoneout=0.3, **F64).eval(), inputs()
    r, v, y = torch.zeros(B, H, **F64), torch.zeros(B, H, **F64), []
    for x_t in x:
        _, new = cell.step(x_t, (r, v), module._weights(0, False))
        v = 0.3 * v + 0.7 * new
        r = v.tanh()
        y.append(r)
    check(module, x, [torch.cat(y), r[None], v[None]], rows_of(module, x))


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("cell", [bptt.cells.make_rate(None, torch.tanh), bptt.cells.SLSTM])
def test_gradients_of_a_cells_own_mean(cell, kernels):
    module, x = bptt.Recurrent(cell, I, H, zoneout=0.3, **F64).eval(), inputs()
    with bptt.kernels.use(kernels):
        assert torch.autograd.gradcheck(lambda x, *w: module(x)[0], (x, *module.parameters()))


@pytest.mark.parametrize("kernels", BOTH)
def test_the_mean_of_an_slstm_is_that_of_what_its_state_stands_for(kernels):
    """Which is exp(m) times c and n: how each is scaled must not matter."""
    module, many = bptt.Recurrent(bptt.cells.SLSTM, I, H, zoneout=(0, *(0.4,) * 3), **F64), 20_000
    torch.manual_seed(0)
    x = torch.randn(1, 1, I, **F64).expand(1, many, I)
    h, c, n, m = (torch.randn(1, 1, H, **F64).expand(1, many, H).contiguous() for _ in range(4))
    with torch.no_grad(), bptt.kernels.use(kernels):
        _, drawn = module(x, (h, c, n, m))
        _, mean = module.eval()(x, (h, c, n, m))
        _, scaled = module(x, (h, c * m.exp(), n * m.exp(), torch.zeros_like(m)))
    for k in (1, 2):
        some, expected, same = (s[k][0] * s[3][0].exp() for s in (drawn, mean, scaled))
        error = some.std(0) / many**0.5
        assert bool(((some.mean(0) - expected[0]).abs() < 4.5 * error).all())
        assert bool((error > 0).all())
        torch.testing.assert_close(same, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "own"])
def test_derivatives_of_derivatives(name, drawn):
    x, module = inputs(), MODULES[name]()
    loss = lambda y: y[0].square().sum()  # noqa: E731
    found = rows_of(module, x)
    expected = plain(module, x.flatten(0, 1), module.zoneout, drawn)
    seconds = []
    for y in (found, expected):
        (d,) = torch.autograd.grad(loss(y), x, create_graph=True)
        seconds.append(torch.autograd.grad(d.square().sum(), [*module.parameters()]))
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["lstm", "own"])
def test_forward_mode_is_the_difference_of_two_calls_with_one_seed(name):
    module, x, way = MODULES[name](), inputs().detach(), torch.randn(T, B, I, **F64)

    def run(x):
        torch.manual_seed(7)
        return module(x)[0]

    _, found = torch.func.jvp(run, (x,), (way,))
    step = 1e-6
    expected = (run(x + step * way) - run(x - step * way)).detach() / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["lstm", "own"])
def test_steps_one_by_one_as_in_sampling_give_the_mean(name):
    module, x = MODULES[name](num_layers=2), inputs().detach()
    assert not takes(module)  # no masks there
    assert takes(module.eval())
    run = SingleSteps(module, tuple(torch.zeros(2, B, H, **F64) for _ in range(2)))
    found = []
    for x_t in x.split(1):
        run(x_t)
        found.append(run.output.clone())
    torch.testing.assert_close(torch.cat(found), module(x)[0], rtol=1e-12, atol=1e-14)


def test_each_state_after_each_step_is_given_out(drawn):
    x, module = inputs(), MODULES["lstm"]()
    y, (_, c_n), ((h, c),) = module(x, return_states=True)
    assert torch.equal(y, h)
    assert torch.equal(c[-1], c_n[0])
    m = drawn[0][1:, :, H:] == 1
    assert torch.equal(c[1:][m], c[:-1][m])
    assert not bool((c[1:] == c[:-1])[~m].any())


@pytest.mark.parametrize("cell", [bptt.cells.MIN_LSTM, bptt.cells.LRU], ids=lambda c: c.name)
def test_online_credit_is_exact_with_masks(cell, drawn):
    x, module = inputs().detach(), bptt.Recurrent(cell, I, H, zoneout=0.4, **F64)
    state, total = None, 0.0
    weights = list(module.parameters())
    for part in x.split(2):
        y, state = module(part, state, credit="online")
        total = total + (y * y.detach().cos()).sum()
        torch.autograd.backward((y * y.detach().cos()).sum())
    found = [w.grad for w in weights]
    masks = [torch.cat(drawn)]
    y = plain(module, x.flatten(0, 1), module.zoneout, masks)[0]
    expected = torch.autograd.grad((y * y.detach().cos()).sum(), weights, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def followed(module, x, masks):
    """The outputs, and the states that each step hands to the next one, [layer][t]."""
    rows, found = x, []
    for n in range(module.num_layers):
        w, of_each = (
            module._weights(n, False),
            masks_of_states(module.cell, module.zoneout, masks[n]),
        )
        state, y = tuple(torch.zeros(B, H, **F64) for _ in range(2)), []
        found.append([])
        for t in range(T):
            after = module.cell.step(rows[t], state, w)
            given = zip(of_each, state, after, strict=True)
            new = [(m[t] * b + (1 - m[t]) * a).requires_grad_() for m, b, a in given]
            y.append(new[0])
            state = tuple(s.view_as(s) for s in new)  # what comes back over later steps alone
            found[n].append(state)
        rows = torch.stack(y)
    return rows, found


@pytest.mark.parametrize("losses", ["all", "one"])  # each step as a matrix; windows side by side
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_flow_is_that_of_the_masks_drawn(losses, training, drawn):
    """In training mode that of one draw, in evaluation that of the mean."""
    x, module = inputs().detach(), MODULES["lstm"](num_layers=2).train(training)
    times = None if losses == "all" else [T - 1]
    flow = bptt.gradient_flow(module, x, times=times, loss_fn=lambda y: y.square().sum(-1))
    assert len(drawn) == (2 if training else 0)
    shares = [torch.tensor(module.zoneout, **F64).repeat_interleave(H).expand(T, B, 2 * H)] * 2
    y, states = followed(module, x, [m.view(T, B, -1) for m in drawn] or shares)
    loss = y[-1].square().sum()
    for n in range(2):
        for k, name in enumerate(("hidden", "cell")):
            of_each = [state[k] for state in states[n]]
            each = torch.autograd.grad(loss, of_each, retain_graph=True, allow_unused=True)
            for s in range(T - 1):
                expected = each[s].norm(dim=1).mean()
                found = flow.of(layer=n, name=name)[-1, s]
                assert float(found) == pytest.approx(float(expected), rel=1e-8)


def test_every_check_of_a_module_passes():
    result = bptt.check_module(MODULES["lstm"](batch_first=True), torch.randn(2, T, I, **F64))
    assert not result.wrong, result


def test_the_rates_may_be_changed():
    torch.manual_seed(0)
    module, x = bptt.GRU(I, H, zoneout=0.1), torch.randn(T, B, I)
    module.zoneout = 0.9
    assert module.zoneout == (0.9,)
    y, _ = module(x)
    assert float((y[1:] == y[:-1]).float().mean()) > 0.8
    with pytest.raises(ValueError, match=r"bptt\.GRU: zoneout"):
        module.zoneout = 1.5
    module.zoneout = 0
    assert module.zoneout == ()
    assert not bool((module(x)[0][1:] == y[:-1]).any())


def test_without_zoneout_nothing_is_drawn_and_nothing_changes(drawn):
    torch.manual_seed(0)
    one, other = bptt.LSTM(I, H, zoneout=0.0), bptt.LSTM(I, H)
    other.load_state_dict(one.state_dict())
    assert one.zoneout == () == bptt.convert(torch.nn.LSTM(I, H)).zoneout
    x = torch.randn(T, B, I)
    assert torch.equal(one(x)[0], other(x)[0])
    assert not drawn
    assert one._stepped() is bptt.cells.BY_NAME["LSTM"]


def test_copies_pickles_and_text():
    module = bptt.LSTM(I, H, zoneout=(0.1, 0.2)).eval()
    x = torch.randn(T, B, I)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x)[0], module(x)[0])
        assert other.zoneout == (0.1, 0.2)
    assert "zoneout=(0.1, 0.2)" in repr(module)
    assert "zoneout=(0.3,)" in repr(bptt.Recurrent(bptt.cells.MGU, I, H, zoneout=0.3))
    assert "zoneout" not in repr(bptt.LSTM(I, H))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: bptt.GRU(I, H, zoneout=1.0),
            r"bptt\.GRU: zoneout must be a number from 0 to below 1",
        ),
        (lambda: bptt.LSTM(I, H, zoneout=(0.1,)), r"a tuple of 2, .*state of LSTM, got \(0.1,\)"),
        (lambda: bptt.RNN(I, H, zoneout=-0.1), "got -0.1"),
        (
            lambda: bptt.LSTM(I, H, proj_size=2, zoneout=0.1),
            "h is projected.*first zoneout must be 0",
        ),
        *(
            (
                lambda zoneout=zoneout: bptt.Recurrent(
                    bptt.cells.RATE, I, H, proj_size=2, zoneout=zoneout
                ),
                "h is projected.*belong to it: leave zoneout or proj_size out",
            )
            for zoneout in (0.1, (0, 0.1))
        ),
        (
            lambda: bptt.Recurrent(bptt.cells.RATE, I, H, zoneout=(0, 0.1)),
            "tensors 0, 1 in the state of RATE belong together",
        ),
        (
            lambda: bptt.Recurrent(dataclasses.replace(OWN, masks=1), I, H),
            "only zoneout makes masks",
        ),
        (
            lambda: dataclasses.replace(OWN, tied=(0, 2)),
            r"tied names tensors .*, 0 to 1, .*\(0, 2\)",
        ),
        (
            lambda: bptt.Recurrent(bptt.cells.SLSTM, I, H, zoneout=(0, 0.1, 0.1, 0.2)),
            "tensors 1, 2, 3 in the state of SLSTM belong together",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_with_a_projection_c_can_be_kept(drawn):
    x, module = inputs(), bptt.LSTM(I, H, proj_size=2, zoneout=(0, 0.5), **F64)
    y, _ = module(x)
    h, c, w, expected = (
        torch.zeros(B, 2, **F64),
        torch.zeros(B, H, **F64),
        module._weights(0, False),
        [],
    )
    for x_t, m in zip(x, drawn[0], strict=True):
        h, new = module.cell.step(x_t, (h, c), w)
        c = torch.where(m == 1, c, new)
        expected.append(h)
    check(module, x, [torch.stack(expected)], [y])


def test_torch_has_no_such_modules():
    with pytest.raises(ConfigError, match=r"torch\.nn has no such modules as .*zoneout"):
        bptt.convert(torch.nn.Sequential(bptt.LSTM(I, H, zoneout=0.1)), to="torch")
