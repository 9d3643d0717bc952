"""Random calls of the modules against torch.nn and the twin."""

import random

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


class Sigmoid(nn.Module):
    """A network of torch.nn with tanh whose states are those of one with the sigmoid.

    σ(a) = (tanh(a / 2) + 1) / 2, so with g = tanh(a / 2) as its state, h = (g + 1) / 2.
    """

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, x, hx):
        ours = self.ours
        theirs = nn.RNN(
            ours.input_size,
            ours.hidden_size,
            ours.num_layers,
            bias=True,
            batch_first=ours.batch_first,
            bidirectional=ours.bidirectional,
            dtype=ours.weight_ih_l0.dtype,
        )
        weights = {}
        for name, p in theirs.named_parameters():
            kind, _, where = name.partition("_l")
            zero = torch.zeros_like(p)
            if kind == "weight_hh":
                weights[name] = getattr(ours, name) / 4
            elif kind == "weight_ih":  # the layers above read h = (g + 1) / 2
                weights[name] = getattr(ours, name) / (2 if where[0] == "0" else 4)
            else:
                weights[name] = getattr(ours, name) / 2 if ours.bias else zero
                source = getattr(ours, f"{kind.replace('bias', 'weight')}_l{where}")
                if kind == "bias_hh" or where[0] != "0":
                    weights[name] = weights[name] + source.sum(1) / 4
        batch = x.batch_sizes[0] if isinstance(x, nn.utils.rnn.PackedSequence) else 0
        if hx is None:
            like = x.data
            rows = ours.num_layers * (1 + ours.bidirectional)
            shape = (rows, batch or like.shape[0 if ours.batch_first else 1], ours.hidden_size)
            shape = (rows, ours.hidden_size) if not batch and like.dim() == 2 else shape
            hx = like.new_zeros(shape)
        y, state = torch.func.functional_call(theirs, weights, (x, 2 * hx - 1))
        if isinstance(y, nn.utils.rnn.PackedSequence):
            return y._replace(data=(y.data + 1) / 2), (state + 1) / 2
        return (y + 1) / 2, (state + 1) / 2


def run(seed):
    """One case."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    name, dtype = r.choice(["RNN", "GRU", "LSTM"]), r.choice([torch.float32, torch.float64])
    T, B, I, H = (r.choice([1, 2, 3, 5, 7, 17]) for _ in range(4))
    kind = r.choice([None, None, None, None, "unbatched", "empty", "sigmoid"])
    B = {"unbatched": 1, "empty": 0}.get(kind, B)
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
    wrong = r.random() < 0.15 and kind is None
    x = torch.randn(T, B, I + (wrong and r.random() < 0.5), dtype=dtype)
    x = x.transpose(0, 1).contiguous() if options["batch_first"] else x
    x, sizes = strange(x, r), (options.get("proj_size", 0) or H, H)
    hx = None
    if wrong or r.random() < 0.5:
        layers = options["num_layers"] * (1 + options["bidirectional"])
        hx = [torch.randn(layers, B + (wrong and r.random() < 0.5), n, dtype=dtype) for n in sizes]
        hx = tuple(strange(s, r) for s in hx) if name == "LSTM" else strange(hx[0], r)
    if kind == "unbatched":
        x = x.squeeze(0 if options["batch_first"] else 1)
        hx = tuple(s.squeeze(1) for s in hx) if isinstance(hx, tuple) else hx
        hx = hx.squeeze(1) if isinstance(hx, torch.Tensor) else hx
    elif B and not wrong and r.random() < 0.3:
        lengths = torch.tensor([r.randint(1, T) for _ in range(B)])
        pack = nn.utils.rnn.pack_padded_sequence
        x = pack(x, lengths, batch_first=options["batch_first"], enforce_sorted=False)
    drawn = random.Random(seed + 1).random()

    def weigh(t):
        return torch.linspace(drawn, 1.5, t.numel(), dtype=dtype).view(t.shape)

    if kind == "sigmoid":
        del options["dtype"]
        options.pop("proj_size", None)
        options["nonlinearity"] = "sigmoid"
        ours = bptt.RNN(I, H, **options, dtype=dtype)
        hx = hx[0] if isinstance(hx, tuple) and ours.hidden_size == hx[0].shape[-1] else hx
        hx = None if isinstance(hx, tuple) else hx
        theirs = Sigmoid(ours)
    expected = outcome(theirs, x, hx, weigh)
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels):
            found = outcome(ours, x, hx, weigh)
        if isinstance(expected, type) or isinstance(found, type):
            assert found is expected, (kernels, found, expected)
            continue
        for a, b in zip(found, expected, strict=True):
            scale = max(1.0, b.abs().max().item() if b.numel() else 1.0)
            torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * scale)
