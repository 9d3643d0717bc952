"""How surely a trained network names someone, by how long ago it met them.

python examples/who_is_john.py [FILE.svg]

The network reads "... met John ... hi" and is asked for the name. Between lie up to 40 words, which
may be names as well. In training most distances are short: their mean is 8 words.
"""

import sys

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import bptt

NAMES, FILL = 8, 12
MET, HI = NAMES + FILL, NAMES + FILL + 1
EYE = torch.eye(HI + 1)
DISTANCES = [*range(9), 12, 16, 20, 24, 28, 32, 36, 40]


def text(distance: int, count: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return word ids [T, count] and the names asked for [count]."""
    before = int(torch.randint(5, (), generator=g))
    shape = before + distance, count
    is_name = torch.rand(shape, generator=g) < 0.3
    other = torch.randint(NAMES, MET, shape, generator=g)
    words = torch.where(is_name, torch.randint(NAMES, shape, generator=g), other)
    john = torch.randint(NAMES, (count,), generator=g)
    met, hi = torch.full((1, count), MET), torch.full((1, count), HI)
    return torch.cat([words[:before], met, john[None], words[before:], hi]), john


def trained(kind: type[bptt.Recurrent], updates: int, rate: float, seed: int) -> list[float]:
    """Train a network; return its mean probability of the right name at each of DISTANCES."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    network, readout = kind(HI + 1, 32), torch.nn.Linear(32, NAMES)
    parameters = [*network.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, rate)
    for _ in range(updates):
        distance = int(torch.empty(()).geometric_(1 / 8, generator=g)) - 1
        x, john = text(min(distance, 40), 32, g)
        loss = torch.nn.functional.cross_entropy(readout(network(EYE[x])[0][-1]), john)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    found = []
    for distance in DISTANCES:
        x, john = text(distance, 512, g)
        with torch.no_grad():
            p = readout(network(EYE[x])[0][-1]).softmax(-1)
        found.append(p[torch.arange(512), john].mean().item())
    return found


torch.set_num_threads(1)
figure = Figure(figsize=(6.4, 3.2), layout="constrained")
axes = figure.subplots()
CASES = [(bptt.LSTM, 1000, 1e-2), (bptt.RNN, 3000, 3e-3), (bptt.RNN, 1000, 3e-3)]
for (kind, updates, rate), colour in zip(CASES, ("#0072B2", "#009E73", "#D55E00"), strict=True):
    title = f"{'tanh RNN' if kind is bptt.RNN else 'LSTM'}, {updates:,} updates"
    seeds = torch.tensor([trained(kind, updates, rate, seed) for seed in range(3)])
    axes.plot(DISTANCES, seeds.mean(0), color=colour, label=title)
    axes.fill_between(DISTANCES, seeds.amin(0), seeds.amax(0), color=colour, alpha=0.2, lw=0)
    for distance in (0, 4, 16, 40):
        p = seeds[:, DISTANCES.index(distance)]
        print(f"{title}, {distance:2} words: {p.mean():.2f} ({p.min():.2f} to {p.max():.2f})")
axes.axhline(1 / NAMES, color="0.4", linewidth=0.8, linestyle=":", label="chance")
axes.set(xlabel="words between the name and the question", ylabel="P(John)", ylim=(0, 1.03))
axes.legend(loc="lower left", fontsize="small")
file = sys.argv[1] if len(sys.argv) > 1 else "john.svg"
with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bptt"}):
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
