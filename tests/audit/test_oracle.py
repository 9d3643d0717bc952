"""The audit against an oracle that shares no code with it, on random loops."""

import numpy as np
import pytest
import torch
from audit.random_loops import Loop, same
from torch import nn

import bptt
from bptt._src.audit import halves


def agree(seed, **changes):
    """Check the audit of a random loop: its matrices, and that the run stays what it is."""
    loop = Loop(seed)
    vars(loop).update(changes)
    torch.manual_seed(seed)
    module, again = loop.module(), loop.module()
    again.load_state_dict(module.state_dict())
    found = []
    alone = loop.run(module)
    report = bptt.audit(lambda: found.extend(loop.run(again)), again, state=loop.state)
    assert same(alone, found), f"seed {seed}: the run under audit is another"
    is_opaque, done = loop.is_opaque, dict(loop.done)
    probe = loop.probe()
    loop.run(probe)
    B, T = report.credits.shape[:2]
    W, M = probe.credits(T), probe.memories(T)
    assert not probe.credits(probe.steps)[:, T:].any()
    assert not W[B:].any()
    rows = np.arange(B)
    told = f"seed {seed}: {vars(loop)} {done}\n{report}"
    found_W = np.zeros_like(W)
    for (b, of), w in report._credits.by_row.items():
        found_W[b, :, of] = w
    if not (is_opaque and done.get("handed on by hand")):
        np.testing.assert_array_equal(found_W, W, told)
        np.testing.assert_array_equal(report.credits, W[rows, :, rows], told)
    memories = report.memories > 0
    if is_opaque:
        assert not (memories & ~M[rows, :, rows]).any(), told
    else:
        np.testing.assert_array_equal(memories, M[rows, :, rows], told)
    return report, done


@pytest.mark.parametrize("seed", [*range(150), 1817, 3930])
def test_random_loops(seed):
    agree(seed)


@pytest.mark.parametrize("frozen", [True, False])
def test_random_loops_whose_losses_count_twice(frozen):
    for seed in range(30):
        agree(seed, frozen=frozen, is_doubled=True)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 4000, 100))
def test_many_random_loops(first):
    for seed in range(first, first + 100):
        agree(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(4000, 4400, 100))
def test_many_random_loops_that_are_frozen_or_count_twice(first):
    for seed in range(first, first + 100):
        agree(seed, frozen=seed % 2 == 0, is_doubled=seed % 3 > 0)


# ------------------------------------------------------------ what random loops have brought up


def test_a_state_that_was_multiplied_in_the_graph_is_remembered():
    cell = nn.GRUCell(3, 5)

    def run():
        h = torch.zeros(2, 5)
        for x in torch.randn(4, 2, 3):
            h = cell(x, 0.5 * h)
        h.sum().backward()

    report = bptt.audit(run, cell)
    np.testing.assert_array_equal(report.memory, np.tril(np.ones((4, 4))))
    np.testing.assert_array_equal(report.credit[3], [0.125, 0.25, 0.5, 1])


def test_weights_under_autocast_and_states_in_another_type():
    gru = nn.GRU(3, 5)

    def run(cut):
        with torch.autocast("cpu", torch.bfloat16):
            _, h = gru(torch.randn(2, 2, 3))
            h = h.detach().float() if cut else 2 * h.float()
            y, _ = gru(torch.randn(2, 2, 3), h)
        y.float().square().sum().backward()

    W = bptt.audit(lambda: run(False), gru).credit
    assert W[3].tolist() == [2, 2, 1, 1]
    assert bptt.audit(lambda: run(True), gru).memory[3].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("hidden", [1, 2])
def test_rows_of_a_state_of_one_number(hidden):
    rnn, rows = nn.RNN(3, hidden), [2, 0, 1]

    def run():
        _, h = rnn(torch.randn(2, 3, 3))
        y, _ = rnn(torch.randn(2, 3, 3), 0.5 * h[:, rows])
        y.square().sum().backward()

    by_row = bptt.audit(run, rnn)._credits.by_row
    for row, of in enumerate(rows):
        assert by_row[row, of][3].tolist() == [0.5, 0.5, 0, 0]


def test_sums_of_several_gradients_are_the_same_to_the_bit():
    """The next call takes in a state by several nodes, and the loss by one, which comes first."""

    def train(heard):
        torch.manual_seed(0)
        cell = nn.GRUCell(3, 6)

        def run():
            h, ys = torch.zeros(4, 6), []
            for x in torch.randn(20, 4, 3):
                h = cell(x, h)
                ys.append(h)
            torch.stack(ys).square().sum().backward()

        bptt.audit(run, cell) if heard else run()
        return [p.grad for p in cell.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_a_state_that_the_module_changes_in_place():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.mem = nn.Linear(3, 5), torch.zeros(2, 5)

        def forward(self, x):
            self.mem.mul_(0.9).add_(self.fc(x))
            return torch.tanh(self.mem)

    layer = Leaky()

    def run(graph):
        layer.mem = torch.zeros(2, 5)
        with torch.set_grad_enabled(graph):
            y = [layer(x) for x in torch.randn(4, 2, 3)]
        if graph:
            y[-1].sum().backward()

    report = bptt.audit(lambda: run(True), layer, state="mem")
    assert report.is_("full")
    for graph in (True, False):
        M = bptt.audit(lambda graph=graph: run(graph), layer, state="mem").memory
        np.testing.assert_array_equal(M, np.tril(np.ones((4, 4))))


def test_full_backward_hooks_of_the_module_run_as_often_as_without():
    cell, ran = nn.LSTMCell(3, 5), []
    cell.register_full_backward_hook(lambda *_: ran.append(1))

    def run():
        state = None
        for x in torch.randn(6, 2, 3, requires_grad=True):
            state = cell(x, state)
        state[0].sum().backward()

    assert bptt.audit(run, cell).is_("full")
    assert len(ran) == 6


def test_a_forward_of_its_own():
    class Forwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 5)
            forward = self.rnn.forward
            self.rnn.forward = lambda *args: forward(*args)

        def forward(self, x):
            return self.rnn(x)

    model = Forwards()
    own = model.rnn.forward

    def run():
        model(torch.randn(4, 2, 3))[0].sum().backward()

    for which in (model.rnn, nn.GRU, lambda m: isinstance(m, nn.GRU)):
        assert bptt.audit(run, which).is_("full")
        assert vars(model.rnn)["forward"] is own


def test_ways_of_unknown_weight_do_not_add_up():
    """A mask of units, as zoneout's, sends a loss on by two ways, step after step."""
    cell = nn.GRUCell(3, 5)

    def run():
        h = torch.zeros(2, 5)
        for x in torch.randn(12, 2, 3):
            mask = (torch.rand(2, 5) < 0.5).float()
            h = mask * h + (1 - mask) * cell(x, h)
        h.sum().backward()

    report = bptt.audit(run, cell)
    assert set(report.credits[:, 11].ravel()) <= {0, 1}
    assert "weights-unknown" in {f.kind for f in report.facts}


def test_storages_stay_resizable():
    """Libraries that shard parameters free their storage; NumPy forbids it once it has looked."""
    gru, seen = nn.GRU(3, 5), []

    def run():
        y, h = gru(torch.randn(4, 2, 3))
        _, h = gru(torch.randn(4, 2, 3), h)
        y.register_hook(seen.append)
        (y.sum() + h.sum()).backward()
        seen.extend([y, h])

    bptt.audit(run, gru)
    assert all(v.untyped_storage().resizable() for v in (*gru.parameters(), *seen))


def test_transforms_of_functions_are_refused():
    gru, x = nn.GRU(3, 5), torch.randn(4, 2, 3)

    def run():
        def loss(parameters):
            return torch.func.functional_call(gru, parameters, (x,))[0].sum()

        torch.func.grad(loss)({k: v.detach() for k, v in gru.named_parameters()})

    with pytest.raises(RuntimeError, match=r"inside a transform of torch\.func"):
        bptt.audit(run, gru)


def test_sequences_are_told_apart_by_halves_of_the_batch():
    """Each place is reached by one sequence, but the last, which three reach, and one by none."""
    asked, to = [], torch.zeros(12, 13)
    to[torch.randperm(12)[:11], torch.arange(11)] = 2
    to[[1, 4, 9], 12] = 3

    def ask(which):
        asked.append(which)
        return {"a": (which[:, None] * to).sum(0)[:, None]}

    found = list(halves.alone(ask, {"a": [*range(13)], "b": [0]}, 12))
    assert {(row, place) for _, row, place, _ in found} == {*map(tuple, to.nonzero().tolist())}
    assert all(v == to[row, place] for _, row, place, v in found)
    assert len(found) == 14
    assert len(asked) == 2 * 4 + 12


def test_a_transformed_state_of_a_large_batch_is_asked_for_few_times(monkeypatch):
    cell, norm = nn.GRUCell(3, 5), nn.LayerNorm(5)
    asked, grad = [], torch.autograd.grad

    def counted(*args, **options):
        asked.append(1)
        return grad(*args, **options)

    def run():
        h = torch.zeros(64, 5)
        for x in torch.randn(3, 64, 3):
            h = norm(cell(x, h))
        h.square().sum().backward()

    monkeypatch.setattr(torch.autograd, "grad", counted)
    assert bptt.audit(run, cell).is_("full")
    assert len(asked) == 2 * (1 + 2 * 6)


@pytest.mark.parametrize("on", ["the state", "what is made of it"])
@pytest.mark.parametrize("change", [nn.LayerNorm(5), nn.Dropout(0.3), lambda h: 2 * h.tanh()])
def test_losses_of_states_that_are_transformed(change, on):
    """Also where the loss is on what the next call is given, and goes back the same way."""
    cell, at = nn.GRUCell(3, 5), [2, 3, 7]

    def run():
        z, losses = torch.zeros(2, 5), 0
        for t, x in enumerate(torch.randn(8, 2, 3)):
            h = cell(x, z)
            z = change(h)
            if t in at:
                losses = losses + (h if on == "the state" else z).square().sum()
        losses.backward()

    report = bptt.audit(run, cell)
    assert np.flatnonzero(report.has_loss.any(0)).tolist() == at
    assert report.faults == ()


def test_a_state_with_a_way_past_the_module_has_losses_where_they_are():
    cell, at = nn.RNNCell(3, 5), [1, 4, 8]

    def run():
        z, losses = torch.zeros(2, 5), 0
        for t, x in enumerate(torch.randn(10, 2, 3)):
            mask = (torch.arange(5) % 2 == t % 2).float()
            z = mask * z + (1 - mask) * cell(x, z)
            if t in at:
                losses = losses + z.square().sum()
        losses.backward()

    assert np.flatnonzero(bptt.audit(run, cell).has_loss.any(0)).tolist() == at
