"""The tables of README.md, from a file that the bench wrote."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from bptt._src.bench.result import CELL, IN_BF16, JAX, OURS, TORCH
from bptt.bench import Bench, Limits, Row

TOOL = Path(__file__).parents[2] / "tools" / "readme_tables.py"
if not TOOL.exists():
    pytest.skip("there is no checkout", allow_module_level=True)


def written(tmp_path, name, rows):
    c = dict.fromkeys(("processor", "kernels", "torch", "jax"), "x") | {"threads": 2, "rounds": 3}
    limits = Limits(2.0, None, {"mm": 1.0}, 4.0)
    path = tmp_path / name
    path.write_text(json.dumps(Bench(c, limits, rows).to_dict()))
    return str(path)


def test_the_tables(tmp_path):
    low, torch_low = IN_BF16[OURS], IN_BF16[TORCH]
    layers = [
        Row("kernels", "GRU", "1/2/3/4", 10**9, {OURS: [1.0], TORCH: [2.0], JAX: [3.0]}),
        Row("kernels", "GRU", "5/6/7/8", 10**9, {OURS: [2.0], TORCH: [2.0]}),
        Row("kernels", "LSTM", "1/2/3/4", 10**9, {OURS: [1.0], TORCH: [3.0]}),
    ]
    others = [
        Row("bf16", "GRU", "1/2/3/4", 10**9, {low: [1.0], torch_low: [1.5], OURS: [1.7]}, base=low),
        Row("sampling", "LSTM", "9/8/1/50", None, {OURS: [1.0], TORCH: [0.5]}, tokens=50),
        Row("acting", "RNN", "1/1/3/4", 10**9, {OURS: [1.0], TORCH: [4.0], CELL: [3.0]}),
        Row("search", "RNN forward", "1/1/3/9", 10**9, {OURS: [1.0], TORCH: [4.0], CELL: [0.5]}),
    ]
    tool = runpy.run_path(str(TOOL))
    lines = tool["main"](
        [written(tmp_path, "a.json", layers), written(tmp_path, "b.json", others)]
    ).splitlines()
    for line in (
        "| T/B/I/H | GRU | LSTM |",
        "| 1/2/3/4 | 1,000 ms, 2.00×, 3.00×, 50% | 1,000 ms, 3.00×, -, 50% |",
        "| 5/6/7/8 | 2,000 ms, 1.00×, -, 25% | - |",
        "| median | 1.50×, 3.00×, 38% | 3.00×, -, 50% |",
        "|  | milliseconds | torch | bptt in float32 | share of the peak |",
        "| GRU 1/2/3/4 | 1,000 | 1.50× | 1.70× | 25% |",
        "|  | tokens/s | torch |",
        "| LSTM 9/8/1/50 | 50 | 0.500× |",
        "| RNN 1/1/3/4 | 1,000 | 4.00× | 3.00× | 50% |",
        "| forward, float32 | 1 | 0.500× | 1 |",
        "| RNN forward 1/1/3/9 | 1,000 | 4.00× | 0.500× | 50% |",
    ):
        assert line in lines
