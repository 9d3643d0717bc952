"""A language model as plain modules of torch.nn, and as a file of ONNX."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import tokenizers
import torch
from torch import nn

import bptt
from bptt._src.language_model import elsewhere
from bptt.data import Tokenizer
from bptt.errors import BpttError, ConfigError
from bptt.language_model import Config

TEXT = "John greets Mary. Jane greets Anne.\n" * 3
KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
TORCHS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
OTHERS = [("rnn", "sigmoid"), ("mgu", "tanh"), ("peephole-lstm", "tanh")]


def made(cell, nonlinearity="tanh", level="char", **options):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT], level=level, sentences="reading" in options)
    options = {"hidden": 7, "embedding": 5, "layers": 2, "dropout": 0.25, **options}
    model = bptt.LanguageModel(
        tokenizer, Config(cell=cell, nonlinearity=nonlinearity, level=level, **options)
    )
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.eval()


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize(("cell", "nonlinearity"), TORCHS)
def test_plain_modules_compute_the_same(cell, nonlinearity):
    model = made(cell, nonlinearity)
    plain = model.to_torch()
    assert [type(m) for m in plain.children()] == [
        *(nn.Embedding, KINDS[cell], nn.Linear, nn.Dropout)
    ]
    tokens, state = torch.randint(model.tokenizer.size, (9, 3)), None
    for part in tokens.split(4):  # the state is carried on
        (a, ours), (b, theirs) = model(part, state), plain(part, state)
        torch.testing.assert_close((a, *as_tuple(ours)), (b, *as_tuple(theirs)))
        state = ours
    assert plain.state_dict().keys() == model.state_dict().keys()
    fresh = made(cell, nonlinearity).to_torch()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(tokens)[0], model(tokens)[0])


def test_it_is_a_copy_that_trains_alike():
    model = made("gru", hidden=5, tied=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model.to_torch()
    assert plain.training
    assert plain.readout.weight is plain.embedding.weight
    tokens, found = torch.randint(model.tokenizer.size, (6, 2)), []
    for one in (model, plain):
        torch.manual_seed(3)
        loss = one(tokens)[0].square().mean()
        found.append((loss, *torch.autograd.grad(loss, list(one.parameters()))))
    torch.testing.assert_close(found[0], found[1])
    with torch.no_grad():
        plain.embedding.weight.zero_()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("cell", "nonlinearity"), OTHERS)
def test_torch_has_not_every_cell(cell, nonlinearity):
    model = made(cell, nonlinearity)
    with pytest.raises(ConfigError, match=f"no {model.recurrent.cell.name}: .* to_onnx"):
        model.to_torch()


@pytest.mark.parametrize(
    ("cell", "nonlinearity", "options"),
    [
        ("lstm", "tanh", {}),
        ("gru", "tanh", {"hidden": 5, "tied": True}),
        ("mgu", "tanh", {}),
        ("rnn", "tanh", {"softmax": "adaptive"}),
    ],
)
def test_a_file_of_onnx_computes_the_same(cell, nonlinearity, options):
    model = made(cell, nonlinearity, **options).train()
    content = model.to_onnx()
    assert model.training
    assert elsewhere.check_onnx(model, content) < 1e-5
    model.eval()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    states = len(as_tuple(model(torch.zeros(1, 1, dtype=torch.int64))[1]))
    assert [i.name for i in session.get_inputs()] == ["tokens", "h_0", "c_0"][: 1 + states]
    assert [i.name for i in session.get_outputs()] == ["logits", "h_n", "c_n"][: 1 + states]
    assert session.get_inputs()[0].shape == ["T", "B"]
    assert session.get_modelmeta().custom_metadata_map == elsewhere.about(model)
    for shape in ((1, 1), (7, 1), (1, 4), (12, 5)):
        tokens = torch.randint(model.tokenizer.size, shape)
        state = [torch.randn(2, shape[1], model.config.hidden) for _ in range(states)]
        names = [i.name for i in session.get_inputs()]
        given = dict(zip(names, (t.numpy() for t in (tokens, *state)), strict=True))
        found = [torch.from_numpy(a) for a in session.run(None, given)]
        y, after = model(tokens, tuple(state) if states > 1 else state[0])
        torch.testing.assert_close(tuple(found), (y, *as_tuple(after)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["word", "char", "bpe"])
@pytest.mark.parametrize("how", [{}, {"reading": "sentences"}], ids=["stream", "sentences"])
def test_a_text_can_be_encoded_by_the_file_alone(level, how):
    model = made("lstm", level=level, **how)
    about = elsewhere.about(model)
    tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer.json"])
    text = "Jane greets Mary."
    assert tokenizer.encode(text, add_special_tokens=False).ids == model.tokenizer.encode(text)
    found = json.loads(about["language_model.json"])
    assert (found["level"], found["vocabulary"]) == (level, model.tokenizer.size)
    first = model.tokenizer.start if how else model.tokenizer.encode("\n")[0]
    assert found["first_token"] == first


def test_nothing_of_this_machine_is_in_the_file():
    content = made("mgu").to_onnx()
    assert b".py" not in content
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


def test_a_file_that_computes_something_else_is_refused():
    model = made("gru")
    content = model.to_onnx()
    with torch.no_grad():
        model.recurrent.bias_hh_l1[3] += 0.01
    with pytest.raises(BpttError, match=r"other numbers than the model: off by .*e-0"):
        elsewhere.check_onnx(model, content)


def test_a_model_that_no_file_holds(monkeypatch):
    monkeypatch.setattr(elsewhere, "MOST", 100)
    with pytest.raises(ConfigError, match="a file of ONNX holds 2 GB"):
        made("gru").to_onnx()
