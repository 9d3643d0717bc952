"""skorch, which makes scikit-learn's estimators of modules."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from integrations.task import LIBRARIES, Forecaster, data
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor

import bptt


def regressor(library, **options):
    return NeuralNetRegressor(
        Forecaster, module__library=library, max_epochs=4, lr=0.1, verbose=0, batch_size=8,
        train_split=None, iterator_train__shuffle=False, **options,
    )  # fmt: skip


def test_the_losses_are_those_of_torch():
    x, y = (t.numpy() for t in data())
    found = {name: regressor(name).fit(x, y) for name in LIBRARIES}
    ours, theirs = (found[name].history[:, "train_loss"] for name in ("bptt", "torch.nn"))
    assert ours == pytest.approx(theirs, rel=1e-4)
    again = pickle.loads(pickle.dumps(found["bptt"]))
    assert np.array_equal(again.predict(x), found["bptt"].predict(x))


def test_what_it_saved_goes_on(tmp_path):
    x, y = (t.numpy() for t in data())
    first = regressor("bptt", module__credit="truncated:4").fit(x, y)
    first.save_params(f_params=tmp_path / "model.pt", f_optimizer=tmp_path / "optimizer.pt")
    second = clone(first).initialize()
    second.load_params(f_params=tmp_path / "model.pt", f_optimizer=tmp_path / "optimizer.pt")
    assert np.array_equal(first.predict(x), second.predict(x))


def test_a_search_over_credits():
    x, y = (t.numpy() for t in data())
    credits = [bptt.Full(), bptt.Truncated(2)]
    grid = {"module__credit": credits, "module__hidden": [4]}
    search = GridSearchCV(regressor("bptt"), grid, cv=2, scoring=_score).fit(x, y)
    assert search.best_params_["module__credit"] in credits
    assert search.best_estimator_.module_.rnn.hidden_size == 4


def _score(estimator, x, y):
    return -float(torch.nn.functional.mse_loss(*map(torch.from_numpy, (estimator.predict(x), y))))
