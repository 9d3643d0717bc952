"""What :func:`bptt.check_module` is given, and the copy of it that is checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.flow.untouched import untouched
from bptt._src.layers import Layers
from bptt._src.layout import Layout, declared, unwrapped
from bptt._src.module_check.view import WHERE, View, floats
from bptt._src.pytree import check_leaves, is_float, map_tensors, tensors_of
from bptt._src.unroll.buffers import modules_in
from bptt._src.unroll.calls import check_callable
from bptt._src.unroll.stepwise import Stepwise

CANNOT_COPY = (TypeError, RuntimeError, NotImplementedError, copy.Error, PicklingError)
CANNOT_CAST = (TypeError, RuntimeError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Checked:
    """A view of the module that is checked, and one in double precision if it is not."""

    name: str
    precision: str
    view: View
    exact: View | None


@contextmanager
def subject(
    module: Any, inputs: Any, state: Any, double: bool, size: tuple[int, int],
    batch_first: bool | None, state_batch_dim: int | None,
) -> Iterator[Checked]:  # fmt: skip
    """Make the views; a module that cannot be copied is as it was afterwards."""
    module = as_sequences(module)
    modules = modules_in(module)
    own = _drawn(module, modules, size) if inputs is None else inputs
    make = _Maker(own, state, batch_first, state_batch_dim)
    name = described(module)
    with ExitStack() as stack:
        copied, why = _copy(module, modules)
        if copied is None:
            stack.enter_context(untouched(nn.ModuleList(modules)))
            yield Checked(name, f"{_dtype(own)} ({why})", make.view(module), None)
            return
        exact, why = make.in_double(module, modules)
        if double and exact is not None:
            yield Checked(name, "float64", exact, None)
            return
        said = f"{_dtype(own)} ({why})" if why else _dtype(own)
        yield Checked(name, said, make.view(copied), exact)


def as_sequences(module: Any) -> Any:
    """Return a module over sequences: what wrappers contain, and torch.nn's cells by Stepwise."""
    inside = unwrapped(module) if isinstance(module, nn.Module) else module
    if isinstance(inside, nn.RNNCellBase):
        return Stepwise(inside)
    check_callable(inside, WHERE)
    return inside


def described(module: Any) -> str:
    """Return the class and the arguments of a module, or the name of a function."""
    cell = getattr(module, "cell", None)
    if isinstance(module, Stepwise) and cell is not None:
        return f"Stepwise({described(cell)})"
    if not isinstance(module, nn.Module):
        return str(getattr(module, "__name__", type(module).__name__))
    return f"{type(module).__name__}({module.extra_repr()})"


def _drawn(module: Any, modules: list[nn.Module], size: tuple[int, int]) -> Tensor:
    """Draw inputs for a module that says how many it takes."""
    of = module.cell if isinstance(module, Stepwise) else module
    count = declared(of, "input_size")
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(
            f"{WHERE}: cannot draw inputs for {described(module)}, which has no integer "
            "input_size; give an example: inputs=torch.randn(steps, batch, ...)"
        )
    steps, batch = size
    generator = torch.Generator().manual_seed(1)
    first = bool(declared(module, "batch_first", False))
    like = next((p for m in modules for p in m.parameters() if is_float(p)), torch.zeros(()))
    drawn = torch.randn(steps, batch, count, generator=generator, dtype=torch.float64)
    return (drawn.transpose(0, 1) if first else drawn).to(like.device, like.dtype)


def _copy(module: Any, modules: list[nn.Module]) -> tuple[Any, str]:
    """Copy a module; return None and the reason if there is no copy apart from it."""
    try:
        copied = copy.deepcopy(module)
    except CANNOT_COPY as refusal:
        return None, f"it cannot be copied: {str(refusal).partition('.')[0]}"
    if not modules or {*map(id, modules_in(copied))} & {*map(id, modules)}:
        return None, "a function is not copied"
    return copied, ""


@dataclass(frozen=True)
class _Maker:
    """What makes views of copies."""

    inputs: Any
    state: Any
    batch_first: bool | None
    state_batch_dim: int | None

    def in_double(self, module: Any, modules: list[nn.Module]) -> tuple[View | None, str]:
        """Make a view of a copy in double precision; or return None and why there is none."""

        def double(v: Tensor) -> Tensor:
            wanted = torch.complex128 if v.is_complex() else torch.float64
            return v.to(wanted) if is_float(v) else v

        try:
            copied = copy.deepcopy(module).double()
            for v in (*copied.parameters(), *copied.buffers()):
                v.data = double(v.data)  # complex ones, which Module.double leaves as they are
            inputs, state = map_tensors(double, self.inputs), map_tensors(double, self.state)
            return replace(self, inputs=inputs, state=state).view(copied), ""
        except CANNOT_CAST as refusal:
            words = str(refusal).partition("\n")[0]
            return None, f"not in double precision: {words}"

    def view(self, module: Any) -> View:
        """Find the layout, and a state that is reached on other inputs where none is given."""

        def plain(v: Tensor) -> Tensor:
            return v.detach().clone()

        inputs, state = map_tensors(plain, self.inputs), map_tensors(plain, self.state)
        layout = Layout.of(module, inputs, self.batch_first, self.state_batch_dim, where=WHERE)
        if layout.steps < 2:
            raise ValueError(f"{WHERE}: expected inputs of two steps at least, got {layout.steps}")
        parts = tuple(modules_in(module))
        view = View(module, parts, inputs, state, layout, False, 7)
        other = map_tensors(lambda v: v.roll(1, layout.time) if is_float(v) else v, inputs)
        with torch.no_grad():
            y, after = view.whole(other, state)
            _, shorter = view.whole(layout.piece(other, 0, 1), state)
        _check(layout, y, after, shorter)
        dims = _batch_dims(module, layout, after, self.state_batch_dim)
        if len(dims) > 1 and state is None:  # another size of the batch tells which it is
            with torch.no_grad():
                _, fewer = view.whole(_narrowed(other, 1 - layout.time), None)
            pairs = list(zip(tensors_of(after), tensors_of(fewer), strict=True))
            dims = [d for d in dims if all(a.shape[d] != b.shape[d] for a, b in pairs if a.dim())]
        dim = 1 if 1 in dims else dims[0]
        state = map_tensors(plain, after) if state is None else state
        return replace(view, state=state, layout=replace(layout, state_dim=dim))


def _narrowed(inputs: Any, dim: int) -> Any:
    return map_tensors(lambda v: v.narrow(dim, 0, v.shape[dim] - 1), inputs)


def _check(layout: Layout, y: Any, after: Any, shorter: Any) -> None:
    """Refuse results that are not those of a module over sequences."""
    check_leaves(after, WHERE, "the state that the module returned")
    if not floats(after):
        raise TypeError(
            f"{WHERE}: expected (outputs, state) with tensors in the state, got "
            f"{type(after).__name__}; a module that keeps its state in itself must return it, and "
            "take it as an argument"
        )
    shapes = [[tuple(v.shape) for v in tensors_of(tree)] for tree in (after, shorter)]
    if shapes[0] != shapes[1]:
        raise TypeError(
            f"{WHERE}: the returned state is {shapes[0]} for {layout.steps} steps and {shapes[1]} "
            "for one; a module that takes single steps needs bptt.Stepwise(module), and inputs "
            "[B, T, ...] need batch_first=True"
        )
    for v in floats(y):
        if v.dim() <= layout.time or v.shape[layout.time] != layout.steps:
            raise ValueError(
                f"{WHERE}: the module's output for {layout.steps} steps is {tuple(v.shape)}; "
                f"dimension {layout.time} must be time (inputs [B, T, ...] need batch_first=True)"
            )


def _batch_dims(module: Any, layout: Layout, state: Any, given: int | None) -> list[int]:
    """Find where the batch may lie in the state: where it is said to, or each tensor has its size.

    Raises:
        ValueError: nowhere.
    """
    stated = declared(module, "state_batch_dim") if given is None else given
    if layout.batch is None or (stated is None and isinstance(module, Layers | nn.RNNBase)):
        return [layout.state_dim]
    tensors = [v for v in tensors_of(state) if v.dim()]
    fits = [
        d
        for d in range(min((v.dim() for v in tensors), default=0))
        if all(v.shape[d] == layout.batch for v in tensors) and stated in (None, d)
    ]
    if not fits:
        raise ValueError(
            f"{WHERE}: the returned state is {[tuple(v.shape) for v in tensors]}, and none of its "
            f"dimensions{'' if stated is None else f' {stated}'} is the batch of {layout.batch}; "
            "say which is with state_batch_dim, and batch_first=True if inputs are [B, T, ...]"
        )
    return fits


def _dtype(inputs: Any) -> str:
    found = dict.fromkeys(str(v.dtype).removeprefix("torch.") for v in floats(inputs))
    return ", ".join(found) or "integers"
