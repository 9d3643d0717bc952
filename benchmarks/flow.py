"""How long all pairs take: ``bptt.gradient_flow`` beside T backward passes of autograd.

    python benchmarks/flow.py                           # T = 200, B = 16, LSTM of 256
    python benchmarks/flow.py --steps 50 --hidden 64

What is measured is ‖∂L_t/∂h_s‖ and ‖∂L_t/∂c_s‖ for all t and s of one layer. Autograd's way:
torch.nn.LSTMCell, step by step, in one graph, and one ``torch.autograd.grad`` of L_t for all the
states before t, with nothing else asked for. Ours: the same from the sequence of inputs, the
forward pass included, without and with the credit of the inputs. Both in turns, the quickest of
each counts; then that they found the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.kernels import backend, native


def by_autograd(cell: nn.LSTMCell, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """‖∂L_t/∂h_s‖ and ‖∂L_t/∂c_s‖ for s < t, each [B, T, T], a backward pass for each t."""
    T, B = x.shape[:2]
    h = c = x.new_zeros(B, cell.hidden_size)
    entering: list[tuple[Tensor, Tensor]] = []
    losses = []
    for t in range(T):
        h, c = cell(x[t], (h, c))
        losses.append((h * v[t]).sum())
        h, c = h.view_as(h), c.view_as(c)  # as they enter the next step
        entering.append((h, c))
    found = torch.zeros(2, B, T, T)
    for t in range(1, T):
        asked = [s for pair in entering[:t] for s in pair]
        gradients = torch.autograd.grad(losses[t], asked, retain_graph=True)
        for which in (0, 1):
            norms = torch.stack(gradients[which::2]).norm(dim=2)
            found[which, :, t, :t] = norms.t()
    return found[0], found[1]


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
    names = ("ours", "ours, with the inputs' credit", "autograd")
    best = dict.fromkeys(names, float("inf"))
    for _ in range(options.rounds):
        for name, credit in zip(names[:2], (False, True), strict=True):
            seconds, flow = timed(lambda credit=credit: ours(credit))
            best[name] = min(best[name], seconds)
        seconds, theirs = timed(lambda: by_autograd(cell, x, v))
        best["autograd"] = min(best["autograd"], seconds)
    for name, seconds in best.items():
        print(f"{name:32} {seconds:8.3f} s   {best['autograd'] / seconds:6.2f}×")
    products = B * T * (T - 1) / 2 * 2 * 4 * H * H
    rate = products / best["ours"] / 1e9
    print(f"ours: {rate:.0f} GFLOP/s in the recursion's products; the processor's limit", end=" ")
    print(f"{native.fma_peak(torch.get_num_threads(), 0.3):.0f}")
    before = torch.ones(T, T).tril(-1).bool()
    for name, expected in zip(("hidden", "cell"), theirs, strict=True):
        (norms,) = (s.norms for s in flow.states if s.name == name)
        off = (norms - expected)[:, before].abs() / expected[:, before]
        print(f"{name}: largest relative difference {off.max():.1e}")


if __name__ == "__main__":
    main()
