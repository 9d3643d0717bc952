"""Random credits, carries, resets and memories against single steps of torch.nn, cut by hand."""

import random

import torch
from fuzz.modules import TOLERANCE, strange
from torch import nn

import bptt
import bptt._src.layers


def run(seed):
    """One case."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    name = r.choice(["RNN", "GRU", "LSTM"])
    dtype = r.choice([torch.float32, torch.float64])
    T, B, I, H = r.choice([1, 2, 5, 9, 14]), *(r.choice([1, 2, 3, 5]) for _ in range(3))
    options = {"num_layers": r.choice([1, 1, 2]), "batch_first": r.random() < 0.3, "dtype": dtype}
    theirs, ours = getattr(nn, name)(I, H, **options), getattr(bptt, name)(I, H, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, dtype=dtype)
    of_each = r.random() < 0.5
    resets = (torch.rand(T, B) if of_each else torch.rand(T)) < 0.2 if r.random() < 0.5 else None
    how = r.choice(["carry", "truncated", "windows", "full"])
    every, reach = r.randint(1, T + 1), r.randint(1, T + 1)
    carry, windows = torch.ones(T, dtype=dtype), [(0, T, 0)]
    if how == "carry":
        factors = torch.tensor([0.0, 0.5, 1.0, -2.0], dtype=dtype)
        carry = factors[torch.randint(4, (T, B) if r.random() < 0.5 else (T,))]
        given = {"carry": turned(carry, options["batch_first"])}
    elif how == "truncated":
        carry = torch.tensor([float(t % every > 0) for t in range(T)], dtype=dtype)
        given = {"credit": bptt.Truncated(every)}
    elif how == "windows":
        reach = max(every, reach)
        windows = [(s, min(s + every, T), s + every - reach) for s in range(0, T, every)]
        given = {"credit": bptt.Truncated(every=every, reach=reach)}
    else:
        given = {"credit": None}
    expected = by_hand(theirs, x, carry, resets, windows)
    module, memory = ours, None
    if how != "carry":
        module = r.choice([ours, theirs, ours])
        segment = r.randint(1, T)
        several = [None, bptt.Store(), bptt.Recompute(r.randint(1, 5), segment=segment)]
        memory = r.choice(several)
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels):
            found = outcome(module, x, resets, given, memory, r)
        for a, b in zip(found, expected, strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * scale)


def turned(t, batch_first):
    """As it is given to a module: [B, T] with batch_first."""
    return t.t().contiguous() if batch_first and t is not None and t.dim() == 2 else t


def weigh(t):
    return torch.linspace(0.3, 1.5, t.numel(), dtype=t.dtype).view(t.shape)


def outcome(module, x, resets, given, memory, r):
    """The outputs and gradients, by the module's own arguments or by unroll."""
    module.zero_grad()
    first = module.batch_first
    x = x.clone().requires_grad_()
    shown = strange(x.transpose(0, 1) if first else x, r)
    resets = turned(resets, first)
    if (
        isinstance(module, bptt._src.layers.Layers) and memory is None and r.random() < 0.7
    ) or "carry" in given:
        y, _ = module(shown, resets=resets, **given)
    else:
        y, _ = bptt.unroll(module, shown, resets=resets, memory=memory, **given)
    y = y.transpose(0, 1) if first else y
    (y * weigh(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def by_hand(module, x, carry, resets, windows):
    """The same for the losses of each window (first step, end, first step credited) on its own."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    T, B, first = len(x), x.shape[1], module.batch_first
    factor = carry.view(T, -1).expand(T, B)
    keep = torch.ones(T, B, dtype=x.dtype)
    if resets is not None:
        keep = (~resets).view(T, -1).expand(T, B).to(x.dtype)
    outputs = torch.zeros(T, B, module.hidden_size, dtype=x.dtype)
    for begin, end, edge in windows:
        state, several = None, []
        for t in range(end):
            if state is not None:
                of_step = factor[t] * (t > edge)
                state = tuple(
                    crossed(s, of_step.view(1, B, 1), keep[t].view(1, B, 1)) for s in state
                )
            hx = state if state is None or len(state) == 2 else state[0]
            y, state = module(x[t].unsqueeze(1 if first else 0), hx)
            state = state if isinstance(state, tuple) else (state,)
            several.append(y.transpose(0, 1)[0] if first else y[0])
        y = torch.stack(several)
        (y * weigh(outputs)[:end])[begin:].sum().backward()
        outputs[begin:end] = y[begin:].detach()
    return [outputs, x.grad, *(p.grad for p in module.parameters())]


def crossed(s, factor, keep):
    """The state behind a boundary, its gradient times the factor."""
    return (s.detach() + factor * (s - s.detach())) * keep
