"""Time a training step of bptt's modules and of torch.nn's, side by side.

    python benchmarks/modules.py [T/B/I/H ...]

A step is forward and backward, with the gradients of input and weights. Ours and theirs take turns;
the least time of each is printed, and the median of the ratios of neighbours.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time

import torch

import bptt

SHAPES = ["35/20/200/200", "35/20/650/650", "100/32/128/256", "20/1/100/100", "200/64/64/64"]
ROUNDS = 15


def seconds(module: torch.nn.Module, x: torch.Tensor, grad: torch.Tensor) -> float:
    """Time one step."""
    begun = time.perf_counter()
    y, _ = module(x)
    y.backward(grad)
    return time.perf_counter() - begun


def main() -> None:
    """Print a line for each cell and shape."""
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )
    print(f"{'':6}{'T/B/I/H':>16}{'torch.nn ms':>13}{'bptt ms':>10}{'torch.nn / bptt':>17}")
    for name in ("RNN", "GRU", "LSTM"):
        for shape in sys.argv[1:] or SHAPES:
            T, B, I, H = map(int, shape.split("/"))  # noqa: E741
            x, grad = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
            pair = [getattr(library, name)(I, H) for library in (torch.nn, bptt)]
            times = [[seconds(m, x, grad) for m in pair] for _ in range(ROUNDS)][2:]
            theirs, ours = (1e3 * min(t) for t in zip(*times, strict=True))
            ratio = statistics.median(a / b for a, b in times)
            print(f"{name:6}{shape:>16}{theirs:13.2f}{ours:10.2f}{ratio:17.2f}")


if __name__ == "__main__":
    main()
