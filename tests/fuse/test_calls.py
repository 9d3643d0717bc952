"""What a fused module is called with: one step, packed sequences; and who listens to modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from users_cells import CASES, H, I, Lstm, state_of

import bptt


def lstm() -> tuple[Lstm, bptt.Fused, Any]:
    torch.manual_seed(0)
    cell = Lstm(4).double()
    state = state_of(CASES["lstm"], 3, dtype=torch.float64)
    return cell, bptt.fuse(cell, torch.randn(3, I).double(), state), state


def test_single_steps_are_the_sequence() -> None:
    _, module, state = lstm()
    x = torch.randn(6, 3, I).double()
    with torch.no_grad():
        y, after = module(x, state)
        for t in range(len(x)):
            y_t, state = module(x[t : t + 1], state)
            torch.testing.assert_close(y_t, y[t : t + 1], rtol=0, atol=1e-12)
            y_t.zero_()  # which is none of the state's memory
        for a, b in zip(state, after, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert module(x[:1])[0].shape == (1, 3, H)


def test_a_single_step_without_gradient_is_one_call_of_the_cell() -> None:
    class Two(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRUCell(I, H)

        def forward(self, x: Tensor, h: Tensor) -> Any:
            type(self).calls += 1
            h = self.inner(x, h)
            return {"h": h, "doubled": 2 * h}, h

    cell, x, h = Two(), torch.randn(1, 3, I), torch.randn(3, H)
    module = bptt.fuse(cell, x[0], h)
    before = Two.calls
    with torch.no_grad():
        found, after = module(x, h)
    assert Two.calls == before + 1
    assert {name: y.shape for name, y in found.items()} == dict.fromkeys(found, (1, 3, H))
    torch.testing.assert_close(found["h"][0], after)
    torch.testing.assert_close(found["doubled"], 2 * found["h"])


@pytest.mark.parametrize("lengths", [(7, 7, 4), (2, 6, 5), (1, 1, 1)])
def test_packed_sequences_are_each_by_itself(lengths: tuple[int, ...]) -> None:
    cell, module, state = lstm()
    each = [torch.randn(n, I).double().requires_grad_() for n in lengths]
    leaves = [*each, *cell.parameters()]
    y, final = module(pack_sequence(each, enforce_sorted=False), state)
    assert isinstance(y, PackedSequence)
    by_itself = [module(x[:, None], tuple(s[b : b + 1] for s in state)) for b, x in enumerate(each)]
    expected = pack_sequence([y[:, 0] for y, _ in by_itself], enforce_sorted=False)
    torch.testing.assert_close(y, expected)
    ends = [torch.cat(s) for s in zip(*(s for _, s in by_itself), strict=True)]
    losses = [y.data.sin().sum(), expected.data.sin().sum()]
    for i, states in enumerate((final, ends)):
        losses[i] = losses[i] + sum(s.cos().sum() for s in states)
    for a, b in zip(final, ends, strict=True):
        torch.testing.assert_close(a, b)
    ours, theirs = (torch.autograd.grad(loss, leaves) for loss in losses)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    zeros = tuple(torch.zeros_like(s) for s in state)
    packed = pack_sequence([x.detach() for x in each], enforce_sorted=False)
    torch.testing.assert_close(module(packed)[0], module(packed, zeros)[0])


def test_a_state_of_other_sequences_than_are_packed() -> None:
    _, module, state = lstm()
    packed = pack_sequence([torch.randn(n, I).double() for n in (2, 5)], enforce_sorted=False)
    with pytest.raises(ValueError, match="expected a state for the 2 sequences of the inputs"):
        module(packed, state)


def test_a_tree_of_inputs_is_not_packed() -> None:
    module = bptt.fuse(
        lambda x, h: ((new := torch.tanh(x[0] + x[1] + h)), new),
        (torch.zeros(2, H), torch.zeros(2, H)),
        torch.zeros(2, H),
    )
    packed = pack_sequence([torch.randn(n, H) for n in (3, 2)])
    with pytest.raises(ValueError, match="expected tuple of 2 tensors, got Tensor"):
        module(packed)


def test_hooks_of_all_modules_are_heard_step_by_step() -> None:
    cell, module, state = lstm()
    x, seen = torch.randn(4, 3, I).double(), []
    y, _ = module(x, state)
    handle = of_torch.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        with pytest.warns(RuntimeWarning, match=r"\(for all modules\) has hooks"):
            found, _ = module(x, state)
        with pytest.raises(bptt.errors.FuseError, match=r"\(for all modules\) has hooks"):
            bptt.fuse(cell, x[0], state)
    finally:
        handle.remove()
    assert seen.count(cell.of_h) == 4
    torch.testing.assert_close(found, y)
    seen.clear()
    module(x, state)
    assert not seen
    assert bptt.kernels.not_native(module) is None
