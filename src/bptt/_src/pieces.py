"""A call with cuts or resets as calls of torch's own recurrent function, which knows neither.

On a GPU that function is cuDNN's, and leaving it for a loop over time costs more than any of this.
Where all sequences are cut, or reset, before the same steps, the call is cut there; where each
sequence is reset by itself, the parts between resets become sequences of a packed batch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.engines.guard import only_by_autograd
from bptt._src.rows import Rows
from bptt.cells import State

Call = Callable[[Tensor | PackedSequence, State], tuple[Tensor | PackedSequence, State]]
"""``(x [T, B, I] or packed, initial state) -> (outputs laid out likewise, final state)``."""


def is_cut_for_torch(module: Any, rows: Rows) -> bool:
    """Whether torch's function does better for a module even with cuts and resets: on a GPU."""
    x = rows.x
    if not x.is_cuda or not module._is_torchs or module.bidirectional:
        return False
    return not isinstance(rows.like, PackedSequence) and not only_by_autograd(x) and x.numel() > 0


def by_torch(module: Any) -> Call:
    """Return torch's function for a module of its kinds, with the module's weights."""
    run = getattr(torch._VF, module.mode.lower())
    weights = [getattr(module, name) for name in module._flat_weights_names]
    how = module.bias, module.num_layers, module.dropout, module.training, False

    def call(x: Tensor | PackedSequence, state: State) -> tuple[Tensor | PackedSequence, State]:
        hx = state if len(state) > 1 else state[0]
        if isinstance(x, PackedSequence):
            y, *final = run(x.data, x.batch_sizes, hx, weights, *how)
            return x._replace(data=y), tuple(final)
        y, *final = run(x, hx, weights, *how, False)
        return y, tuple(final)

    return call


def in_pieces(
    module: Any,
    x: Float[Tensor, "time batch input"],
    state: State,
    carry: Float[Tensor, "time batch"] | None,
    resets: Bool[Tensor, "time batch"] | None,
) -> tuple[Tensor, State] | None:
    """Run a network of one direction.

    Args:
        module: one of torch's kinds.
        x: the inputs.
        state: the initial state, each of its tensors [layers, B, ...].
        carry: factors of the state's gradient.
        resets: where the state is set to zero before a step.

    Returns:
        The outputs and the final state; None where it cannot be done: a factor is neither 0 nor 1,
        or sequences are cut, and not reset, each by itself.
    """
    never = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    cuts = never if carry is None else carry == 0
    resets = never if resets is None else resets
    whole = torch.ones_like(never) if carry is None else (carry == 1) | cuts
    together = (cuts.any(1) == cuts.all(1)) & (resets.any(1) == resets.all(1))
    # One wait for the device, whatever is asked.
    asked = (whole.all(), together.all(), cuts.any())
    is_whole, is_together, is_cut = torch.stack(asked).tolist()
    if not is_whole:
        return None
    call = by_torch(module)
    if is_together:
        return _one_after_the_other(call, x, state, cuts[:, 0], resets[:, 0])
    return None if is_cut else _side_by_side(call, x, state, resets)


def _one_after_the_other(
    call: Call, x: Tensor, state: State, cuts: Bool[Tensor, " time"], resets: Bool[Tensor, " time"]
) -> tuple[Tensor, State]:
    is_cut, is_reset = torch.stack((cuts, resets)).tolist()
    begins = [t for t in range(len(x)) if is_cut[t] or is_reset[t]]
    outputs = []
    for first, end in pairwise(sorted({0, *begins, len(x)})):
        if is_reset[first] or is_cut[first]:
            state = tuple(_begun_anew(s, is_reset[first]) for s in state)
        y, state = call(x[first:end], state)
        assert isinstance(y, Tensor)
        outputs.append(y)
    return torch.cat(outputs), state


def _begun_anew(s: Tensor, is_reset: bool) -> Tensor:
    """Begin at zero or at the state's value; the gradient of the state is zero, and not missing."""
    value = torch.zeros_like(s) if is_reset else s.detach()
    return torch.where(torch.ones_like(s, dtype=torch.bool), value, s)


def _side_by_side(
    call: Call, x: Tensor, state: State, resets: Bool[Tensor, "time batch"]
) -> tuple[Tensor, State]:
    T, B = resets.shape
    begins = resets.clone()
    begins[0] = True
    of_sequence, first = begins.t().nonzero(as_tuple=True)  # sequence by sequence, in order
    last_of_all = torch.cat((of_sequence[1:] != of_sequence[:-1], begins.new_ones(1)))
    end = torch.where(last_of_all, T, first.roll(-1))
    length, order = (end - first).sort(descending=True, stable=True)
    of_sequence, first, last_of_all = of_sequence[order], first[order], last_of_all[order]
    u = torch.arange(int(length[0]), device=x.device).unsqueeze(1)
    running = u < length
    rows = ((first + u) * B + of_sequence)[running]  # of x, step after step
    packed = PackedSequence(x.flatten(0, 1).index_select(0, rows), running.sum(1).cpu())
    fresh = (first == 0) & ~resets[0, of_sequence]  # those that begin with the given state
    initial = tuple(
        torch.where(fresh.view(1, -1, 1), s.index_select(1, of_sequence), 0) for s in state
    )
    y, final = call(packed, initial)
    assert isinstance(y, PackedSequence)
    back = torch.empty_like(rows).scatter_(0, rows, torch.arange(T * B, device=x.device))
    (ending,) = last_of_all.nonzero(as_tuple=True)
    of_each = torch.empty_like(ending).scatter_(0, of_sequence[ending], ending)
    outputs = y.data.index_select(0, back).view(T, B, -1)
    return outputs, tuple(s.index_select(1, of_each) for s in final)
