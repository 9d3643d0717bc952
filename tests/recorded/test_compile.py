"""torch.compile sees a layer as one operation: no graph break, the same bits, any length."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from recorded_cases import HOW, MODULES, WINDOWS, Learning, gradients

import bptt
from bptt._src.engines import looped, norm_hooks
from bptt._src.layers import Layers


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()


# Every way of calling one of them, every second of another, and of the others three in turn.
WAYS = [("LSTM", how) for how in HOW] + [("own", how) for how in list(HOW)[::2]]
OTHERS = [name for name in MODULES if name not in ("LSTM", "own")]
WAYS += [(n, (2 * [*HOW])[3 * i + j]) for i, n in enumerate(OTHERS) for j in range(3)]
WAYS = [w for w in WAYS if not (w[0] == "projection" and w[1].startswith("zoneout"))]  # refused


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_module_compiles_whole_and_gives_the_same_bits(name, how):
    options, call = HOW[how]
    network = MODULES[name](**options)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(6, 3, 4)
    torch.testing.assert_close(
        gradients(compiled, x, **call), gradients(network, x, **call), rtol=0, atol=0
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")  # torch's own use
@pytest.mark.parametrize("how", ["plain", "windows, stacked", "two directions"])
def test_inductor_gives_the_same_numbers(how):
    options, call = HOW[how]
    network = bptt.LSTM(4, 5, **options)
    compiled, x = torch.compile(network, fullgraph=True), torch.randn(6, 3, 4)
    with torch._inductor.config.patch(fallback_random=True):  # of the dropout
        found = gradients(compiled, x, **call)
    torch.testing.assert_close(found, gradients(network, x, **call))


class Counting:
    """A backend that counts how often something is compiled, and the operations."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph

    @property
    def operations(self):
        nodes = [n for graph in self.graphs for n in graph.graph.nodes]
        return [str(n.target) for n in nodes if str(n.target).startswith("bptt.")]


@pytest.mark.parametrize("call", [{}, {"credit": "truncated:5"}, {"credit": WINDOWS}])
def test_one_compilation_serves_every_length_and_batch(call):
    count, network = Counting(), bptt.LSTM(4, 5, num_layers=2)
    compiled = torch.compile(network, fullgraph=True, backend=count, dynamic=True)
    for n in range(20):
        x = torch.randn(7 + 5 * n, 2 + n, 4)
        y, _ = compiled(x, **call)
        assert torch.equal(y, network(x, **call)[0])
    assert len(count.graphs) == 1
    assert count.operations.count("bptt.sequence.default") == 2


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "projection", "MGU"])
@pytest.mark.parametrize("state", [False, True])
def test_a_plain_call_goes_the_short_way(name, state, monkeypatch):
    network, x = MODULES[name](num_layers=2, dropout=0.5).eval(), torch.randn(6, 3, 4)
    expected = gradients(network, x, state=state)
    monkeypatch.delattr(Layers, "_rows")  # what every other call begins with
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, x, state=state), expected, rtol=0, atol=0)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(x, resets=torch.zeros(6, dtype=torch.bool))


def test_what_is_not_plain_goes_the_long_way():
    network, x = bptt.LSTM(4, 5, num_layers=2, dropout=0.5), torch.randn(6, 3, 4)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for change in (
        lambda: None,  # dropout
        lambda: network.eval(),
        lambda: network.double(),
        lambda: network.bfloat16(),
        lambda: network.requires_grad_(False),
    ):
        change()
        y = x.to(next(network.parameters()).dtype)
        torch.manual_seed(0)
        found = compiled(y)[0]
        torch.manual_seed(0)
        assert torch.equal(found, network(y)[0])
        assert found.requires_grad == any(p.requires_grad for p in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x.bfloat16())[0].dtype == network(x.bfloat16())[0].dtype


def test_without_a_gradient_nothing_is_kept():
    count, network = Counting(), bptt.LSTM(4, 5)
    compiled = torch.compile(network, fullgraph=True, backend=count)
    with torch.no_grad():
        compiled(torch.randn(6, 3, 4))
    (node,) = (n for n in count.graphs[0].graph.nodes if "sequence" in str(n.target))
    assert len(node.meta["example_value"]) == 3


@pytest.mark.parametrize("how", [{}, {"credit": "truncated:2"}])
def test_what_the_backward_pass_of_a_parameter_needs_is_kept(how):
    count, network = Counting(), bptt.LSTM(4, 5)
    compiled = torch.compile(network, fullgraph=True, backend=count)
    compiled(torch.randn(6, 3, 4), **how)
    (node,) = (n for n in count.graphs[0].graph.nodes if "sequence" in str(n.target))
    assert len(node.meta["example_value"]) == 4


class Inline(torch.nn.Module):
    def __init__(self, credit=None):
        super().__init__()
        self.recurrent, self.credit = bptt.GRU(4, 5), credit

    def forward(self, x):
        credit = self.credit or bptt.Truncated(every=1, reach=2)
        return self.recurrent(x, credit=credit)[0]


def test_a_credit_made_inside_the_compiled_function():
    network = Inline()
    compiled, x = torch.compile(network, fullgraph=True, backend="aot_eager"), torch.randn(6, 3, 4)
    (found, expected) = (
        torch.autograd.grad(n(x).square().sum(), list(network.parameters()))
        for n in (compiled, network)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [(bptt.Truncated(2), bptt.Truncated(3)), (Learning(0.5), Learning(0.25))],
)
def test_another_credit_is_seen(first, second):
    network = Inline(first)
    compiled, x = torch.compile(network, fullgraph=True, backend="aot_eager"), torch.randn(6, 3, 4)

    def found(n):
        return torch.autograd.grad(n(x).square().sum(), list(network.parameters()))

    torch.testing.assert_close(found(compiled), found(network), rtol=0, atol=0)
    network.credit = second
    torch.testing.assert_close(found(compiled), found(network), rtol=0, atol=0)


def test_another_choice_of_kernels_is_seen():
    network, x = bptt.LSTM(4, 5), torch.randn(6, 3, 4)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for name in ("auto", "twin", "auto"):
        with bptt.kernels.use(name):
            torch.testing.assert_close(
                gradients(compiled, x), gradients(network, x), rtol=0, atol=0
            )


@pytest.mark.parametrize("name", MODULES)
def test_between_what_is_compiled_before_and_after_it(name):
    network, x = MODULES[name](), torch.randn(4, 2, 4, requires_grad=True)

    def model(x):
        y, _ = network(2 * x)
        return (y * y).sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = [x, *network.parameters()]
    found, expected = (torch.autograd.grad(f(x), inputs) for f in (compiled, model))
    torch.testing.assert_close(found, expected)


def test_what_torch_refuses_of_its_own_modules_it_still_refuses():
    compiled = torch.compile(torch.nn.LSTM(4, 5), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        compiled(torch.randn(6, 3, 4))


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, {"resets": torch.zeros(4, 3, dtype=torch.bool)}, "expected resets of shape"),
        ({}, {"credit": "truncated:2", "carry": torch.ones(6)}, "not both"),
        ({"bidirectional": True}, {"credit": WINDOWS}, "reverse direction"),
        ({}, {"credit": "truncated"}, "Truncated takes a length"),
        ({}, {"credit": "full", "generator": torch.Generator()}, "torch's own generator"),
    ],
)
def test_what_is_wrong_is_refused_as_without_compiling(options, call, message):
    compiled = torch.compile(bptt.LSTM(4, 5, **options), backend="aot_eager")
    with pytest.raises(Exception, match=message):
        compiled(torch.randn(6, 3, 4), **call)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_readout_compiles_whole(reduction, ignored, weighted):
    hidden, targets = torch.randn(6, 3, 5, requires_grad=True), torch.randint(7, (6, 3))
    weight, bias = torch.randn(7, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    targets[0, 0] = -100 if ignored else 0
    label_weights = torch.rand(7) if weighted else None

    def loss(hidden, weight, bias):
        return bptt.losses.linear_cross_entropy(
            hidden, weight, bias, targets, reduction=reduction, label_weights=label_weights
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    given = (hidden, weight, bias)
    found, expected = compiled(*given), loss(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    d = torch.rand_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, given, d), torch.autograd.grad(expected, given, d)
    )


def test_a_packed_sequence_breaks_the_graph_and_is_right():
    network = bptt.LSTM(4, 5, num_layers=2)
    packed = torch.nn.utils.rnn.pack_sequence(
        [torch.randn(n, 4) for n in (5, 2, 3)], enforce_sorted=False
    )
    compiled = torch.compile(network, backend="aot_eager")
    (found, _), (expected, _) = compiled(packed), network(packed)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_run_step_by_step_as_without_compiling(transform):
    network, x = bptt.GRU(4, 5), torch.randn(2, 6, 3, 4)
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(network, weights, (x,))[0].square().sum()

    function, given = {
        "grad": (torch.func.grad(loss), (weights, x[0])),
        "vmap": (torch.vmap(loss, in_dims=(None, 0)), (weights, x)),
    }[transform]
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), function(*given))


def test_who_listens_to_backward_passes_hears_those_of_compiled_modules():
    network, x = bptt.LSTM(4, 5, num_layers=2), torch.randn(6, 3, 4)
    heard = []
    for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        with norm_hooks.listen() as reports:
            run(x)[0].square().sum().backward()
        heard.append(norm_hooks.by_layer(reports))
    assert len(heard[0]) == 2
    assert heard[0] == heard[1]


def test_what_a_credit_has_learnt_is_seen():
    network, x = Inline(bptt.Adaptive(0.1)), torch.randn(40, 3, 4)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    found = []
    for reach in (15, 3):
        network.credit.load_state_dict({**network.credit.state_dict(), "reach": reach})
        found.append(
            [
                torch.autograd.grad(n(x).square().sum(), list(network.parameters()))
                for n in (compiled, network)
            ]
        )
        torch.testing.assert_close(*found[-1], rtol=0, atol=0)
    assert not torch.equal(found[0][0][0], found[1][0][0])


@pytest.mark.parametrize("learns", [True, False])
def test_a_cell_that_runs_in_plain_torch_is_told_of(learns):
    """While it is compiled where there is a gradient, when it runs where there is none."""
    odd = bptt.Cell("ODD", 1, 1, lambda x, h, s, u: (torch.lgamma(2 + torch.tanh(x[0] + h[0])),))
    network, x = bptt.Recurrent(odd, 4, 5), torch.randn(6, 3, 4)
    looped._warn.cache_clear()
    with torch.set_grad_enabled(learns):
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        with pytest.warns(RuntimeWarning, match=r"ODD .*aten\.lgamma.* it runs in plain torch"):
            y, _ = compiled(x)
        torch.testing.assert_close(y, network(x)[0], rtol=0, atol=0)


PLAIN = {"int", "bool", "str", "torch.dtype", "tuple[bool, ...]"}


def test_what_the_compiler_calls_is_given_no_objects():
    """Before torch 2.13 the compiler takes only such arguments for constants."""
    found = {}
    for path in Path(bptt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if "at_compile_time" in [ast.unparse(d) for d in node.decorator_list]:
                for arg in filter(None, [*node.args.args, node.args.vararg]):
                    kinds = set(ast.unparse(arg.annotation).split(" | "))
                    found[f"{node.name}({arg.arg})"] = kinds
    assert "_prepared(number)" in found
    assert {name: kinds for name, kinds in found.items() if not kinds <= PLAIN} == {}
