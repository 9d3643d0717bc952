"""Modules in the files that both exporters of ``torch.onnx.export`` write, in onnxruntime."""

from __future__ import annotations

import warnings

import onnx
import onnxruntime
import pytest
import torch
from recorded_cases import MODULES, WINDOWS, Fading
from torch import nn

import bptt

T, B = (torch.export.Dim(name, min=1, max=5000) for name in "TB")
TWO_WAYS = {"num_layers": 2, "bidirectional": True}
OPTIONS = {"two ways": TWO_WAYS, "batch first": {"batch_first": True, "bias": False}}
OPERATOR = {"RNN": "RNN", "relu": "RNN", "sigmoid": "RNN", "GRU": "GRU", "LSTM": "LSTM"}
SHAPES = ((6, 3), (1, 1), (9, 1), (1, 4), (30, 7))


class Network(nn.Module):
    """All that a module has to give, from all that it takes."""

    def __init__(self, recurrent, **call):
        super().__init__()
        self.recurrent, self.call = recurrent.eval(), call
        self.sizes = recurrent._state_sizes()

    def forward(self, x, state=None, resets=None):
        how = self.call if resets is None else {**self.call, "resets": resets}
        y, final, *states = self.recurrent(x, state, **how)
        finals = final if len(self.sizes) > 1 else (final,)
        return y, *finals, *(s for of_all in states for of_layer in of_all for s in of_layer)

    def given(self, t, b, resets=False):
        cells = self.recurrent.num_layers * (1 + self.recurrent.bidirectional)
        shape = (b, t) if self.recurrent.batch_first else (t, b)
        state = tuple(torch.randn(cells, b, n) for n in self.sizes)
        starts = (torch.rand(shape) < 0.3,) if resets else ()
        return torch.randn(*shape, 4), state if len(state) > 1 else state[0], *starts

    @property
    def varying(self):
        """The dimensions that vary: of x, and of a tensor of the state."""
        t, b = (1, 0) if self.recurrent.batch_first else (0, 1)
        return {t: T, b: B}, {1: B}


def made(name, **options):
    return (
        bptt.RNN(4, 5, nonlinearity="relu", **options)
        if name == "relu"
        else MODULES[name](**options)
    )


def export(network, given, path, *, dynamo=True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about tracing, and names of dimensions
        torch.onnx.export(network, given, path, dynamo=dynamo, **options)
    return path


def export_with_all(network, path, *, resets=False, dynamo=True, **options):
    of_x, of_state = network.varying
    states = len(network.sizes)
    if dynamo:
        of_states = (of_state,) * states if states > 1 else of_state
        how = {"dynamic_shapes": (of_x, of_states, *([of_x] if resets else []))}
    else:
        names = ["x", *"hc"[:states], *(["resets"] if resets else [])]
        axes = [of_x, *[of_state] * states, of_x][: len(names)]
        named = {
            n: {i: d.__name__ for i, d in of.items()} for n, of in zip(names, axes, strict=True)
        }
        how = {"input_names": names, "dynamic_axes": named}
    return export(network, network.given(6, 3, resets), path, dynamo=dynamo, **how, **options)


def compare(network, path, *, resets=False, shapes=SHAPES):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for t, b in shapes:
        x, state, *starts = network.given(t, b, resets)
        flat = [x, *(state if len(network.sizes) > 1 else [state]), *starts]
        inputs = zip(session.get_inputs(), flat, strict=True)
        found = session.run(None, {i.name: v.numpy() for i, v in inputs})
        expected = network(x, state, *starts)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), e, rtol=1e-5, atol=1e-6)
        assert expected[0].abs().max() > 0.05


def kinds(path):
    graph = onnx.load(path).graph
    return [n.op_type for n in graph.node if n.op_type in {"RNN", "GRU", "LSTM", "Scan", "Loop"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", OPERATOR)
def test_a_plain_call_is_an_operator_a_layer_and_direction(name, options, tmp_path):
    network = Network(made(name, **OPTIONS[options]))
    path = export_with_all(network, tmp_path / "network.onnx")
    layers = network.recurrent.num_layers * (1 + network.recurrent.bidirectional)
    assert kinds(path) == [OPERATOR[name]] * layers
    assert len(onnx.load(path).graph.node) < 5 * layers
    compare(network, path)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [name for name in OPERATOR if name != "sigmoid"])
def test_the_older_exporter_gets_what_torch_has(name, options, tmp_path):
    network = Network(made(name, **OPTIONS[options]), credit="truncated:2")
    path = export_with_all(network, tmp_path / "network.onnx", dynamo=False)
    assert kinds(path) == [OPERATOR[name]] * network.recurrent.num_layers
    compare(network, path)


@pytest.mark.parametrize(
    ("name", "options", "resets"),
    [
        ("LSTM", {"num_layers": 2}, True),
        ("GRU", {"bidirectional": True}, True),
        ("MGU", {"batch_first": True}, True),
        ("peepholes", {}, False),
        ("projection", {}, False),
        ("own", {"bias": False}, False),
    ],
)
def test_resets_and_other_cells_are_a_scan(name, options, resets, tmp_path):
    network = Network(made(name, **options))
    path = export_with_all(network, tmp_path / "network.onnx", resets=resets)
    layers = network.recurrent.num_layers * (1 + network.recurrent.bidirectional)
    assert kinds(path) == ["Scan"] * layers
    compare(network, path, resets=resets)


@pytest.mark.parametrize(("name", "operator"), [("LSTM", "Scan"), ("GRU", "GRU")])
def test_the_states_of_each_step(name, operator, tmp_path):
    network = Network(made(name, num_layers=2), return_states=True)
    path = export_with_all(network, tmp_path / "network.onnx")
    assert kinds(path) == [operator] * 2
    compare(network, path)


@pytest.mark.parametrize("credit", ["truncated:2", WINDOWS, bptt.Randomized(2), Fading()])
def test_a_credit_changes_nothing(credit, tmp_path):
    network = Network(made("LSTM", num_layers=2), credit=credit)
    path = export_with_all(network, tmp_path / "network.onnx")
    assert kinds(path) == ["LSTM"] * 2
    compare(network, path)


@pytest.mark.parametrize("call", [{}, {"credit": WINDOWS}])
def test_a_program_of_torch_export(call, tmp_path):
    network = Network(made("LSTM"), **call)
    of_x, of_state = network.varying
    program = torch.export.export(
        network, network.given(6, 3), dynamic_shapes=(of_x, (of_state,) * 2)
    )
    path = export(program, (), tmp_path / "network.onnx")
    assert kinds(path) == ["LSTM"]
    compare(network, path)


def test_torchs_own_comparison_agrees(tmp_path, capsys):
    network, path = Network(made("LSTM")), tmp_path / "network.onnx"
    export_with_all(network, path, verify=True)
    assert "Verify output accuracy... ✅" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["GRU", "MGU"])
def test_without_a_state_and_without_a_batch(name, tmp_path):
    network, path = made(name).eval(), tmp_path / "network.onnx"
    for shape, varying in (((6, 3, 4), {0: T, 1: B}), ((6, 4), {0: T})):
        export(network, (torch.randn(shape),), path, dynamic_shapes=(varying,))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for steps in (1, 6, 11):
            x = torch.randn(steps, *shape[1:])
            found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            for a, e in zip(found, network(x), strict=True):
                torch.testing.assert_close(torch.from_numpy(a), e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "peepholes"])
def test_an_example_of_one_step_and_one_sequence_leaves_both_open(name, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = made(name).eval()

        def forward(self, x, h):
            return self.recurrent(x, (h, h))[0]  # one tensor for both

    network, path = Twice(), tmp_path / "network.onnx"
    given = torch.randn(1, 1, 4), torch.randn(1, 1, 5)
    export(network, given, path, dynamic_shapes=({0: T, 1: B}, {1: B}))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for t, b in SHAPES:
        x, h = torch.randn(t, b, 4), torch.randn(1, b, 5)
        inputs = zip(session.get_inputs(), (x, h), strict=True)
        (found,) = session.run(None, {i.name: v.numpy() for i, v in inputs})
        torch.testing.assert_close(torch.from_numpy(found), network(x, h), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------- what is refused


def reasons(error):
    """The messages of an error and of what caused it."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__
    return "\n".join(found)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = bptt.LSTM(4, 5)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 6, 4]))
        return nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0])[0]


def test_a_packed_sequence_goes_by_the_older_exporter(tmp_path):
    network, x, path = Packed().eval(), torch.randn(6, 3, 4), tmp_path / "network.onnx"
    with pytest.raises(Exception) as e:
        export(network, (x,), path)
    assert "bptt.LSTM: torch.onnx.export takes no PackedSequence" in reasons(e.value)
    assert not path.exists()
    export(network, (x,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "resets"), [("sigmoid", False), ("MGU", False), ("projection", False), ("LSTM", True)]
)
def test_the_older_exporter_refuses_the_rest(name, resets, tmp_path):
    with pytest.raises(RuntimeError, match="leave out dynamo=False"):
        export_with_all(Network(made(name)), tmp_path / "network.onnx", resets=resets, dynamo=False)


@pytest.mark.parametrize("name", ["projection", "MGU", "windows", "resets", "states"])
def test_a_program_that_onnx_has_no_operator_for(name, tmp_path):
    resets = name == "resets"
    call = {"windows": {"credit": WINDOWS}, "states": {"return_states": True}}.get(name, {})
    network = Network(made(name if name in MODULES else "LSTM", num_layers=2), **call)
    program = torch.export.export(network, network.given(6, 3, resets))
    with pytest.raises(Exception) as e:
        export(program, (), tmp_path / "network.onnx")
    assert "give torch.onnx.export the module itself" in reasons(e.value).replace("Give", "give")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"credit": "truncated:-2"}, "k must be a positive integer, got -2"),
        ({"credit": "full", "carry": torch.ones(6)}, "not both"),
        ({"carry": torch.ones(7)}, "carry"),
    ],
)
def test_arguments_are_checked_as_ever(call, says, tmp_path):
    network = Network(made("GRU"), **call)
    with pytest.raises(Exception) as e:
        export(network, network.given(6, 3), tmp_path / "network.onnx")
    assert says in reasons(e.value)


@pytest.mark.parametrize("name", ["LSTM", "own"])
def test_zoneout_is_its_mean_in_evaluation_and_refused_in_training(name, tmp_path):
    network = Network(made(name, zoneout=0.3, **TWO_WAYS))
    path = export_with_all(network, tmp_path / "network.onnx")
    assert kinds(path) == ["Scan"] * 4
    compare(network, path)
    network.recurrent.train()
    for dynamo, says in ((True, "no masks of zoneout: export in evaluation"), (False, "zoneout")):
        with pytest.raises(Exception, match=says):
            export_with_all(network, tmp_path / "other.onnx", dynamo=dynamo)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_module_by_itself(name, dynamo, state, tmp_path):
    """With no module around it; the older exporter gives each argument a place."""
    module = MODULES[name]().eval()
    x = torch.randn(6, 3, 4)
    sizes = module._state_sizes()
    h = tuple(torch.randn(1, 3, n) for n in sizes)
    given = (x, h if len(h) > 1 else h[0]) if state else (x,)
    path = export(module, given, tmp_path / "module.onnx", dynamo=dynamo)
    session = onnxruntime.InferenceSession(path)
    flat = [x, *(h if state else ())]
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), flat, strict=True)}
    y, final = module(*given)
    finals = final if isinstance(final, tuple) else (final,)
    for ours, theirs in zip((y, *finals), session.run(None, feeds), strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours.detach())
