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
    P, H, L, D = module.proj_size, module.hidden_size, module.num_layers, 1 + module.bidirectional
    known = _known(id(module.cell), P, H, L, D, module.bias, x.dtype)
    if known is None or not is_chosen_native() or (L > 1 and module.dropout and module.training):
        return None
    if x.is_nested or x.dim() != 3 or not x.is_cpu or x.shape[2] != module.input_size:
        return None
    name, keeps, sizes, names = known
    x = x.transpose(0, 1) if module.batch_first else x
    given = _given(x, hx, L * D, sizes)
    weights, parameters, needed = [], module._parameters, x.requires_grad
    for place in names:
        w = parameters.get(place) if place else None
        if place and (w is None or w.dtype is not x.dtype or not w.is_cpu):
            return None
        weights.append(w)
        needed = needed or (w is not None and w.requires_grad)
    if given is None:
        return None
    for s in given:
        needed = needed or s.requires_grad
    engine, finals = "native" if needed and keeps else "", []
    for layer in range(L):
        outputs = []
        for n in range(layer * D, layer * D + D):
            state = given if hx is None else [s[n : n + 1] for s in given]
            w = weights[6 * n : 6 * n + 6]
            y, *rest = _RUN(name, engine, x, state, *w, None, n % D > 0, *_BETWEEN, *_PLAIN)
            outputs.append(y)
            finals.append(rest[: len(sizes)])
        x = outputs[0] if D == 1 else torch.cat(outputs, -1)
    final = finals[0]
    if L * D > 1:
        final = [torch.cat([of[k] for of in finals]) for k in range(len(sizes))]
    y = x.transpose(0, 1) if module.batch_first else x
    return y, final[0] if len(sizes) == 1 else tuple(final)


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


@at_compile_time
def _known(
    number: int, P: int, H: int, L: int, D: int, bias: bool, dtype: torch.dtype
) -> tuple[str, bool, tuple[int, ...], tuple[str, ...]] | None:
    """Return what does not depend on the tensors; None where the call is not plain.

    That is the cell's name, whether what a backward pass needs is to be kept, the sizes of the
    state's tensors, and the names of the weights of one direction of a layer after the other.
    """
    cell: Cell = object_of(number)
    autocast = dtype_of_autocast(torch.device("cpu")) is not None
    if autocast or dtype not in (torch.float32, torch.float64):
        return None
    if not cell.is_native or not has(cell) or (P and not projects(cell)):
        return None
    there = (True, True, bias, bias, P > 0, cell.units > 0)
    names = [
        name if is_there else ""
        for layer in range(L)
        for reverse in range(D)
        for name, is_there in zip(_names(layer, reverse > 0), there, strict=True)
    ]
    sizes = (P or H, *(H,) * (cell.states - 1))
    return name_of_cell(cell), torch.is_grad_enabled() and not is_exporting(), sizes, tuple(names)


def _names(layer: int, reverse: bool) -> list[str]:
    return [f"{name}_l{layer}{'_reverse' if reverse else ''}" for name in WEIGHT_NAMES]
