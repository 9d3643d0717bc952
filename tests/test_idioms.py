"""What training code of others does to torch.nn's modules, with converted ones: the same losses.

The idioms of d2l, AllenNLP and AWD-LSTM, each written anew and small, in float64.
"""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, mse_loss
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bptt

KINDS = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
TOKENS, HIDDEN, BATCH, STEPS, WINDOWS = 7, 8, 3, 5, 30


def assert_both_learn_the_same(train, *given) -> None:
    """Train with torch.nn's modules and with converted ones.

    Args:
        train: ``(convert, *given) -> (losses, outputs)``; it calls ``convert(model)`` once.
        given: its other arguments.
    """
    (theirs, expected), (ours, found) = (
        train(convert, *given) for convert in (lambda model: model, bptt.convert)
    )
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def windows() -> list[tuple[Tensor, Tensor]]:
    """Return windows of streams of tokens that count, inputs and targets [T, B]."""
    stream = (torch.arange(WINDOWS * STEPS + 1).unsqueeze(1) + torch.arange(BATCH)) % TOKENS
    return list(zip(stream[:-1].split(STEPS), stream[1:].split(STEPS), strict=True))


# ------------------------------------------------------------------------------------------- d2l


class OneHot(nn.Module):
    """A network over one-hot tokens; the caller keeps its state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.linear = getattr(nn, kind)(TOKENS, HIDDEN), nn.Linear(HIDDEN, TOKENS)
        self.double()

    def forward(self, tokens, state=None):
        y, state = self.rnn(nn.functional.one_hot(tokens, TOKENS).double(), state)
        return self.linear(y.reshape(-1, HIDDEN)), state


def detached_in_place(convert, kind):
    """Cut the state by ``detach_``, limit the gradients in place, then predict step by step."""
    model, losses, state = convert(OneHot(kind)), [], None
    parameters = list(model.parameters())
    for x, targets in windows():
        for s in state if isinstance(state, tuple) else [] if state is None else [state]:
            s.detach_()
        y, state = model(x, state)
        loss = cross_entropy(y, targets.reshape(-1))
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
        with torch.no_grad():
            for p in parameters:
                if norm > 1:
                    p.grad[:] *= 1 / norm
                p -= p.grad
                p.grad.zero_()
        losses.append(loss.item())
    outputs, state = [], None
    for token in windows()[0][0][:, :1]:
        y, state = model(token.view(1, 1), state)
        outputs.append(y.detach())
    return losses, torch.cat(outputs)


@KINDS
def test_states_are_detached_in_place(kind):
    assert_both_learn_the_same(detached_in_place, kind)


# -------------------------------------------------------------------------------------- AllenNLP


class Sorting(nn.Module):
    """Sorts a padded batch, packs what is not empty, and keeps the states, as an encoder does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"num_layers": 2, "batch_first": True}
        self.rnn, self.out = getattr(nn, kind)(2, HIDDEN, **options), nn.Linear(HIDDEN, 1)
        self.kept: tuple[Tensor, ...] | None = None
        self.double()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        (B, T, _), full = x.shape, int((lengths > 0).sum())
        ordered, order = lengths.sort(descending=True, stable=True)
        packed = pack_padded_sequence(x[order][:full], ordered[:full].tolist(), batch_first=True)
        y, final = self.rnn(packed, self.before(B, full, order))
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=T)
        y = torch.cat([y, y.new_zeros(B - full, T, HIDDEN)])[order.argsort()]
        self.keep(final if isinstance(final, tuple) else (final,), order)
        return self.out(y)

    def before(self, B: int, full: int, order: Tensor):
        if self.kept is None:
            return None
        more = B - self.kept[0].shape[1]
        if more > 0:
            self.kept = tuple(torch.cat([s, s.new_zeros(2, more, HIDDEN)], 1) for s in self.kept)
        state = tuple(s[:, :B].index_select(1, order)[:, :full] for s in self.kept)
        return state if len(state) > 1 else state[0]

    def keep(self, final: tuple[Tensor, ...], order: Tensor) -> None:
        B, found = len(order), []
        for i, s in enumerate(final):
            s = torch.cat([s, s.new_zeros(2, B - s.shape[1], HIDDEN)], 1)
            s = s.index_select(1, order.argsort())
            if self.kept is not None:
                old = self.kept[i]
                is_new = (s[0].sum(-1) != 0).double().view(1, B, 1)
                s += old[:, :B] * (1 - is_new)
                old[:, :B] = s
                s = old
            found.append(s.data)
        self.kept = tuple(found)


def sorted_and_packed(convert, kind):
    """Batches of changing sizes, with empty rows; each goes on where its rows were."""
    model, losses = convert(Sorting(kind)), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    draw = torch.Generator().manual_seed(1)
    for n in range(30):
        B = (4, 3, 5)[n % 3]
        x = torch.randn(B, STEPS, 2, generator=draw, dtype=torch.float64)
        lengths = torch.randint(0, STEPS + 1, (B,), generator=draw).clamp(min=int(n < 3))
        lengths[0] = STEPS
        counts = (torch.arange(STEPS) < lengths.unsqueeze(1)).double().unsqueeze(-1)
        y = model(x, lengths)
        loss = mse_loss(y * counts, x.sum(-1, keepdim=True) * counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat(model.kept)


@KINDS
def test_a_batch_is_sorted_and_packed_and_states_are_kept(kind):
    assert_both_learn_the_same(sorted_and_packed, kind)


# -------------------------------------------------------------------------------------- AWD-LSTM


class WeightDrop(nn.Module):
    """Takes a parameter out of a module, and puts a masked one there before each forward pass."""

    def __init__(self, rnn: nn.RNNBase, is_parameter: bool) -> None:
        super().__init__()
        self.rnn, self.is_parameter = rnn, is_parameter
        raw = rnn.weight_hh_l0
        del rnn._parameters["weight_hh_l0"]
        rnn.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.data))
        rnn.flatten_parameters = self.nothing

    def nothing(self) -> None:
        pass

    def forward(self, x: Tensor, state):
        w = dropout(self.rnn.weight_hh_l0_raw, 0.3, self.training)
        self.rnn.weight_hh_l0 = nn.Parameter(w) if self.is_parameter else w
        return self.rnn.forward(x, state)


def same_mask(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop units, the same ones at each step."""
    return x * dropout(x.new_ones(1, *x.shape[1:]), p, training)


class AwdLstm(nn.Module):
    def __init__(self, is_parameter: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.decoder = nn.Embedding(TOKENS, 6), nn.Linear(6, TOKENS)
        self.rnns = nn.ModuleList(
            WeightDrop(nn.LSTM(n, m), is_parameter) for n, m in [(6, HIDDEN), (HIDDEN, 6)]
        )
        self.decoder.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: Tensor, states):
        x, after = same_mask(self.embedding(tokens), 0.1, self.training), []
        for rnn, state in zip(self.rnns, states, strict=True):
            y, s = rnn(x, state)
            x = same_mask(y, 0.1, self.training)
            after.append(s)
        return self.decoder(x), after, y, x


def averaged(convert, is_parameter):
    """Weight drop, activations penalised, ASGD; then the averaged weights, from a saved model."""
    model, losses, states = convert(AwdLstm(is_parameter)), [], [None, None]
    optimizer = torch.optim.ASGD(model.parameters(), lr=1, lambd=0, t0=0, weight_decay=1e-6)
    torch.manual_seed(1)
    for x, targets in 2 * windows():
        states = [s and tuple(t.detach() for t in s) for s in states]
        optimizer.zero_grad()
        decoded, states, raw, dropped = model(x, states)
        loss = cross_entropy(decoded.reshape(-1, TOKENS), targets.reshape(-1))
        losses.append(loss.item())
        loss = loss + 0.01 * dropped.pow(2).mean() + 0.01 * (raw[1:] - raw[:-1]).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
    model.eval()
    x, outputs = windows()[0][0], []
    for p in model.parameters():
        if p in optimizer.state:
            p.data = optimizer.state[p]["ax"].clone()
    with torch.no_grad():
        outputs += [model(x, [None, None])[0] for _ in range(3)]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with torch.no_grad():
        outputs.append(again(x, [None, None])[0])
    assert torch.equal(outputs[-1], outputs[0])
    return losses, torch.cat(outputs)


@pytest.mark.parametrize("is_parameter", [False, True])
def test_weights_are_dropped_and_averaged(is_parameter):
    with warnings.catch_warnings():  # torch's own, of weights that are not one chunk of memory
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        assert_both_learn_the_same(averaged, is_parameter)


def test_weights_put_among_the_parameters_are_used():
    """As fastai 1 does it, past ``setattr``."""
    theirs, ours = (kind(3, 4).double() for kind in (nn.LSTM, bptt.LSTM))
    ours.load_state_dict(theirs.state_dict())
    raw, x = ours.weight_hh_l0.detach().clone().requires_grad_(), torch.randn(5, 2, 3).double()
    found = []
    for module in (ours, theirs):
        module(x)
        module._parameters["weight_hh_l0"] = raw * 2
        y = module(x)[0]
        found.append((y, *torch.autograd.grad(y.sum(), raw)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
