"""The step: what it computes is torch's plain way, whatever it leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bptt import Stream
from bptt._src.data.readers import IGNORED
from bptt._src.language_model.setup import make_optimizer
from bptt._src.language_model.step import TrainingStep
from bptt.language_model import start

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "sgd, tied": {"optimizer": "sgd", "tied": True},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9},
    "sgd with decay": {"optimizer": "sgd", "weight_decay": 0.1},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
}
DENSE = {"sgd, tied"}
USED = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1, "embedding_rows": "used"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "embedding_rows": "used"},
}


@pytest.fixture(name="model_of")
def _model_of(small, tmp_path):
    """Make a model in float64, with weights large enough that everything has a gradient."""

    def make(config):
        model = start(config, tmp_path / "run", overwrite=True).model.double()
        torch.manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.5)
        return model

    return make


def batches(model, steps=7, batch=3, updates=4):
    """Tokens of a few kinds only, so that most rows are not used and others are twice."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(2, 7, (updates, steps + 1, batch), generator=draw)
    for window in tokens:
        targets = window[1:].clone()
        targets[-1, 0] = IGNORED
        yield window[:-1], targets
    assert model.tokenizer.size > 12


def plainly(model, optimizer, clip, given):
    """The same updates as they are usually written; their losses and norms."""
    model.embedding.sparse = False
    state, found = None, []
    for inputs, targets in given:
        logits, state = model(inputs, state)
        state = tuple(s.detach() for s in state)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
        found += [loss.item(), norm.item()]
    return found


@pytest.mark.parametrize("clip", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_torch(small, model_of, name, clip):
    config = small.changed(clip=clip, **OPTIMIZERS[name])
    ours, theirs = model_of(config), model_of(config)
    before = [p.detach().clone() for p in ours.parameters()]
    expected = plainly(
        theirs, make_optimizer(config, list(theirs.parameters())), clip, batches(theirs)
    )

    step = TrainingStep(ours, make_optimizer(config, list(ours.parameters())), clip)
    stream, found = Stream(), []
    for inputs, targets in batches(ours):
        taken = step(inputs, targets, stream, 0.1)
        found += [taken.loss, taken.norm]
        stream = taken.stream
    assert found == pytest.approx(expected, rel=1e-6)
    assert clip != 0.3 or min(found[1::2]) > 0.3  # it was clipped
    for p, e, b in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(p, e, rtol=1e-6, atol=1e-7)
        assert not torch.equal(p, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_embeddings_gradient_has_the_rows_of_the_batch(small, model_of, name):
    config = small.changed(**OPTIMIZERS[name])
    model = model_of(config)
    step = TrainingStep(model, make_optimizer(config, list(model.parameters())), 1.0)
    inputs, targets = next(batches(model))
    step(inputs, targets, Stream(), 0.1)
    gradient = model.embedding.weight.grad
    assert gradient.is_sparse == (name not in DENSE)
    if name not in DENSE:
        assert gradient.values().shape == (len(inputs.unique()), model.config.embedding_size)
        assert gradient.indices()[0].tolist() == inputs.unique().tolist()


def by_hand(p, m, v, g, t, config, rate):
    """One of Adam's or AdamW's updates, as their papers write it."""
    decay = config.weight_decay
    if config.optimizer == "adamw":
        p = p * (1 - rate * decay)
    else:
        g = g + decay * p
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8), m, v


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("name", USED)
def test_only_rows_with_a_gradient_change_where_that_is_asked_for(
    small, model_of, name, clip, is_dense
):
    config = small.changed(clip=clip, **USED[name])
    model = model_of(config)
    step = TrainingStep(model, make_optimizer(config, list(model.parameters())), clip)
    model.embedding.sparse = not is_dense  # as that of processes which share a large batch is not
    table, stream, used, stood = model.embedding.weight, Stream(), set(), 0
    p = before = table.detach().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, (inputs, targets) in enumerate(batches(model), 1):
        inputs = inputs.clamp(max=4) if t % 2 == 0 else inputs
        taken = step(inputs, targets, stream, 0.1)
        rows, stream = inputs.unique(), taken.stream
        g = table.grad.to_dense()[rows] / (max(1.0, (taken.norm + 1e-6) / clip) if clip else 1)
        p, m, v = p.clone(), m.clone(), v.clone()
        p[rows], m[rows], v[rows] = by_hand(p[rows], m[rows], v[rows], g, t, config, 0.1)
        stood += len(used - set(rows.tolist()))
        used |= set(rows.tolist())
        torch.testing.assert_close(table.detach(), p, rtol=1e-6, atol=1e-7)
    assert stood  # rows that had moments when they were not used
    state = step.optimizer.state[table]
    torch.testing.assert_close(state["exp_avg"], m, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(state["exp_avg_sq"], v, rtol=1e-5, atol=1e-12)
    unused = [row for row in range(len(p)) if row not in used]
    assert torch.equal(table[unused], before[unused])


def test_the_first_update_of_rows_that_are_used_is_adams_to_the_bit(small, model_of):
    found = []
    for rows in ("all", "used"):
        config = small.changed(embedding_rows=rows)
        model = model_of(config).float()
        step = TrainingStep(model, make_optimizer(config, list(model.parameters())), 0.1)
        inputs, targets = next(batches(model))
        step(inputs, targets, Stream(), 0.1)
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_nothing_changes_where_the_gradient_is_not_finite(small, model_of, name, bad):
    config = small.changed(optimizer=name)
    model = model_of(config)
    step = TrainingStep(model, make_optimizer(config, list(model.parameters())), 1.0)
    inputs, targets = next(batches(model))
    model.recurrent.weight_hh_l0.register_hook(lambda g: g * bad)
    before = [p.detach().clone() for p in model.parameters()]
    taken = step(inputs, targets, Stream(), 0.1)
    assert math.isfinite(taken.loss)
    assert not math.isfinite(taken.norm)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_rate_is_the_optimizers(small, model_of):
    model = model_of(small)
    step = TrainingStep(model, make_optimizer(small, list(model.parameters())), 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    step(*next(batches(model)), Stream(), 0.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert [g["lr"] for g in step.optimizer.param_groups] == [0.0]


def test_a_gradient_that_is_short_enough_is_not_scaled(small, model_of):
    model = model_of(small)
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True), 1e3)
    step(*next(batches(model)), Stream(), 0.1)
    assert step.optimizer.grad_scale is None
    step.clip = 0.01
    step(*next(batches(model)), Stream(), 0.1)
    assert step.optimizer.grad_scale > 1
