"""The adaptive softmax: torch.nn's values and gradients, by the fused kernels; and its model."""

from __future__ import annotations

import pytest
import torch

from bptt._src.language_model import expected
from bptt._src.language_model.readout import AdaptiveReadout, loss_of, size_of
from bptt._src.language_model.session import text_of_run
from bptt.data import IGNORED
from bptt.errors import ConfigError
from bptt.language_model import Config, LanguageModel, evaluate, train

T, B, H, V = 5, 4, 16, 90


def problem(dtype=torch.float64, vocabulary=V, hidden=H):
    torch.manual_seed(0)
    readout = AdaptiveReadout(hidden, vocabulary).to(dtype)
    h = torch.randn(T, B, hidden, dtype=dtype, requires_grad=True)
    return readout, h, torch.randint(vocabulary, (T, B))


def gradients(loss, readout, h):
    return torch.autograd.grad(loss, [h, *readout.parameters()])


def agree(found, expected):
    assert all(float(e.norm()) > 0 for e in expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradients_are_those_of_torch(reduction):
    readout, h, targets = problem()
    output, mean = readout.softmax(h.flatten(0, 1), targets.flatten())
    expected = {"mean": mean, "sum": -output.sum(), "none": -output.view(T, B)}[reduction]
    loss = loss_of(readout, h, targets, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    scale = torch.linspace(0.5, 2, T * B, dtype=torch.float64).view(T, B)
    if reduction == "none":
        loss, expected = (loss * scale).sum(), (expected * scale).sum()
    agree(gradients(loss, readout, h), gradients(expected, readout, h))


def test_ignored_targets_have_no_loss():
    readout, h, targets = problem()
    some = targets.clone()
    some[1, 2] = some[3] = IGNORED
    kept = some != IGNORED
    each = loss_of(readout, h, targets, reduction="none")
    torch.testing.assert_close(loss_of(readout, h, some), each[kept].mean())
    found = loss_of(readout, h, some, reduction="none")
    torch.testing.assert_close(found, torch.where(kept, each, 0))
    agree(
        gradients(loss_of(readout, h, some, reduction="sum"), readout, h),
        gradients(each[kept].sum(), readout, h),
    )


@pytest.mark.parametrize("vocabulary", [2, 3, 4, 7, 31, 1000])
@pytest.mark.parametrize("hidden", [1, 2, 3, 5, 40])
def test_its_logits_are_logarithms_of_probabilities_and_its_loss_is_of_them(vocabulary, hidden):
    readout, h, targets = problem(vocabulary=vocabulary, hidden=hidden)
    logits = readout(h)
    assert logits.shape == (T, B, vocabulary)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(T, B, dtype=torch.float64))
    torch.testing.assert_close(logits[0], readout.softmax.log_prob(h[0]))
    torch.testing.assert_close(readout(h[0, 0]), logits[0, 0])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss_of(readout, h, targets), expected)
    assert size_of(hidden, vocabulary, adaptive=True) == sum(
        p.numel() for p in readout.parameters()
    )


def test_a_cluster_without_tokens_gets_a_gradient_of_zero():
    """None would leave it out of the optimizer's step, in one process and not in several."""
    readout, h, targets = problem()
    found = gradients(loss_of(readout, h, targets % 3), readout, h)
    assert [float(d.norm()) > 0 for d in found] == [True] * 3 + [False] * 4


def test_without_learning_only_the_input_has_a_gradient():
    for readout in (problem()[0], torch.nn.Linear(H, V).double()):
        _, h, targets = problem()
        loss_of(readout, h, targets, learns=False).backward()
        assert all(p.grad is None for p in readout.parameters())
        assert float(h.grad.norm()) > 0


@pytest.fixture
def adaptive(small, tmp_path):
    return train(small.changed(softmax="adaptive"), tmp_path / "adaptive")


def test_a_model_learns_with_it_and_is_evaluated_by_all_probabilities(adaptive, run):
    model = adaptive.load_model()
    text = text_of_run(adaptive).valid
    ids = torch.from_numpy(text.ids.astype("int64"))
    with torch.no_grad():
        logits, _ = model(ids[:-1].unsqueeze(1))
    expected = -logits[:, 0].gather(1, ids[1:].unsqueeze(1)).double().sum()
    assert evaluate(model, text).nats == pytest.approx(float(expected), rel=1e-5)
    assert evaluate(model, text).loss < 1.1 * evaluate(run.load_model(), text).loss
    assert model.sample("John", length=10, seed=1) == model.sample("John", length=10, seed=1)
    assert model.sample("John", length=10, seed=1) != model.sample("John", length=10, seed=2)


def test_what_it_cannot_do_is_refused(adaptive):
    with pytest.raises(ConfigError, match="the readout is an adaptive softmax, and not a Linear"):
        adaptive.load_model().to_torch()
    with pytest.raises(ConfigError, match="which softmax='adaptive' has not: leave tied out"):
        Config(softmax="adaptive", tied=True)
    with pytest.raises(ConfigError, match="is for level='word' or level='whitespace'"):
        Config(softmax="adaptive", level="bpe")


def test_it_takes_less_memory(adaptive, monkeypatch):
    asked = []
    monkeypatch.setattr(expected, "_may_have", lambda size: asked.append(size) or True)
    for softmax in ("adaptive", "full"):
        config, tokenizer = adaptive.config().changed(softmax=softmax), adaptive.tokenizer()
        model = LanguageModel(tokenizer, config)
        expected.check_memory(config, tokenizer.size)
        assert asked[-1] == 4 * sum(p.numel() for p in model.parameters())
        expected.check_memory(config, 100_000)
    assert asked[1] < 0.7 * asked[3]
