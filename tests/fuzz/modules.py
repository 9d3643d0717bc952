"""Random calls of the modules against torch.nn and the twin: ``python cases.py FIRST COUNT``.

Prints each seed before its case and ``ok`` after it, so that a process that dies names its seed.
"""

import random
import sys

import torch
from torch import nn

import bptt

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def strange(t, r):
    """The same values in another kind of memory."""
    kind = r.randrange(5)
    if kind == 1 and t.dim():
        return t.repeat_interleave(2, -1)[..., ::2]
    if kind == 2:
        return torch._neg_view(-t)
    if kind == 3:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    if kind == 4 and t.dim() > 1:
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    return t


def outcome(module, x, hx, weigh):
    """The outputs and gradients, or the type of the error."""
    module.zero_grad()
    try:
        y, state = module(x, hx)
    except (RuntimeError, ValueError, IndexError) as e:
        return type(e)
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    states = state if isinstance(state, tuple) else (state,)
    loss = (y * weigh(y)).sum() + sum((s * weigh(s)).sum() for s in states)
    loss.backward()
    return [y, *states, *(p.grad for p in module.parameters())]


def run(seed):
    """One case."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    name, dtype = r.choice(["RNN", "GRU", "LSTM"]), r.choice([torch.float32, torch.float64])
    T, B, I, H = (r.choice([1, 2, 3, 5, 7, 17]) for _ in range(4))
    options = {
        "num_layers": r.choice([1, 1, 2]),
        "bidirectional": r.random() < 0.3,
        "bias": r.random() < 0.8,
        "batch_first": r.random() < 0.3,
        "dtype": dtype,
    }
    if name == "RNN":
        options["nonlinearity"] = r.choice(["tanh", "relu"])
    if name == "LSTM" and H > 1 and r.random() < 0.3:
        options["proj_size"] = r.randrange(1, H)
    theirs, ours = getattr(nn, name)(I, H, **options), getattr(bptt, name)(I, H, **options)
    ours.load_state_dict(theirs.state_dict())
    wrong = r.random() < 0.15
    x = torch.randn(T, B, I + (wrong and r.random() < 0.5), dtype=dtype)
    x = x.transpose(0, 1).contiguous() if options["batch_first"] else x
    x, sizes = strange(x, r), (options.get("proj_size", 0) or H, H)
    hx = None
    if wrong or r.random() < 0.5:
        layers = options["num_layers"] * (1 + options["bidirectional"])
        hx = [torch.randn(layers, B + (wrong and r.random() < 0.5), n, dtype=dtype) for n in sizes]
        hx = tuple(strange(s, r) for s in hx) if name == "LSTM" else strange(hx[0], r)
    if not wrong and r.random() < 0.3:
        lengths = torch.tensor([r.randint(1, T) for _ in range(B)])
        pack = nn.utils.rnn.pack_padded_sequence
        x = pack(x, lengths, batch_first=options["batch_first"], enforce_sorted=False)
    drawn = random.Random(seed + 1).random()

    def weigh(t):
        return torch.linspace(drawn, 1.5, t.numel(), dtype=dtype).view(t.shape)

    expected = outcome(theirs, x, hx, weigh)
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels):
            found = outcome(ours, x, hx, weigh)
        if isinstance(expected, type) or isinstance(found, type):
            assert found is expected, (kernels, found, expected)
            continue
        for a, b in zip(found, expected, strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * scale)


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        run(seed)
        print("ok", flush=True)
