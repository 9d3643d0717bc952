"""Training with --precision bf16: what is rounded, what is not, and what is said."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

import bptt
from bptt._src.language_model.session import text_of_run
from bptt.errors import BpttWarning, ConfigError
from bptt.language_model import Config, evaluate, start, train

HAS_BF16 = bptt.kernels.backend().bf16
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="these kernels have no products of bfloat16")


def tensors(run, name):
    return safetensors.torch.load_file(run.path / f"{name}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def is_rounded(t):
    return torch.equal(t, t.bfloat16().float())


@needs_bf16
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_products_are_rounded_and_states_weights_and_evaluation_are_not(small, tmp_path, cell):
    whole = small.changed(cell=cell, layers=2, epochs=1)
    plain = train(whole, tmp_path / "plain")
    run = train(whole.changed(precision="bf16"), tmp_path / "run")
    assert run.config().precision == "bf16"
    found, others = tensors(run, "checkpoint"), tensors(plain, "checkpoint")
    states = [n for n in found if n.startswith("state.")]
    assert len(states) == (2 if cell == "lstm" else 1)
    for name, t in found.items():
        assert t.dtype is others[name].dtype
        if name in states or name.startswith("model."):
            assert t.dtype is torch.float32
            assert not is_rounded(t)
            assert not torch.equal(t, others[name])
            torch.testing.assert_close(t, others[name], atol=0.2, rtol=0)
    best = min(m["valid_loss"] for m in run.metrics() if "valid_loss" in m)
    assert evaluate(run.load_model(), text_of_run(run).valid).loss == best
    assert best == pytest.approx(evaluate(plain.load_model(), text_of_run(run).valid).loss, abs=0.1)


@needs_bf16
def test_the_loss_of_a_step_is_that_under_autocast(small, tmp_path):
    training = start(small.changed(precision="bf16"), tmp_path / "run")
    batch = next(iter(training.make_reader()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected, _ = training.model(batch.inputs, bptt.Stream(), targets=batch.targets)
    with torch.no_grad():
        exact, _ = training.model(batch.inputs, bptt.Stream(), targets=batch.targets)
    assert training.update(batch) == float(expected) != float(exact)


def test_where_there_are_no_such_products_it_is_said_and_is_float32(small, tmp_path):
    config = small.changed(max_tokens=300, epochs=1)
    with bptt.kernels.use("twin"):
        plain = train(config, tmp_path / "plain")
        with pytest.warns(
            BpttWarning, match=r"precision='bf16' is computed in float32 here: .*twin"
        ):
            run = train(config.changed(precision="bf16"), tmp_path / "run")
    assert same(tensors(run, "model"), tensors(plain, "model"))


def test_other_devices_are_refused():
    with pytest.raises(
        ConfigError, match=r"precision='bf16' is for device='cpu', got device='cuda'"
    ):
        Config(precision="bf16", device="cuda")
    Config(device="cuda")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "mgu", "peephole-lstm"])
def test_states_stay_float32_under_autocast(run, cell):
    """As torch.nn's do not, whose state would be rounded at the end of each window."""
    model = bptt.LanguageModel(run.tokenizer(), Config(cell=cell, hidden=8, layers=2))
    tokens = torch.randint(model.tokenizer.size, (20, 2))
    with torch.autocast("cpu", torch.bfloat16):
        h, state = model.hidden(tokens)
    for s in (h, *(state if isinstance(state, tuple) else (state,))):
        assert s.dtype is torch.float32
        assert not is_rounded(s)
