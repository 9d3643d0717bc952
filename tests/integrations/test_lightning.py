"""Lightning's Trainer and Fabric."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from integrations.task import LIBRARIES, Forecaster, batches
from lightning.fabric import Fabric
from torch import nn

import bptt


class Module(lightning.LightningModule):
    def __init__(self, library="bptt", credit=None, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.model, self.losses = Forecaster(library, credit=credit), []

    def training_step(self, batch, _):
        x, target = batch
        loss = nn.functional.mse_loss(self.model(x), target)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def fit(module, where, epochs=3, **options):
    trainer = lightning.Trainer(
        *(), max_epochs=epochs, accelerator="cpu", devices=1, logger=False, barebones=False,
        enable_progress_bar=False, enable_model_summary=True, default_root_dir=where,
        gradient_clip_val=1.0, **options,
    )  # fmt: skip
    trainer.fit(module, batches())
    return trainer


def test_the_losses_are_those_of_torch(tmp_path):
    found = {}
    for library in LIBRARIES:
        module = Module(library)
        fit(module, tmp_path)
        found[library] = module.losses
    assert found["bptt"] == pytest.approx(found["torch.nn"], rel=1e-4)
    assert found["bptt"][-1] < 0.8 * found["bptt"][0]


def test_a_checkpoint_with_a_credit_among_the_hyperparameters_goes_on(tmp_path):
    whole, half = Module(credit=bptt.Truncated(4)), Module(credit=bptt.Truncated(4))
    fit(whole, tmp_path, 4)
    fit(half, tmp_path, 2).save_checkpoint(tmp_path / "half.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "half.ckpt", weights_only=True)
    assert again.hparams.credit == bptt.Truncated(4)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(again, batches(), ckpt_path=tmp_path / "half.ckpt")
    assert whole.losses == pytest.approx([*half.losses, *again.losses], rel=1e-5)


def test_mixed_precision(tmp_path):
    module = Module()
    fit(module, tmp_path, precision="bf16-mixed")
    assert module.losses[-1] < module.losses[0]


def test_fabric(tmp_path):
    found = {}
    for name in LIBRARIES:
        fabric = Fabric(accelerator="cpu", devices=1)
        model = Forecaster(name)
        model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        losses = []
        for x, target in fabric.setup_dataloaders(batches()):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), target)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            losses.append(loss.item())
        fabric.save(tmp_path / "fabric.ckpt", {"model": model})
        fabric.load(tmp_path / "fabric.ckpt", {"model": model})
        found[name] = losses
    assert found["bptt"] == pytest.approx(found["torch.nn"], rel=1e-4)


@pytest.mark.parametrize("library", ["lightning", "fabric"])
def test_two_processes_along_streams_are_as_one(library, tmp_path):
    found = []
    for processes in (1, 2):
        script, file = Path(__file__).with_name("streams.py"), tmp_path / f"{processes}.pt"
        command = [sys.executable, str(script), library, str(processes), str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(file))
    one, two = found
    assert one["losses"][-1] < 0.97 * one["losses"][0]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-12)
