"""The plain call of a module as torch.compile sees it.

Every attribute, function and global name that the compiler reads on its way is checked before each
call of what it has made, which takes as long as a small layer. So this way is short, and what
follows from constants is found while compiling. Whatever is less plain, and every error, is left to
the way that all other calls go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.engines import operators
from bptt._src.engines.backend import is_chosen_native
from bptt._src.engines.guard import dtype_of_autocast, is_exporting
from bptt._src.engines.kernel_library import has, projects
from bptt._src.engines.recording import name_of_cell
from bptt._src.uncompiled import at_compile_time, object_of
from bptt.cells import WEIGHT_NAMES, Cell

_RUN = operators.SEQUENCE
_BETWEEN = (None,) * 3
"""No factors of the gradient, resets or windows."""
_PLAIN = (False,) * 4
"""Nothing laid out by windows, no other states, no bfloat16."""


def plain_call(module: Any, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """Run a module over a padded batch on native kernels.

    Args:
        module: one of bptt's.
        x: the input.
        hx: the initial state, as it was given.

    Returns:
        What the module does; None where the call is not plain.
    """
    if module._zoneout:
        return None
    H, L = module.hidden_size, module.num_layers
    P, is_projected = (module.proj_size, True) if module.proj_size else (H, False)
    directions = (False, True) if module.bidirectional else (False,)
    known = _known(id(module.cell), is_projected, bool(module.bias), x.dtype)
    if known is None or not is_chosen_native() or (L > 1 and module.dropout and module.training):
        return None
    if x.is_nested or x.dim() != 3 or not x.is_cpu or x.shape[2] != module.input_size:
        return None
    name, keeps, states, names = known
    x = x.transpose(0, 1) if module.batch_first else x
    given = _given(x, hx, L * len(directions), (P, *(H,) * (states - 1)))
    weights: Any = [_weights(module, n, reverse, names) for n in range(L) for reverse in directions]
    if given is None or None in weights:
        return None
    needed: bool = x.requires_grad
    finals: list[list[Tensor]] = []
    for t in (*given, *(w for of_each in weights for w in of_each)):
        if t is not None:
            needed = needed or t.requires_grad
            if t.dtype is not x.dtype or not t.is_cpu:
                return None
    engine = "native" if needed and keeps else ""
    for _ in range(L):
        outputs = []
        for reverse in directions:
            n = len(finals)
            state = given if hx is None else [s[n : n + 1] for s in given]
            w = weights[n]
            y, *rest = _RUN(name, engine, x, state, *w, None, reverse, *_BETWEEN, *_PLAIN)
            outputs.append(y)
            finals.append(rest[:states])
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    final = [s[0] if len(s) == 1 else torch.cat(s) for s in zip(*finals, strict=True)]
    y = x.transpose(0, 1) if module.batch_first else x
    return y, final[0] if states == 1 else tuple(final)


def _given(x: Tensor, hx: Any, cells: int, sizes: tuple[int, ...]) -> list[Tensor] | None:
    """The initial state: zeros for each layer and direction, or what was given; None: not plain."""
    if x.shape[0] == 0:
        return None
    if hx is None:
        zeros = x.new_zeros(1, x.shape[1], sizes[-1])
        return [zeros if n == sizes[-1] else x.new_zeros(1, x.shape[1], n) for n in sizes]
    if not isinstance(hx, Tensor) and type(hx) not in (list, tuple):
        return None
    given = [hx] if isinstance(hx, Tensor) else [*hx]
    if len(given) != len(sizes):
        return None
    for n in range(len(sizes)):
        s = given[n]
        if s.dtype is not x.dtype or not s.is_cpu or s.shape != (cells, x.shape[1], sizes[n]):
            return None
    return given


def _weights(module: Any, layer: int, reverse: bool, names: tuple[str, ...]) -> list[Any] | None:
    """The six weights of a layer in one direction; None where one is no parameter of the module."""
    found: list[Any] = []
    suffix = f"_l{layer}_reverse" if reverse else f"_l{layer}"
    for name in names:
        found.append(module._parameters.get(name + suffix) if name else None)
        if name and found[-1] is None:
            return None
    return found


@at_compile_time
def _known(
    number: int, is_projected: bool, bias: bool, dtype: torch.dtype
) -> tuple[str, bool, int, tuple[str, ...]] | None:
    """Return what does not depend on the tensors; None where the call is not plain.

    That is the cell's name, whether what a backward pass needs is to be kept, how many states the
    cell has, and the names of its six weights, "" of those that it has not.
    """
    cell: Cell = object_of(number)
    autocast = dtype_of_autocast(torch.device("cpu")) is not None
    transformed = torch._C._are_functorch_transforms_active()
    if autocast or transformed or dtype not in (torch.float32, torch.float64):
        return None
    if not cell.is_native or not has(cell) or (is_projected and not projects(cell)):
        return None
    there = (True, True, bias, bias, is_projected, cell.units > 0)
    names = [name if is_there else "" for name, is_there in zip(WEIGHT_NAMES, there, strict=True)]
    keeps = torch.is_grad_enabled() and not is_exporting()
    return name_of_cell(cell), keeps, cell.states, tuple(names)
