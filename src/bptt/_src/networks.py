"""Recurrent networks by the name of their cell, as ``--cell`` takes it."""

from __future__ import annotations

from typing import Any

from bptt import GRU, LSTM, RNN, Recurrent
from bptt.cells import CELLS, Cell

_RNN = "RNN_"  # Elman networks are one name with several nonlinearities


def _name(cell: Cell) -> str:
    return "rnn" if cell.name.startswith(_RNN) else cell.name.lower().replace("_", "-")


NAMES = tuple(dict.fromkeys(map(_name, CELLS)))
"""All of them, in the order of :data:`bptt.cells.CELLS`."""

NONLINEARITIES = tuple(c.name.removeprefix(_RNN).lower() for c in CELLS if c.name.startswith(_RNN))
"""Those of ``rnn``."""


def cell_of(name: str, nonlinearity: str = "tanh") -> Cell:
    """Return the cell with this name; ``rnn`` has a nonlinearity.

    >>> cell_of("peephole-lstm").name, cell_of("rnn", "relu").name
    ('PEEPHOLE_LSTM', 'RNN_RELU')
    """
    wanted = _RNN + nonlinearity.upper() if name == "rnn" else name.upper().replace("-", "_")
    return next(cell for cell in CELLS if cell.name == wanted)


def make_network(
    name: str, inputs: int, hidden: int, *, nonlinearity: str = "tanh", **options: Any
) -> RNN | GRU | LSTM | Recurrent:
    """Make the recurrent layers; those of torch.nn's kinds are torch.nn's modules too.

    Args:
        name: the cell, one of :data:`NAMES`.
        inputs: the number of inputs.
        hidden: the number of hidden units.
        nonlinearity: of ``rnn``, one of :data:`NONLINEARITIES`.
        options: ``num_layers`` and ``dropout``, as for :class:`bptt.Recurrent`.
    """
    if name == "rnn":
        return RNN(inputs, hidden, nonlinearity=nonlinearity, **options)
    if name in ("gru", "lstm"):
        return (GRU if name == "gru" else LSTM)(inputs, hidden, **options)
    return Recurrent(cell_of(name), inputs, hidden, **options)
