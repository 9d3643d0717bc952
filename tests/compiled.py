"""A copy of the package with kernels that a test compiles for itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import bptt
from bptt._src.engines import find


def with_own_kernels(sources: Path, package: Path, build: Path, *options: str) -> None:
    """Compile the kernels, and put them where a copy of the package looks for them first.

    Args:
        sources: the checkout, or a copy of it.
        package: the copy: a directory ``bptt``.
        build: a directory to compile in.
        options: more options for cmake.
    """
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++")
    for command in (
        ["cmake", "-S", str(sources), "-B", str(build), "-D", "CMAKE_CXX_COMPILER=g++", *options],
        ["cmake", "--build", str(build), "--target", "bptt_kernels"],
    ):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    beside = Path(find.__file__).relative_to(Path(bptt.__file__).parent).parent
    assert (package / beside).is_dir()
    shutil.copy(build / find.NAME, package / beside)
