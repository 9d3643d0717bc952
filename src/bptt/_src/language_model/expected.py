"""The tensors that a run's files must hold, derived from its options before memory is allocated."""

from __future__ import annotations

import mmap
import os

import torch

from bptt._src.language_model.config import Config
from bptt._src.language_model.model import LanguageModel
from bptt._src.language_model.readout import size_of
from bptt._src.language_model.tensors import Kind
from bptt._src.networks import cell_of
from bptt.data import Tokenizer
from bptt.errors import ConfigError, spelled

_RANDOM = {"random.cpu": 5056, "random.cuda": 16}  # bytes of torch's generators


def check_memory(config: Config, vocabulary: int, *, copies: int = 1) -> None:
    """Refuse a model for which this machine has too little memory.

    Args:
        config: the options with the layers' sizes.
        vocabulary: the vocabulary size V.
        copies: how many numbers are kept for each weight.

    Raises:
        ConfigError: the model is too large.
    """
    E, H, L = config.embedding_size, config.hidden, config.layers
    cell = cell_of(config.cell, config.nonlinearity)
    of_x = cell.gates_x * H * (E + (L - 1) * H + L)  # with the biases
    of_h = cell.gates_h * H * L * (H + 1)
    readout = size_of(H, vocabulary, adaptive=config.softmax == "adaptive")
    weights = of_x + of_h + cell.units * H * L + vocabulary * E + readout
    if not _may_have(4 * weights * copies):
        raise no_memory(config, vocabulary)


def no_memory(config: Config, vocabulary: int) -> ConfigError:
    """Make the error for a model that is too large."""
    sizes = {n: getattr(config, n) for n in ("hidden", "layers")}
    given = ", ".join(spelled(n, v) for n, v in sizes.items())
    return ConfigError(
        f"not enough memory for {given}, {spelled('embedding', config.embedding_size)} and "
        f"{vocabulary} tokens: reduce them"
    )


def weights_kinds(config: Config, tokenizer: Tokenizer) -> dict[str, Kind]:
    """Return the tensors of model.safetensors by name.

    Raises:
        ConfigError: the model is too large for this machine.
    """
    check_memory(config, tokenizer.size)
    with torch.device("meta"):
        weights = LanguageModel(tokenizer, config).state_dict()
    if config.tied:
        del weights["readout.weight"]
    return {name: Kind(w.dtype, tuple(w.shape)) for name, w in weights.items()}


def check_weights(found: dict[str, Kind], expected: dict[str, Kind]) -> None:
    """Check that the tensors are exactly the expected ones.

    Raises:
        ValueError: they are not.
    """
    for name in [*expected, *found]:
        is_there, wanted = found.get(name, "missing"), expected.get(name, "none")
        if is_there != wanted:
            raise ValueError(
                f"it does not fit the run's config.json and tokenizer.json: {name} is {is_there}, "
                f"expected {wanted}"
            )


def check_checkpoint(found: dict[str, Kind], config: Config, expected: dict[str, Kind]) -> None:
    """Check that a checkpoint's tensors are those that training needs to continue.

    Args:
        found: the tensors of checkpoint.safetensors by name.
        config: the run's options.
        expected: the model's tensors, from :func:`weights_kinds`.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    rest = dict(found)
    model = {n: rest.pop(n) for n in found if n.startswith("model.")}
    check_weights(model, {f"model.{name}": kind for name, kind in expected.items()})
    optimizer = {n: rest.pop(n) for n in found if n.startswith("optimizer.")}
    if optimizer:  # it has no state before the first update
        check_weights(optimizer, _optimizer(config, list(expected.values())))
    for name, kind in rest.items():
        if not _fits(name, kind, config):
            raise ValueError(f"it does not fit the run's config.json: {name} is {kind}")
    states = {n for n in rest if n.startswith("state.")}
    if "random.cpu" not in rest or len(states) not in (0, _states(config)):
        raise ValueError("it lacks random numbers, or a part of the hidden state")


def _optimizer(config: Config, weights: list[Kind]) -> dict[str, Kind]:
    """The optimizer's state for each parameter."""
    if config.optimizer == "sgd":
        names = ["momentum_buffer"] if config.momentum else []
    else:
        names = ["exp_avg", "exp_avg_sq"]
    kinds = {f"optimizer.{i}.{n}": w for i, w in enumerate(weights) for n in names}
    if config.optimizer != "sgd":
        kinds.update({f"optimizer.{i}.step": _NUMBER for i in range(len(weights))})
    return kinds


def _fits(name: str, kind: Kind, config: Config) -> bool:
    """Whether a tensor is a hidden state, past tokens, or the state of a random generator."""
    if name in _RANDOM:
        return kind == (torch.uint8, (_RANDOM[name],))
    if name == "past":  # [P, B]
        return kind.dtype == torch.int64 and kind.shape[1:] == (config.batch_size,)
    if name not in [f"state.{i}" for i in range(_states(config))] or len(kind.shape) != 3:
        return False
    layers, batch, hidden = kind.shape
    # The last batch of a shuffled text may be smaller.
    whole = batch == config.batch_size or (not config.is_carried and batch < config.batch_size)
    return (
        kind.dtype == torch.float32
        and (layers, hidden) == (config.layers, config.hidden)
        and (whole)
    )


def _states(config: Config) -> int:
    return cell_of(config.cell, config.nonlinearity).states


_NUMBER = Kind(torch.float32, ())


def _may_have(size: int) -> bool:
    """Whether the machine has this much memory and the process may use it."""
    there = _memory()
    if there is not None and size > there:
        return False
    try:
        mmap.mmap(-1, max(1, size)).close()  # reserved, never touched
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def _memory() -> int | None:
    """The machine's memory in bytes, or None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
