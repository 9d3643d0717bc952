"""The processor: what it is, what runs on it, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bptt
from bptt._src.bench import fresh
from bptt._src.bench.result import Limits
from bptt._src.bench.timing import timed
from bptt._src.engines import kernel_library
from bptt.errors import KernelError
from bptt.kernels import backend

PRODUCTS = (1024, 2048)
"""Sizes of the square matrices."""


def conditions(jax: str | None) -> dict[str, Any]:
    """Describe what runs, and on which processor.

    Args:
        jax: its version, if it takes part.
    """
    kernels = backend()
    return {
        "processor": _name(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "kernels": str(kernels),
        "backend": kernels.name,
        "isa": kernels.isa,
        "bptt": bptt.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "jax": jax,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def measure_limits(seconds: float) -> Limits:
    """Measure the peak of fused multiply-adds and large matrix products.

    Args:
        seconds: for each.
    """
    threads = torch.get_num_threads()
    peak, in_bf16, reason = None, None, None
    try:
        peak = _peak(threads, seconds, bf16=False)
        in_bf16 = _peak(threads, seconds, bf16=True) if backend().bf16 else None
    except KernelError as e:
        reason = str(e)
    products = {f"torch.mm {size}": _torch_product(size, seconds) for size in PRODUCTS}
    numpy = fresh.run_fresh(fresh.numpy_products, threads, list(PRODUCTS), seconds)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    products |= {f"NumPy ({blas}) {size}": gflops for size, gflops in numpy.items()}
    return Limits(peak, reason, products, in_bf16)


def _peak(threads: int, seconds: float, *, bf16: bool) -> float:
    return max(kernel_library.fma_peak(threads, seconds / 10, bf16) for _ in range(10))


def _torch_product(size: int, seconds: float) -> float:
    """Return the GFLOP/s of the fastest of the products that fit into the time, or of three."""
    a, least, spent, count = torch.rand(size, size), float("inf"), 0.0, 0
    while count < 3 or spent < seconds:
        took = timed(partial(torch.mm, a, a))
        least, spent, count = min(least, took), spent + took, count + 1
    return 2 * size**3 / least / 1e9
