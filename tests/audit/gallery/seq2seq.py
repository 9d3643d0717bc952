"""Encoders and decoders."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bptt


class Encoder(nn.Module):
    """The encoder of PyTorch's translation tutorial, for batches."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.embedding = nn.Embedding(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, input):
        return self.gru(self.embedding(input))


class Decoder(nn.Module):
    """Its decoder, which is fed a word at a time."""

    def __init__(self, hidden_size, output_size):
        super().__init__()
        self.embedding = nn.Embedding(output_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.out = nn.Linear(hidden_size, output_size)

    def forward(self, input, hidden):
        output, hidden = self.gru(F.relu(self.embedding(input)), hidden)
        return self.out(output), hidden


class Seq2Seq(nn.Module):
    """A translator whose decoder is fed the target's words."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(9, 6), Decoder(6, 9)

    def forward(self, source, target, is_wrong):
        _, hidden = self.encoder(source)
        if is_wrong:
            hidden = hidden.detach()
        decoder_input, scores = torch.zeros(len(source), 1, dtype=torch.long), []
        for t in range(target.size(1)):
            output, hidden = self.decoder(decoder_input, hidden)
            decoder_input = target[:, t : t + 1]
            scores.append(output)
        return torch.cat(scores, 1)


@loop("credits-nothing", t=0, s=0)
def encoder_detached(is_wrong):
    """Wrong: the state that the decoder starts from has no gradient, and nothing else of the
    encoder is used."""
    model = Seq2Seq()
    source, target = torch.randint(1, 9, (2, 3, 5)), torch.randint(1, 9, (2, 3, 4))

    def run():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(2):
            for x, y in zip(source, target, strict=True):
                optimizer.zero_grad()
                loss = F.nll_loss(
                    F.log_softmax(model(x, y, is_wrong), -1).flatten(0, 1), y.flatten()
                )
                loss.backward()
                optimizer.step()

    return Training(run, model, "encoder.gru", credit=bptt.Truncated(5))


@loop("shuffled-batches", t=5, s=4, also=("other-sequence",))
def state_of_the_batch_before(is_wrong):
    """A sequence autoencoder, one network for both halves. Wrong: the decoder starts from the state
    that the encoder had for the batch before."""
    rnn, head = nn.LSTM(3, 6), nn.Linear(6, 3)
    model = nn.ModuleDict({"rnn": rnn, "head": head})
    batches = torch.randn(3, 5, 2, 3)
    batches[..., 0] = torch.arange(6.0).view(3, 1, 2)  # the number of the sequence
    batches[..., 1] = torch.arange(5.0)[:, None]  # and of the step

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = None
        for x in batches:
            _, code = rnn(x)
            start = before if is_wrong and before is not None else code
            before = tuple(part.detach() for part in code)
            repeated = x.clone()
            repeated[..., 1] += 5
            repeated[..., 2] = 0.0
            y, _ = rnn(repeated, start)
            loss = F.mse_loss(head(y), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    options = {"label": lambda x: (x[..., 0].long(), x[..., 1].long())}
    return Training(run, model, "rnn", options, credit=bptt.Full())


@loop("credits-nothing", t=0, s=0)
def last_step_of_padded_output(is_wrong):
    """Wrong: ``out[:, -1]`` of what was padded is zero for every sequence but the longest."""

    class Sentiment(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(12, 4, padding_idx=0)
            self.rnn = nn.LSTM(4, 6, batch_first=True)
            self.fc = nn.Linear(6, 2)

        def forward(self, text, lengths):
            packed = pack_padded_sequence(
                self.embedding(text), lengths, batch_first=True, enforce_sorted=False
            )
            packed_output, (hidden, _) = self.rnn(packed)
            output, _ = pad_packed_sequence(packed_output, batch_first=True)
            return self.fc(output[:, -1] if is_wrong else hidden[-1])

    model = Sentiment()
    lengths = torch.tensor([3, 6, 5])
    text = torch.randint(1, 12, (3, 6)) * (torch.arange(6) < lengths[:, None])
    label = torch.tensor([0, 1, 1])

    def run():
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(text, lengths), label).backward()
            optimizer.step()

    return Training(run, model, "rnn", credit=bptt.Truncated(6))


@loop("credits-nothing", t=0, s=0)
def bidirectional_summary(is_wrong):
    """Wrong: ``.data``, a habit from before torch 0.4, cuts the summary off from the encoder."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.GRU(4, 5, bidirectional=True, batch_first=True)
            self.match = nn.Bilinear(10, 10, 1)

        def encode(self, x):
            _, h = self.encoder(x)
            h = h.data if is_wrong else h
            return torch.cat([h[0], h[1]], dim=1)

        def forward(self, a, b):
            return self.match(self.encode(a), self.encode(b))

    model = Pair()
    a, b, y = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.tensor([[0.0], [1.0], [1.0]])

    def run():
        optimizer = torch.optim.Adadelta(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(a, b), y).backward()
            optimizer.step()

    return Training(run, model, lambda m: isinstance(m, nn.GRU) and m.bidirectional)


@loop("not-carried", t=1, s=0)
def scheduled_sampling(is_wrong):
    """Words are fed back or taken from the target by chance. Wrong: where a word is fed back, the
    state is not."""
    model = Seq2Seq()
    source, target = torch.randint(1, 9, (3, 5)), torch.randint(1, 9, (3, 6))

    def run():
        flip = random.Random(2)
        optimizer = torch.optim.Adam(model.parameters())
        _, context = model.encoder(source)
        word, hidden, loss = torch.zeros(3, 1, dtype=torch.long), context, 0.0
        for t in range(6):
            output, hidden = model.decoder(word, hidden)
            loss = loss + F.cross_entropy(output.squeeze(1), target[:, t])
            if flip.random() < 0.5:
                word = target[:, t : t + 1]
            else:
                word = output.argmax(-1).detach()
                hidden = context if is_wrong else hidden
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    options = {"episodes": [0] * 6}
    return Training(run, model, "decoder.gru", options, credit=bptt.Full())
