"""``bptt`` in which one process of a job meets something that the others do not.

The environment says what: FAULT="RANK WHERE", where WHERE is one of FAULTS.
"""

from __future__ import annotations

import os
import signal
import time

import torch

from bptt._src.cli import main
from bptt._src.language_model import evaluation, session
from bptt._src.language_model.run import Run
from bptt._src.language_model.step import TrainingStep
from bptt.errors import CorpusError


def _raise(error):
    def instead(*_, **__):
        raise error

    return instead


def _killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def _at_third_update(instead):
    original, calls = TrainingStep.__call__, [0]

    def step(self, *rest, **how):
        calls[0] += 1
        return instead(self, *rest, **how) if calls[0] == 3 else original(self, *rest, **how)

    return step


def _not_finite(self, *rest, **how):
    with torch.no_grad():
        self.model.readout.bias.fill_(float("nan"))
    return _ORIGINAL(self, *rest, **how)


_ORIGINAL = TrainingStep.__call__


def _slowly(*rest, **how):
    time.sleep(0.05)
    return _ORIGINAL(*rest, **how)


FAULTS = {
    "text": (session, "_prepare", _raise(CorpusError("the text is not here"))),
    "model": (session, "Training", _raise(MemoryError("no memory"))),
    "update": (TrainingStep, "__call__", _at_third_update(_raise(RuntimeError("odd")))),
    "killed": (TrainingStep, "__call__", _at_third_update(_killed)),
    "nan": (TrainingStep, "__call__", _at_third_update(_not_finite)),
    "save": (Run, "save_checkpoint", _raise(OSError(28, "No space left on device"))),
    "evaluation": (evaluation, "_losses", _raise(RuntimeError("odd"))),
    "killed in evaluation": (evaluation, "_losses", _killed),
    "slow": (TrainingStep, "__call__", _slowly),
}


def break_it(rank: str, fault: str) -> None:
    """Put a fault, "RANK WHERE" or "all WHERE", into this process if it is of that rank."""
    where, _, what = fault.partition(" ")
    if where in ("all", rank):
        place, name, fault_of = FAULTS[what]
        assert hasattr(place, name)  # or it would break nothing
        setattr(place, name, fault_of)


if __name__ == "__main__":
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        break_it(os.environ["RANK"], os.environ["FAULT"])
    main()
