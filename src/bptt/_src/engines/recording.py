"""Whether operations are written down, and how a graph names what is no tensor.

A cell or a credit is named by a string: those of bptt by their own, others by a number under which
they are known in this process.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bptt._src.credit.spelling import as_credit
from bptt._src.uncompiled import at_compile_time, object_of
from bptt.cells import BY_NAME, Cell

_INFRASTRUCTURE = tuple(
    getattr(_TorchDispatchModeKey, name) for name in ("FUNCTIONAL", "PROXY", "FAKE")
)
_known: dict[str, Any] = {}
"""Cells and credits that are not ours, by the string under which a graph names them; they stay, as
the graph does."""
_names: dict[int, str] = {}


def are_recorded() -> bool:
    """Whether operations are being written down, or run on tensors without values.

    A mode of somebody's own, who wants to see every operation, is something else; and so are the
    transforms of torch.func, for which the operators have no rules.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    ours = [mode for key in _INFRASTRUCTURE if (mode := _get_dispatch_mode(key)) is not None]
    others = [
        mode
        for mode in _get_current_dispatch_mode_stack()
        if not any(mode is one for one in ours) and not getattr(mode, "allows_kernels", False)
    ]
    return bool(ours) and not others


# -------------------------------------------------------------- what is named by a string


@at_compile_time
def _remember(number: int) -> str:
    name = _names.setdefault(number, str(len(_known)))
    _known[name] = object_of(number)
    return name


def name_of_credit(credit: Any) -> str:
    """Return the string by which the operators know a credit.

    That is its spelling, where it says everything; of any other it is a number, and torch.compile
    compiles again for another object.
    """
    if isinstance(credit, str):
        return credit
    spelled: str | None = getattr(credit, "spelled", None)
    if spelled is not None:
        return spelled
    return _remember(id(credit))


def credit_of(name: str) -> Any:
    return _found(name, "credit") if name.isdecimal() else as_credit(name)


def name_of_cell(cell: Cell) -> str:
    if cell.name in BY_NAME and BY_NAME[cell.name] is cell:
        return cell.name
    return _remember(id(cell))


def cell_of(name: str) -> Cell:
    return BY_NAME.get(name) or cast(Cell, _found(name, "cell"))


def name_of_step(step: Any) -> str:
    """Return the string by which the operators know a step that was fused."""
    return _remember(id(step))


def step_of(name: str) -> Any:
    return _found(name, "fused cell")


def _found(name: str, kind: str) -> Any:
    thing = _known.get(name)
    if thing is None:
        raise RuntimeError(
            f"bptt: this graph was recorded in another process with a {kind} of your own: "
            "record it again in this one"
        )
    return thing
