"""Training along a stream, window by window, against one pass over all of it."""

import pytest
import torch

import bptt
import bptt._src.pytree
from bptt.errors import ConfigError


def network(kind):
    torch.manual_seed(1)
    made = {
        "gru": lambda: bptt.GRU(3, 4),
        "lstm": lambda: bptt.LSTM(3, 4, num_layers=2),
        "torch": lambda: torch.nn.LSTM(3, 4),
        "batch_first": lambda: torch.nn.GRU(3, 4, batch_first=True),
        "cell": lambda: bptt.Stepwise(torch.nn.LSTMCell(3, 4)),
    }[kind]()
    for name, p in made.named_parameters():
        if "weight_hh" in name:  # so that gradients reach far back
            for block in p.data.split(4):
                torch.nn.init.orthogonal_(block)
    return made.double()


def along(module, x, credit, *, update=lambda: None, length=None):
    """Go along a stream; give the sum of the updates' gradients and all outputs."""
    time = int(getattr(module, "batch_first", False))
    total = [torch.zeros_like(p) for p in module.parameters()]
    stream, outputs = bptt.Stream(), []
    for window in x.split(length or credit.window, dim=time):
        y, stream = stream.advance(module, window, credit=credit)
        found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
        total = [a + b for a, b in zip(total, found, strict=True)]
        outputs.append(y.detach())
        update()
    return total, torch.cat(outputs, dim=time), stream


@pytest.mark.parametrize("kind", ["gru", "lstm", "torch", "batch_first", "cell"])
@pytest.mark.parametrize(("every", "reach"), [(4, 4), (3, 7), (3, 12), (1, 5), (5, 6), (4, 100)])
def test_fixed_parameters_give_the_gradient_of_one_pass(kind, every, reach):
    module, x = network(kind), torch.randn(17, 2, 3).double()
    if kind == "batch_first":
        x = x.transpose(0, 1)
    credit = bptt.Truncated(every=every, reach=reach)
    y, _ = bptt.unroll(module, x, credit=credit)
    whole = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    total, outputs, stream = along(module, x, credit)
    torch.testing.assert_close(outputs, y.detach(), rtol=0, atol=1e-12)
    for a, b in zip(total, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    if every < reach:
        assert stream.past.shape[int(kind == "batch_first")] == min(reach - every, 17)
        plain, *_ = along(module, x, bptt.Truncated(every))
        assert any((a - b).norm() > 0.01 * b.norm() for a, b in zip(plain, whole, strict=True))


def test_the_past_is_run_again_under_the_parameters_of_now():
    every, reach = 3, 8
    x = torch.randn(15, 2, 3).double()
    credit = bptt.Truncated(every=every, reach=reach)

    def descend(module, gradients):
        with torch.no_grad():
            for p, g in zip(module.parameters(), gradients, strict=True):
                p -= 0.05 * g

    ours = network("gru")
    stream = bptt.Stream()
    for window in x.split(every):
        y, stream = stream.advance(ours, window, credit=credit)
        descend(ours, torch.autograd.grad(y.square().sum(), list(ours.parameters())))

    # The same with graphs that are made anew from states kept by hand, one a step.
    theirs = network("gru")
    states = {0: torch.zeros(1, 2, 4).double()}  # before each step, as last computed
    for end in range(every, 16, every):
        first = max(0, end - reach)
        h, outputs = states[first], []
        for t in range(first, end):
            states[t] = h.detach()
            y, h = theirs(x[t : t + 1], h)
            outputs.append(y)
        states[end] = h.detach()
        loss = torch.cat(outputs)[-every:].square().sum()
        descend(theirs, torch.autograd.grad(loss, list(theirs.parameters())))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert not torch.equal(ours.weight_hh_l0, network("gru").weight_hh_l0)


def test_without_history_the_credit_applies_within_the_window():
    module, x = network("gru"), torch.randn(12, 2, 3).double()
    cut, *_ = along(module, x, bptt.Truncated(2), length=6)
    short, *_ = along(module, x, bptt.Truncated(2))
    for a, b in zip(cut, short, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    whole, *_ = along(module, x, bptt.Full(), length=6)
    assert any((a - b).norm() > 0.01 * b.norm() for a, b in zip(cut, whole, strict=True))


def test_inputs_may_be_a_nest():
    gru = network("gru")

    def module(inputs, state):
        return gru(inputs["a"] + inputs["b"][0], state)

    a, b = torch.randn(9, 2, 3).double(), torch.randn(9, 2, 3).double()
    credit = bptt.Truncated(every=3, reach=7)
    want, *_ = along(gru, a + b, credit)
    total = [torch.zeros_like(p) for p in gru.parameters()]
    stream = bptt.Stream()
    for t in range(0, 9, 3):
        window = {"a": a[t : t + 3], "b": (b[t : t + 3],)}
        y, stream = stream.advance(module, window, credit=credit)
        found = torch.autograd.grad(y.square().sum(), list(gru.parameters()))
        total = [p + q for p, q in zip(total, found, strict=True)]
    for p, q in zip(total, want, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_window_longer_than_the_credits_block_is_refused():
    x = torch.randn(6, 2, 3).double()
    with pytest.raises(ConfigError, match="in windows of 4, got one of 6"):
        bptt.Stream().advance(network("gru"), x, credit=bptt.Truncated(every=4, reach=9))


def test_memory_changes_no_more_than_the_rounding():
    module, x = network("lstm"), torch.randn(4, 2, 3).double()
    credit, stream = bptt.Truncated(every=4, reach=20), bptt.Stream()
    for _ in range(6):
        y, after = stream.advance(module, x, credit=credit)
        z, _ = stream.advance(module, x, credit=credit, memory=bptt.Recompute(2, segment=3))
        for a, b in zip(
            torch.autograd.grad(y.square().sum(), list(module.parameters())),
            torch.autograd.grad(z.square().sum(), list(module.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        stream = after


@pytest.mark.parametrize("kind", ["gru", "lstm", "torch", "batch_first", "cell"])
@pytest.mark.parametrize("each", [True, False])
def test_resets_cover_the_past_that_runs_again(kind, each):
    module, x = network(kind), torch.randn(16, 2, 3).double()
    resets = torch.zeros(16, 2, dtype=torch.bool) if each else torch.zeros(16, dtype=torch.bool)
    if each:
        resets[5, 1] = resets[10, 0] = resets[11, 1] = True
    else:
        resets[5] = resets[10] = True
    time = int(kind == "batch_first")
    if time:
        x, resets = x.transpose(0, 1), resets.t() if each else resets
    of_time = time if each else 0
    credit = bptt.Truncated(every=4, reach=10)
    y, _ = bptt.unroll(module, x, credit=credit, resets=resets)
    whole = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    total = [torch.zeros_like(p) for p in module.parameters()]
    stream, outputs = bptt.Stream(), []
    for n, (window, at) in enumerate(zip(x.split(4, time), resets.split(4, of_time), strict=True)):
        given = at if n != 3 or at.any() else None  # without any, the same as all False
        z, stream = stream.advance(module, window, credit=credit, resets=given)
        found = torch.autograd.grad(z.square().sum(), list(module.parameters()))
        total = [a + b for a, b in zip(total, found, strict=True)]
        outputs.append(z.detach())
    torch.testing.assert_close(torch.cat(outputs, time), y.detach(), rtol=0, atol=1e-12)
    for a, b in zip(total, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "lstm", "torch", "cell"])
@pytest.mark.parametrize("reach", [4, 6, 13])
def test_the_state_is_the_state_now(kind, reach):
    module, x = network(kind), torch.randn(21, 2, 3).double()
    _, _, stream = along(module, x[:16], bptt.Truncated(every=4, reach=reach))
    _, final = module(x[:16])
    torch.testing.assert_close(module(x[16:], stream.state)[0], module(x)[0][16:])
    for a, b in zip(
        bptt._src.pytree.leaves_of(stream.state), bptt._src.pytree.leaves_of(final), strict=True
    ):
        torch.testing.assert_close(a, b.detach())
        assert not a.requires_grad


def test_windows_and_reach_may_change_in_length():
    module, x = network("gru"), torch.randn(20, 2, 3).double()
    stream, outputs, first = bptt.Stream(), [], 0
    for every, reach in ((4, 8), (2, 9), (5, 6), (3, 3), (1, 12), (5, 5)):
        credit = bptt.Truncated(every=every, reach=reach)
        y, stream = stream.advance(module, x[first : first + every], credit=credit)
        outputs.append(y)
        first += every
    torch.testing.assert_close(torch.cat(outputs), module(x)[0], rtol=0, atol=1e-12)


def test_a_window_of_another_batch_is_refused():
    module, credit = network("gru"), bptt.Truncated(every=3, reach=6)
    _, stream = bptt.Stream().advance(module, torch.randn(3, 2, 3).double(), credit=credit)
    with pytest.raises(
        ValueError, match=r"\[\(2, 3\)\], got \[\(4, 3\)\]; begin with a new Stream"
    ):
        stream.advance(module, torch.randn(3, 4, 3).double(), credit=credit)


def test_batch_first_may_be_given():
    gru = network("batch_first")
    credit, x = bptt.Truncated(every=3, reach=8), torch.randn(2, 12, 3).double()
    want, outputs, _ = along(gru, x, credit)
    total, stream, found = [torch.zeros_like(p) for p in gru.parameters()], bptt.Stream(), []
    for window in x.split(3, dim=1):
        y, stream = stream.advance(lambda x, s: gru(x, s), window, credit=credit, batch_first=True)
        gradients = torch.autograd.grad(y.square().sum(), list(gru.parameters()))
        total = [a + b for a, b in zip(total, gradients, strict=True)]
        found.append(y.detach())
    torch.testing.assert_close(torch.cat(found, 1), outputs)
    for a, b in zip(total, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------ several processes


def of_ranks(module, x, credit, size, **given):
    """The gradients of all processes, each along its own sequences, and their streams."""
    total, streams = [torch.zeros_like(p) for p in module.parameters()], []
    for rank in range(size):
        plans = torch.Generator().manual_seed(5)
        stream = bptt.Stream(rank=rank, world_size=size, **given)
        for window in x[:, rank::size].split(4):
            y, stream = stream.advance(module, window, credit=credit, generator=plans)
            found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
            total = [a + b for a, b in zip(total, found, strict=True)]
        streams.append(stream)
    return total, streams


@pytest.mark.parametrize("batch", [5, 6])
@pytest.mark.parametrize("kind", ["lstm", "torch"])
@pytest.mark.parametrize("shared", [False, True])
def test_each_sequence_is_cut_where_one_process_cuts_it(kind, shared, batch):
    module, x = network(kind), torch.randn(16, batch, 3).double()
    credit = bptt.Randomized(2, shared=shared)
    whole, _ = of_ranks(module, x, credit, 1)
    found, streams = of_ranks(module, x, credit, 3, **({} if batch == 6 else {"batch": 5}))
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert [s.rank for s in streams] == [0, 1, 2]
    if kind == "lstm" and not shared:
        parts = [of_ranks(module, x[:, own], credit, 1)[0] for own in (slice(2), slice(2, None))]
        sums = [a + b for a, b in zip(*parts, strict=True)]
        assert any((a - b).norm() > 0.01 * b.norm() for a, b in zip(sums, whole, strict=True))


def test_what_is_saved_knows_no_ranks():
    credit = bptt.Truncated(every=4, reach=9)
    stream = bptt.Stream(rank=1, world_size=3, batch=7)
    _, stream = stream.advance(bptt.GRU(3, 4), torch.randn(4, 2, 3), credit=credit)
    saved = stream.to(torch.float64).state_dict()
    assert set(saved) == {"state", "past", "before", "resets"}
    other = bptt.Stream(rank=1, world_size=2)
    other.load_state_dict(saved)
    assert (other.rank, other.world_size, other.batch) == (1, 2, None)
    assert stream.to("cpu").batch == stream.batch == 7


def test_a_share_that_is_not_the_processs_is_refused():
    stream, gru = bptt.Stream(rank=2, world_size=3, batch=5), bptt.GRU(3, 4)
    with pytest.raises(ValueError, match=r"of batch=5 sequences, rank 2 of 3 has 1, got 2"):
        stream.advance(gru, torch.randn(4, 2, 3))
    stream.advance(gru, torch.randn(4, 1, 3))
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(4, 3)])
    stream.advance(gru, packed)
    with pytest.raises(ConfigError, match=r"`?rank`? must be from 0 to"):
        bptt.Stream(rank=3, world_size=3)
    with pytest.raises(ConfigError, match="belong together"):
        bptt.Stream(rank=1)


def test_a_stream_does_not_change():
    stream = bptt.Stream(rank=0, world_size=2)
    with pytest.raises(AttributeError, match="cannot assign to 'state'"):
        stream.state = torch.zeros(1)
    assert repr(stream) == "Stream(rank=0, world_size=2)"
