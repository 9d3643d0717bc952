"""Forecast a season ahead on real data, against the seasonal naive forecast: last year's value.

The data are the sea surface temperatures of the eastern Pacific that PyWavelets ships (NOAA's
NINO3, standardised, 264 quarters). Some are taken out, as if a buoy had failed: where a target
is missing there is no loss, and where an input is missing the network sees 0 and a flag.
"""

import pywt.data
import torch
from torch import nn

import bptt

YEAR, TRAIN, EVERY, BACK = 4, 200, 8, 8  # BACK: every loss goes back so many steps at least
torch.manual_seed(0)
series = torch.from_numpy(pywt.data.nino()[1]).float()
known = torch.rand(len(series)) > 0.1


def made(library):
    torch.manual_seed(1)
    gru, readout = library.GRU(2, 16), nn.Linear(16, 1)
    return gru, readout, torch.optim.Adam([*gru.parameters(), *readout.parameters()], lr=0.003)


def inputs(first, end):
    """[T, B = 1, 2]: the values, and whether they are known."""
    return torch.stack([series * known, known.float()], -1)[first:end].unsqueeze(1)


def error(gru, readout):
    """Mean absolute errors on the last quarters: the network's, and the seasonal naive one."""
    with torch.no_grad():
        forecast = readout(gru(inputs(0, -1))[0]).flatten()[TRAIN - 1 :]
    naive = series[TRAIN - YEAR : -YEAR]
    return [(f - series[TRAIN:]).abs().mean().item() for f in (forecast, naive)]


def trained(library, credit=None, epochs=60):
    gru, readout, optimizer = made(library)
    for _ in range(epochs):
        stream, state = bptt.Stream(), None
        for first in range(0, TRAIN - EVERY, EVERY):
            end = first + EVERY
            if credit is not None:
                y, stream = stream.advance(gru, inputs(first, end), credit=credit)
            else:  # plain torch.nn: cut at every window's edge
                y, state = gru(inputs(first, end), None if state is None else state.detach())
            target, counts = series[first + 1 : end + 1], known[first + 1 : end + 1]
            losses = (readout(y).flatten() - target).square()
            optimizer.zero_grad()
            (losses * counts).sum().div(counts.sum()).backward()
            optimizer.step()
    return error(gru, readout)


plain, naive = trained(nn)
ours, _ = trained(bptt, bptt.Truncated(every=EVERY, reach=EVERY + BACK))
assert ours < naive
print(f"mean absolute error: seasonal naive {naive:.3f}, torch.nn {plain:.3f}, Stream {ours:.3f}")
