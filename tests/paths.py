"""The kernels that tests go through: the twin, and the native ones with each kind of vectors."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from bptt import kernels
from bptt._src.engines import kernel_library
from bptt.errors import KernelError

PATHS = ["twin", *kernel_library.ISAS]


@contextmanager
def using(name: str):
    """Use them, or skip the test where they are not to be had.

    With ``BPTT_KERNELS=native`` it is an error that there is no library, and nothing is skipped but
    vectors that the processor does not have.
    """
    try:
        chosen = kernels.use(name)
        backend = chosen.__enter__()
    except KernelError as e:
        if os.environ.get("BPTT_KERNELS") == "native":
            kernel_library.library()
        pytest.skip(str(e))
    try:
        yield backend
    finally:
        chosen.__exit__(None, None, None)
