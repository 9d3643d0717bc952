"""Where time and batch lie: with wrappers around a module, batch first, and in resets."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from bptt._src.layout import Layout, unwrapped

pytestmark = pytest.mark.usefixtures("compiled_as_written")

B, T, I, H = 4, 6, 3, 5


class Around(nn.Module):
    """What a user writes around a network, without saying how it is laid out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any, state: Any = None) -> Any:
        return self.network(x, state)


def fake(name: str, package: str, attribute: str) -> type:
    """A wrapper of a package that is not installed, as it is called there."""

    def init(self: Any, inside: nn.Module) -> None:
        nn.Module.__init__(self)
        setattr(self, attribute, inside)

    def forward(self: Any, *args: Any, **how: Any) -> Any:
        return getattr(self, attribute)(*args, **how)

    return types.new_class(
        name, (nn.Module,), {},
        lambda body: body.update(__init__=init, forward=forward, __module__=package),
    )  # fmt: skip


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "parallel": nn.DataParallel,
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).requires_grad_(True),
    "FSDP": fake("FullyShardedDataParallel", "torch.distributed.fsdp", "module"),
    "Fabric": fake("_FabricModule", "lightning.fabric.wrappers", "module"),
    "both": lambda m: fake("_FabricModule", "lightning_fabric.wrappers", "module")(
        torch.compile(m, backend="eager")
    ),
}


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(tmp_path_factory.mktemp("ddp") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    dist.destroy_process_group()


def check_same_as_inside(wrapped: nn.Module, inside: nn.Module) -> None:
    """Outputs, gradients, per-sequence plans and streams are those of the module itself."""
    torch.manual_seed(0)
    x, resets = torch.randn(B, T, I), torch.rand(B, T) < 0.3
    for options in (
        {"credit": "truncated:2"},
        {"credit": bptt.Randomized(3)},
        {"resets": resets, "credit": "truncated:every=2,reach=4"},
        {"credit": "truncated:2", "memory": "recompute:2"},
    ):
        found = []
        for module in (inside, wrapped):
            inside.zero_grad()
            generator = torch.Generator().manual_seed(1)
            y, _ = bptt.unroll(module, x, generator=generator, **options)
            y.square().sum().backward()
            found.append([y.detach(), *(p.grad.clone() for p in inside.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), options
    stream, pieces = bptt.Stream(), []
    for window in x.split(2, dim=1):
        y, stream = stream.advance(wrapped, window, credit="truncated:every=2,reach=4")
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), inside(x)[0])


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")
def test_wrappers_hide_nothing(name: str) -> None:
    torch.manual_seed(1)
    made = WRAPPERS[name](bptt.GRU(I, H, batch_first=True))
    inside = unwrapped(made)
    assert type(inside) is bptt.GRU
    check_same_as_inside(made, inside)


def test_data_parallel_of_many_processes_hides_nothing(ddp: Any) -> None:
    torch.manual_seed(1)
    inside = bptt.GRU(I, H, batch_first=True)
    check_same_as_inside(ddp(inside), inside)
    cell = bptt.Stepwise(nn.GRUCell(I, B))  # as many units as sequences
    x, resets = torch.randn(T, B, I), torch.rand(T, B) < 0.3
    right, _ = bptt.unroll(cell, x, resets=resets)
    torch.testing.assert_close(bptt.unroll(ddp(cell), x, resets=resets)[0], right)


@pytest.mark.parametrize("shape", [(B, T, I), (B, T + 1, I), (T, B, I)])
@pytest.mark.parametrize("how", [{"credit": "truncated:2"}, {"credit": "truncated:3"}, {}])
def test_a_wrapper_that_does_not_say_batch_first(shape: tuple[int, ...], how: Any) -> None:
    network = Around(nn.LSTM(I, H, batch_first=True))
    x = torch.randn(shape)
    with pytest.raises(ValueError, match=r"batch.*batch_first=True"):
        bptt.unroll(network, x, **how)
    right, _ = network(x)
    y, _ = bptt.unroll(network, x, batch_first=True, **how)
    torch.testing.assert_close(y, right)


def test_outputs_that_are_not_as_long_as_the_inputs() -> None:
    def last(x: Tensor, state: Any) -> Any:
        y, state = gru(x, state)
        return y[-1:], state

    gru, x = nn.GRU(I, H), torch.randn(T, B, I)
    for options in ({}, {"credit": "truncated:2"}, {"memory": "store"}):
        with pytest.raises(ValueError, match=r"output for \d steps is \(1, 4, 5\).*time"):
            bptt.unroll(last, x, **options)


@pytest.mark.parametrize("steps", [T, B])
def test_resets_and_carry_follow_batch_first(steps: int) -> None:
    torch.manual_seed(2)
    first, x = bptt.LSTM(I, H, batch_first=True), torch.randn(B, steps, I)
    time = bptt.LSTM(I, H)
    time.load_state_dict(first.state_dict())
    resets, carry = torch.rand(steps, B) < 0.4, torch.rand(steps, B)

    def gradient(module: Any, y: Tensor) -> list[Tensor]:
        y = y.transpose(0, 1) if module is first else y
        found = torch.autograd.grad(y.square().sum(), module.parameters())
        return [y, *found]

    right = gradient(time, time(x.transpose(0, 1), resets=resets, carry=carry)[0])
    y, _ = first(x, resets=resets.t(), carry=carry.t())
    for a, b in zip(gradient(first, y), right, strict=True):
        torch.testing.assert_close(a, b)
    right = gradient(time, time(x.transpose(0, 1), resets=resets)[0])
    for how in ({}, {"per_sequence": False}, {"memory": "recompute:2"}):
        found = gradient(first, bptt.unroll(first, x, resets=resets.t(), **how)[0])
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b)
    foreign = Around(nn.GRU(I, H, batch_first=True))
    inside, twin = foreign.network, nn.GRU(I, H)
    twin.load_state_dict(inside.state_dict())
    y, _ = bptt.unroll(foreign, x, resets=resets.t(), batch_first=True)
    right, _ = bptt.unroll(twin, x.transpose(0, 1), resets=resets)
    torch.testing.assert_close(y.transpose(0, 1), right)
    of_all = resets[:, 0]  # [T] whatever the layout
    torch.testing.assert_close(
        first(x, resets=of_all)[0].transpose(0, 1), time(x.transpose(0, 1), resets=of_all)[0]
    )


def test_resets_of_packed_sequences_follow_batch_first_too() -> None:
    lengths, x = torch.tensor([3, 6, 2, 5]), torch.randn(B, T, I)
    resets = torch.rand(B, T) < 0.4
    gru = bptt.GRU(I, H, batch_first=True)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    for found in (gru(packed, resets=resets), bptt.unroll(gru, packed, resets=resets)):
        for b, n in enumerate(lengths):
            _, alone = gru(x[b, :n], resets=resets[b, :n])
            torch.testing.assert_close(found[1][:, b], alone)
    with pytest.raises(ValueError, match=r"\[B, T\], as batch_first=True.*transpose it"):
        gru(packed, resets=resets.t())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([False] * T, TypeError, r"here: resets must be a bool tensor, got list; torch.as_tensor"),
        (torch.zeros(T).bool().numpy(), TypeError, r"got ndarray; torch.as_tensor\(resets\)"),
        (
            torch.zeros(T),
            ValueError,
            r"resets must be bool, got torch.float32; use resets.bool\(\)",
        ),
        (torch.zeros(T, B).bool(), ValueError, r"\(6,\) or \(4, 6\).*got \(6, 4\); transpose it"),
        (torch.zeros(T + 1).bool(), ValueError, r"got \(7,\)$"),
    ],
)
def test_resets_that_are_refused(given: Any, error: Any, message: str) -> None:
    layout = Layout.of(bptt.GRU(I, H, batch_first=True), torch.randn(B, T, I))
    with pytest.raises(error, match=message):
        layout.by_time("resets", given, "here")


def test_batch_first_that_contradicts_the_module() -> None:
    with pytest.raises(
        ValueError, match=r"here: batch_first=False.*batch_first=True; leave it out"
    ):
        Layout.of(bptt.GRU(I, H, batch_first=True), torch.randn(B, T, I), False, where="here")
