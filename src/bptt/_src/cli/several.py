"""What a command says where several processes run it: rank 0 speaks, the others report errors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bptt._src.cli.terminal import complain
from bptt.errors import BpttWarning, ConfigError

if TYPE_CHECKING:
    from bptt._src.language_model.job import Job


def check_restarts(out: Path | None) -> None:
    """Refuse a job that would not find its run again.

    Raises:
        ConfigError: torchrun may start it again, and no directory is named.
    """
    if out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") not in ("", "0"):
        raise ConfigError(
            "torchrun --max-restarts needs --out, so that the job, started again, finds its run"
        )


@contextmanager
def heard_from_all(job: Job) -> Iterator[None]:
    """Show the warnings of all processes, once each, from the first that gives them."""
    heard: list[str] = []
    show = warnings.showwarning

    def note(message: Any, category: type[Warning], *where: Any, **how: Any) -> None:
        if issubclass(category, BpttWarning):
            heard.append(str(message))
        if job.is_first:
            show(message, category, *where, **how)

    warnings.showwarning = note
    try:
        yield
    finally:
        warnings.showwarning = show
    known = set(heard)
    for rank, texts in enumerate(job.exchange(heard)):
        for text in texts:
            if job.is_first and text not in known:
                known.add(text)
                complain(f"rank {rank}: warning: {text}")
