"""A word language model in the manner of PyTorch's examples, with torch.nn's modules and with ours.

It is trained by truncation with hidden states that are repackaged, plain updates of ``p.data`` and
clipped gradients, kept as a whole when it is best, loaded again and sampled from.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bptt

KINDS = ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
WORDS, WIDE, STEPS, BATCH = 11, 8, 7, 4


class WordModel(nn.Module):
    """Embedding, recurrent layers and a readout, which may share the embedding's weights."""

    def __init__(self, library, kind, layers, dropout, tied):
        super().__init__()
        self.drop, self.encoder = nn.Dropout(dropout), nn.Embedding(WORDS, WIDE)
        if kind in ("LSTM", "GRU"):
            self.rnn = getattr(library, kind)(WIDE, WIDE, layers, dropout=dropout)
        else:
            nonlinearity = kind.removeprefix("RNN_").lower()
            self.rnn = library.RNN(WIDE, WIDE, layers, nonlinearity=nonlinearity, dropout=dropout)
        self.decoder = nn.Linear(WIDE, WORDS)
        if tied:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.kind, self.layers = kind, layers

    def forward(self, words, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(words)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, WORDS)
        return nn.functional.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch):
        weight = next(self.parameters())
        zeros = [weight.new_zeros(self.layers, batch, WIDE) for _ in range(2)]
        return tuple(zeros) if self.kind == "LSTM" else zeros[0]


def repackaged(hidden):
    """The same states, cut from their history."""
    if isinstance(hidden, torch.Tensor):
        return hidden.detach()
    return tuple(repackaged(h) for h in hidden)


def windows(words):
    for at in range(0, len(words) - 1, STEPS):
        steps = min(STEPS, len(words) - 1 - at)
        yield words[at : at + steps], words[at + 1 : at + 1 + steps].reshape(-1)


def evaluated(model, words):
    model.eval()
    total, hidden = 0.0, model.init_hidden(words.shape[1])
    with torch.no_grad():
        for given, targets in windows(words):
            output, hidden = model(given, hidden)
            hidden = repackaged(hidden)
            total += len(given) * nn.functional.nll_loss(output, targets).item()
    return total / (len(words) - 1)


def trained(model, words, lr):
    model.train()
    losses, hidden = [], model.init_hidden(words.shape[1])
    for given, targets in windows(words):
        model.zero_grad()
        hidden = repackaged(hidden)
        output, hidden = model(given, hidden)
        loss = nn.functional.nll_loss(output, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-lr)
        losses.append(loss.item())
    return losses


def to_the_end(library, kind, tied, path):
    """All that the program prints: losses of training, of validation and the test, and words."""
    torch.manual_seed(1)
    model = WordModel(library, kind, 2, 0.2, tied).double()
    text = torch.randint(WORDS, (40, BATCH)).cumsum(0) % WORDS
    printed, best, lr = [], None, 2.0
    for _ in range(3):
        printed += trained(model, text, lr)
        valid = evaluated(model, text[:20])
        printed.append(valid)
        if best is None or valid < best:
            torch.save(model, path)
            best = valid
        else:
            lr /= 4
    model = torch.load(path, weights_only=False)
    model.rnn.flatten_parameters()
    printed.append(evaluated(model, text[20:]))
    model.eval()
    hidden, word = model.init_hidden(1), torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(10):
        with torch.no_grad():
            output, hidden = model(word, hidden)
        word.fill_(torch.multinomial(output.squeeze().exp(), 1)[0])
        printed.append(word.item())
    return model, printed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_it_runs_to_its_end_and_prints_the_same(kind, tied, tmp_path):
    runs = [to_the_end(library, kind, tied, tmp_path / "model.pt") for library in (nn, bptt)]
    (_, expected), (model, printed) = runs
    assert isinstance(model.rnn, bptt.LSTM | bptt.GRU | bptt.RNN)
    assert printed == pytest.approx(expected, rel=1e-9)
    assert min(printed[:18]) < printed[0] - 0.01
    others = [WordModel, nn.Dropout, nn.Embedding, nn.Linear]
    with torch.serialization.safe_globals(others):  # its own classes are all that is to be named
        there = torch.load(tmp_path / "model.pt", weights_only=True)
    given, hidden = torch.zeros(3, 1, dtype=torch.int64), model.init_hidden(1)
    assert torch.equal(there.eval()(given, hidden)[0], model(given, hidden)[0])
    assert (there.decoder.weight is there.encoder.weight) == tied


def test_converted_it_goes_on(tmp_path):
    model, _ = to_the_end(nn, "LSTM", True, tmp_path / "model.pt")
    given, hidden = torch.zeros(3, 1, dtype=torch.int64), model.init_hidden(1)
    expected = model(given, hidden)[0]
    torch.testing.assert_close(bptt.convert(model)(given, hidden)[0], expected)
    assert type(model.rnn) is bptt.LSTM
