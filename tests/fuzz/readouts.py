"""Random readout losses against torch's own: a linear layer, then the cross-entropy."""

import random

import torch
from fuzz.modules import TOLERANCE, strange
from torch.nn.functional import cross_entropy, linear

import bptt
from bptt.losses import linear_cross_entropy


def run(seed):
    """One case."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    dtype = r.choice([torch.float32, torch.float64])
    rows, H, V = r.choice([(), (0,), (1,), (5,), (4, 3), (40,)]), r.choice([1, 3, 16, 33]), 0
    V = r.choice([1, 2, 7, 50])
    hidden, weight = torch.randn(*rows, H, dtype=dtype), torch.randn(V, H, dtype=dtype)
    bias = torch.randn(V, dtype=dtype) if r.random() < 0.7 else None
    targets = torch.randint(V, rows)
    options = {"reduction": r.choice(["mean", "sum", "none"])}
    if r.random() < 0.5:
        options["ignore_index"] = r.choice([-100, -1, 0, V - 1, V + 3])
        targets = torch.where(torch.rand(rows) < 0.3, options["ignore_index"], targets)
    labels = torch.rand(V, dtype=dtype) if r.random() < 0.4 else None
    damage = r.choice([None] * 8 + ["weight", "bias", "targets", "labels", "dtype", "large", "low"])
    if damage == "weight":
        weight = weight[:, :-1] if r.random() < 0.5 else weight[0]
    elif damage == "bias":
        bias = torch.randn(V + 1, dtype=dtype)
    elif damage == "targets":
        targets = torch.randint(V, (*rows, 2))
    elif damage == "labels":
        labels = torch.rand(V + 1, dtype=dtype)
    elif damage == "dtype":
        weight = weight.to(torch.float64 if dtype == torch.float32 else torch.float32)
    elif damage in ("large", "low") and targets.numel():
        targets.view(-1)[-1] = V + 7 if damage == "large" else -7
    else:
        damage = None
    if rows == (5,) and r.random() < 0.3 and damage is None:
        hidden = hidden[:1].expand(5, H)
    given = [strange(t, r) if t is not None else None for t in (hidden, weight, bias)]
    targets = strange(targets, r) if not targets.numel() or r.random() < 0.5 else targets
    scale = r.choice([1.0, -0.5])
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels):
            found = outcome(linear_cross_entropy, given, targets, labels, options, scale)
        if damage is not None:
            assert isinstance(found, type), (kernels, damage, found)
            continue
        expected = outcome(torchs, given, targets, labels, options, scale)
        assert not isinstance(found, type), found
        assert not isinstance(expected, type), expected
        for a, b in zip(found, expected, strict=True):
            bound = TOLERANCE[dtype] * max(
                1.0, b.nan_to_num().abs().max().item() if b.numel() else 1
            )
            torch.testing.assert_close(a, b, rtol=0, atol=bound, equal_nan=True)


def torchs(hidden, weight, bias, targets, *, label_weights, **options):
    """The same by torch's functions."""
    logits = linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias)
    loss = cross_entropy(logits, targets.reshape(-1), weight=label_weights, **options)
    return loss.reshape(targets.shape) if options["reduction"] == "none" else loss


def outcome(function, given, targets, labels, options, scale):
    """The loss and gradients, or the type of the error."""
    given = [None if t is None else t.detach().requires_grad_() for t in given]
    try:
        loss = function(*given, targets, label_weights=labels, **options)
    except (RuntimeError, ValueError, IndexError) as e:
        return type(e)
    (loss * scale).sum().backward()
    return [loss.detach(), *(t.grad for t in given if t is not None)]
