"""Synthetic tasks of long memory: the answer is further back than a short truncation reaches.

What is asked and how far back it lies is known exactly, and so is the loss of a model that
remembers nothing. Batches are drawn, never repeated: there is no set to learn by heart, and
the loss of the next batch is a test loss.

>>> import torch
>>> from bptt.data import make_task
>>> task = make_task("copy", lag=6, symbols=2)
>>> batch = task.batch(torch.Generator().manual_seed(0))
>>> batch.inputs.argmax(-1)[:, 0].tolist()  # 4 is the blank, 5 says: now
[0, 3, 4, 4, 4, 5, 4, 4]
>>> batch.targets[:, 0].tolist()
[4, 4, 4, 4, 4, 4, 0, 3]
>>> task.steps, task.lag, round(task.baseline, 3)
(8, 6, 0.347)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from bptt._src.data.adding import Adding
from bptt._src.data.copying import Copy, CopyStream
from bptt._src.data.task import Task
from bptt._src.data.temporal_order import TemporalOrder
from bptt.errors import ConfigError, spelled

TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {
        "copy": Copy,
        "copy-stream": CopyStream,
        "adding": Adding,
        "temporal-order": TemporalOrder,
    }
)
"""The tasks by name."""


def make_task(name: str, **options: Any) -> Task:
    """Make a task by its name.

    Args:
        name: one of :data:`TASKS`.
        options: the task's own; what is left out keeps its default.

    Raises:
        ConfigError: there is no such task, it has no such option, or one is out of its range.

    >>> make_task("adding", length=100).lag
    99
    """
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    known = [field.name for field in fields(TASKS[name])]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"the task {name} has no option {spelled(option)}; it has "
                + ", ".join(map(spelled, known))
            )
    return TASKS[name](**options)
