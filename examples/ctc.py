"""Connectionist temporal classification: labels without their positions (Graves et al. 2006).

Each label is spoken for two to four frames of noise, and only the order of the labels is known.
"""

import copy

import torch
from torch import nn

import bptt

LABELS, FEATURES, B = 5, 6, 32  # label 0 is CTC's blank
torch.manual_seed(0)
sounds = torch.randn(LABELS + 1, FEATURES)


def batch():
    labels = [torch.randint(1, LABELS + 1, (n,)) for n in torch.randint(2, 5, (B,)).tolist()]
    spoken = [u.repeat_interleave(torch.randint(2, 5, (len(u),))) for u in labels]
    lengths = torch.tensor([len(s) for s in spoken])
    x = nn.utils.rnn.pad_sequence([sounds[s] for s in spoken])  # [T, B, FEATURES]
    return x + 0.3 * torch.randn(x.shape), lengths, labels


class Recogniser(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.readout = bptt.LSTM(FEATURES, 32, bidirectional=True), nn.Linear(64, 6)

    def forward(self, x, lengths):  # packed: the second direction begins at each sequence's end
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0])
        return self.readout(y).log_softmax(-1)


def train(model, updates):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(updates):
        x, lengths, labels = batch()
        of_each = torch.tensor([len(u) for u in labels])
        loss = nn.functional.ctc_loss(model(x, lengths), torch.cat(labels), lengths, of_each)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


model = Recogniser()
theirs = bptt.convert(copy.deepcopy(model), to="torch")
ours = list(train(model, 150))
torch.testing.assert_close(list(train(theirs, 10)), ours[:10], rtol=1e-3, atol=1e-3)
x, lengths, labels = batch()
guess = model(x, lengths).argmax(-1)
best = [guess[: lengths[b], b].unique_consecutive() for b in range(B)]
right = sum(best[b][best[b] > 0].tolist() == labels[b].tolist() for b in range(B)) / B
assert right > 0.5
print(f"loss {ours[0]:.3f} at first, {ours[-1]:.3f} at the end; sequences right {right:.2f}")
