"""One credit with one seed on a synthetic task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bptt import init, unroll
from bptt._src.comparison.measures import gradient_error, peak_bytes
from bptt._src.comparison.result import Ending, Stop, Trial
from bptt._src.networks import make_network
from bptt.credit import Decay, measure_decay
from bptt.data import IGNORED, Task, TaskBatch
from bptt.errors import DivergedError

CLIP = 1.0  # the gradient is clipped to this norm
WINDOW = 50  # updates over which losses are smoothed
SOLVED_FOR = 100  # updates with the task solved, after which a run ends
ADAPT_EVERY = 50  # updates, unless the credit sets it


@dataclass(frozen=True)
class TaskSetting:
    """What all runs have in common."""

    task: Task
    cell: str
    hidden: int
    layers: int
    learning_rate: float
    updates: int
    target: float
    memory: Any


class TaskModel(nn.Module):
    """Recurrent layers and a readout at each step."""

    takes_carry = takes_credit = True
    """Tells :func:`bptt.unroll` that the module accepts plans itself."""

    def __init__(self, setting: TaskSetting) -> None:
        super().__init__()
        task = setting.task
        self.recurrent = make_network(
            setting.cell, task.inputs, setting.hidden, num_layers=setting.layers
        )
        self.readout = nn.Linear(setting.hidden, task.outputs)
        cell = self.recurrent.cell
        if cell.states > 1 and cell.keeping is not None:  # an LSTM of any kind
            init.forget_bias_(self.recurrent)

    def forward(self, x: Tensor, state: Any = None, *, memory: Any = None, **how: Any) -> Any:
        """Compute the answer at each step, [T, B, I] to [T, B, O], and the final state."""
        if memory is None:
            h, state = self.recurrent(x, state, **how)
        else:
            h, state = unroll(self.recurrent, x, state, memory=memory, **how)
        return self.readout(h), state


def generator_of(seed: int, what: int) -> torch.Generator:
    """Make a generator for one purpose, independent of the others."""
    return torch.Generator().manual_seed(seed + (what << 32))


@dataclass
class TaskTraining:
    """A model in training."""

    setting: TaskSetting
    credit: Any
    seed: int
    updates: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make model and optimizer; neither depends on the credit."""
        torch.manual_seed(self.seed)
        self.model = TaskModel(self.setting)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.Adam(parameters, lr=self.setting.learning_rate, fused=True)
        batches, plans, fresh = (generator_of(self.seed, what) for what in (1, 2, 3))
        self.batches, self.plans, self.fresh = self.setting.task.batches(batches), plans, fresh
        self.state: Any = None
        self.spent = 0.0

    def train(
        self, updated: Callable[[int, float], None], stop: Stop, until: float
    ) -> Trial | None:
        """Train to the end.

        Args:
            updated: called after each update with its number and the smoothed loss.
            stop: returns a reason to end everything, or None.
            until: the time of ``time.monotonic`` at which this run ends.

        Returns:
            The result, or None if the run was stopped.
        """
        ended = self._train(updated, stop, until)
        return None if ended is None else self.trial(ended)

    def _train(
        self, updated: Callable[[int, float], None], stop: Stop, until: float
    ) -> Ending | None:
        solved_for = 0
        every = getattr(self.credit, "adapt_every", None) or ADAPT_EVERY
        for update in range(1, self.setting.updates + 1):
            batch = next(self.batches)
            started = time.perf_counter()
            if (update - 1) % every == 0 and not self.adapt():
                return "diverged"
            loss = self.update(batch)
            self.spent += time.perf_counter() - started
            if loss is None:
                return "diverged"
            self.updates.append(update)
            self.losses.append(loss)
            self.seconds.append(self.spent)
            last = self.losses[-WINDOW:]
            smooth = sum(last) / len(last)
            updated(update, smooth)
            low = len(last) == WINDOW and smooth <= self.setting.target
            solved_for = solved_for + 1 if low else 0
            if stop():
                return None
            if solved_for == SOLVED_FOR:
                return "solved"
            if time.monotonic() >= until:
                return "time"
        return "updates"

    def update(self, batch: TaskBatch) -> float | None:
        """Take one step of gradient descent; None if the loss is not finite."""
        self.optimizer.zero_grad()
        loss = self.backward(batch)
        norm = float(clip_grad_norm_(self.model.parameters(), CLIP))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return None
        self.optimizer.step()
        return loss

    def backward(self, batch: TaskBatch) -> float:
        """Run forward and backward; the state is carried, detached, if the sequences go on."""
        how = {"credit": self.credit, "generator": self.plans, "memory": self.setting.memory}
        y, state = self.model(batch.inputs, None if batch.fresh else self.state, **how)
        self.state = optree.tree_map(torch.Tensor.detach, state)
        loss = self.setting.task.loss(y, batch)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def adapt(self) -> bool:
        """Run the credit's measurement; False if nothing more can be measured."""
        if not hasattr(self.credit, "adapt"):
            return True
        try:
            self.credit.adapt(self.probe)
        except DivergedError:
            return False
        return True

    def probe(self, lags: int) -> Decay:
        """Measure the decay of the gradient of a late loss, on separate sequences."""
        task, batch = self.setting.task, self.setting.task.batch(self.fresh)
        asked = (batch.targets != IGNORED).sum(1)
        end = int(asked.nonzero()[-1]) + 1  # the last step with a loss
        only = slice(end - 1, end)
        last = replace(batch, inputs=batch.inputs[only], targets=batch.targets[only])
        inputs = batch.inputs[:end]
        return measure_decay(self.model, inputs, lambda y: task.loss(y, last), lags=lags)

    def trial(self, ended: Ending) -> Trial:
        """Take the measurements at the end of the run."""
        found: dict[str, Any] = {}
        if ended != "diverged":
            batch, task = self.setting.task.batch(self.fresh), self.setting.task
            self.model.zero_grad()
            found["peak_bytes"] = peak_bytes(lambda: self.backward(batch))
            error = gradient_error(
                self.model, batch.inputs, lambda y: task.loss(y, batch), self.credit, self.plans
            )
            found.update(error)
        return Trial(
            seed=self.seed,
            updates=self.updates,
            losses=[float(f"{loss:.6g}") for loss in self.losses],
            seconds=[round(s, 4) for s in self.seconds],
            ended=ended,
            made=len(self.updates),
            credit=repr(self.credit),
            state=credit_state(self.credit),
            **found,
        )


def credit_state(credit: Any) -> dict[str, Any] | None:
    """What a credit learnt from training; None if it does not learn."""
    state = credit.state_dict() if hasattr(credit, "state_dict") else {}
    return dict(state) or None
