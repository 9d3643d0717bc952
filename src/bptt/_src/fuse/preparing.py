"""What a fused cell is prepared to be, before anything runs, and what can be given to it."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt._src.engines.loops.step import quietly
from bptt._src.fuse.comparison import check_against_autograd
from bptt._src.fuse.fusion import Fusion
from bptt._src.fuse.step import CellStep
from bptt._src.fuse.tracing import Example
from bptt.errors import FuseError

_DTYPES = (torch.float32, torch.float64)


def prepare(
    step: CellStep, xs: list[Tensor], states: list[Tensor], own: dict[str, Tensor]
) -> Fusion:
    """Trace a step, split it, and compare the whole with autograd.

    Args:
        step: the step of the cell.
        xs: an example of its inputs.
        states: an example of its states.
        own: what the cell owns.

    Raises:
        bptt.errors.FuseError: something in it cannot be fused.
        Exception: what the cell itself raises.
    """
    with quietly():  # where copies of inference tensors are ordinary ones
        own = {n: t.detach().clone() for n, t in own.items()}
        xs, states = ([t.detach().clone() for t in each] for each in (xs, states))
        example = Example(xs, states, own).to(states[0].dtype)
        step(xs, states, own)  # raises its own errors
        exact = example.to(torch.float64)
        try:
            checked = Fusion.of(step, exact)
            check_against_autograd(step, checked, exact)
        except (RuntimeError, TypeError) as e:
            raise FuseError(
                f"bptt.fuse: in float64, in which it is compared with autograd, the step raises "
                f"{type(e).__name__}: {str(e).splitlines()[0]}: make tensors of x.dtype, and what "
                "needs a gradient an nn.Parameter of an nn.Module"
            ) from e
        if states[0].dtype == torch.float64:
            return checked
        return Fusion.of(step, example, like=checked)


def refusal_of_tensors(tensors: tuple[Tensor, ...]) -> str | None:
    """Return why tensors cannot be given to the native library, if so."""
    devices = {t.device.type for t in tensors}
    if devices != {"cpu"}:
        return f"tensors are on {', '.join(sorted(devices))}; native loops run on the cpu"
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        return (
            "inputs, state, parameters and buffers must all be float32, or all float64, got "
            f"{', '.join(sorted(map(str, dtypes)))}: convert them, as by .float()"
        )
    return None
