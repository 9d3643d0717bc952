"""How long all pairs take: ``bptt.gradient_flow`` beside T backward passes of autograd.

    python benchmarks/flow.py                           # T = 200, B = 16, LSTM of 256
    python benchmarks/flow.py --steps 50 --hidden 64

What is measured is ‖∂L_t/∂h_s‖ and ‖∂L_t/∂c_s‖ for all t and s of one layer. Autograd's way:
torch.nn.LSTMCell, step by step, in one graph, and one ``torch.autograd.grad`` of L_t for all the
states before t, with nothing else asked for, or for the inputs too, whose credit is wanted. Ours:
the same from the sequence of inputs, the forward pass included. All in turns, the quickest of each
counts; then whether they found the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.kernels import backend


def by_autograd(cell: nn.LSTMCell, x: Tensor, v: Tensor, credit: bool) -> Tensor:
    """‖∂L_t/∂h_s‖, ‖∂L_t/∂c_s‖ for s < t, and the credit, [3, B, T, T]: a backward pass each t."""
    T, B = x.shape[:2]
    xs = [x_t.clone().requires_grad_(credit) for x_t in x]
    h = c = x.new_zeros(B, cell.hidden_size)
    entering: list[tuple[Tensor, Tensor]] = []
    losses = []
    for t in range(T):
        h, c = cell(xs[t], (h, c))
        losses.append((h * v[t]).sum())
        h, c = h.view_as(h), c.view_as(c)  # as they enter the next step
        entering.append((h, c))
    found = torch.zeros(3, B, T, T)
    for t in range(1, T):
        asked = [s for pair in entering[:t] for s in pair] + (xs[:t] if credit else [])
        gradients = torch.autograd.grad(losses[t], asked, retain_graph=True)
        for which in (0, 1):
            norms = torch.stack(gradients[which : 2 * t : 2]).norm(dim=2)
            found[which, :, t, :t] = norms.t()
        if credit:
            found[2, :, t, :t] = (torch.stack(gradients[2 * t :]) * x[:t]).sum(2).t()
    return found


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of wall time, and what it gave."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in [("steps", 200), ("batch", 16), ("hidden", 256), ("rounds", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    T, B, H = options.steps, options.batch, options.hidden
    torch.manual_seed(0)
    lstm, cell, x = bptt.LSTM(H, H), nn.LSTMCell(H, H), torch.randn(T, B, H)
    bptt.init.forget_bias_(lstm, 3.0)  # so that the gradient is alive at all lags
    cell.load_state_dict({k.removesuffix("_l0"): p for k, p in lstm.state_dict().items()})
    v = torch.nn.functional.normalize(torch.randn(T, H), dim=1)

    def losses(y: Tensor) -> Tensor:
        return (y * v.unsqueeze(1)).sum(2)

    def ours(credit: bool) -> bptt.GradientFlow:
        return bptt.gradient_flow(lstm, x, losses, credit=credit, dynamics=False)

    print(f"{backend()}; torch {torch.__version__}; T = {T}, B = {B}, LSTM of {H}")
    best: dict[tuple[str, bool], float] = {}
    found: dict[str, Any] = {}
    for _ in range(options.rounds):
        for credit in (False, True):
            for name, run in (
                ("ours", lambda credit=credit: ours(credit)),
                ("autograd", lambda credit=credit: by_autograd(cell, x, v, credit)),
            ):
                seconds, found[name] = timed(run)
                best[name, credit] = min(seconds, best.get((name, credit), seconds))
    for credit, what in ((False, "norms"), (True, "norms and credit")):
        mine, theirs = best["ours", credit], best["autograd", credit]
        print(f"{what:17} ours {mine:7.3f} s, autograd {theirs:7.3f} s: {theirs / mine:.1f}×")
    before = torch.ones(T, T).tril(-1).bool()
    by_name = {s.name: s.norms for s in found["ours"].states} | {"credit": found["ours"].credit}
    for name, expected in zip(("hidden", "cell", "credit"), found["autograd"], strict=True):
        off = (by_name[name] - expected)[:, before].abs()
        scale = expected[:, before].abs() if name != "credit" else expected.abs().max()
        print(f"{name}: largest relative difference {(off / scale).max():.1e}")


if __name__ == "__main__":
    main()
