"""Everything a training needs to continue: tensors by name, and the rest as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import optree
import torch
from torch import Tensor

from bptt import Stream
from bptt.errors import CheckpointError, needs

with needs("lm"):
    import msgspec
    from msgspec import Meta

from bptt._src.language_model.run import load_weights, weights_of, with_prefix
from bptt._src.language_model.tensors import Checkpoint

if TYPE_CHECKING:
    from bptt._src.language_model.training import Training

Count = Annotated[int, Meta(ge=0, le=2**53)]


@dataclass
class Progress:
    """How far training has come; with weights and reader it fixes everything that follows."""

    updates: Count = 0
    tokens: Count = 0
    seconds: float = 0.0
    """Seconds spent in training, over all sessions."""
    halvings: Count = 0
    rate: float = 0.0
    """The learning rate of the last update."""
    gradient_norm: float = 0.0
    """The gradient's norm at the last update, before clipping."""
    norms: list[float] = field(default_factory=list)
    """The gradient's norms at the last updates, newest last."""
    rewinds: Count = 0
    """How often training diverged and went back; each time halved the learning rate."""
    last_valid: float | None = None
    best_valid: float | None = None
    worse: Count = 0
    """Evaluations since the best one."""
    nats: float = 0.0
    """Loss summed since the last line of metrics.jsonl, and the number of tokens."""
    counted: Count = 0
    epoch_nats: float = 0.0
    """Loss summed over this epoch so far, and the number of tokens."""
    epoch_tokens: Count = 0
    evaluated_at: Annotated[int, Meta(ge=-1, le=2**53)] = -1
    measurements: Count = 0
    """Number of lines in metrics.jsonl."""


@dataclass
class About:
    """The contents of a checkpoint's header, apart from the format and the digest."""

    text: str
    """The fingerprint of the text it was trained on."""
    progress: Progress
    reader: dict[str, Count | str]
    credit: dict[str, Any]
    sight: dict[str, Any]
    threads: Annotated[int, Meta(ge=1, le=1024)]
    torch: str


def read_about(about: dict[str, Any], path: Path) -> About:
    """Check the contents of a checkpoint's header.

    Args:
        about: the header as it was read.
        path: the checkpoint's path, for the error message.

    Raises:
        CheckpointError: an entry is missing, has the wrong type, or is out of bounds.
    """
    try:
        found = msgspec.convert(about, About)
        progress = about["progress"]
        missing = asdict(found.progress).keys() - progress.keys()
        if missing:
            raise ValueError(f"progress lacks {', '.join(sorted(missing))}")
        numbers = [v for v in progress.values() if isinstance(v, float)] + found.progress.norms
        if not all(map(math.isfinite, numbers)):
            raise ValueError("progress holds a number that is not finite")
    except (ValueError, OverflowError) as e:  # msgspec's is a ValueError
        raise CheckpointError(f"{path} cannot be used: {e}; train again") from None
    return found


def checkpoint_of(training: Training) -> Checkpoint:
    """Collect everything needed to continue from here; :func:`restore` takes it.

    It does not say how many processes there are: the states are those of all sequences.
    """
    job, B = training.job, training.sequences
    tensors = {f"model.{k}": v for k, v in weights_of(training.model).items()}
    for number, values in training.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    stream = training.stream
    begin = stream.state if stream.past is None else stream.before
    for number, s in enumerate(optree.tree_leaves(begin)):
        tensors[f"state.{number}"] = job.sequences(s, B)
    if stream.past is not None:
        tensors["past"] = job.sequences(stream.past, B)
    tensors["random.cpu"] = torch.get_rng_state()
    if training.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(training.device)
    about = {
        "text": training.text.fingerprint,
        "progress": asdict(training.progress),
        "reader": training.reader.state_dict(),
        "credit": training.credit.state_dict(),
        "sight": training.monitor.state_dict(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return tensors, about


def restore(training: Training, checkpoint: Checkpoint) -> None:
    """Go back to the point at which a checkpoint was written.

    Args:
        training: the training of this run.
        checkpoint: the value of :func:`checkpoint_of`.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another run.
    """
    tensors = checkpoint[0]
    path = training.run.path / "checkpoint.safetensors"
    about = read_about(checkpoint[1], path)
    load_weights(training.model, with_prefix(tensors, "model."), path)
    _check_numbers(training, tensors, path)
    try:
        training.credit.load_state_dict(about.credit)
        training.reader = training.make_reader()
        training.reader.load_state_dict(about.reader)
        training.monitor.load_state_dict(about.sight)
        _restore_tensors(training, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise CheckpointError(
            f"{path} does not fit this run: {type(e).__name__}: {e}; train again"
        ) from e
    training.progress = about.progress


def _restore_tensors(training: Training, tensors: dict[str, Tensor]) -> None:
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for name, value in with_prefix(tensors, "optimizer.").items():
        number, key = name.split(".", 1)
        per_parameter.setdefault(int(number), {})[key] = value
    groups = training.optimizer.state_dict()["param_groups"]  # given by the options
    training.optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    device = training.device
    own = training.job.ranks.own()
    whole = [tensors[k] for k in sorted(tensors) if k.startswith("state.")]
    training.sequences = whole[0].shape[1] if whole else 0
    states = [s[:, own].contiguous().to(device) for s in whole]
    state = None if not states else states[0] if len(states) == 1 else tuple(states)
    training.agreed.past = tensors.get("past")
    past = tensors["past"][:, own].contiguous().to(device) if "past" in tensors else None
    training.stream = Stream(state) if past is None else Stream(past=past, before=state)
    try:
        torch.set_rng_state(tensors["random.cpu"])
    except RuntimeError as e:
        raise ValueError(f"random.cpu: {e}") from None
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def _check_numbers(training: Training, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse states that are not finite and tokens outside the vocabulary."""
    for name, tensor in tensors.items():
        if name == "past":
            is_right = bool(((tensor >= 0) & (tensor < training.text.tokenizer.size)).all())
        else:
            is_right = bool(tensor.isfinite().all())
        if not is_right:
            raise CheckpointError(
                f"{path} is damaged: {name} holds impossible values; train again, or "
                "restore an earlier copy of the run"
            )
