"""One update at a time: what is carried, what is counted, what is dropped, at which rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bptt._src.data.readers import IGNORED
from bptt._src.language_model import training as training_module
from bptt._src.language_model.options_file import as_options
from bptt._src.networks import NAMES
from bptt.errors import ConfigError
from bptt.language_model import Config, Watch, start


def with_signal(training):
    """Weights large enough that a state makes a difference, in double precision."""
    training.model.double()
    with torch.no_grad():
        for p in training.model.parameters():
            p.normal_(0, 0.5)
    return training


@pytest.mark.parametrize("cell", NAMES)
def test_a_window_goes_on_from_the_state_after_the_one_before(small, tmp_path, cell):
    config = small.changed(cell=cell, learning_rate=0.0)
    training = with_signal(start(config, tmp_path / "run"))
    first, second, *_ = list(training.reader)
    assert first.fresh
    assert not second.fresh

    def loss(state):
        logits, _ = training.model(second.inputs, state)
        return cross_entropy(logits.flatten(0, 1), second.targets.flatten()).item()

    training.update(first)
    found = training.update(second)
    _, carried = training.model(first.inputs)
    assert found == pytest.approx(loss(carried), rel=1e-12)
    assert found != pytest.approx(loss(None), rel=1e-4)


def test_a_text_begins_from_a_zero_state_in_each_epoch(small, tmp_path):
    training = with_signal(start(small.changed(learning_rate=0.0), tmp_path / "run"))
    batch = next(iter(training.reader))
    assert training.update(batch) == training.update(batch)


def test_padding_counts_neither_in_the_loss_nor_in_the_gradient(small, tmp_path):
    config = small.changed(reading="sentences", clip=0.0)
    training = with_signal(start(config, tmp_path / "run"))
    batch = next(b for b in training.reader if (b.targets == IGNORED).any())
    total = torch.zeros((), dtype=torch.float64)
    for column in range(batch.inputs.shape[1]):
        length = int((batch.targets[:, column] != IGNORED).sum())
        logits, _ = training.model(batch.inputs[:length, column : column + 1])
        total = total + cross_entropy(logits[:, 0], batch.targets[:length, column], reduction="sum")
    parameters = list(training.model.parameters())
    expected = torch.autograd.grad(total / batch.tokens, parameters)

    assert training.update(batch) == pytest.approx(total.item() / batch.tokens, rel=1e-12)
    for p, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad.to_dense(), gradient.to_dense(), rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------------- dropout


def test_embedding_and_readout_see_dropout_in_training_only(small, tmp_path):
    model = with_signal(start(small.changed(dropout=0.5), tmp_path / "run")).model
    seen = {}
    model.recurrent.register_forward_pre_hook(lambda m, x: seen.update(embedding=x[0]))
    model.recurrent.register_forward_hook(lambda m, x, y: seen.update(hidden=y[0]))
    model.readout.register_forward_pre_hook(lambda m, x: seen.update(readout=x[0]))
    tokens = torch.arange(8).unsqueeze(1).expand(8, 30)
    for training, scales in ((True, {0.0, 2.0}), (False, {1.0})):
        model.train(training)(tokens)
        before, after = model.embedding(tokens), seen["embedding"]
        assert set((after / before).unique().tolist()) == scales
        assert set((seen["readout"] / seen["hidden"]).unique().tolist()) == scales


def test_dropout_between_the_layers(small, tmp_path):
    model = start(small.changed(dropout=0.5, layers=2), tmp_path / "run").model
    model.dropout.p = 0.0
    tokens = torch.arange(8).unsqueeze(1)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_zoneout_keeps_states_in_training_only(small, tmp_path):
    model = start(small.changed(zoneout=0.5, layers=2), tmp_path / "run").model
    tokens = torch.arange(8).unsqueeze(1)
    h, _ = model.recurrent(model.embedding(tokens))
    assert 0.3 < float((h[1:] == h[:-1]).float().mean()) < 0.7
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    with pytest.raises(ConfigError, match=r"torch\.nn has no LSTM with zoneout"):
        model.to_torch()


def test_zoneout_of_each_tensor_of_the_state(small, tmp_path):
    config = small.changed(cell="lstm", zoneout=(0.0, 0.5))
    assert Config(**as_options(config.to_dict(), tmp_path)) == config
    assert config.changed(zoneout=(0.5,)).zoneout == 0.5
    model = start(config, tmp_path / "run").model
    x = torch.randn(40, 1, model.embedding.embedding_dim)
    _, _, ((h, c),) = model.recurrent(x, return_states=True)
    assert not (h[1:] == h[:-1]).any()
    assert 0.3 < float((c[1:] == c[:-1]).float().mean()) < 0.7


# ------------------------------------------------------------------------- metrics and rates


class Ledger(Watch):
    """Writes down each update: its number, epoch, loss, tokens and rate."""

    def __init__(self):
        self.updates, self.tokens = [], 0

    def updated(self, training, loss):
        p = training.progress
        rate = training.optimizer.param_groups[0]["lr"]
        self.updates.append((training.reader.epoch, loss, p.tokens - self.tokens, rate))
        self.tokens = p.tokens


def mean(updates):
    return sum(loss * n for _, loss, n, _ in updates) / sum(n for _, _, n, _ in updates)


def test_measurements_are_means_over_what_they_cover(small, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 7)
    ledger = Ledger()
    config = small.changed(reading="sentences", schedule="cosine", warmup=9, batch_size=9)
    training = start(config, tmp_path / "run", watch=ledger)
    training.fit()
    metrics = training.run.metrics()

    edges = [m["update"] for m in metrics if "loss" in m]
    assert edges == [1, *range(7, len(ledger.updates) + 1, 7)]
    for a, b in zip([0, *edges], edges, strict=False):
        line = next(m for m in metrics if m["update"] == b and "loss" in m)
        assert line["loss"] == pytest.approx(mean(ledger.updates[a:b]), rel=1e-9)
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))

    by_epoch = [m["epoch_loss"] for m in metrics if "epoch_loss" in m]
    for epoch, found in enumerate(by_epoch):
        of_epoch = [u for u in ledger.updates if u[0] == epoch]
        assert found == pytest.approx(mean(of_epoch), rel=1e-9)
    assert len(by_epoch) == 2

    assert all(m["rate"] == ledger.updates[m["update"] - 1][3] for m in metrics)
    n = len(ledger.updates)
    assert [m["update"] for m in metrics if "valid_loss" in m] == [n // 2, n]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_begin_at_the_whole_rate_and_waste_no_update(small, tmp_path, schedule):
    ledger = Ledger()
    config = small.changed(reading="sentences", schedule=schedule, learning_rate=0.5)
    start(config, tmp_path / "run", watch=ledger).fit()
    n = len(ledger.updates)
    of = {"linear": lambda x: 1 - x, "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x))}
    expected = [0.5 * of[schedule](k / n) for k in range(n)]
    assert [u[3] for u in ledger.updates] == pytest.approx(expected, rel=1e-9)
