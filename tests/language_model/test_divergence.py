"""Divergence: it is noticed, said where it began, and what is kept stays good."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import safetensors.torch
import torch

import bptt
from bptt._src.engines.norm_hooks import Report
from bptt._src.language_model.divergence import (
    _states_on_the_way_back,
    first_not_finite,
    norms_in_words,
)
from bptt._src.language_model.training import Training
from bptt._src.language_model.watch import Watch
from bptt._src.steps import Steps
from bptt._src.unroll.stream import Stream
from bptt.credit import Decay
from bptt.errors import DivergedError
from bptt.language_model import resume, start, train

T, B = 7, 3


def weights(run, name="checkpoint.safetensors"):
    return safetensors.torch.load_file(run.path / name)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(name="model")
def _model(small, tmp_path):
    return start(small.changed(cell="lstm", layers=2, dropout=0.3), tmp_path / "model").model


def batch(model):
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, model.tokenizer.size, (T + 1, B), generator=draw)
    return tokens[:-1], tokens[1:]


def look(model, loss=math.nan, stream=None):
    return first_not_finite(model, *batch(model), stream or Stream(), loss)


# ------------------------------------------------------------------ where it went wrong


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("embedding.weight", "the embedding"),
        ("recurrent.weight_hh_l0", "layer 1 of 2"),
        ("recurrent.bias_ih_l1", "layer 2 of 2"),
        ("readout.bias", "the readout"),
    ],
)
def test_weights_that_are_not_finite_are_named_first(model, parameter, part):
    with torch.no_grad():
        dict(model.named_parameters())[parameter].view(-1)[-1] = math.inf
    assert f"the weights of {part} ({parameter}), by the update before" in look(model)


def test_forwards_the_first_step_and_layer_is_named(model):
    """The input of one token is so large that layer 2's gates are not numbers, from then on."""
    inputs, targets = batch(model)
    state = tuple(torch.zeros(2, B, 16) for _ in range(2))
    state[1][1] = 3e38  # the cell state of layer 2: still finite, its sum with another is not
    with torch.no_grad():
        model.recurrent.bias_ih_l1.fill_(50)  # all gates open
        model.recurrent.weight_hh_l1.zero_()
    found = first_not_finite(model, inputs, targets, Stream(state), math.nan)
    # c = 1 · 3e38 + 1 · 1 stays; only a state that is not finite goes on as one
    assert "everything was finite" in found
    assert "the largest was the cell state of layer 2 of 2" in found
    assert "up to 3e+38" in found
    state[1][0, 1, 3] = math.inf
    found = first_not_finite(model, inputs, targets, Stream(state), math.nan)
    assert "first not finite: the cell state of layer 1 of 2, at step 1 of 7" in found


def test_the_step_in_the_middle_of_a_batch_is_named(small, tmp_path):
    model = start(small.changed(cell="rnn", nonlinearity="relu"), tmp_path / "model").model
    inputs, targets = batch(model)
    inputs[:4] = 2
    inputs[4:] = 3
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[3] = 3e38
        model.recurrent.weight_ih_l0.fill_(1)  # a sum over 16 inputs overflows
    found = first_not_finite(model, inputs, targets, Stream(), math.nan)
    assert "first not finite: the hidden state of layer 1 of 1, at step 5 of 7" in found
    # The steps that are run again before the window count.
    past = inputs[:3]
    found = first_not_finite(model, inputs, targets, Stream(None, past), math.nan)
    assert "the hidden state of layer 1 of 1, at step 8 of 10" in found


def test_of_the_steps_that_are_run_again_the_logits_do_not_count(small, tmp_path):
    model = start(small.changed(cell="rnn", nonlinearity="relu"), tmp_path / "model").model
    inputs, targets = batch(model)
    inputs[:] = 2
    huge = torch.full_like(inputs[:1], 3)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embedding.weight[3] = 1e30
        model.recurrent.weight_ih_l0.fill_(1)
        model.readout.weight.fill_(1e10)  # so that the logits of that step alone overflow
    found = first_not_finite(model, inputs, targets, Stream(None, huge), math.nan)
    assert "everything was finite" in found
    inputs[2] = 3
    found = first_not_finite(model, inputs, targets, Stream(None, huge), math.nan)
    assert "first not finite: the logits, at step 4 of 8" in found


def test_logits_and_loss_that_overflow_are_named(model):
    with torch.no_grad():
        model.readout.weight.fill_(3e38)
        model.recurrent.bias_ih_l1.fill_(50)  # hidden units near 1, whose sum overflows
    assert "first not finite: the logits, at step 1 of 7" in look(model)
    assert "the largest before it was the cell state of layer 2 of 2" in look(model)
    with torch.no_grad():
        model.readout.weight.zero_()
        model.readout.bias.fill_(-3e38)
        model.readout.bias[:2] = 3e38
    assert "first not finite: the loss, at step 1 of 7" in look(model, math.inf)


def test_backwards_the_part_nearest_to_the_loss_is_named(model):
    model.embedding.sparse = True
    inputs, _ = batch(model)
    h, _ = model.hidden(inputs)
    h.square().mean().backward()
    parameters = dict(model.named_parameters())
    parameters["readout.weight"].grad = torch.zeros_like(model.readout.weight)
    assert "the whole gradient is finite" in look(model, 1.0)
    bad = [
        ("embedding.weight", "the embedding"),
        ("recurrent.weight_hh_l0", "layer 1 of 2"),
        ("recurrent.weight_hh_l1", "layer 2 of 2"),
        ("readout.weight", "the readout"),
    ]
    for name, part in bad:  # each nearer to the loss than the one before
        grad = parameters[name].grad
        (grad.coalesce().values() if grad.is_sparse else grad).view(-1)[0] = math.nan
        if grad.is_sparse:
            parameters[name].grad = grad.coalesce() * math.nan
        assert f"first not finite: the gradient of {part} ({name})" in look(model, 1.0)


def report(weight, *norms):
    rows = torch.tensor(norms, dtype=torch.float64).unsqueeze(1)
    return Report(weight, Steps((1,) * len(norms)), rows)


def test_the_states_gradient_is_told_of_the_layer_and_the_step_where_it_stops_being_finite(model):
    low, high = model.recurrent.weight_hh_l0, model.recurrent.weight_hh_l1
    nan, inf = math.nan, math.inf

    def said(upper, lower):  # the upper layer's report comes first
        return _states_on_the_way_back([report(high, *upper), report(low, *lower)])

    assert said([4, 2, 1, 0], [9, 3, 1, 0]) == (
        "; the state's gradient in layer 1 of 2 was 1 at step 3 and 9 at step 1, further back"
    )
    assert "layer 2 of 2 was 1 at step 3 and 10 at step 2," in said([4, 10, 1, 0], [9, 3, 1, 0])
    # The first on the way back: of the layer nearer to the loss, and of the later step.
    assert "layer 1 of 2 was 1 at step 3 and inf at step 2," in said([9, 9, 9, 0], [nan, inf, 1, 0])
    assert "layer 2 of 2 was 1 at step 3 and inf at step 1," in said(
        [inf, 9, 1, 0], [nan, nan, nan, 0]
    )
    assert said([0], [0]) == ""
    assert _states_on_the_way_back([]) == ""


@pytest.mark.parametrize(
    "how", [{}, {"memory": bptt.Recompute(2)}, {"reach_back": 3}, {"credit": bptt.Truncated(2)}]
)
def test_the_batch_is_run_again_as_it_was_run(model, how):
    """The states' gradient is that of the batch's own credit; here it grows to infinity."""
    with torch.no_grad():
        for p in model.recurrent.parameters():
            p.mul_(3)
        model.readout.weight.mul_(1e30)
    inputs, targets = batch(model)
    past = inputs[:2] if "reach_back" in how else None
    h, _ = model.hidden(inputs)
    h.square().mean().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    found = first_not_finite(model, inputs, targets, Stream(None, past), 1.0, how)
    steps = T + 2 if past is not None else T
    assert "in layer 1 of 2 was " in found or "in layer 2 of 2 was " in found
    assert f" at step {steps - 1} and " in found
    assert torch.equal(random, torch.get_rng_state())
    for p, g in zip(model.parameters(), before, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad.to_dense(), g.to_dense())


def test_looking_changes_nothing(model):
    model.train()
    random = torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    look(model)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert same(before, model.state_dict())


def test_the_norms_before_in_words():
    assert norms_in_words([]) == "it was the first update"
    assert norms_in_words([0.1, 1234567.0]) == "the gradient's norms before were 0.1, 1.23e+06"


# -------------------------------------------------------------------------------- stopping


@pytest.fixture(name="wild")
def _wild(small):
    """ReLU and no clipping: with this rate its states overflow, with a quarter of it not."""
    return small.changed(
        cell="rnn", nonlinearity="relu", optimizer="sgd", clip=0.0, learning_rate=8.0, epochs=1
    )


def test_a_rate_that_is_too_large_stops_with_where_and_what_led_there(wild, tmp_path):
    training = start(wild, tmp_path / "run")
    with pytest.raises(DivergedError) as caught:
        training.fit()
    message = str(caught.value)
    assert "\n" not in message
    made = training.progress.updates
    assert f"training diverged at update {made + 1}: the loss is " in message
    assert re.search(r"(first not finite|the largest was).* layer 1 of 1", message)
    norms = ", ".join(f"{n:.3g}" for n in training.progress.norms)
    assert len(training.progress.norms) == 5
    assert f"the gradient's norms before were {norms}, the learning rate was 8" in message
    assert "the last good state, after update 0, is kept" in message
    assert f"bptt train --resume {tmp_path / 'run'} --clip 1" in message
    assert training.run.metrics()[-1]["diverged"] == caught.value.what
    assert caught.value.what in message
    training.close()

    again = resume(training.run.path, {"clip": 1.0, "learning_rate": 1.0})
    assert again.progress.updates == 0
    assert not any("diverged" in m for m in again.run.metrics())
    again.fit()


def test_the_remedy_is_another_where_gradients_are_clipped(wild, tmp_path):
    with pytest.raises(DivergedError, match=r"--lr 5e\+29$"):
        train(wild.changed(clip=1.0, learning_rate=1e30), tmp_path / "run")


def test_to_clip_is_no_remedy_where_it_would_have_changed_nothing(wild, tmp_path):
    training = start(wild, tmp_path / "run")
    training.progress.norms = [0.2, 0.9]
    assert str(training._diverged("")).endswith("--lr 4")
    training.progress.norms = [0.2, 1.1]
    assert str(training._diverged("")).endswith("--clip 1")


def test_a_loss_that_explodes_and_is_finite_is_no_divergence(small, tmp_path):
    config = small.changed(optimizer="sgd", learning_rate=1e6, epochs=1)
    training = start(config, tmp_path / "run")
    training.fit()
    assert training.progress.best_valid > 1e3


def test_weights_that_an_update_made_infinite_are_not_saved(small, tmp_path):
    """Neither as a checkpoint nor as the best model; the loss and the gradient were finite."""
    config = small.changed(
        optimizer="adamw", learning_rate=1e38, weight_decay=1e6, clip=0.0, save_every=0
    )
    training = start(config, tmp_path / "run")
    kept = weights(training.run)
    with pytest.raises(DivergedError, match=r"by update 1: .* is not finite") as caught:
        training.fit()
    assert "after update 0, is kept" in str(caught.value)
    assert same(weights(training.run), kept)
    with pytest.raises(DivergedError, match=r"by update 1: .* is not finite"):
        training.evaluate()
    assert not (training.run.path / "model.safetensors").exists()


def test_what_adam_remembers_is_looked_at_before_it_is_saved(small, tmp_path):
    training = start(small, tmp_path / "run")
    training.fit(lambda: "stop" if training.progress.updates == 3 else None)
    training.optimizer.state[training.model.readout.bias]["exp_avg_sq"][0] = math.inf
    with pytest.raises(DivergedError, match=r"by update 3: optimizer\.\d+\.exp_avg_sq is not"):
        training.save()


def test_a_validation_loss_that_is_not_finite_is_divergence(small, tmp_path, monkeypatch):
    training = start(small, tmp_path / "run")
    monkeypatch.setattr(
        "bptt._src.language_model.evaluation._losses",
        lambda model, hidden, targets: torch.full(targets.shape, math.inf),
    )
    with pytest.raises(DivergedError, match="the validation loss is inf"):
        training.fit()
    training.evaluate_unsaved()
    assert not (training.run.path / "model.safetensors").exists()


# ------------------------------------------------------------------------------- going back


class Told(Watch):
    def __init__(self):
        self.rewinds = []

    def rewound(self, training: Training, reason: str) -> None:
        self.rewinds.append((training.progress.updates, training.rate(), reason))


def test_rewinding_goes_on_from_the_initial_weights_at_half_the_rate(wild, tmp_path):
    """Nothing else was saved; at 8 it diverges, at 4 as well, at 2 not."""
    told = Told()
    training = start(wild.changed(on_divergence="rewind"), tmp_path / "run", watch=told)
    assert training.fit() == "epochs"
    assert [(updates, rate) for updates, rate, _ in told.rewinds] == [(0, 4.0), (0, 2.0)]
    first, second = (int(re.findall(r"at update (\d+)", why)[0]) for *_, why in told.rewinds)
    assert first < second
    assert training.progress.rewinds == 2
    # It is, bit by bit, what half the rate twice gives from the start.
    plain = train(wild.changed(learning_rate=2.0), tmp_path / "plain")
    assert same(weights(training.run), weights(plain))
    lines = [m for m in training.run.metrics() if "rewind" in m]
    assert [(m["rewind"], m["update"]) for m in lines] == [(1, 0), (2, 0)]
    assert f"at update {second}: the loss is" in lines[1]["diverged"]


def test_a_credit_that_measures_what_is_not_finite_is_divergence(small, tmp_path, monkeypatch):
    found = [math.inf, 0.5, 0.5]

    def probe(*_):
        beta = found.pop(0)
        return lambda lags: Decay(np.full((2, lags), beta), np.ones(lags))

    monkeypatch.setattr("bptt._src.language_model.training.TextProbe", probe)
    config = small.changed(credit="adaptive:0.5,start=4,most=9", steps=None, epochs=2)
    training = start(config, tmp_path / "stops")
    with pytest.raises(DivergedError, match=r"after update \d+: Adaptive has measured .* --lr"):
        training.fit()
    assert "Adaptive" in training.run.metrics()[-1]["diverged"]
    found.insert(0, math.inf)
    training = start(config.changed(on_divergence="rewind"), tmp_path / "goes on")
    assert training.fit() == "epochs"
    assert training.progress.rewinds == 1


def test_rewinding_ends_after_so_many_times(wild, tmp_path):
    config = wild.changed(on_divergence="rewind", most_rewinds=1)
    training = start(config, tmp_path / "run")
    with pytest.raises(DivergedError, match="after 1 rewind:"):
        training.fit()
    assert training.run.load_checkpoint()[1]["progress"]["rewinds"] == 1
    training.close()
    again = resume(training.run.path, {"most_rewinds": 2})  # once more, then
    assert again.fit() == "epochs"
    assert again.progress.rewinds == 2


def test_rewinding_and_stopping_and_resuming_come_to_the_same_bits(wild, tmp_path):
    """With a checkpoint after each epoch, that is, at the same places of both."""
    config = wild.changed(on_divergence="rewind", epochs=2)
    whole = train(config, tmp_path / "whole")
    parts = start(config, tmp_path / "parts")

    def killed():
        if parts.progress.rewinds == 1 and parts.progress.updates == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.fit(killed)
    parts.close()
    torch.manual_seed(12345)
    parts = resume(parts.run.path)
    assert (parts.progress.updates, parts.progress.rewinds) == (0, 1)
    parts.fit()
    assert same(weights(whole), weights(parts.run))
    assert [{**m, "seconds": 0} for m in whole.metrics()] == [
        {**m, "seconds": 0} for m in parts.run.metrics()
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"reading": "sentences"},
        {"sampling": "random", "dropout": 0.2},
        {"credit": "truncated:every=3,reach=9", "steps": None},
    ],
    ids=str,
)
def test_rewinding_from_a_checkpoint_in_the_middle(small, tmp_path, monkeypatch, options):
    """It goes back to the last checkpoint and over the same batches again."""
    told = Told()
    config = small.changed(on_divergence="rewind", epochs=1, **options)
    training = start(config, tmp_path / "run", watch=told)
    training.fit(lambda: "stop" if training.progress.updates == 5 else None)
    seen, bad = [], [8]
    real = training.step.__class__.__call__

    def step(self, inputs, *rest, **how):
        taken = real(self, inputs, *rest, **how)
        seen.append(inputs)
        if training.progress.updates + 1 in bad:
            bad.clear()
            return taken._replace(norm=math.inf)
        return taken

    monkeypatch.setattr(training.step.__class__, "__call__", step)
    training.fit()
    assert [(updates, rate) for updates, rate, _ in told.rewinds] == [(5, 0.0015)]
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
