"""The online credit: chunks of any length add up to backpropagation through the whole stream."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bptt
from bptt.credit import OnlineState
from bptt.errors import ConfigError

double = {"dtype": torch.float64}


def two_states(x, h, state, units):
    """Tensors of the state that see each other, and units of weights."""
    a = torch.tanh(x[0] + units[0] * state[0] + 0.3 * state[1])
    return a, torch.sigmoid(x[1]) * state[1] + units[1] * state[0]


CELLS = [
    bptt.cells.MIN_GRU,
    bptt.cells.MIN_LSTM,
    bptt.cells.LRU,
    bptt.Cell("INDEPENDENT", 1, 0, lambda x, h, s, u: (torch.tanh(x[0] + u[0] * s[0]),), units=1),
    bptt.Cell("TWO_STATES", 2, 0, two_states, states=2, units=2),
]
EACH = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
ENGINES = pytest.mark.parametrize("engine", ["native", "twin"])


def network_of(cell, **options):
    torch.manual_seed(0)
    network = bptt.Recurrent(cell, 3, 4, **double, **options)
    for name, p in network.named_parameters():
        if "units" in name and cell.draw is None:
            torch.nn.init.uniform_(p, 0.7, 0.9)  # memory that outlasts a chunk
        elif "bias_ih" in name and cell.keeping is not None:
            bptt.init.forget_bias_(network, 2.0)
    return network


def parameters(network):
    return [p for p in network.parameters() if p.numel()]


def drawn_chunks(total: int, seed: int) -> list[int]:
    rng, found = random.Random(seed), []
    while sum(found) < total:
        found.append(min(rng.choice([1, 1, 2, 5, 9]), total - sum(found)))
    return found


def loss_of(y: Tensor, t: int) -> Tensor:
    """Another one at each step."""
    at = torch.arange(t, t + len(y), **double).view(-1, *(1,) * (y.dim() - 1))
    return (y.sin() * (1 + at).cos()).sum()


def by_chunks(network, x, chunks, resets=None, state=None, states_too=False):
    """Return the gradients of all parameters, summed over the chunks, and the last state."""
    network.zero_grad()
    t = 0
    for n in chunks:
        at = None if resets is None else resets[t : t + n]
        y, state, *each = network(
            x[t : t + n], state, credit="online", resets=at, return_states=states_too
        )
        loss = loss_of(y, t)
        if states_too:
            loss = loss + sum(s.square().sum() for s in each[0][0])
        loss.backward()
        t += n
    return [p.grad.clone() for p in parameters(network)], state


def whole(network, x, resets=None, states_too=False):
    network.zero_grad()
    y, state, *each = network(x, resets=resets, return_states=states_too)
    loss = loss_of(y, 0)
    if states_too:
        loss = loss + sum(s.square().sum() for s in each[0][0])
    loss.backward()
    return [p.grad.clone() for p in parameters(network)], state


def assert_same(found, expected, rtol=1e-10, atol=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@EACH
@ENGINES
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_chunks_add_up_to_the_whole(cell, engine, with_resets, seed):
    network = network_of(cell)
    x = torch.randn(40, 3, 3, **double)
    resets = torch.rand(40, 3) < 0.08 if with_resets else None
    with bptt.kernels.use(engine):
        expected, final = whole(network, x, resets, states_too=True)
        chunks = drawn_chunks(40, seed)
        found, state = by_chunks(network, x, chunks, resets, states_too=True)
    assert_same(found, expected)
    ours = state.state
    for a, b in zip(
        (ours,) if cell.states == 1 else ours, (final,) if cell.states == 1 else final, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@EACH
def test_the_past_matters(cell):
    """Without the sensitivities the same chunks find another gradient, so there is one to test."""
    network, x = network_of(cell), torch.randn(40, 3, 3, **double)
    expected, _ = whole(network, x)
    found, state = None, None
    network.zero_grad()
    for t, part in enumerate(x.split(5)):
        y, state = network(part, state, credit="online")
        loss_of(y, 5 * t).backward()
        state = state.detach().state  # forgets
    found = [p.grad for p in parameters(network)]
    assert all((a - b).norm() > 1e-2 * b.norm() for a, b in zip(found, expected, strict=True))


@EACH
def test_against_finite_differences(cell):
    """Of the last chunk's loss alone, in a direction of all weights at once."""
    network, x = network_of(cell), torch.randn(12, 2, 3, **double)
    state = None
    for part in x[:9].split(2):
        _, state = network(part, state, credit=bptt.Online())
    y, _ = network(x[9:], state, credit="online")
    found = torch.autograd.grad(y.sin().sum(), parameters(network))
    torch.manual_seed(3)
    ways = [torch.randn_like(p) for p in parameters(network)]

    def value(step: float) -> float:
        for p, way in zip(parameters(network), ways, strict=True):
            p.data += step * way
        out = network(x)[0][9:].sin().sum().item()
        for p, way in zip(parameters(network), ways, strict=True):
            p.data -= step * way
        return out

    step = 1e-5
    slope = (value(step) - value(-step)) / (2 * step)
    assert sum((a * b).sum() for a, b in zip(found, ways, strict=True)) == pytest.approx(
        slope, rel=1e-7
    )


@EACH
def test_the_sensitivities_are_the_jacobian_of_the_state(cell):
    network, x = network_of(cell), torch.randn(7, 2, 3, **double)
    state = None
    for part in x.split(3):
        _, state = network(part, state, credit="online")
    _, final = network(x)
    tensors = (final,) if cell.states == 1 else final
    w, b = network.weight_ih_l0, network.bias_ih_l0
    u = network.weight_units_l0 if cell.units else None
    for s, t in enumerate(tensors):
        for n in range(2):
            for h in range(4):
                of = [p for p in (w, b, u) if p is not None]
                d_w, d_b, *d_u = torch.autograd.grad(t[0, n, h], of, retain_graph=True)
                rows = slice(h, None, 4)
                expected = torch.cat([d_w, d_b[:, None]], 1)[rows]
                torch.testing.assert_close(state.of_input[s, n, rows], expected)
                if d_u:
                    torch.testing.assert_close(state.of_units[s, n, rows], d_u[0].reshape(-1)[rows])


@pytest.mark.parametrize("how", [{"batch_first": True}, {"bias": False}])
def test_layouts(how):
    network, x = network_of(CELLS[-1], **how), torch.randn(20, 3, 3, **double)
    time = 1 if how.get("batch_first") else 0
    x = x.transpose(0, time)
    network(x)[0].sin().sum().backward()
    expected = [p.grad.clone() for p in parameters(network)]
    network.zero_grad()
    state = None
    for part in x.split(6, dim=time):
        y, state = network(part, state, credit="online")
        y.sin().sum().backward()
    assert_same([p.grad for p in parameters(network)], expected)


def test_without_a_batch():
    network, x = network_of(CELLS[0]), torch.randn(20, 3, **double)
    expected, final = whole(network, x)
    found, state = by_chunks(network, x, [5] * 4)
    assert_same(found, expected)
    assert state.state.shape == final.shape == (1, 4)


def test_losses_on_the_final_state_flow_too():
    network, x = network_of(CELLS[2]), torch.randn(20, 3, 3, **double)
    _, (h, k) = network(x)
    (h.sin() + k.cos()).sum().backward()
    expected = [p.grad.clone() for p in parameters(network)]
    network.zero_grad()
    state = None
    for part in x.split(5):
        _, state = network(part, state, credit="online")
    (state.state[0].sin() + state.state[1].cos()).sum().backward()
    assert_same([p.grad for p in parameters(network)], expected)


def test_it_begins_from_any_initial_state():
    network, x = network_of(CELLS[0]), torch.randn(20, 3, 3, **double)
    h_0 = torch.randn(1, 3, 4, **double)
    loss_of(network(x, h_0)[0], 0).backward()
    expected = [p.grad.clone() for p in parameters(network)]
    assert_same(by_chunks(network, x, [3, 17], state=h_0)[0], expected)


def test_the_inputs_gradient_is_that_of_the_chunk():
    network, x = network_of(CELLS[0]), torch.randn(8, 3, 3, **double)
    _, state = network(x[:4], credit="online")
    last = x[4:].clone().requires_grad_()
    y, _ = network(last, state, credit="online")
    (found,) = torch.autograd.grad(y.sin().sum(), last)
    (expected,) = torch.autograd.grad(network(last, state.detach().state)[0].sin().sum(), last)
    torch.testing.assert_close(found, expected)


def test_only_the_weights_that_need_a_gradient_get_one():
    network, x = network_of(CELLS[-1]), torch.randn(20, 3, 3, **double)
    expected, _ = whole(network, x)
    network.weight_ih_l0.requires_grad_(False)
    network.weight_units_l0.requires_grad_(False)
    network.zero_grad(set_to_none=True)
    state = None
    for t, part in enumerate(x.split(5)):
        y, state = network(part, state, credit="online")
        loss_of(y, 5 * t).backward()
    assert network.weight_ih_l0.grad is None
    assert network.weight_units_l0.grad is None
    torch.testing.assert_close(network.bias_ih_l0.grad, expected[1])


def test_a_stream_carries_them():
    network, x = network_of(CELLS[2]), torch.randn(30, 2, 3, **double)
    expected, _ = whole(network, x)
    network.zero_grad()
    stream = bptt.Stream()
    for t, part in enumerate(x.split(10)):
        y, stream = stream.advance(network, part, credit="online")
        loss_of(y, 10 * t).backward()
    assert_same([p.grad for p in parameters(network)], expected)
    assert isinstance(stream.state, OnlineState)
    assert not stream.state.state[0].requires_grad


def test_they_are_saved_and_loaded(tmp_path):
    network, x = network_of(CELLS[2]), torch.randn(6, 2, 3, **double)
    stream = bptt.Stream().advance(network, x, credit="online")[1]
    torch.save(stream.state_dict(), tmp_path / "stream.pt")
    loaded = bptt.Stream()
    loaded.load_state_dict(torch.load(tmp_path / "stream.pt", weights_only=True))
    assert isinstance(loaded.state, OnlineState)
    for a, b in zip(loaded.state[1:], stream.state[1:], strict=True):
        assert torch.equal(a, b)


def test_the_layer_with_an_output_takes_it():
    torch.manual_seed(0)
    layer, x = bptt.LRU(3, 4, r_min=0.8, r_max=0.95, **double), torch.randn(30, 2, 3, **double)
    loss_of(layer(x)[0], 0).backward()
    expected = [p.grad.clone() for p in parameters(layer)]
    layer.zero_grad()
    state = None
    for t, part in enumerate(x.split(6)):
        y, state = layer(part, state, credit="online")
        loss_of(y, 6 * t).backward()
    assert_same([p.grad for p in parameters(layer)], expected)


def test_without_gradients_it_is_a_call_without_credit():
    network, x = network_of(CELLS[0]), torch.randn(8, 3, 3, **double)
    _, state = network(x, credit="online")
    with torch.no_grad():
        y, h = network(x, state, credit="online")
        expected = network(x, state.state)
    assert isinstance(h, Tensor)
    assert torch.equal(y, expected[0])


def test_half_precision_carries_float32():
    network = bptt.Recurrent(bptt.cells.MIN_GRU, 3, 4, dtype=torch.bfloat16)
    x = torch.randn(8, 2, 3, dtype=torch.bfloat16)
    _, state = network(x[:4], credit="online")
    assert (state.state.dtype, state.of_input.dtype) == (torch.bfloat16, torch.float32)
    y, _ = network(x[4:], state, credit="online")
    y.float().sum().backward()
    assert network.weight_ih_l0.grad.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        (
            lambda: bptt.GRU(3, 4),
            {},
            r"bptt\.GRU: credit='online': the units of GRU see each other",
        ),
        ({"num_layers": 2}, {}, "a single layer, got num_layers=2"),
        ({"bidirectional": True}, {}, "has read the future: use bidirectional=False"),
        ({"proj_size": 2}, {}, "leave proj_size out"),
        ({}, {"carry": torch.ones(5)}, "give a credit or carry, not both"),
        ({}, {"hx": torch.zeros(1, 2, 4, requires_grad=True)}, "pass it detached"),
    ],
)
def test_what_it_refuses(make, call, message):
    cell = bptt.Cell("NO_H", 2, 0, lambda x, h, s, u: (torch.sigmoid(x[0]) + x[1],))
    network = bptt.Recurrent(cell, 3, 4, **make) if isinstance(make, dict) else make()
    with pytest.raises(ValueError, match=message):
        network(torch.randn(5, 2, 3), credit="online", **call)


def test_what_else_it_refuses():
    network = bptt.Recurrent(bptt.cells.MIN_GRU, 3, 4)
    x = torch.randn(5, 2, 3)
    _, state = network(x, credit="online")
    for credit in (None, "full", bptt.Truncated(2)):
        with pytest.raises(ValueError, match="an OnlineState is for credit='online'"):
            network(x, state, credit=credit)
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
    with pytest.raises(ValueError, match="PackedSequence ends at different steps"):
        network(packed, credit="online")
    with pytest.raises(RuntimeError, match=r"expected an OnlineState with sensitivities of shape"):
        bptt.Recurrent(bptt.cells.MIN_LSTM, 3, 4)(x, state, credit="online")
    with pytest.raises(RuntimeError, match="initial state of shape"):
        network(x[:, :1], state, credit="online")
    y, _ = network(x, state, credit="online")
    (d,) = torch.autograd.grad(y.square().sum(), network.weight_ih_l0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d.sum().backward()


def test_no_plan_is_made_of_it():
    """Who does not know it cannot take it for another credit."""
    for run in (
        lambda: bptt.Online().plan(5),
        lambda: bptt.unroll(torch.nn.GRU(3, 4), torch.randn(5, 2, 3), credit="online"),
        lambda: bptt.unroll(
            bptt.Recurrent(bptt.cells.MIN_GRU, 3, 4),
            torch.randn(5, 2, 3),
            credit="online",
            memory="store",
        ),
    ):
        with pytest.raises(ConfigError, match="credit 'online' has no plan"):
            run()
    with pytest.raises(ConfigError, match="leaves the embedding without the past"):
        bptt.language_model.Config(cell="min-gru", credit="online").make_credit()
    assert bptt.credit.parse("online") == bptt.Online()
    assert bptt.Online().spelling == "online"


@pytest.mark.parametrize("chunk", [1, 4])
def test_stacked_modules_are_exact_on_top_and_below_within_a_chunk_of_what_is_above(chunk):
    """The rule of Zucchet et al.: a layer's own past, and what is above at the same time."""
    lower, upper = network_of(bptt.cells.MIN_GRU), bptt.Recurrent(bptt.cells.LRU, 4, 4, **double)
    x, states = torch.randn(20, 2, 3, **double), [None, None]
    for t, part in enumerate(x.split(chunk)):
        h, states[0] = lower(part, states[0], credit="online")
        y, states[1] = upper(h, states[1], credit="online")
        loss_of(y, chunk * t).backward()
    found = [p.grad for p in (*parameters(lower), *parameters(upper))]
    n = len(parameters(lower))
    y, _ = upper(lower(x)[0])
    each = [*parameters(lower), *parameters(upper)]
    exact = torch.autograd.grad(loss_of(y, 0), each)
    assert_same(found[n:], exact[n:])
    h, ys, state = lower(x)[0], [], None
    for part in h.split(chunk):
        y, state = upper(part, state)
        ys.append(y)
        state = tuple(s.detach() for s in state)
    within = torch.autograd.grad(loss_of(torch.cat(ys), 0), parameters(lower))
    assert_same(found[:n], within)
    assert all((a - b).norm() > 1e-2 * b.norm() for a, b in zip(found[:n], exact[:n], strict=True))


def audited(run_chunk, steps=False):
    """Audit five chunks of four steps, with resets of the second sequence before step 10."""
    network, x = network_of(bptt.cells.MIN_GRU), torch.randn(20, 2, 3, **double)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    resets = torch.zeros(20, 2, dtype=torch.bool)
    resets[10, 1] = True

    def run():
        state = None
        for part, at in zip(x.split(4), resets.split(4), strict=True):
            y, state = run_chunk(network, part, state, at)
            optimizer.zero_grad()
            y.square().sum().backward()
            if steps:
                optimizer.step()

    return bptt.audit(run, network)


def kinds(report):
    return {finding.kind for finding in report.findings}


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("how", ["call", "stream"])
def test_the_audit_knows_of_the_sensitivities(steps, how):
    def run_chunk(network, x, state, resets):
        if how == "call":
            return network(x, state, credit="online", resets=resets)
        stream = bptt.Stream() if state is None else state
        return stream.advance(network, x, credit="online", resets=resets)

    report = audited(run_chunk, steps)
    full = torch.ones(20, 20).tril().numpy()
    assert (report.credits[0] == full).all()
    full[10:, :10] = 0
    assert (report.credits[1] == full).all()
    assert "online" in kinds(report)
    assert not {"windows", "stale-state"} & kinds(report)
    assert not report.faults
    assert "losses are credited to at most 20 steps" in str(report)


def test_the_audit_sees_where_they_are_left_behind():
    def run_chunk(network, x, state, resets):
        y, state = network(x, state, credit="online", resets=resets)
        return y, state.detach().state

    report = audited(run_chunk)
    blocks = torch.arange(20) // 4
    expected = (blocks[:, None] == blocks).double().tril().numpy()
    assert (report.credits[0] == expected).all()
    assert "online" not in kinds(report)
    assert "windows" in kinds(report)


def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    network = bptt.Recurrent(bptt.cells.MIN_GRU, 2, 4)
    x, state = torch.randn(500, 1, 2), None

    def run(chunks):
        nonlocal state
        for _ in range(chunks):
            y, state = network(x, state, credit="online")
            y.square().sum().backward()

    tracemalloc.start()
    run(40)
    objects, pages = tracemalloc.get_traced_memory()[0], resident()
    run(360)  # 180 000 steps
    more = tracemalloc.get_traced_memory()[0] - objects
    tracemalloc.stop()
    assert more < 360_000  # less than 1 KB a chunk: caches
    assert resident() - pages < 4 << 20  # the graphs of all chunks would take 16 MB


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
