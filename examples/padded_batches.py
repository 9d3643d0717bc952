"""Sequences of different lengths: padded with a masked loss, packed, and packed in torch.nn.

Each step asks for the parity of the ones so far. All three give the same loss and gradient.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import bptt

IGNORED = -100  # what cross_entropy skips by default
torch.manual_seed(0)
theirs, lstm, readout = nn.LSTM(1, 32), bptt.LSTM(1, 32), nn.Linear(32, 2)
theirs.load_state_dict(lstm.state_dict())


def batch(sequences=32):
    lengths = torch.randint(1, 7, (sequences,))
    bits = [torch.randint(2, (n,)) for n in lengths.tolist()]
    x = pad_sequence(bits).unsqueeze(-1).float()  # [T, B, 1]
    targets = pad_sequence([b.cumsum(0) % 2 for b in bits], padding_value=IGNORED)  # [T, B]
    return x, targets, lengths


def padded(rnn, x, targets, lengths):
    """What lies behind a sequence's end comes after it: the steps before do not see it."""
    y, _ = rnn(x)
    return bptt.losses.linear_cross_entropy(
        y, readout.weight, readout.bias, targets, ignore_index=IGNORED
    )  # the mean over the targets that count


def packed(rnn, x, targets, lengths):
    """The final state is that of each sequence's last step; a second direction begins there."""
    y, _ = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
    labels = pack_padded_sequence(targets, lengths, enforce_sorted=False)
    return nn.functional.cross_entropy(readout(y.data), labels.data)


def gradient(rnn, loss):
    return torch.autograd.grad(loss, [*rnn.parameters(), *readout.parameters()])


given = batch()
found = [(r, f(r, *given)) for r, f in ((lstm, padded), (lstm, packed), (theirs, packed))]
expected = gradient(*found[-1])
for rnn, loss in found[:-1]:
    torch.testing.assert_close(gradient(rnn, loss), expected, rtol=1e-4, atol=1e-6)

optimizer = torch.optim.Adam([*lstm.parameters(), *readout.parameters()], lr=0.01)
losses = []
for _ in range(400):
    loss = padded(lstm, *batch())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.1 * losses[0]
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at the end")
