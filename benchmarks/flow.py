"""The time for all pairs: ``bptt.gradient_flow`` compared with T backward passes of autograd.

    python benchmarks/flow.py                           # T = 200, B = 16, LSTM of 256
    python benchmarks/flow.py --steps 50 --hidden 64

Measured is ‖∂L_t/∂h_s‖ and ‖∂L_t/∂c_s‖ for all t and s of one layer. bptt's time, from the
sequence of inputs and including the forward pass, is compared with two ways of using autograd, on
torch.nn.LSTMCell step by step in one graph: ``torch.autograd.grad`` of L_t for just these, T
times, and the usual ``L_t.backward(retain_graph=True)``, T times, which finds the weights'
gradients too. All alternate; the fastest of each counts, in wall-clock and in processor time
(which other processes disturb less). Then it is checked that they agree, and ``dynamics=True`` is
timed on a module that is run step by step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.kernels import backend


class Autograd:
    """The graph of an LSTMCell over a sequence, and T backward passes through it.

    Args:
        cell: the cell.
        x: the inputs, [T, B, I].
        v: L_t = ⟨v_t, h_t⟩, [T, H].
    """

    def __init__(self, cell: nn.LSTMCell, x: Tensor, v: Tensor) -> None:
        self.cell, self.x, self.v = cell, x, v

    def run(self, with_inputs: bool) -> None:
        """Run the forward pass, and allocate norms of h and c, and the attribution."""
        T, B, _ = self.x.shape
        self.xs = [x_t.clone().requires_grad_(with_inputs) for x_t in self.x]
        h = c = self.x.new_zeros(B, self.cell.hidden_size)
        self.entering: list[Tensor] = []
        self.losses: list[Tensor] = []
        for x_t, v_t in zip(self.xs, self.v, strict=True):
            h, c = self.cell(x_t, (h, c))
            self.losses.append((h * v_t).sum())
            h, c = h.view_as(h), c.view_as(c)  # as they enter the next step
            self.entering += [h, c]
        self.found = torch.zeros(3, B, T, T)

    def note(self, t: int, gradients: list[Tensor]) -> None:
        """Record the gradients of h_0, c_0, h_1, ..., then of x_0, x_1, ..."""
        for which in (0, 1):
            norms = torch.stack(gradients[which : 2 * t : 2]).norm(dim=2)
            self.found[which, :, t, :t] = norms.t()
        if len(gradients) > 2 * t:
            flows = (torch.stack(gradients[2 * t :]) * self.x[:t]).sum(2)
            self.found[2, :, t, :t] = flows.t()

    def grad(self, with_inputs: bool) -> Tensor:
        """``torch.autograd.grad`` of each loss."""
        self.run(with_inputs)
        for t in range(1, len(self.x)):
            asked = self.entering[: 2 * t] + (self.xs[:t] if with_inputs else [])
            self.note(t, [*torch.autograd.grad(self.losses[t], asked, retain_graph=True)])
        return self.found

    def backward(self, with_inputs: bool) -> Tensor:
        """``backward()`` of each loss."""
        self.run(with_inputs)
        for s in self.entering:
            s.retain_grad()
        for t in range(1, len(self.x)):
            asked = self.entering[: 2 * t] + (self.xs[:t] if with_inputs else [])
            for s in asked:
                s.grad = None
            self.losses[t].backward(retain_graph=True)
            self.note(t, [s.grad for s in asked if s.grad is not None])
        return self.found


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall-clock seconds, processor seconds, and the result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - clock, time.process_time() - processor, result


def print_dynamics(rounds: int) -> None:
    """Print the cost of ``dynamics`` on a module that is neither bptt's nor torch.nn's."""
    module, x = bptt.Stepwise(nn.GRUCell(64, 64)), torch.randn(100, 8, 64)
    for wanted in (False, True):
        flow = partial(bptt.gradient_flow, module, x, dynamics=wanted)
        seconds = min(timed(flow)[0] for _ in range(rounds))
        print(f"a GRUCell of 64, T = 100, B = 8, dynamics={wanted}: {seconds:.3f} seconds")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in [("steps", 200), ("batch", 16), ("hidden", 256), ("rounds", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    T, B, H = options.steps, options.batch, options.hidden
    torch.manual_seed(0)
    lstm, cell, x = bptt.LSTM(H, H), nn.LSTMCell(H, H), torch.randn(T, B, H)
    bptt.init.forget_bias_(lstm, 3.0)  # so that the gradient is alive at all lags
    cell.load_state_dict({k.removesuffix("_l0"): p for k, p in lstm.state_dict().items()})
    v = nn.functional.normalize(torch.randn(T, H), dim=1)
    theirs = Autograd(cell, x, v)

    def ours(with_inputs: bool) -> bptt.GradientFlow:
        return bptt.gradient_flow(
            lstm, x, lambda y: (y * v.unsqueeze(1)).sum(2), attribution=with_inputs, dynamics=False
        )

    ways = {"gradient_flow": ours, "autograd.grad": theirs.grad, "backward()": theirs.backward}
    print(f"{backend()}; torch {torch.__version__}; T = {T}, B = {B}, LSTM of {H}")
    print(f"{'':30} {'seconds':>9} {'':>7} {'processor':>9}")
    found: dict[str, Any] = {}
    for with_inputs, what in ((False, "norms"), (True, "norms and attribution")):
        clock, processor = dict.fromkeys(ways, float("inf")), dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for name, way in ways.items():
                seconds, used, found[name] = timed(partial(way, with_inputs))
                clock[name] = min(clock[name], seconds)
                processor[name] = min(processor[name], used)
        for name in ways:
            times = [f"{of[name] / of['gradient_flow']:.1f}×" for of in (clock, processor)]
            print(
                f"{what:16} {name:13} {clock[name]:9.3f} {times[0]:>7} {processor[name]:9.3f} "
                f"{times[1]:>7}"
            )
    before = torch.ones(T, T).tril(-1).bool()
    mine = [s.norms for s in found["gradient_flow"].states] + [found["gradient_flow"].attribution]
    for n, name in enumerate(("hidden", "cell", "attribution")):
        for way in ("autograd.grad", "backward()"):
            expected = found[way][n][:, before]
            off = (mine[n][:, before] - expected).abs()
            scale = expected.abs() if n < 2 else expected.abs().max()
            print(f"{name}, {way}: largest relative difference {(off / scale).max():.1e}")
    print_dynamics(options.rounds)


if __name__ == "__main__":
    main()
