"""What holds for every test.

Shape annotations are checked because pyproject.toml's ``--jaxtyping-packages`` says so:
``test_shapes_checked.py`` fails if that is lost. Of very many calls, ``sampled.py`` checks some.
"""

import gc
import os
import signal
from collections import Counter

import hypothesis
import jaxtyping
import pytest
import torch
from sampled import CALLS

# Before bptt is imported, the functions of which are given their checks as it is.
jaxtyping.jaxtyped = CALLS.sampled(jaxtyping.jaxtyped)

# Nothing of what is imported and collected is ever garbage: to look through it takes the collector
# a second each time, and there are tests that call it.
gc.disable()

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# A test's matrices are small, and a pool of OpenMP's threads, once there is one, is missing in
# every fork of this process, which then waits for it for ever.
torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # and what a test starts as a process of its own


# What ignores a signal, as a script's background does, has children that ignore it. A handler goes
# on ignoring it here, and is not inherited.
for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def pytest_ignore_collect(collection_path, config):
    """Three folders are run without checks of annotations, which these options switch on.

    ``test_recorded.py`` runs the first in processes of their own, ``make test-integrations`` and
    ``make test-forecasting`` the others, with the libraries that they need.
    """
    if collection_path.name in ("recorded", "integrations", "forecasting"):
        return bool(config.getoption("jaxtyping_packages")) or None
    return None


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_report_header(config):
    if config.getoption("jaxtyping_packages"):
        return "tests/NAME, integrations and forecasting, is run by `make test-NAME`"
    return None


@pytest.fixture(autouse=True)
def _same_randomness_for_every_test():
    """A test's numbers do not depend on which tests ran before it."""
    torch.manual_seed(0)
    CALLS.begin()


@pytest.fixture
def compiled_as_written():
    """What torch.compile makes is there, and runs as written: the checks of annotations that wrap
    every function here are not for the compiler to look through. ``recorded`` compiles."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def survived(request):
    """Count the cases that a test went through: ``survived("byte flips", 600)``.

    The sums are printed at the end of the run, whichever processes the tests ran in.
    """

    def count(kind: str, cases: int = 1) -> None:
        request.node.user_properties.append(("survived", (kind, cases)))

    return count


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "survived" and report.when == "call":
                counts[value[0]] += value[1]
    if counts:
        terminalreporter.section("what it survived")
        for kind, cases in sorted(counts.items()):
            terminalreporter.line(f"{cases:>8,}  {kind}")
