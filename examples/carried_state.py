"""Train along a stream with the state carried on, and beside it the same loop in plain torch.nn.

The task is to repeat the input of six steps ago, in windows of five steps: the loss of a window
is never credited to the step that it needs, unless the credit reaches beyond the window.
"""

import torch
from torch import nn

import bptt

LAG, WINDOW, B, H, UPDATES = 6, 5, 32, 32, 400
torch.manual_seed(0)
symbols = torch.randint(2, (LAG + WINDOW * UPDATES, B)).float()
windows = list(zip(symbols[LAG:].split(WINDOW), symbols[:-LAG].split(WINDOW), strict=True))


def made(library):
    """A network with the same weights in both libraries, its readout, and an optimizer."""
    torch.manual_seed(1)
    rnn, readout = library.GRU(1, H), nn.Linear(H, 1)
    return rnn, readout, torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=0.01)


def by_torch():
    rnn, readout, optimizer = made(nn)
    state, losses = None, []
    for x, target in windows:
        y, state = rnn(x.unsqueeze(-1), state)
        loss = nn.functional.binary_cross_entropy_with_logits(readout(y).squeeze(-1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = state.detach()
        losses.append(loss.item())
    return torch.tensor(losses)


def by_stream(credit):
    rnn, readout, optimizer = made(bptt)
    stream, losses = bptt.Stream(), []
    for x, target in windows:
        y, stream = stream.advance(rnn, x.unsqueeze(-1), credit=credit)
        loss = nn.functional.binary_cross_entropy_with_logits(readout(y).squeeze(-1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


theirs, ours = by_torch(), by_stream(bptt.Truncated(WINDOW))
assert torch.allclose(theirs[:50], ours[:50], atol=1e-4)
further = by_stream(bptt.Truncated(every=WINDOW, reach=3 * WINDOW))
assert further[-50:].mean() < 0.5 * ours[-50:].mean()
for name, losses in {"torch.nn": theirs, "Truncated(5)": ours, "reach=15": further}.items():
    print(f"{name:12} loss {losses[:5].mean():.3f} at first, {losses[-50:].mean():.3f} at the end")
