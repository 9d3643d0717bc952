"""Modules and calls of them, for the tests in ``recorded``."""

from __future__ import annotations

import torch

import bptt


class Fading(bptt.Credit):
    """A credit of one's own."""

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=[0.5] * steps)


class Learning(Fading):
    def __init__(self, factor):
        self.factor = factor

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=[self.factor] * steps)


EQUATIONS = lambda x, h, s, units: (0.9 * s[0] + 0.1 * torch.tanh(x[0] + h[0]),)  # noqa: E731
LEAKY = bptt.Cell("LEAKY", 1, 1, EQUATIONS)
MODULES = {
    "RNN": lambda **o: bptt.RNN(4, 5, **o),
    "sigmoid": lambda **o: bptt.RNN(4, 5, nonlinearity="sigmoid", **o),
    "GRU": lambda **o: bptt.GRU(4, 5, **o),
    "LSTM": lambda **o: bptt.LSTM(4, 5, **o),
    "projection": lambda **o: bptt.LSTM(4, 5, proj_size=2, **o),
    "MGU": lambda **o: bptt.Recurrent(bptt.cells.MGU, 4, 5, **o),
    "peepholes": lambda **o: bptt.Recurrent(bptt.cells.PEEPHOLE_LSTM, 4, 5, **o),
    "own": lambda **o: bptt.Recurrent(LEAKY, 4, 5, **o),
}
STACK = {"num_layers": 2, "dropout": 0.5}
WINDOWS = "truncated:every=1,reach=3"
HOW = {
    "plain": ({}, {}),
    "plain, two directions": ({"bidirectional": True, "num_layers": 2}, {}),
    "state": ({"batch_first": True, "num_layers": 2}, {"state": True}),
    "state and resets": ({}, {"state": True, "resets": True}),
    "batch first": ({"batch_first": True}, {"resets": True, "credit": "truncated:2"}),
    "two directions": ({"bidirectional": True, **STACK}, {"credit": "truncated:2"}),
    "random": (STACK, {"credit": bptt.Randomized(2)}),
    "own credit": ({}, {"credit": Fading()}),
    "windows": ({}, {"credit": WINDOWS, "state": True}),
    "all states": ({"bidirectional": True, **STACK}, {"return_states": True}),
    "all states, windows": (STACK, {"return_states": True, "credit": WINDOWS}),
    "zoneout": ({"zoneout": 0.3, "bidirectional": True, **STACK}, {"resets": True}),
    "zoneout, windows": ({"zoneout": 0.3, **STACK}, {"credit": WINDOWS}),
    "windows, stacked": (STACK, {"credit": WINDOWS, "resets": True}),
}


def gradients(network, x, *, state=False, resets=False, **how):
    """The outputs, the final state and the gradients, from the same random numbers each time."""
    torch.manual_seed(1)
    options = dict(how)
    given, inside = x.clone().requires_grad_(), getattr(network, "_orig_mod", network)
    T, B = (x.shape[1], x.shape[0]) if inside.batch_first else x.shape[:2]
    begin = None
    if state:
        cells = inside.num_layers * (1 + inside.bidirectional)
        sizes = inside._state_sizes()
        begin = tuple(torch.randn(cells, B, n).requires_grad_() for n in sizes)
    if resets:
        starts = torch.rand(T, B) < 0.3
        options["resets"] = starts.t() if inside.batch_first else starts
    hx = begin if begin is None or len(begin) > 1 else begin[0]
    y, final, *more = network(given, hx, **options)
    states = [s for layers in more for of_layer in layers for s in of_layer]
    finals = (*(final if isinstance(final, tuple) else (final,)), *states)
    loss = y.square().sum() + sum(s.sin().sum() for s in finals)
    wanted = [*network.parameters(), given, *(begin or ())]
    return y, *finals, *torch.autograd.grad(loss, wanted)
