"""Stateful training: the batch's rows are streams that are cut into windows."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

import bptt


def numbered(x, streams=None):
    """Put the numbers of stream and step into the first two features of x, [T, B, I]."""
    x = x.clone()
    x[..., 0] = torch.arange(x.shape[1]) if streams is None else streams
    x[..., 1] = torch.arange(float(len(x)))[:, None]
    return x


def of_features(x):
    """The label of what :func:`numbered` returned: (stream, step)."""
    return x[..., 0].long(), x[..., 1].long()


class Windows(Dataset):
    """Item w * B + b is the window w of the stream b, so that batches of B follow each other.

    A window has a step more than it is long: its inputs are all but the last, its targets all but
    the first.
    """

    def __init__(self, data, length):  # data: [T, B, I]
        self.data, self.length = data, length

    def __len__(self):
        return (len(self.data) - 1) // self.length * self.data.shape[1]

    def __getitem__(self, i):
        window, stream = divmod(i, self.data.shape[1])
        start = window * self.length
        return self.data[start : start + self.length + 1, stream]


@loop("shuffled-batches", t=8, s=3, also=("other-sequence", "wrong-step"))
def char_rnn_with_a_shuffled_loader(is_wrong):
    """Wrong: ``shuffle=True`` where the states of one batch are carried to the next."""

    class CharRNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 8, 2, batch_first=True)
            self.fc = nn.Linear(8, 4)

        def forward(self, x, hidden=None):
            out, hidden = self.lstm(x, hidden)
            return self.fc(out), hidden

    model = CharRNN()
    dataset = Windows(numbered(torch.randn(13, 3, 4)), 4)

    def run():
        loader = DataLoader(
            dataset, 3, shuffle=is_wrong, generator=torch.Generator().manual_seed(0)
        )
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
        hidden = None
        for batch in loader:
            logits, hidden = model(batch[:, :-1], hidden)
            hidden = tuple(h.detach() for h in hidden)
            loss = F.mse_loss(logits, batch[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 5.0)
            optimizer.step()

    return Training(run, model, "lstm", {"label": of_features}, credit=bptt.Truncated(4))


@loop("other-sequence", t=3, s=2, also=("shuffled-batches",))
def sorted_for_packing(is_wrong):
    """Wrong: the rows are sorted by length for packing, and the states that come back are not
    sorted back."""
    model = nn.ModuleDict({"rnn": nn.GRU(4, 6), "fc": nn.Linear(6, 1)})
    data = numbered(torch.randn(6, 3, 4))
    lengths = torch.tensor([4, 6, 5])

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hidden = torch.zeros(1, 3, 6)
        for start in (0, 3):
            indices = (lengths - start).argsort(descending=True)
            n = (lengths - start)[indices].clamp(max=3)
            x, hidden = data[start : start + 3, indices], hidden[:, indices]
            packed, hidden = model["rnn"](pack_padded_sequence(x, n), hidden)
            if not is_wrong:
                hidden = hidden[:, indices.argsort()]
            hidden = hidden.detach()
            out, n = pad_packed_sequence(packed)
            mask = torch.arange(len(out))[:, None] < n
            loss = (model["fc"](out).squeeze(-1).square() * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Training(run, model, "rnn", {"label": of_features}, credit=bptt.Truncated(3))


@loop("not-carried", t=4, s=3)
def state_made_anew_for_each_window(is_wrong):
    """Wrong: ``init_hidden`` stands in the loop over the windows, though the series goes on."""

    class Forecaster(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(2, 6)
            self.fc = nn.Linear(6, 2)

        def init_hidden(self, batch_size):
            return torch.zeros(1, batch_size, 6)

        def forward(self, x, hidden):
            out, hidden = self.gru(x, hidden)
            return self.fc(out), hidden

    model = Forecaster()
    series = torch.randn(13, 2, 2).cumsum(0)

    def run():
        optimizer = torch.optim.NAdam(model.parameters())
        hidden = model.init_hidden(2)
        for i in range(0, 12, 4):
            hidden = model.init_hidden(2) if is_wrong else hidden.data
            prediction, hidden = model(series[i : i + 4], hidden)
            optimizer.zero_grad()
            F.huber_loss(prediction, series[i + 1 : i + 5]).backward()
            optimizer.step()

    return Training(run, model, "gru", {"episodes": np.zeros(12, int)}, credit=bptt.Truncated(4))


@loop("graph-freed", t=5, s=4)
def detached_in_place(is_wrong):
    """d2l's training loop, whose states are cut by ``detach_``. Wrong: not those of a tuple."""
    rnn, dense = nn.LSTM(4, 6), nn.Linear(6, 4)
    net = nn.ModuleList([rnn, dense])
    corpus = torch.randn(16, 2, 4)

    def run():
        updater = torch.optim.SGD(net.parameters(), lr=1)
        state = None
        for i in range(0, 15, 5):
            X, Y = corpus[i : i + 5], corpus[i + 1 : i + 6]
            if state is None:
                state = (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))
            elif not isinstance(state, tuple):
                state.detach_()
            elif not is_wrong:
                for s in state:
                    s.detach_()
            y, state = rnn(X, state)
            loss = F.mse_loss(dense(y), Y)
            updater.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1)
            updater.step()

    return Training(run, net, "0", credit=bptt.Truncated(5))


class Parallel(nn.Module):
    """A wrapper as DistributedDataParallel is one."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Acoustic(nn.Module):
    """A stateful acoustic model."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, proj_size=5)
        self.classify = nn.Linear(5, 3)

    def forward(self, frames, hx=None):
        y, hx = self.rnn(frames, hx)
        return self.classify(y), hx


@loop("other-sequence", t=3, s=2, also=("shuffled-batches",))
def states_gathered_in_another_order(is_wrong):
    """Each step's batch is dealt out to two workers. Wrong: row 2i + w is worker w's, but its
    states are gathered as if the workers had halves."""
    ddp = Parallel(Acoustic())
    frames = numbered(torch.randn(9, 4, 4))
    phones = torch.randint(0, 3, (9, 4))
    world_size = 2

    def run():
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        states = None
        for x, y in zip(frames.split(3), phones.split(3), strict=True):
            scores, states = ddp(x, states)
            loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            parts = [
                [s.detach()[:, rank::world_size] for s in states] for rank in range(world_size)
            ]
            if is_wrong:
                states = tuple(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))
            else:
                states = tuple(
                    torch.stack(pair, dim=2).flatten(1, 2) for pair in zip(*parts, strict=True)
                )

    return Training(run, ddp, "module.rnn", {"label": of_features}, credit=bptt.Truncated(3))


@loop("shuffled-batches", t=4, s=3, also=("other-sequence",))
def streams_that_end(is_wrong):
    """The batch shrinks when a stream ends. Wrong: the states kept are the first ones."""

    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.RNN(3, 6), nn.Linear(6, 1)

    net = Echo()
    data = numbered(torch.randn(8, 3, 3))
    ends = torch.tensor([8, 4, 8])

    def run():
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        alive, h = torch.arange(3), torch.zeros(1, 3, 6)
        for start in range(0, 8, 4):
            going = ends[alive] > start
            alive = alive[going]
            h = h[:, : len(alive)] if is_wrong else h[:, going]
            y, h = net.rnn(data[start : start + 4, alive], h.detach())
            opt.zero_grad()
            net.out(y).square().mean().backward()
            opt.step()

    return Training(run, net, "rnn", {"label": of_features}, credit=bptt.Truncated(4))


class StreamingRegressor:
    """An estimator in scikit-learn's style, whose ``fit`` trains a copy of the network."""

    class Network(nn.Module):
        def __init__(self, features, hidden):
            super().__init__()
            self.memory = nn.GRU(features, hidden, num_layers=2, batch_first=True)
            self.readout = nn.Linear(hidden, 1)

    def __init__(self, hidden=6, window=4, *, shuffle=False):
        self.hidden, self.window, self.shuffle = hidden, window, shuffle
        self.network = None

    def fit(self, X, y):  # [N, T, F], [N, T]
        X, y = torch.as_tensor(X), torch.as_tensor(y)
        if self.network is None:
            self.network = self.Network(X.shape[-1], self.hidden)
        self.network_ = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(self.network_.parameters())
        rng, state = np.random.default_rng(0), None
        for start in range(0, X.shape[1], self.window):
            rows = rng.permutation(len(X)) if self.shuffle else np.arange(len(X))
            window = slice(start, start + self.window)
            out, state = self.network_.memory(X[rows, window], state)
            state = state.detach()
            loss = F.mse_loss(self.network_.readout(out).squeeze(-1), y[rows, window])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self


@loop("shuffled-batches", t=4, s=3, also=("other-sequence",))
def estimator_that_shuffles_rows(is_wrong):
    """Wrong: the rows are shuffled anew for each window, the states are not."""
    X = numbered(torch.randn(12, 4, 3)).transpose(0, 1).numpy()
    y = X[..., 2].cumsum(1)

    def run():
        StreamingRegressor(shuffle=is_wrong).fit(X, y)

    options = {"label": of_features}
    return Training(run, None, nn.GRU, options, credit=bptt.Truncated(4))
