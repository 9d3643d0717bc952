"""Random gradient flows: the norms against autograd's, loss by loss, and against the twin's."""

import random

import torch
from fuzz.modules import TOLERANCE, strange
from torch import nn

import bptt


def run(seed):
    """One case."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    name, dtype = r.choice(["RNN", "GRU", "LSTM"]), r.choice([torch.float32, torch.float64])
    T, B, I, H = r.choice([1, 2, 4, 7]), *(r.choice([1, 2, 3, 5]) for _ in range(3))
    layers, first = r.choice([1, 1, 2]), r.random() < 0.3
    options = {"num_layers": layers, "batch_first": first, "dtype": dtype, "bias": r.random() < 0.8}
    if name == "LSTM" and H > 1 and r.random() < 0.3:
        options["proj_size"] = r.randrange(1, H)
    module = getattr(bptt, name)(I, H, **options)
    x = torch.randn(T, B, I, dtype=dtype)
    resets = torch.rand(T, B) < 0.2 if r.random() < 0.4 else None
    times = sorted(r.sample(range(T), r.randint(1, T))) if r.random() < 0.5 else None
    lags = r.randint(1, T) if r.random() < 0.4 else None
    readout = torch.randn(options.get("proj_size", H), dtype=dtype)

    def losses(y):
        y = y.transpose(0, 1) if first else y
        return (y * readout).sum(-1).square()

    given = strange(x.transpose(0, 1) if first else x, r)
    flows = []
    for kernels in ("auto", "twin"):
        with bptt.kernels.use(kernels):
            flows.append(
                bptt.gradient_flow(
                    module,
                    given,
                    losses,
                    times=times,
                    lags=lags,
                    resets=resets.t() if first and resets is not None else resets,
                    dynamics=False,
                    budget=r.choice([2**28, 4096]),
                )
            )
    reference = norms_by_autograd(module, name, x, resets, losses, layers)
    for flow in flows:
        assert len(flow.states) == len(reference)
        for state in flow.states:
            expected = reference[state.layer, state.name]
            for n, t in enumerate(flow.times):
                for s in range(t):
                    if t - s < flow.lags:
                        a, b = state.norms[:, n, s], expected[t, s].double()
                        atol = TOLERANCE[dtype] * max(1.0, b.abs().max().item())
                        torch.testing.assert_close(a, b, rtol=0, atol=atol)
                    else:
                        assert state.norms[:, n, s].isnan().all()
    for a, b in zip(flows[0].states, flows[1].states, strict=True):
        atol = TOLERANCE[dtype] * max(1.0, b.norms.nan_to_num().max().item())
        torch.testing.assert_close(a.norms, b.norms, rtol=0, atol=atol, equal_nan=True)


def norms_by_autograd(module, name, x, resets, losses, layers):
    """For (layer, tensor): for (t, s), the norms of ∂L_t/∂(state as it enters s + 1), [B]."""
    theirs = getattr(nn, name)(
        module.input_size,
        module.hidden_size,
        num_layers=layers,
        bias=module.bias,
        dtype=x.dtype,
        **({"proj_size": module.proj_size} if module.proj_size else {}),
    )
    theirs.load_state_dict(module.state_dict())
    B, states, state, outputs = x.shape[1], [], None, []
    for t in range(len(x)):
        if state is not None and resets is not None:
            state = tuple(s * (~resets[t]).view(1, B, 1) for s in state)
        y, state = theirs(x[t : t + 1], state if state is None or len(state) == 2 else state[0])
        state = state if isinstance(state, tuple) else (state,)
        state = tuple(s.clone() for s in state)
        states.append(state)
        outputs.append(y)
    y = torch.cat(outputs)
    of_step = losses(y.transpose(0, 1) if module.batch_first else y)
    found = {}
    for t in range(len(x)):
        for s in range(t):
            grads = torch.autograd.grad(of_step[t].sum(), states[s], retain_graph=True)
            for kind, grad in zip(("hidden", "cell"), grads, strict=False):
                for layer in range(layers):
                    found.setdefault((layer, kind), {})[t, s] = grad[layer].norm(dim=-1)
    if not found:
        kinds = ("hidden", "cell") if name == "LSTM" else ("hidden",)
        found = {(layer, kind): {} for layer in range(layers) for kind in kinds}
    return found
