"""Where the native library lies: beside this module, or behind an editable install."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
NAME = f"libbptt_kernels{SUFFIX}"


def library_path() -> Path:
    """Find the library that was compiled when bptt was installed.

    Raises:
        FileNotFoundError: there is none; says where it would be and what to do.

    >>> library_path().stem  # doctest: +SKIP
    'libbptt_kernels'
    """
    places = [Path(__file__).parent, *_editable()]
    for place in places:
        if (place / NAME).is_file():
            return place / NAME
    raise FileNotFoundError(
        f"no {NAME} in {' or '.join(map(str, places))}: it is compiled when bptt is installed, "
        "where there is a C++17 compiler (gcc or clang); with one, install bptt again, with pip's "
        "--force-reinstall --no-deps --no-cache-dir (and --verbose, to see what goes wrong)"
    )


def _editable() -> list[Path]:
    """Beside the environment's other packages, where the modules themselves are in a checkout."""
    try:
        return [Path(str(distribution("bptt").locate_file("bptt.libs")))]
    except PackageNotFoundError:
        return []
