"""What is heard of every kind of module and loop, and that hearing changes nothing."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import bptt

T, B, I, H = 8, 3, 4, 5


def square(y):
    return y.square().mean()


def once(rnn, *args, of=lambda out: out[0]):
    return lambda: square(of(rnn(*args))).backward()


def lower(T):
    return np.tril(np.ones((T, T)))


# ------------------------------------------------------------------------- nothing is changed


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("of", [nn, bptt])
def test_the_run_is_unchanged_to_the_bit(of, kind):
    def train(heard):
        torch.manual_seed(0)
        rnn = getattr(of, kind)(I, H, 2, dropout=0.3)
        norm, head = nn.BatchNorm1d(H), nn.Linear(H, 1)
        parts = nn.ModuleList([rnn, norm, head])
        optimizer = torch.optim.Adam(parts.parameters())
        found = []

        def run():
            state = None
            for x in torch.randn(12, B, I).split(4):
                y, state = rnn(x, state)
                y = norm(y.flatten(0, 1)).mul_(0.9)
                optimizer.zero_grad()
                loss = square(head(y))
                loss.backward()
                optimizer.step()
                state = [s.mul(0.5).detach_() for s in state] if kind == "LSTM" else state.detach_()
                state = tuple(state) if kind == "LSTM" else state
                found.append(loss.detach())

        if heard:
            assert bptt.audit(run, rnn).is_("truncated:4")
        else:
            run()
        return [*found, *parts.state_dict().values(), torch.get_rng_state()]

    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


def test_classes_are_as_before():
    forward, call = nn.GRU.forward, nn.Module.__call__
    rnn = nn.GRU(I, H)
    bptt.audit(once(rnn, torch.randn(T, B, I)), nn.GRU)
    assert nn.GRU.forward is forward
    assert nn.Module.__call__ is call
    assert "forward" not in vars(rnn)
    with pytest.raises(ZeroDivisionError):
        bptt.audit(lambda: 1 / 0, rnn)
    assert nn.GRU.forward is forward


# ---------------------------------------------------------------------- every credit of our own


class Own(nn.Module):
    state_batch_dim = 0

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(I, H)

    def forward(self, x, h=None):
        h = x.new_zeros(x.shape[1], H) if h is None else h
        ys = []
        for v in x:
            h = self.cell(v, h)
            ys.append(h)
        return torch.stack(ys), h


MODULES = {
    "bptt.LSTM": lambda: bptt.LSTM(I, H, 2),
    "bptt.GRU": lambda: bptt.GRU(I, H),
    "nn.LSTM": lambda: nn.LSTM(I, H),
    "Stepwise": lambda: bptt.Stepwise(nn.LSTMCell(I, H)),
    "own": Own,
}
CREDITS = {
    "full": bptt.Full(),
    "truncated": bptt.Truncated(3),
    "blocks": bptt.Truncated(every=2, reach=5),
    "sliding": bptt.Truncated(every=1, reach=3),
    "weights": bptt.Plan(T, carry=np.linspace(0.5, 2, T)),
    "rows": bptt.Plan(T, carry=np.random.default_rng(0).random((T, B))),
}


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("memory", [None, "recompute:4"])
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("name", MODULES)
def test_unroll_under_every_credit(name, credit, memory, resets):
    module, credit = MODULES[name](), CREDITS[credit]
    at = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.2 if resets else None

    def run():
        y, _ = bptt.unroll(module, torch.randn(T, B, I), credit=credit, memory=memory, resets=at)
        square(y).backward()

    report = bptt.audit(run, module.cell if name == "Stepwise" else module)
    W = np.broadcast_to(credit.plan(T, B).matrix(), (B, T, T))
    M = lower(T)
    if resets:
        number = np.cumsum(at.numpy(), 0).T
        same = number[:, :, None] == number[:, None, :]
        W, M = W * same, M * same
    np.testing.assert_allclose(report.credits, W)
    np.testing.assert_allclose(report.memories, np.broadcast_to(M, (B, T, T)))
    assert report.faults == ()


def test_a_credit_that_draws():
    lstm = bptt.LSTM(I, H, batch_first=True)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[1, 3] = True

    def run():
        options = {"credit": bptt.Randomized(3), "generator": torch.Generator().manual_seed(5)}
        y, _ = lstm(torch.randn(B, T, I), resets=resets, **options)
        square(y).backward()

    report = bptt.audit(run, lstm)
    W = bptt.Randomized(3).plan(T, B, torch.Generator().manual_seed(5)).matrix()
    W[1, 3:, :3] = 0
    np.testing.assert_allclose(report.credits, W)
    with pytest.raises(ValueError, match="draws other weights each time"):
        report.is_(bptt.Randomized(3))


@pytest.mark.parametrize("make", [lambda: nn.GRU(1, H), lambda: bptt.GRU(1, H)])
def test_a_stream_whose_losses_reach_beyond_the_window(make):
    rnn, credit = make(), bptt.Truncated(every=3, reach=7)
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)

    def run():
        stream = bptt.Stream()
        for x in torch.arange(12.0)[:, None, None].expand(12, 2, 1).split(3):
            y, stream = stream.advance(rnn, x, credit=credit)
            optimizer.zero_grad()
            square(y).backward()
            optimizer.step()

    report = bptt.audit(run, rnn, label=lambda x: (np.arange(2), x[..., 0]))
    assert report.is_(credit)
    assert report.faults == ()
    np.testing.assert_array_equal(report.memory, lower(12))


# ------------------------------------------------------------------------------- which module


def test_a_path_an_object_a_class_and_a_predicate():
    model = nn.ModuleDict({"encoder": nn.ModuleList([nn.LSTM(I, H), nn.GRU(H, H)])})
    first, second = model["encoder"]
    x = torch.randn(T, B, I)

    def run():
        square(second(first(x)[0])[0]).backward()

    found = [
        bptt.audit(run, model, "encoder.1"),
        bptt.audit(run, second),
        bptt.audit(run, nn.GRU),
        bptt.audit(run, model, nn.GRU),
        bptt.audit(run, lambda m: isinstance(m, nn.GRU)),
    ]
    for report in found:
        assert report.is_(bptt.Full())
        assert report.record.name == "GRU"


def test_a_copy_is_heard_by_its_class():
    rnn = nn.GRU(I, H)

    def run():
        once(copy.deepcopy(rnn), torch.randn(T, B, I))()

    assert bptt.audit(run, nn.GRU).is_("full")
    with pytest.raises(ValueError, match="never called the module, GRU; if it trains a copy"):
        bptt.audit(run, rnn)


def test_what_is_no_module_is_refused():
    run, model = once(nn.GRU(I, H), torch.randn(T, B, I)), nn.Sequential(nn.GRU(I, H))
    with pytest.raises(ValueError, match=r"no 'rnn' on the path 'rnn': .*Sequential with 0"):
        bptt.audit(run, model, "rnn")
    with pytest.raises(ValueError, match="leads to a bool, not to a module"):
        bptt.audit(run, model, "0.batch_first")
    with pytest.raises(TypeError, match="expected a module, a class"):
        bptt.audit(run, 3)

    def two():
        for _ in range(2):
            once(nn.GRU(I, H), torch.randn(T, B, I))()

    with pytest.raises(ValueError, match=r"2 modules match GRU"):
        bptt.audit(two, nn.GRU)


# --------------------------------------------------------------------------- kinds of modules


def test_packed_sequences():
    rnn, lengths = nn.GRU(I, H), [3, 6, 5]

    def run():
        packed = pack_padded_sequence(torch.randn(6, B, I), lengths, enforce_sorted=False)
        y, h = rnn(packed)
        y, _ = rnn(packed, h.detach())
        square(pad_packed_sequence(y)[0]).backward()

    report = bptt.audit(run, rnn)
    for row, n in enumerate(lengths):
        W = np.zeros((12, 12))
        W[6 : 6 + n, 6 : 6 + n] = lower(n)
        np.testing.assert_array_equal(report.credits[row], W)
        assert report.memories[row, 6].tolist() == [1] * n + [0] * (6 - n) + [1] + [0] * 5


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("make", [nn.LSTM, bptt.LSTM])
def test_unbatched_batch_first_projected_and_bidirectional(make):
    for shape, options in [
        ((T, I), {}),
        ((B, T, I), {"batch_first": True}),
        ((T, B, I), {"proj_size": 3}),
        ((T, B, I), {"num_layers": 3}),
    ]:
        rnn = make(I, H, **options)

        def run(rnn=rnn, shape=shape):
            state = None
            for _ in range(2):
                y, state = rnn(torch.randn(shape), state)
            square(y).backward()

        report = bptt.audit(run, rnn)
        assert report.steps == 2 * T
        W = lower(2 * T)
        W[:T] = 0
        np.testing.assert_array_equal(report.credit, W)
        assert report.faults == ()
    both = make(I, H, bidirectional=True)
    report = bptt.audit(once(both, torch.randn(T, B, I)), both)
    np.testing.assert_array_equal(report.credit, np.ones((T, T)))
    assert report.is_("full")


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells(kind):
    cell = getattr(nn, f"{kind}Cell")(I, H)

    def run():
        state, ys = None, []
        for x in torch.randn(T, B, I):
            state = cell(x, state)
            ys.append(state[0] if kind == "LSTM" else state)
        square(torch.stack(ys[4:])).backward()

    report = bptt.audit(run, cell)
    W = lower(T)
    W[:4] = 0
    np.testing.assert_array_equal(report.credit, W)
    assert report.is_("full")
    assert report.faults == ()
    with pytest.raises(ValueError, match=r"time=0 was given, but a .*Cell takes one step"):
        bptt.audit(run, cell, time=0)


class Keeping(nn.Module):
    """Keeps its membrane potential itself, as spiking networks' layers do."""

    def __init__(self):
        super().__init__()
        self.fc, self.mem = nn.Linear(I, H), torch.zeros(())

    def forward(self, x):
        self.mem = 0.9 * self.mem + self.fc(x)
        spikes = torch.sigmoid(self.mem)
        return spikes


def test_a_state_in_an_attribute():
    layer = Keeping()

    def run():
        for k in range(2):
            layer.mem = torch.zeros(()) if k else layer.mem
            square(torch.stack([layer(x) for x in torch.randn(4, B, I)])).backward()

    report = bptt.audit(run, layer, state="mem")
    W = np.kron(np.eye(2), lower(4))
    np.testing.assert_array_equal(report.credit, W)
    np.testing.assert_array_equal(report.memory, W)
    with pytest.raises(ValueError, match="has no 'h'"):
        bptt.audit(run, layer, state=("h",))


def test_an_adaptor():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(I, H)

        def forward(self, *, batch):
            y, h = self.gru(batch["x"], batch["h"])
            return {"logits": y, "memory": {"h": h}}

    class Adaptor:
        def given(self, *, batch):
            return batch["h"]

        def returned(self, output):
            return output["logits"], output["memory"]

    module = Wrapped()

    def run():
        h = None
        for x in torch.randn(8, B, I).split(4):
            out = module(batch={"x": x, "h": h})
            h = out["memory"]["h"].detach()
            square(out["logits"]).backward()

    report = bptt.audit(run, module, state=Adaptor(), time=0)
    assert report.is_("truncated:4")
    np.testing.assert_array_equal(report.memory, lower(8))
    with pytest.raises(TypeError, match="an adaptor with the methods"):
        bptt.audit(run, module, state=3)


# ------------------------------------------------------------------------ surroundings of torch


def test_checkpoints():
    rnn = nn.LSTM(I, H)

    def run(reentrant=False):
        state = None
        for x in torch.randn(8, B, I).split(4):
            y, state = checkpoint(rnn, x.requires_grad_(), state, use_reentrant=reentrant)
        square(y).backward()

    report = bptt.audit(run, rnn)
    assert report.steps == 8
    assert report.is_("full")
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        bptt.audit(lambda: run(True), rnn)


def test_autocast():
    rnn = nn.LSTM(I, H)

    def run():
        state = None
        for x in torch.randn(8, B, I).split(4):
            with torch.autocast("cpu", torch.bfloat16):
                y, state = rnn(x, state)
            square(y.float()).backward()
            state = tuple(s.detach() for s in state)

    report = bptt.audit(run, rnn)
    assert report.is_("truncated:4")
    np.testing.assert_array_equal(report.memory, lower(8))


def test_states_through_numpy_and_noise():
    rnn, seen, rng = nn.GRU(I, H), [], np.random.default_rng(0)

    def run(change):
        h = torch.zeros(1, B, H)
        for x in torch.randn(8, B, I).split(4):
            with torch.no_grad():
                y, h = rnn(x, h)
            seen.append(y)
            h = torch.from_numpy(change(h.numpy().astype(np.float64)).astype(np.float32))

    report = bptt.audit(lambda: run(lambda v: v.copy()), rnn)
    np.testing.assert_array_equal(report.memory, lower(8))
    report = bptt.audit(lambda: run(lambda v: v + 1e-3 * rng.random(v.shape)), rnn)
    np.testing.assert_array_equal(report.memory, np.kron(np.eye(2), lower(4)))
    assert "state-unknown" in [f.kind for f in report.facts]
    report = bptt.audit(lambda: run(lambda v: v[:, ::-1].copy()), rnn)
    assert "rows-permuted" in [f.kind for f in report.facts]


def test_recording_ends():
    rnn = nn.GRU(I, H)

    def run():
        h = None
        for x in torch.randn(12, B, I).split(4):
            y, h = rnn(x, h)
            square(y).backward()
            h = h.detach()

    report = bptt.audit(run, rnn, steps=5)
    assert (report.steps, report.record.not_recorded) == (8, 4)
    assert "not-recorded" in [f.kind for f in report.facts]
    with pytest.raises(ValueError, match=r"time must be 0 or 1, .* got 2"):
        bptt.audit(run, rnn, time=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        bptt.audit(run, rnn, steps=0)


# ------------------------------------------------------------------------------------ pitfalls


def test_a_gradient_penalty_is_no_second_loss():
    rnn = nn.GRU(I, H)
    x = torch.randn(T, B, I, requires_grad=True)

    def run():
        y, _ = rnn(x)
        loss = square(y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + square(slope)).backward()

    report = bptt.audit(run, rnn)
    assert report.faults == ()
    assert report.is_("full")


def test_two_heads_are_no_double_count_and_the_same_loss_twice_is():
    rnn, heads = nn.GRU(I, H), [nn.Linear(H, 1), nn.Linear(H, 1)]

    def run(first, second):
        y, _ = rnn(torch.randn(T, B, I))
        square(heads[first](y)).backward(retain_graph=True)
        square(heads[second](y)).backward()

    assert bptt.audit(lambda: run(0, 1), rnn).faults == ()
    (fault,) = bptt.audit(lambda: run(0, 0), rnn).faults
    assert (fault.kind, fault.t, fault.s) == ("counted-twice", 0, 0)


def test_outputs_fed_back_are_said():
    cell = nn.GRUCell(H, H)

    def run():
        h = x = torch.randn(B, H)
        losses = []
        for _ in range(4):
            h = cell(x, h)
            x = torch.tanh(h)
            losses.append(square(h))
        sum(losses).backward()

    report = bptt.audit(run, cell)
    assert "fed-back" in [f.kind for f in report.facts]
    assert report.faults == ()


def test_a_learnt_initial_state_is_new():
    rnn, h0 = nn.GRU(I, H), nn.Parameter(torch.randn(1, 1, H))
    optimizer = torch.optim.SGD([h0, *rnn.parameters()], 0.1)

    def run():
        for _ in range(3):
            optimizer.zero_grad()
            square(rnn(torch.randn(T, B, I), h0.expand(1, B, H).contiguous())[0]).backward()
            optimizer.step()

    report = bptt.audit(run, rnn)
    assert {f.kind for f in report.facts} == {"never-carried", "reach"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transformed_state_keeps_its_weight_or_says_that_it_has_none(dtype):
    rnn = nn.GRU(I, H, dtype=dtype)
    bridge = nn.Linear(H, H, dtype=dtype)

    def run(change):
        h = None
        for x in torch.randn(4, B, I, dtype=dtype).split(2):
            y, h = rnn(x, h)
            h = change(h)
        square(y).backward()

    report = bptt.audit(lambda: run(lambda h: 0.25 * h), rnn)
    np.testing.assert_allclose(report.credit[2:, :2], 0.25)
    report = bptt.audit(lambda: run(bridge), rnn)
    np.testing.assert_array_equal(report.credit[2:, :2], 1)
    assert "weights-unknown" in [f.kind for f in report.facts]


def test_gradients_carried_on_by_hand_are_recognised():
    rnn = nn.GRU(I, H)

    def run():
        h, sent = None, []
        for x in torch.randn(6, B, I).split(2):
            given = None if h is None else h.detach().requires_grad_()
            y, after = rnn(x, given)
            square(y).backward(retain_graph=True)
            if given is not None:
                h.backward(0.5 * given.grad)
            h = after
            sent.append(given)

    report = bptt.audit(run, rnn)
    W = np.kron(np.eye(3), lower(2))
    W[2:4, :2] = W[4:, 2:4] = 0.5
    np.testing.assert_allclose(report.credit, W)
    assert "carried-by-hand" in [f.kind for f in report.facts]
    assert report.faults == ()


# --------------------------------------------------------------------------------- the report


def test_is_names_the_first_difference():
    rnn = nn.GRU(I, H)

    def run():
        h = None
        for x in torch.randn(6, B, I).split(3):
            y, h = rnn(x, h)
            square(y).backward()
            h = h.detach()

    report = bptt.audit(run, rnn)
    compared = report.is_(bptt.Full())
    assert not compared
    assert compared.first == (3, 0)
    assert str(compared) == (
        "not Full(): the loss of step 3 credits step 0 with weight 0, expected 1 (sequence 0)"
    )
    assert report.is_("truncated:3")
    assert report.is_(np.kron(np.eye(2), lower(3)))
    assert report.is_(bptt.Truncated(3).plan(6))
    with pytest.raises(ValueError, match=r"expected a matrix \[6, 6\]"):
        report.is_(np.eye(3))
    of_episodes = bptt.audit(run, rnn, episodes=[0] * 3 + [1] * 3)
    assert of_episodes.is_(bptt.Full())
    assert [f.kind for f in of_episodes.faults] == ["memory-crosses-episode"]
    silent = bptt.audit(lambda: rnn(torch.randn(3, B, I)), rnn)
    assert not silent.is_("full")
    assert "no loss arrived" in str(silent.is_("full"))


def test_assert_credit_says_what_is_wrong():
    rnn = nn.GRU(I, H)
    run = once(rnn, torch.randn(T, B, I))
    bptt.assert_credit(run, rnn, None, "full")
    with pytest.raises(AssertionError, match="step 3 credits step 0 with weight 1, expected 0"):
        bptt.assert_credit(run, rnn, None, "truncated:3")
    with pytest.raises(AssertionError, match="memory-crosses-episode"):
        bptt.assert_credit(run, rnn, None, None, episodes=[0] * 4 + [1] * 4)


def test_labels_and_episodes_that_do_not_fit():
    rnn = nn.GRU(I, H)
    run = once(rnn, torch.randn(T, B, I))
    with pytest.raises(TypeError, match=r"label must return \(stream, step\)"):
        bptt.audit(run, rnn, label=lambda x: x)
    with pytest.raises(TypeError, match="label must return integers, got float"):
        bptt.audit(run, rnn, label=lambda x: (x[..., 0], x[..., 0]))
    with pytest.raises(ValueError, match=r"one number for each step of x, \[8, 3\]"):
        bptt.audit(run, rnn, label=lambda x: (np.arange(4), np.arange(T)[:, None]))
    with pytest.raises(ValueError, match="episodes has 5 steps of 1 sequences"):
        bptt.audit(run, rnn, episodes=[0] * 5)
    with pytest.raises(ValueError, match="expected episodes as integers or bools"):
        bptt.audit(run, rnn, episodes=[0.5] * T)


def test_how_far_the_gradient_really_reaches():
    torch.manual_seed(0)
    x = torch.randn(40, B, I)

    def reach(rnn, step=None):
        def run():
            state = None
            for window in x.split(20):
                y, state = rnn(window, state)
                square(y).backward()
                state = state.detach()

        def steps():
            h = None
            for v in x:
                h = rnn(v, h)
            square(h).backward()

        before = torch.get_rng_state(), [p.grad for p in rnn.parameters()]
        found = bptt.audit(steps if step else run, rnn).record.reach
        assert torch.equal(torch.get_rng_state(), before[0])
        return found

    short, cell = nn.GRU(I, H), nn.GRUCell(I, H)
    with torch.no_grad():
        for p in short.parameters():
            p.mul_(0.1)
        for name, p in cell.named_parameters():
            p.copy_(short.get_parameter(f"{name}_l0"))
    found = reach(short)
    flow = bptt.gradient_flow(short, x, times=range(32, 40))
    assert (found.steps, found.of, found.is_settled) == (flow.horizon(0.01) + 1, 40, True)
    assert reach(cell, step=True) == found
    assert reach(bptt.GRU(I, H)).of == 40
    assert bptt.audit(once(nn.GRU(I, H, bidirectional=True), x), nn.GRU).record.reach is None


# ------------------------------------------------------------------------- no false alarms


def test_a_gradient_that_is_thrown_away_is_not_counted():
    rnn, log = nn.GRU(I, H), []
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)

    def run(is_cleared):
        optimizer.zero_grad()
        loss = square(rnn(torch.randn(T, B, I))[0])
        loss.backward(retain_graph=True)
        log.append(rnn.weight_hh_l0.grad.norm().item())
        if is_cleared:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    report = bptt.audit(lambda: run(True), rnn)
    assert report.faults == ()
    assert report.is_("full")
    assert [f.kind for f in bptt.audit(lambda: run(False), rnn).faults] == ["counted-twice"]


WITHOUT_PARAMETERS = ["frozen", "weights that another network computes"]


@pytest.mark.parametrize("kind", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("how", ["cleared", "kept", "zeros", "looked at", "returned twice"])
def test_a_loss_counts_twice_without_parameters_that_add_up_gradients(kind, how):
    """Then what the network is computed from tells whether a gradient was thrown away."""
    rnn, before = nn.GRU(I, H), nn.Linear(1, I if kind == "frozen" else 1)
    rnn.requires_grad_(kind != "frozen")

    def loss():
        if kind == "frozen":
            return square(rnn(before(torch.randn(T, B, 1)))[0])
        scale = before(torch.ones(1))
        weights = {k: scale * p.detach() for k, p in rnn.named_parameters()}
        return square(torch.func.functional_call(rnn, weights, (torch.randn(T, B, I),))[0])

    def run():
        before.zero_grad()
        now = loss()
        for k in range(2):
            if how == "returned twice" or (how == "looked at" and k == 0):
                torch.autograd.grad(now, before.weight, retain_graph=True)
            else:
                now.backward(retain_graph=True)
            if how in ("cleared", "zeros"):
                before.zero_grad(set_to_none=how == "cleared")

    twice = how in ("kept", "returned twice")
    report = bptt.audit(run, rnn)
    assert [f.kind for f in report.faults] == (["counted-twice"] if twice else [])
    assert (report.credit == (1 + twice) * np.tril(np.ones((T, T)))).all()


def test_a_penalty_on_the_gradient_of_a_frozen_network_is_no_second_loss():
    rnn, x = nn.GRU(I, H).requires_grad_(False), torch.randn(T, B, I, requires_grad=True)

    def run():
        loss = square(rnn(x)[0])
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + square(slope)).backward()

    report = bptt.audit(run, rnn)
    assert report.faults == ()
    assert report.is_("full")


def test_parameters_of_ones_own():
    rnn = nn.GRU(I, H)

    def run():
        mine = {k: p.detach().clone().requires_grad_() for k, p in rnn.named_parameters()}
        for _ in range(2):
            y, _ = torch.func.functional_call(rnn, mine, (torch.randn(T, B, I),))
            found = torch.autograd.grad(square(y), list(mine.values()))
            mine = {
                k: (p - 0.1 * g).detach().requires_grad_()
                for (k, p), g in zip(mine.items(), found, strict=True)
            }

    report = bptt.audit(run, rnn)
    assert report.faults == ()
    assert report.is_("truncated:8")


def test_a_network_that_another_optimizer_does_not_train_is_no_loss():
    rnn, teacher, frozen = nn.GRU(I, H), nn.GRU(I, H), nn.GRU(I, H).requires_grad_(False)
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)

    def run():
        for x in torch.randn(3, T, B, I):
            with torch.no_grad():
                wanted, _ = teacher(x)
            optimizer.zero_grad()
            square(rnn(frozen(x)[0][..., :I])[0] - wanted).backward()
            optimizer.step()

    for module in (rnn, teacher, frozen):
        assert bptt.audit(run, module).faults == ()


def test_padding_is_labelled_as_no_step():
    rnn = nn.GRU(I, H)
    lengths = torch.tensor([4, 2, 3])

    def label(x):
        step = torch.arange(len(x))[:, None].expand(-1, B) + x[..., 0].round().long()
        return torch.where(x[..., 1] > 0, torch.arange(B), -1), step

    def run():
        h = None
        for first in (0, 4):
            x = torch.randn(4, B, I)
            x[..., 0], x[..., 1] = first, 1
            if first:
                x[..., 1] = torch.arange(4)[:, None] < lengths
            y, h = rnn(x, h)
            square(y).backward()
            h = h.detach()

    report = bptt.audit(run, rnn, label=label, episodes=lambda x: np.zeros((4, B), int))
    assert report.sequences == [0, 1, 2]
    assert report.faults == ()
    assert report.has_loss.sum(1).tolist() == [8, 6, 7]


def test_zeros_that_were_zeros_and_noise_are_no_reset():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(I, H, nonlinearity="relu")

        def forward(self, x, h=None):
            y, h = self.rnn(x, h)
            return y, h * 0 if self.is_dead else h

    net, rng = Dead(), torch.Generator().manual_seed(0)

    def run(noise):
        h = None
        for x in torch.randn(9, B, I).split(3):
            y, h = net(x, h)
            square(y).backward()
            h = h.detach() + noise * torch.randn(h.shape, generator=rng)

    for net.is_dead, noise in ((True, 0), (False, 1e-3)):
        assert bptt.audit(lambda noise=noise: run(noise), net, episodes=[0] * 9).faults == ()


def test_values_that_are_set_to_zero_are_a_reset_though_the_graph_goes_on():
    cell = nn.GRUCell(I, H)

    def run():
        h, losses = torch.zeros(B, H), []
        for t, x in enumerate(torch.randn(6, B, I)):
            if t == 3:
                h.data.zero_()
            h = cell(x, h)
            losses.append(square(h))
        sum(losses).backward()

    report = bptt.audit(run, cell, episodes=[0] * 3 + [1] * 3)
    np.testing.assert_array_equal(report.memory, np.kron(np.eye(2), lower(3)))
    assert [f.kind for f in report.faults] == ["credit-crosses-episode"]


def test_a_source_that_is_read_backwards():
    cell = nn.GRUCell(I, H)

    def run():
        x = torch.randn(6, B, I)
        x[..., 0] = torch.arange(6)[:, None]
        h = None
        for v in x.flip(0):
            h = cell(v, h)
        square(h).backward()

    report = bptt.audit(run, cell, label=lambda x: (np.arange(B), x[..., 0].long()))
    assert report.faults == ()
