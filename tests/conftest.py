"""What holds for every test.

Shape annotations are checked because pyproject.toml's ``--jaxtyping-packages`` says so:
``test_shapes_checked.py`` fails if that is lost.
"""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# Processes that run side by side share the cores; a test's matrices are small anyway.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # and what a test starts as a process of its own


@pytest.fixture(autouse=True)
def _same_randomness_for_every_test():
    """A test's numbers do not depend on which tests ran before it."""
    torch.manual_seed(0)
