"""ignite's engines."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from ignite.metrics import MeanSquaredError
from integrations.task import LIBRARIES, Forecaster, batches
from torch import nn


def test_the_losses_are_those_of_torch(tmp_path):
    found = {}
    for name in LIBRARIES:
        model = Forecaster(name, "GRU")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        evaluator = create_supervised_evaluator(model, {"mse": MeanSquaredError()})
        losses = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine, losses=losses: losses.append(engine.state.output),
        )
        saver = Checkpoint({"model": model}, DiskSaver(tmp_path / name, create_dir=True))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
        trainer.run(batches(), max_epochs=3)
        found[name] = [*losses, evaluator.run(batches()).metrics["mse"]]
        again = Forecaster(name, "GRU")
        saved = torch.load(tmp_path / name / saver.last_checkpoint.name, weights_only=True)
        Checkpoint.load_objects({"model": again}, saved)
        assert torch.equal(again.rnn.weight_hh_l0, model.rnn.weight_hh_l0)
    assert found["bptt"] == pytest.approx(found["torch.nn"], rel=1e-4)
    assert found["bptt"][-2] < 0.8 * found["bptt"][0]
