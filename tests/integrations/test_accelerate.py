"""Hugging Face's accelerate."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.state import AcceleratorState, GradientState
from integrations.task import Forecaster, batches
from torch import nn

import bptt


def run(library, **options):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, **options)
    model = Forecaster(library)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    losses = []
    for _ in range(3):
        for x, target in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), target)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return accelerator, model, losses


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_the_losses_are_those_of_torch(options):
    ours, theirs = (run(name, **options)[2] for name in ("bptt", "torch.nn"))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]


def test_mixed_precision():
    _, model, losses = run("bptt", mixed_precision="bf16")
    assert losses[-1] < losses[0]
    assert model.rnn.weight_hh_l0.dtype == torch.float32


def test_a_stream_is_part_of_its_checkpoints(tmp_path):
    accelerator, model, _ = run("bptt")
    stream = bptt.Stream()
    _, stream = stream.advance(model.rnn, torch.randn(2, 5, 1), credit="truncated:every=5,reach=9")
    accelerator.register_for_checkpointing(stream)
    accelerator.save_state(tmp_path)
    x, kept = torch.randn(2, 4, 1), stream.state_dict()
    expected = model(x)
    stream.load_state_dict(bptt.Stream().state_dict())
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
    accelerator.load_state(tmp_path)
    assert torch.equal(model(x), expected)
    assert torch.equal(stream.past, kept["past"])


def test_a_module_with_its_hooks_is_named_and_not_converted():
    _, model, _ = run("torch.nn")
    add_hook_to_module(model.rnn, ModelHook())
    with pytest.warns(bptt.errors.BpttWarning, match="rnn .its forward was replaced"):
        bptt.convert(model)
