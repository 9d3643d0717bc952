"""The same random calls with the kernels under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import with_own_kernels
from fuzz.worker import fuzz

import bptt

ROOT = Path(__file__).parents[2]
COUNTS = {"modules": 150, "credits": 60, "readouts": 80, "flows": 40}
OVERFLOW = """
import torch
from bptt._src.engines import kernel_library, guard, native
x, y = torch.zeros(10), torch.zeros(10)
kernel_library.library().bptt_function(0, 0, 1000, guard.address(x), guard.address(y))
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The environment of a process whose kernels are checked: a copy of bptt, its own library."""
    place = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(Path(bptt.__file__).parent, place / "bptt")
    options = "-D", "BPTT_SANITIZE=address;undefined"
    with_own_kernels(ROOT, place / "bptt", place / "build", *options)
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "PYTHONPATH": str(place),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "BPTT_KERNELS": "native",
    }


@pytest.mark.long
def test_what_reads_past_the_end_is_found(sanitized):
    died = subprocess.run(
        [sys.executable, "-c", OVERFLOW],
        env=sanitized,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert died.returncode != 0
    assert "SUMMARY: AddressSanitizer" in died.stderr, died.stderr[-2000:]
    assert "csrc/vector.h" in died.stderr, died.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("kind", COUNTS)
def test_no_case_touches_memory_that_is_not_its_own(kind, sanitized, survived):
    fuzz(kind, 30000, COUNTS[kind], sanitized, seconds=600)
    survived("fuzzed cases under the address sanitizer", COUNTS[kind])
