"""Check bptt on a GPU against the processor, and time it beside torch.nn's cuDNN.

    python benchmarks/gpu.py [--rounds 20] [--device cuda]

First the results: outputs, final states and gradients of the modules on the GPU, plain, with
credits, with resets, with ``memory``, and the gradient flow, against the same on the processor in
float64; in float64 and float32. Then the times of one update: torch.nn plain; bptt plain, cut
together (``truncated:20``), reset together and reset each by itself; padding as torchrl does it,
where that is installed. Last a language model's update. On another device than CUDA's there are no
times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bptt

T, B, INPUTS, HIDDEN = 60, 8, 12, 24
MODULES: dict[str, Callable[..., Any]] = {
    "RNN": lambda **o: bptt.RNN(INPUTS, HIDDEN, 2, **o),
    "RNN, sigmoid": lambda **o: bptt.RNN(INPUTS, HIDDEN, 2, nonlinearity="sigmoid", **o),
    "GRU": lambda **o: bptt.GRU(INPUTS, HIDDEN, 2, **o),
    "LSTM": lambda **o: bptt.LSTM(INPUTS, HIDDEN, 2, **o),
    "LSTM, projection": lambda **o: bptt.LSTM(INPUTS, HIDDEN, 2, proj_size=7, **o),
    "LSTM, both directions": lambda **o: bptt.LSTM(INPUTS, HIDDEN, 2, bidirectional=True, **o),
    "MGU": lambda **o: bptt.Recurrent(bptt.cells.MGU, INPUTS, HIDDEN, 2, **o),
}


def calls() -> dict[str, Callable[..., Any]]:
    each = torch.rand(T, B) < 0.1
    together = (torch.rand(T, 1) < 0.1).expand(T, B).contiguous()
    reweighted = bptt.Randomized(10).plan(T, B).carry

    def of(**how: Any) -> Callable[..., Any]:
        def run(network: Any, x: Tensor) -> Any:
            moved = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in how.items()}
            if "carry" in moved:
                moved["carry"] = moved["carry"].to(x.dtype)
            return network(x, **moved)

        return run

    return {
        "plain": of(),
        "cut together": of(credit="truncated:20"),
        "windows": of(credit="truncated:every=10,reach=20"),
        "reweighted": of(carry=torch.from_numpy(reweighted)),
        "reset together": of(resets=together),
        "reset each by itself": of(resets=each),
        "recomputed": lambda network, x: bptt.unroll(network, x, memory=bptt.Recompute(4)),
    }


def results(network: Any, x: Tensor, call: Callable[..., Any]) -> list[Tensor]:
    given = x.clone().requires_grad_()
    y, final = call(network, given)
    finals = final if isinstance(final, tuple) else (final,)
    loss = y.sin().sum() + sum(s.square().sum() for s in finals)
    found = torch.autograd.grad(loss, [given, *network.parameters()])
    return [t.detach().double().cpu() for t in (y, *finals, *found)]


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in pairs)


def check(device: str) -> bool:
    """Print the largest differences, relative to the largest value of each tensor."""
    print(f"{'':24}{'':24}{'float64':>12}{'float32':>12}")
    is_right = True
    for name, make in MODULES.items():
        network, x = make(dtype=torch.float64), torch.randn(T, B, INPUTS, dtype=torch.float64)
        for how, call in calls().items():
            if how == "windows" and network.bidirectional:
                continue
            if how == "recomputed" and network.bidirectional:
                continue
            expected, row = results(network, x, call), []
            for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
                there = make(device=device, dtype=dtype)
                there.load_state_dict(network.state_dict())
                difference = largest_difference(results(there, x.to(device, dtype), call), expected)
                is_right &= difference < tolerance
                row.append(f"{difference:.1e}" + ("" if difference < tolerance else " !"))
            print(f"{name:24}{how:24}" + "".join(f"{cell:>12}" for cell in row), flush=True)
        if not network.bidirectional:
            here = bptt.gradient_flow(network, x).norms
            there = make(device=device, dtype=torch.float64)
            there.load_state_dict(network.state_dict())
            difference = float(
                (bptt.gradient_flow(there, x.to(device)).norms.cpu() - here).abs().max()
            )
            is_right &= difference < 1e-6
            print(f"{name:24}{'gradient flow':24}{difference:>12.1e}", flush=True)
    return is_right


# -------------------------------------------------------------------------------------- times


def timed(run: Callable[[], Any], rounds: int) -> float:
    """The median milliseconds of a call, from events on the device."""
    for _ in range(3):
        run()
    found = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


def update(network: Any, x: Tensor, **how: Any) -> Callable[[], None]:
    def run() -> None:
        y, _ = network(x, **how)
        y.sum().backward()

    return run


def padded_as_torchrl(x: Tensor, starts: Tensor) -> Callable[[], None] | None:
    """torchrl's LSTM with resets, by its own splitting and padding."""
    try:
        from tensordict import TensorDict
        from torchrl.modules import LSTMModule, set_recurrent_mode
    except ImportError:
        return None
    module = LSTMModule(
        input_size=x.shape[-1], hidden_size=256, device="cuda", in_key="x", out_key="y"
    )
    data = TensorDict(
        {"x": x.transpose(0, 1), "is_init": starts.t().unsqueeze(-1)}, batch_size=x.shape[1::-1]
    )

    def run() -> None:
        with set_recurrent_mode(True):
            module(data.clone())["y"].sum().backward()

    return run


def time_layers(rounds: int) -> None:
    x = torch.randn(128, 64, 256, device="cuda")
    theirs, ours = nn.LSTM(256, 256).cuda(), bptt.LSTM(256, 256).cuda()
    each = torch.rand(128, 64, device="cuda") < 0.02
    together = (torch.rand(128, 1, device="cuda") < 0.02).expand(128, 64)
    rows: dict[str, Callable[[], None] | None] = {
        "torch.nn.LSTM": update(theirs, x),
        "bptt.LSTM": update(ours, x),
        "bptt.LSTM, truncated:20": update(ours, x, credit="truncated:20"),
        "bptt.LSTM, reset together": update(ours, x, resets=together),
        "bptt.LSTM, reset each by itself": update(ours, x, resets=each),
        "bptt.LSTM, windows of 20, 40 back": update(ours, x, credit="truncated:every=20,reach=40"),
        "torchrl's LSTM, padded": padded_as_torchrl(x, each),
    }
    print("\none update, T = 128, B = 64, I = H = 256")
    for name, run in rows.items():
        cell = "not installed" if run is None else f"{timed(run, rounds):.2f} ms"
        print(f"    {name:40}{cell:>16}", flush=True)


def time_language_model(rounds: int) -> None:
    vocabulary, tokens = 10_000, torch.randint(10_000, (36, 32), device="cuda")
    embedding, readout = nn.Embedding(vocabulary, 512).cuda(), nn.Linear(512, vocabulary).cuda()
    print("\none update of a language model, T = 35, B = 32, H = 512, V = 10,000")
    for name, kind in (("torch.nn.LSTM, cross_entropy", nn.LSTM), ("bptt", bptt.LSTM)):
        network = kind(512, 512, 2).cuda()

        def run(network: Any = network, is_ours: bool = kind is bptt.LSTM) -> None:
            y, _ = network(embedding(tokens[:-1]))
            if is_ours:
                loss = bptt.losses.linear_cross_entropy(y, readout.weight, readout.bias, tokens[1:])
            else:
                loss = nn.functional.cross_entropy(readout(y).flatten(0, 1), tokens[1:].flatten())
            loss.backward()

        print(f"    {name:40}{timed(run, rounds):>13.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    is_cuda = options.device.startswith("cuda")
    if is_cuda and not torch.cuda.is_available():
        sys.exit("error: there is no GPU that torch can use here")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if is_cuda else 'no GPU'}\n")
    begun = time.perf_counter()
    is_right = check(options.device)
    if is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        time_layers(options.rounds)
        time_language_model(options.rounds)
    print(f"\n{time.perf_counter() - begun:.0f} s")
    if not is_right:
        sys.exit("error: differences marked ! are above what rounding explains")


if __name__ == "__main__":
    main()
