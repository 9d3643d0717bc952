"""Exchanges torch.nn's recurrent modules for ours inside a model, and back."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from bptt._src.layers import Layers
from bptt._src.recurrent import GRU, LSTM, RNN, Recurrent
from bptt.cells import BY_NAME, Cell
from bptt.errors import BpttWarning, ConfigError

_OURS: dict[type, type] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _OURS.items()}
_OF_CELLS = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, to: str = "bptt") -> Model:
    """Turn torch.nn's RNN, GRU and LSTM inside a model into bptt's, in place, or back.

    Each module stays the same object and changes its class alone: its parameters, hooks,
    parametrizations and names, the optimizers that hold its parameters, and what else refers to
    it, are as they were. So are the ``state_dict`` and the outputs, up to rounding.

    Args:
        model: the model, or a single module; it may be wrapped, as by ``torch.compile`` or
            DistributedDataParallel.
        to: ``"bptt"``, or ``"torch"`` for the way back, which quantization and checks for the exact
            class need. A :class:`bptt.Recurrent` of a cell that torch.nn has goes back too.

    Returns:
        The model.

    Raises:
        ConfigError: ``to`` is something else, or torch.nn has no such module: a sigmoid RNN, or a
            Recurrent of another cell. Then nothing has been changed.
        TypeError: ``model`` is no module.

    Modules of other classes that derive from these are left as they are, and a
    :class:`bptt.errors.BpttWarning` names them; so are those whose ``forward`` was replaced on the
    instance. A model without any such module gives a warning too. Cells of single steps, as
    :class:`torch.nn.LSTMCell`, are none of these.

    >>> import torch, bptt
    >>> class Tagger(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rnn, self.out = torch.nn.LSTM(8, 16), torch.nn.Linear(16, 4)
    ...     def forward(self, x):
    ...         return self.out(self.rnn(x)[0])
    >>> model, x = Tagger(), torch.randn(5, 2, 8)
    >>> before = model(x)
    >>> type(bptt.convert(model).rnn) is bptt.LSTM
    True
    >>> torch.allclose(model(x), before, atol=1e-6)
    True
    >>> type(bptt.convert(model, to="torch").rnn) is torch.nn.LSTM
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bptt.convert: expected a torch.nn.Module, got {type(model).__name__}")
    if to not in ("bptt", "torch"):
        raise ConfigError(f'bptt.convert: to must be "bptt" or "torch", got {to!r}')
    changes: list[tuple[nn.Module, type]] = []
    left, refused, are_there = [], [], False
    for path, module in model.named_modules():
        kind = type_before_parametrizations(module)
        is_scripted = isinstance(module, torch.jit.ScriptModule)
        if is_scripted and getattr(module, "original_name", "") in ("RNN", "GRU", "LSTM"):
            left.append(f"{_place(path)} (scripted: convert the model before it is scripted)")
        if not isinstance(module, nn.RNNBase | Layers):
            continue
        are_there, new = True, _OURS.get(kind) if to == "bptt" else _TORCHS.get(kind)
        if to == "torch" and kind in (*_TORCHS, Recurrent):
            new = _in_torch(module)
            if new is None:
                refused.append(f"{_place(path)} ({module})")
                continue
        if new is None:
            if kind not in (*_OURS, *_TORCHS, Recurrent):
                left.append(
                    f"{_place(path)} ({kind.__name__} is a class of its own: convert before the "
                    f"model is wrapped, or derive the class from {to}'s)"
                )
        elif "forward" in vars(module):
            left.append(f"{_place(path)} (its forward was replaced: convert before that)")
        else:
            changes.append((module, new))
    if refused:
        raise ConfigError(
            f"bptt.convert: torch.nn has no such modules as {', '.join(refused)}; nothing was "
            "converted"
        )
    for module, new in changes:
        _change(module, new)
    if left:
        _warn(f"bptt.convert left as they are: {', '.join(left)}")
    elif not are_there:
        _warn(f"bptt.convert: there is no RNN, GRU or LSTM in this {type(model).__name__}")
    return model


def _warn(message: str) -> None:
    warnings.warn(message, BpttWarning, stacklevel=3)


def _place(path: str) -> str:
    return path or "the module itself"


def _in_torch(module: Any) -> type | None:
    """Return torch.nn's class of the same equations, sizes and parameters, if there is one."""
    cell: Cell = module.cell
    new = _OF_CELLS.get(cell.name) if BY_NAME.get(cell.name) is cell else None
    if getattr(module, "zoneout", ()):
        return None
    if new is not None and module.proj_size:
        fits = new is nn.LSTM and module.proj_size < module.hidden_size
        return new if fits else None
    return new


def _change(module: nn.Module, kind: type) -> None:
    if isinstance(module, Recurrent):
        _complete(module, kind)
    new = kind
    if is_parametrized(module):  # has a class to itself, with a property for each parameter
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{kind.__name__}", (kind,), own)
    module.__class__ = new


def _complete(module: Recurrent, kind: type) -> None:
    """Give a Recurrent what else torch.nn's module has in its place."""
    options: dict[str, Any] = {"proj_size": module.proj_size} if module.proj_size else {}
    if module.cell.phi is not None:
        options["nonlinearity"] = module.cell.phi.name
    for name in ("num_layers", "bias", "batch_first", "bidirectional"):
        options[name] = getattr(module, name)
    like = kind(module.input_size, module.hidden_size, device="meta", **options)
    for name, value in vars(like).items():
        vars(module).setdefault(name, value)
    # The list from which torch.nn reads the weights; it makes it anew where they are others.
    weights = [module._parameters.get(name) for name in vars(module)["_flat_weights_names"]]
    vars(module)["_flat_weights"] = weights
    del module.cell
