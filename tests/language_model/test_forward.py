"""The model's forward: logits, or the loss of them, from a state or along a stream."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import bptt
from bptt.data import IGNORED
from bptt.errors import ConfigError
from bptt.language_model import Config

V, T, B = 5, 4, 3


@pytest.fixture(name="model")
def _model():
    torch.manual_seed(0)
    tokenizer = bptt.data.Tokenizer.train(["abcde"], level="char")
    return bptt.LanguageModel(tokenizer, Config(hidden=6, layers=2, dropout=0.0)).double()


def batches(updates=4):
    tokens = torch.randint(V, (updates, T + 1, B), generator=torch.Generator().manual_seed(1))
    for window in tokens:
        targets = window[1:].clone()
        targets[0, 1] = IGNORED
        yield window[:-1], targets


def plain(logits, targets, reduction):
    given = logits.flatten(0, 1), targets.flatten()
    return cross_entropy(*given, ignore_index=IGNORED, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("credit", ["full", "truncated:2", "truncated:every=4,reach=7"])
def test_the_loss_along_a_stream_is_that_of_the_logits(model, credit, reduction):
    ours = theirs = bptt.Stream()
    for x, y in batches():
        loss, ours = model(x, ours, targets=y, credit=credit, reduction=reduction)
        logits, theirs = theirs.advance(model, x, credit=credit)
        other = plain(logits, y, reduction).view_as(loss)
        torch.testing.assert_close(loss, other, rtol=1e-12, atol=1e-14)
        found, expected = (torch.autograd.grad(e.sum(), model.parameters()) for e in (loss, other))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for a, b in zip(ours.state, theirs.state, strict=True):
        assert torch.equal(a, b)


def test_from_a_state_and_with_resets(model):
    (x, _), (then, after) = list(batches(2))
    _, state = model(x)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = True
    loss, end = model(then, state, targets=after, resets=resets)
    logits, other = model(then, state, resets=resets)
    torch.testing.assert_close(loss, plain(logits, after, "mean"))
    stream = bptt.Stream(tuple(s.detach() for s in state))
    along, stream = model(then, stream, targets=after, resets=resets)
    assert torch.equal(along, loss)
    assert torch.equal(end[0], other[0])
    assert torch.equal(stream.state[0], end[0])
    assert model(then, state, targets=after)[0] != loss


def test_a_stream_without_targets_gives_logits(model):
    x, _ = next(batches())
    logits, stream = model(x, bptt.Stream())
    assert torch.equal(logits, model(x)[0])
    assert isinstance(stream, bptt.Stream)


def test_what_is_run_again_can_be_said(model):
    x, y = next(batches())
    for back in (0, 2):
        _, stream = model(x, bptt.Stream(), targets=y, reach_back=back)
        assert (0 if stream.past is None else len(stream.past)) == back


def test_a_window_beyond_the_credits_block_is_refused(model):
    x, y = next(batches())
    with pytest.raises(ConfigError, match="windows of 3, got one of 4: split it"):
        model(x, bptt.Stream(), targets=y, credit=bptt.Truncated(every=3, reach=5))
