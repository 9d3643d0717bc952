"""A fused cell is one operation for whoever records operations, with the bits of an eager call."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from users_cells import CASES, Cell, Gru, H, I, state_of

import bptt
from bptt._src.fuse.operator import _prepared
from bptt._src.pytree import map_tensors, tensors_of

CHECKS = (
    *("test_schema", "test_autograd_registration"),
    *("test_faketensor", "test_aot_dispatch_dynamic"),
)


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def fused(name: str) -> tuple[Any, bptt.Fused]:
    cell = CASES[name].make()
    return cell, bptt.fuse(cell, CASES[name].inputs((2,)), state_of(CASES[name], 2))


def results(module: Any, inputs: Any, state: Any, weights: Any) -> list[Any]:
    """Outputs, final states and the gradients of all."""

    def leaf(t: Tensor) -> Tensor:
        t = t.detach().clone()
        return t.requires_grad_() if t.is_floating_point() else t

    inputs, state = map_tensors(leaf, inputs), map_tensors(leaf, state)
    flat = [t for part in module(inputs, state) for t in tensors_of(part)]
    loss = sum((t * torch.linspace(-1, 2, t.numel()).view(t.shape)).sum() for t in flat)
    wanted = [t for t in (*tensors_of(inputs), *tensors_of(state), *weights) if t.requires_grad]
    return [*flat, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def assert_same_bits(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        one = b if a is None else a
        if a is None or b is None:
            assert one is None or not one.any()
        else:
            assert torch.equal(a, b)


class Counting:
    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)


@pytest.mark.parametrize("name", CASES)
def test_one_graph_for_any_sizes_with_the_same_bits(name: str) -> None:
    _, module = fused(name)
    count, weights = Counting(), list(module.parameters())
    compiled = torch.compile(module, fullgraph=True, backend=count, dynamic=True)
    for T, B in [(7, 3), (4, 5), (9, 2)]:
        given = CASES[name].inputs((T, B)), state_of(CASES[name], B)
        assert_same_bits(results(compiled, *given, weights), results(module, *given, weights))
    assert len(count.graphs) == 1
    with torch.no_grad():
        assert_same_bits(*(tensors_of(run(*given)) for run in (compiled, module)))
    operations = [n for n in count.graphs[1].graph.nodes if "fused" in str(n.target)]
    assert len(operations) == 1
    layout = module._plans._known[0].plan.layout  # without what is kept for a backward pass
    assert len(operations[0].meta["example_value"]) == len(layout.of_results(1, 1)) + 1


@dataclasses.dataclass
class Pair:
    a: Tensor
    b: Any


class Nested(Cell):
    def forward(self, x: Any, state: Any) -> Any:
        h = torch.tanh(self.of_x(x.a) + self.of_h(state["h"][0]) + x.b[0])
        return Pair(h, [h * 2, ("units", None)]), {"h": [h], "c": (state["c"][0] + h,)}


def test_pytrees_without_a_state() -> None:
    def x(*shape: int) -> Pair:
        return Pair(torch.randn(*shape, I), (torch.randn(*shape, H),))

    module = bptt.fuse(Nested(), x(2), {"h": [torch.zeros(2, H)], "c": (torch.zeros(2, H),)})
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = x(4, 3)
    (found, after), (expected, last) = compiled(inputs), module(inputs)
    assert type(found) is Pair
    assert found.b[1] == ("units", None)
    assert_same_bits(tensors_of((found, after)), tensors_of((expected, last)))
    with pytest.raises(Exception, match="another form"):
        torch.compile(module, backend="aot_eager")((inputs.a, inputs.b))


class Scaled(Gru):
    def __init__(self) -> None:
        super().__init__(3)
        self.scale = 0.5

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = super().forward(x, h)[0] * self.scale
        return (h[:, :2] if self.scale > 4 else h), h


def test_a_changed_attribute_is_seen() -> None:
    cell, x = Scaled(), torch.randn(5, 3, I)
    module = bptt.fuse(cell, x[0], torch.zeros(3, H))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = x, torch.zeros(3, H), list(cell.parameters())
    for scale in (0.5, 2.0, 3.0):
        cell.scale = scale
        found = results(compiled, *given)
        assert_same_bits(found, results(module, *given))
        expected = results(bptt.Stepwise(cell), *given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    cell.scale = 5.0
    with pytest.raises(RuntimeError, match=r"other shapes or dtypes: record it again"):
        results(compiled, *given)
    torch.compiler.reset()
    assert compiled(x)[0].shape == (5, 3, 2)


def test_an_attribute_that_changes_between_the_passes() -> None:
    cell, x = Scaled(), torch.randn(5, 3, I)
    module = bptt.fuse(cell, x[0], torch.zeros(3, H))
    found = []
    for run in (torch.compile(module, fullgraph=True, backend="aot_eager"), module):
        cell.scale = 0.5
        y = run(x)[0]
        cell.scale = 2.0
        module(x)
        found.append([*torch.autograd.grad(y.sum(), list(cell.parameters()))])
    assert_same_bits(*found)


def test_hooks_are_not_left_out() -> None:
    cell, module = fused("gru")
    x, seen = torch.randn(5, 3, I), []
    key = _prepared(id(module), (), torch.float32, torch.float32)
    given = [x], [torch.zeros(3, H)], list(cell.parameters())
    torch.ops.bptt.fused(key, *given, False)
    cell.of_h.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(RuntimeError, match="of_h has hooks"):
        torch.ops.bptt.fused(key, *given, False)
    with pytest.warns(RuntimeWarning, match="of_h has hooks"):
        torch.compile(module, backend="eager")(x)
    assert len(seen) == 5


class Dropping(Cell):
    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(x) + nn.functional.dropout(self.of_h(h), 0.5, self.training))
        return h, h


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's, on graph breaks
def test_another_mode_that_cannot_be_fused_breaks_the_graph_and_is_right() -> None:
    cell = Dropping().eval()
    module = bptt.fuse(cell, torch.randn(2, I), torch.randn(2, H))
    x, compiled = torch.randn(5, 3, I), torch.compile(module, backend="aot_eager")
    assert torch.equal(compiled(x)[0], module(x)[0])
    module.train()
    torch.manual_seed(1)
    with pytest.warns(RuntimeWarning, match="runs step by step: .*random numbers"):
        y = compiled(x)[0]
    torch.manual_seed(1)
    assert torch.equal(y, module(x)[0])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(module, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's, on graph breaks
@pytest.mark.filterwarnings("ignore:bptt.fuse:RuntimeWarning")  # that it runs step by step
def test_other_sizes_dtypes_and_kernels() -> None:
    _, module = fused("gru")
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(5, 3, I)
    for name in ("auto", "twin", "auto"):
        with bptt.kernels.use(name):
            assert torch.equal(compiled(x)[0], module(x)[0])
    with pytest.raises(ValueError, match="for the 3 sequences"):
        compiled(x, torch.zeros(2, H))
    key = _prepared(id(module), (), torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match=r"inputs \[5, 3, ...\] and states \[3, ...\]"):
        torch.ops.bptt.fused(key, [x], [torch.zeros(2, H)], list(module.parameters()), True)
    module.double()
    found, expected = compiled(x.double())[0], module(x.double())[0]
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)
    assert compiled(x[:, :0].double())[0].shape == (5, 0, H)


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")  # torch's own use
def test_inductor_gives_the_same_numbers() -> None:
    _, module = fused("lstm")
    head = nn.Linear(H, 3)

    def model(x: Any, state: Any) -> Any:
        y, state = module(x * 2, state)
        return head(torch.relu(y)), state

    given = torch.randn(6, 3, I), state_of(CASES["lstm"], 3)
    weights = [*module.parameters(), *head.parameters()]
    found = results(torch.compile(model, fullgraph=True), *given, weights)
    torch.testing.assert_close(found, results(model, *given, weights))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["lstm", "direct", "masked", "spiking", "residual"])
def test_torchs_checks_of_the_operator(name: str, keep: bool) -> None:
    _, module = fused(name)
    step, case = module._step, CASES[name]
    xs, states = tensors_of(case.inputs((4, 3))), tensors_of(state_of(case, 3))
    for t in (*xs, *states):
        if t.is_floating_point():
            t.requires_grad_()
    key = _prepared(id(module), (), *[t.dtype for t in (*xs, *states)])
    given = (key, xs, states, step.own()[1], keep)
    torch.library.opcheck(torch.ops.bptt.fused.default, given, test_utils=CHECKS)


class Reading(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent, self.linear = recurrent, nn.Linear(H, 2)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        y, h = self.recurrent(x, h)
        return self.linear(y), h


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_length_and_batch_and_training(strict: bool) -> None:
    network = Reading(fused("gru")[1])
    T, B = torch.export.Dim("T", min=2, max=5000), torch.export.Dim("B", min=1, max=5000)
    program = torch.export.export(
        network,
        (torch.randn(6, 3, I), torch.randn(3, H)),
        dynamic_shapes=({0: T, 1: B}, {0: B}),
        strict=strict,
    )
    assert len(program.graph.nodes) < 25  # and not one for each step
    exported = program.module()
    for t, b in ((6, 3), (40, 1), (2, 7)):
        given = torch.randn(t, b, I), torch.randn(b, H)
        weights = [list(m.parameters()) for m in (exported, network)]
        assert_same_bits(
            results(exported, *given, weights[0]), results(network, *given, weights[1])
        )


def test_make_fx_of_a_gradient_and_of_its_gradient() -> None:
    _, module = fused("lstm")
    state = state_of(CASES["lstm"], 2)
    x, other = torch.randn(4, 2, I), torch.randn(4, 2, I)

    def first(z: Tensor, again: bool = False) -> list[Tensor]:
        z = z.detach().requires_grad_()
        loss = module(z, state)[0].square().sum()
        found = torch.autograd.grad(loss, [z, *module.parameters()], create_graph=again)
        return [*torch.autograd.grad(found[0].square().sum(), z)] if again else [*found]

    graph = make_fx(lambda z: first(z))(x)
    assert_same_bits(graph(other), first(other))
    assert sum("fused_backward" in str(n.target) for n in graph.graph.nodes) == 1
    again = make_fx(lambda z: first(z, True))(x)
    torch.testing.assert_close(again(other), first(other, True))


def test_fake_tensors_have_the_right_shapes() -> None:
    _, module = fused("direct")
    with torch.no_grad():
        y, h = module(torch.randn(6, 3, I))
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake, last = module(torch.randn(6, 3, I))
    for a, b in zip(tensors_of((fake, last)), tensors_of((y, h)), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
