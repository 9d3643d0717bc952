"""Models whose recurrent modules change their class in place, there and back."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence

import bptt
from bptt.errors import BpttWarning, ConfigError

KINDS = {
    "RNN": lambda **o: nn.RNN(3, 4, **o),
    "relu": lambda **o: nn.RNN(3, 4, nonlinearity="relu", **o),
    "GRU": lambda **o: nn.GRU(3, 4, **o),
    "LSTM": lambda **o: nn.LSTM(3, 4, **o),
    "projected": lambda **o: nn.LSTM(3, 4, proj_size=2, **o),
}
EACH = pytest.mark.parametrize("kind", KINDS)
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}]


class Model(nn.Module):
    """A recurrent module under two names, and a readout that is not used."""

    def __init__(self, kind="LSTM", **options):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": KINDS[kind](**options)})
        self.again = self.encoder["rnn"]
        self.readout = nn.Linear(4, 2)

    def forward(self, x):
        return self.again(x)[0]


def results(module, x):
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    loss = (y * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum()
    return [y, *torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def of_torch(module):
    return type(module).__module__.startswith("torch.")


@EACH
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_model_gives_the_same_and_nothing_else_changes(kind, options):
    model, x = Model(kind, **options).double(), torch.randn(5, 5, 3, dtype=torch.float64)
    rnn, before = model.again, results(model, x)
    state, names = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    called = []
    rnn.register_forward_hook(lambda *_: called.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for to, kind_now in (("bptt", bptt), ("torch", nn), ("bptt", bptt)):
        assert bptt.convert(model, to) is model
        assert model.again is rnn
        assert model.encoder["rnn"] is rnn
        assert type(rnn) is getattr(kind_now, rnn.mode.partition("_")[0])
        now = dict(model.named_parameters())
        assert list(now) == list(names)
        assert all(now[name] is names[name] for name in names)
        for a, b in zip(model.state_dict().items(), state.items(), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1])
        called.clear()
        assert_same(results(model, x), before)
        assert called == [1]
    assert optimizer.param_groups[0]["params"][0] is rnn.weight_ih_l0


@EACH
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_module_by_itself_a_copy_and_a_pickle(kind):
    module = KINDS[kind]().double()
    x = pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (4, 2)])
    before = module(x)[0].data
    assert bptt.convert(module) is module
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(one(x, credit="truncated:2")[0].data, before)
        bptt.convert(one, to="torch")
        assert of_torch(one)
        for again in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            torch.testing.assert_close(again(x)[0].data, before)


class Twice(nn.Module):
    def forward(self, w):
        return 2 * w


@EACH
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_parametrizations_stay_and_are_removed_as_usual(kind):
    module, x = KINDS[kind]().double(), torch.randn(5, 2, 3, dtype=torch.float64)
    parametrize.register_parametrization(module, "weight_hh_l0", Twice())
    twin = copy.deepcopy(module)  # of the same class, which must not change
    before = results(module, x)
    for to in ("bptt", "torch", "bptt"):
        bptt.convert(module, to)
        assert isinstance(module, bptt.LSTM | bptt.GRU | bptt.RNN) == (to == "bptt")
        assert_same(results(module, x), before)
    assert not isinstance(twin, bptt.LSTM | bptt.GRU | bptt.RNN)
    assert_same(results(twin, x), before)
    parametrizations.weight_norm(module, "weight_ih_l0")
    for to in ("torch", "bptt"):
        assert_same([bptt.convert(module, to)(x)[0]], before[:1])
    for name in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(module, name)
    assert type(module).__module__ == bptt.LSTM.__module__
    torch.testing.assert_close(module(x)[0], before[0])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_hooks_of_the_older_norms_stay(norm):
    module, x = nn.GRU(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    norm(module, "weight_hh_l0")
    module.eval()  # a spectral norm goes on with its power iteration while it trains
    before = results(module, x)
    for to in ("bptt", "torch", "bptt"):
        assert_same(results(bptt.convert(module, to), x), before)


class OfTheirOwn(nn.LSTM):
    def forward(self, x, hx=None):
        y, state = super().forward(x, hx)
        return -y, state


def test_a_subclass_is_left_alone_and_named():
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.Sequential(OfTheirOwn(3, 4))})
    with pytest.warns(BpttWarning, match=r"b\.0 \(OfTheirOwn is a class of its own"):
        bptt.convert(model)
    assert type(model["a"]) is bptt.LSTM
    assert type(model["b"][0]) is OfTheirOwn
    with pytest.warns(BpttWarning, match="the module itself"):
        bptt.convert(OfTheirOwn(3, 4))


def test_a_replaced_forward_is_named():
    model = nn.Sequential(nn.LSTM(3, 4))
    model[0].forward = model[0].forward
    with pytest.warns(BpttWarning, match=r"0 \(its forward was replaced"):
        bptt.convert(model)
    assert type(model[0]) is nn.LSTM


def test_a_scripted_module_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = nn.Sequential(torch.jit.script(nn.LSTM(3, 4)))
    with pytest.warns(BpttWarning, match=r"0 \(scripted"):
        bptt.convert(model)


def test_where_there_is_nothing_a_warning_says_so():
    with pytest.warns(BpttWarning, match="no RNN, GRU or LSTM in this Linear"):
        bptt.convert(nn.Linear(3, 4))


def test_what_is_converted_already_is_no_reason_to_warn():
    assert type(bptt.convert(bptt.convert(nn.GRU(3, 4)))) is bptt.GRU
    assert type(bptt.convert(nn.GRU(3, 4), to="torch")) is nn.GRU
    recurrent = bptt.Recurrent(bptt.cells.MGU, 3, 4)
    assert bptt.convert(recurrent) is recurrent


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (bptt.RNN(3, 4, nonlinearity="sigmoid"), "sigmoid"),
        (bptt.Recurrent(bptt.cells.MGU, 3, 4), "MGU"),
        (bptt.Recurrent(bptt.cells.BY_NAME["LSTM"], 3, 4, proj_size=4), "proj_size=4"),
    ],
)
def test_what_torch_does_not_have_is_refused_and_nothing_is_changed(module, named):
    model = nn.ModuleDict({"first": bptt.LSTM(3, 4), "second": nn.Sequential(module)})
    with pytest.raises(ConfigError, match=rf"second\.0 \(.*{named}"):
        bptt.convert(model, to="torch")
    assert type(model["first"]) is bptt.LSTM
    assert type(model["second"][0]) is type(module)


@pytest.mark.parametrize("name", ["RNN_TANH", "RNN_RELU", "GRU", "LSTM"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.2}])
def test_recurrent_layers_of_a_cell_that_torch_has_go_there(name, options):
    recurrent = bptt.Recurrent(bptt.cells.BY_NAME[name], 3, 4, **options).double().eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    before, parameters = results(recurrent, x), list(recurrent.parameters())
    bptt.convert(recurrent, to="torch")
    assert of_torch(recurrent)
    assert_same(results(recurrent, x), before)
    assert all(a is b for a, b in zip(recurrent.parameters(), parameters, strict=True))
    assert recurrent.mode == name
    assert str(recurrent) == str(pickle.loads(pickle.dumps(recurrent)))
    assert_same(results(bptt.convert(recurrent), x), before)
    assert isinstance(recurrent, bptt.LSTM | bptt.GRU | bptt.RNN)


def test_wrong_arguments():
    with pytest.raises(ConfigError, match='"bptt" or "torch", got \'jax\''):
        bptt.convert(nn.LSTM(3, 4), to="jax")


def test_inside_a_wrapper(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(Model())
        x = torch.randn(5, 2, 3)
        before = wrapped(x)
        assert bptt.convert(wrapped) is wrapped
        assert type(wrapped.module.again) is bptt.LSTM
        torch.testing.assert_close(wrapped(x), before)
    finally:
        torch.distributed.destroy_process_group()


def test_a_user_s_subclass_of_ours_is_left_alone_on_the_way_back():
    class Mine(bptt.GRU):
        pass

    model = nn.Sequential(Mine(3, 4), bptt.GRU(4, 4))
    with pytest.warns(BpttWarning, match=r"0 \(Mine is a class of its own"):
        bptt.convert(model, to="torch")
    assert [type(m) for m in model] == [Mine, nn.GRU]
