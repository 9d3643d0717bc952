"""A fused module is a module: weights, copies, modes, and wherever modules over sequences go."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from users_cells import CASES, Gru, H, I, Lstm, state_of

import bptt


def gru() -> tuple[Gru, bptt.Fused]:
    torch.manual_seed(0)
    cell = Gru(3)
    return cell, bptt.fuse(cell, torch.randn(2, I), torch.randn(2, H))


def test_it_has_the_weights_of_the_cell_under_its_names() -> None:
    cell, module = gru()
    assert module.cell is cell
    assert list(module.state_dict()) == list(cell.state_dict())
    for (a, p), (b, q) in zip(module.named_parameters(), cell.named_parameters(), strict=True):
        assert a == b
        assert p is q
    assert repr(module) == repr(cell).replace("Gru(", "FusedGru(")
    x = torch.randn(6, 3, I)
    before = module(x)[0]
    other = Gru(3)
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(module(x)[0], bptt.Stepwise(other)(x, torch.zeros(3, H))[0])
    assert not torch.equal(module(x)[0], before)
    cell.of_h.weight = nn.Parameter(torch.zeros(3 * H, H))
    assert module.of_h.weight is cell.of_h.weight
    torch.testing.assert_close(module(x)[0], bptt.Stepwise(cell)(x, torch.zeros(3, H))[0])


def test_training_changes_both() -> None:
    cell, module = gru()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x = torch.randn(6, 3, I)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (module(x)[0] - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    torch.testing.assert_close(module(x)[0], bptt.Stepwise(cell)(x, torch.zeros(3, H))[0])


def test_copies_are_independent() -> None:
    _cell, module = gru()
    x = torch.randn(6, 3, I)
    y = module(x)[0]
    data = io.BytesIO(pickle.dumps(module))
    for other in (copy.deepcopy(module), pickle.load(data)):
        assert torch.equal(other(x)[0], y)
        with torch.no_grad():
            other.of_h.weight.zero_()
        assert other.cell.of_h.weight is other.of_h.weight
        assert torch.equal(module(x)[0], y)
        torch.testing.assert_close(other(x)[0], bptt.Stepwise(other.cell)(x, torch.zeros(3, H))[0])


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_both, self.dropout = nn.Linear(I + H, H), nn.Dropout(0.5)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_both(torch.cat([x, self.dropout(h)], 1)))
        return h, h


def test_another_mode_is_prepared_or_runs_step_by_step_and_says_so() -> None:
    cell = Dropping().eval()
    module = bptt.fuse(cell, torch.randn(2, I), torch.randn(2, H))
    assert bptt.kernels.not_native(module) is None
    x = torch.randn(6, 3, I)
    module.train()
    assert cell.training
    assert cell.dropout.training
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="runs step by step: .*random numbers"):
        y = module(x)[0]
    torch.manual_seed(3)
    assert torch.equal(y, bptt.Stepwise(cell)(x, torch.zeros(3, H))[0])
    assert "random numbers" in bptt.kernels.not_native(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)  # says so once
        module.eval()
        module(x)


def test_another_dtype() -> None:
    cell, module = gru()
    module.double()
    x = torch.randn(6, 3, I).double()
    assert bptt.kernels.not_native(module) is None
    torch.testing.assert_close(
        module(x)[0], bptt.Stepwise(cell)(x, torch.zeros(3, H).double())[0], rtol=0, atol=1e-12
    )
    module.bfloat16()
    with pytest.warns(RuntimeWarning, match=r"float32, or all float64, got torch\.bfloat16"):
        module(x.bfloat16())


def test_dtypes_that_the_cell_cannot_take_together_are_one_error_and_no_warning() -> None:
    _cell, module = gru()
    said = (
        "bptt.fuse: FusedGru got inputs of torch.float64, a state of torch.float64, parameters "
        "of torch.float32: convert them to one dtype, with inputs.to(dtype) or module.to(dtype)"
    )
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels), warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError) as caught:
                module(torch.randn(6, 3, I).double())
            assert str(caught.value) == said
            with pytest.raises(ValueError, match=r"a state of torch\.float64, parameters of"):
                module(torch.randn(6, 3, I), torch.zeros(3, H).double())


class Converting(Gru):
    """A cell that takes inputs of any dtype."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        return super().forward(x.to(h.dtype), h)


def test_dtypes_that_the_cell_takes_run_step_by_step() -> None:
    cell = Converting(3)
    module = bptt.fuse(cell, torch.randn(2, I), torch.randn(2, H))
    x, h = torch.randn(6, 3, I).double(), torch.randn(3, H)
    with pytest.warns(RuntimeWarning, match=r"got torch\.float32, torch\.float64"):
        y = module(x, h)[0]
    assert torch.equal(y, bptt.Stepwise(cell)(x, h)[0])


class Failing(Converting):
    """A cell of several dtypes that has an error of its own."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        if x.dtype is not h.dtype:
            raise RuntimeError("two kinds of numbers are one too many")
        return super().forward(x, h)


@pytest.mark.filterwarnings("ignore")
def test_another_error_of_a_cell_of_several_dtypes_is_not_taken_for_theirs() -> None:
    module = bptt.fuse(Failing(3), torch.randn(2, I), torch.randn(2, H))
    with pytest.raises(RuntimeError, match="one too many"):
        module(torch.randn(6, 3, I).double(), torch.randn(3, H))


@pytest.mark.parametrize("given", [{"credit": "truncated:3"}, {"credit": None, "resets": None}])
def test_arguments_of_unroll_are_refused_with_what_to_write(given: dict[str, Any]) -> None:
    cell, module = gru()
    x = torch.randn(6, 3, I)
    written = ", ".join(f"{name}=..." for name in given)
    with pytest.raises(TypeError) as caught:
        module(x, **given)
    assert str(caught.value) == (
        f"bptt.fuse: FusedGru takes inputs and a state, got {written}: write "
        f"bptt.unroll(module, inputs, state, {written})"
    )
    y = bptt.unroll(module, x, torch.zeros(3, H), **given)[0]
    expected = bptt.unroll(bptt.Stepwise(cell), x, torch.zeros(3, H), **given)[0]
    torch.testing.assert_close(y, expected)


def test_autocast_runs_step_by_step() -> None:
    cell, module = gru()
    x = torch.randn(6, 3, I)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(RuntimeWarning, match="autocast"):
            y = module(x)[0]
        assert torch.equal(y, bptt.Stepwise(cell)(x, torch.zeros(3, H))[0])


def test_without_the_library_it_runs_step_by_step() -> None:
    with bptt.kernels.use("twin"):
        cell, module = gru()
        x = torch.randn(6, 3, I)
        with pytest.warns(RuntimeWarning, match="native kernels"):
            y = module(x)[0]
        assert torch.equal(y, bptt.Stepwise(cell)(x, torch.zeros(3, H))[0])
    assert bptt.kernels.not_native(module) is None


@pytest.mark.parametrize("credit", ["truncated:3", "truncated:every=2,reach=5"])
def test_unroll(credit: str) -> None:
    torch.manual_seed(0)
    cell = Lstm(4).double()
    state = state_of(CASES["lstm"], 3, dtype=torch.float64)
    module = bptt.fuse(cell, torch.randn(3, I).double(), state)
    x = torch.randn(11, 3, I).double()
    resets = torch.rand(11, 3) < 0.2
    found = []
    for run in (module, bptt.Stepwise(cell)):
        y, _ = bptt.unroll(run, x, state, credit=credit, resets=resets)
        found.append(torch.autograd.grad(y.square().sum(), list(cell.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_stream() -> None:
    cell, module = gru()
    found = []
    for run in (module, bptt.Stepwise(cell)):
        torch.manual_seed(1)
        stream, total = bptt.Stream(torch.zeros(2, H)), 0.0
        for _ in range(3):
            y, stream = stream.advance(run, torch.randn(4, 2, I), credit="truncated:5")
            loss = y.square().sum()
            loss.backward()
            total += float(loss.detach())
        found.append((total, [p.grad.clone() for p in cell.parameters()]))
        cell.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_flow() -> None:
    cell, module = gru()
    module.double()
    x = torch.randn(9, 2, I).double()
    ours, theirs = (
        bptt.gradient_flow(m, x, state=torch.zeros(2, H).double())
        for m in (module, bptt.Stepwise(cell))
    )
    torch.testing.assert_close(ours.norms, theirs.norms, equal_nan=True)


def test_transforms_and_watchers_see_the_cell() -> None:
    cell, module = gru()
    x = torch.randn(5, 2, I)

    def loss(weights: Any) -> Tensor:
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    weights = {n: p.detach() for n, p in module.named_parameters()}
    found = torch.func.grad(loss)(weights)
    y, _ = bptt.Stepwise(cell)(x, torch.zeros(2, H))
    expected = torch.autograd.grad(y.square().sum(), list(cell.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_functional_call_takes_other_weights() -> None:
    _cell, module = gru()
    x = torch.randn(5, 2, I)
    zeros = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    assert not torch.func.functional_call(module, zeros, (x,))[0].any()


def test_distributed(tmp_path: Any) -> None:
    cell, module = gru()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        x = torch.randn(5, 2, I)
        nn.parallel.DistributedDataParallel(module)(x)[0].square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    y, _ = bptt.Stepwise(cell)(x, torch.zeros(2, H))
    expected = torch.autograd.grad(y.square().sum(), list(cell.parameters()))
    for p, d in zip(cell.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, d)


def test_an_audit_leaves_a_fused_module_as_it_is():
    """What the audit hears of the cell is no call of the user's, and changes nothing for long."""
    cell = torch.nn.GRUCell(3, 4)
    fast = bptt.fuse(cell, torch.zeros(2, 3), torch.zeros(2, 4))

    def train():
        fast(torch.randn(7, 2, 3))[0].square().mean().backward()

    def train_in_another_mode():
        fast.train(not fast.training)  # traced anew
        train()

    for run in (train, train_in_another_mode):
        with pytest.raises(ValueError, match=r"of what bptt\.fuse gave, audit the whole"):
            bptt.audit(run, cell)
        assert bptt.kernels.not_native(fast) is None
    assert "1 call, 7 steps" in str(bptt.audit(train_in_another_mode, fast))
