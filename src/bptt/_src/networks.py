"""Recurrent networks by the name of their cell, as ``--cell`` takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bptt import GRU, LSTM, RNN, Recurrent
from bptt._src.by_name import imported, is_dotted, loaded, one_line
from bptt.cells import CELLS, Cell
from bptt.cells.zoneout import rates_of
from bptt.errors import ConfigError, spelled

_RNN = "RNN_"  # Elman networks are one name with several nonlinearities


def _name(cell: Cell) -> str:
    return "rnn" if cell.name.startswith(_RNN) else cell.name.lower().replace("_", "-")


NAMES = tuple(dict.fromkeys(map(_name, CELLS)))
"""All of them, in the order of :data:`bptt.cells.CELLS`."""

NONLINEARITIES = tuple(c.name.removeprefix(_RNN).lower() for c in CELLS if c.name.startswith(_RNN))
"""Those of ``rnn``."""


def check_cell(name: str) -> None:
    """Refuse what cannot be the name of a cell. One of the user's own is not imported here.

    Raises:
        ConfigError: it is none of :data:`NAMES`, and has not the form ``module.CELL``.
    """
    if name not in NAMES and not is_own_cell(name):
        raise ConfigError(
            f"{spelled('cell')} must be one of {', '.join(NAMES)}, or your own as module.CELL, "
            f"got {name!r}"
        )


def zoneout_of(
    name: str, nonlinearity: str, zoneout: float | Sequence[float]
) -> float | tuple[float, ...]:
    """Return the zoneout rates of the tensors of a state, or one for all.

    For a cell of the user's own they are not checked here, as that would import it.

    Raises:
        ConfigError: a rate is below 0 or not below 1, or there are not as many as tensors.
    """
    if isinstance(zoneout, Sequence):
        zoneout = zoneout[0] if len(zoneout) == 1 else tuple(zoneout)
    if not is_own_cell(name):
        try:
            rates_of(spelled("cell", name), cell_of(name, nonlinearity), zoneout, projects=False)
        except ValueError as e:
            raise ConfigError(str(e)) from None
    return zoneout


def is_own_cell(name: str) -> bool:
    """Whether it names a user's own cell, in a module that is imported when it is made."""
    return is_dotted(name)


def runs_code(name: str) -> bool:
    """Whether looking a cell up imports its module, which is not imported yet."""
    return is_own_cell(name) and loaded(name) is None


def title(name: str) -> str:
    """Return how a cell is called in headings.

    >>> title("gru"), title("mine.CELL")
    ('GRU', 'mine.CELL')
    """
    return name if is_own_cell(name) else name.upper()


def cell_of(name: str, nonlinearity: str = "tanh") -> Cell:
    """Return the cell with this name; ``rnn`` has a nonlinearity.

    Raises:
        ConfigError: it is one of the user's own, and its module cannot be imported, or has no such
            cell.

    >>> cell_of("peephole-lstm").name, cell_of("rnn", "relu").name
    ('PEEPHOLE_LSTM', 'RNN_RELU')
    """
    if is_own_cell(name):
        return _own(name)
    wanted = _RNN + nonlinearity.upper() if name == "rnn" else name.upper().replace("-", "_")
    return next(cell for cell in CELLS if cell.name == wanted)


def _own(name: str) -> Cell:
    what = spelled("cell", name)
    found = imported(name, what)
    if not isinstance(found, Cell):
        raise ConfigError(
            f"{what}: {name} must be a bptt.Cell, as bptt.Cell(...) makes it, got "
            f"{one_line(repr(found))}"
        )
    return found


def make_network(
    name: str, inputs: int, hidden: int, *, nonlinearity: str = "tanh", **options: Any
) -> RNN | GRU | LSTM | Recurrent:
    """Make the recurrent layers; those of torch.nn's kinds are torch.nn's modules too.

    Args:
        name: the cell, one of :data:`NAMES`, or one of the user's own as ``module.CELL``.
        inputs: the number of inputs.
        hidden: the number of hidden units.
        nonlinearity: of ``rnn``, one of :data:`NONLINEARITIES`.
        options: ``num_layers``, ``dropout`` and ``zoneout``, as for :class:`bptt.Recurrent`.

    Raises:
        ConfigError: a cell of the user's own cannot be imported, or its equations would have wrong
            gradients.
    """
    if name == "rnn":
        return RNN(inputs, hidden, nonlinearity=nonlinearity, **options)
    if name in ("gru", "lstm"):
        return (GRU if name == "gru" else LSTM)(inputs, hidden, **options)
    cell = cell_of(name)
    try:
        return Recurrent(cell, inputs, hidden, **options)
    except ValueError as e:
        if not is_own_cell(name):
            raise
        raise ConfigError(f"{spelled('cell', name)}: {one_line(e)}") from None
