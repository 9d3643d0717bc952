"""The native kernels on threads: the same bits on any number, from any thread, after a fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from engines import Call
from paths import using

from bptt.cells import BY_MODE
from bptt.kernels import native

EACH_MODE = pytest.mark.parametrize("mode", sorted(BY_MODE))
EACH_DTYPE = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "float"]
)

# Steps that are large enough for several threads (csrc/sequence.h, SMALL_STEP).
LARGE = {
    "batch": {"lengths": (4,) * 9, "inputs": 33, "hidden": 151},
    "one sequence": {"lengths": (5,), "inputs": 9, "hidden": 451, "reverse": True, "resets": True},
    "packed": {"lengths": (5, 5, 5, 5, 4, 4, 2, 2, 1), "inputs": 20, "hidden": 152, "carry": True},
    "few units": {"lengths": (2,) * 2500, "inputs": 1, "hidden": 9},  # not one for each thread
    "many rows": {"lengths": (14,) * 40, "inputs": 3, "hidden": 72},
    "windows": {"lengths": (9,) * 8 + (4,), "inputs": 9, "hidden": 150, "every_reach": (2, 5)},
    "by windows": {
        "lengths": (14, 13, 2),
        "inputs": 33,
        "hidden": 260,
        "every_reach": (3, 9),
        "by_windows": True,
        "carry": True,
    },
}
LARGE_STEP = 200_000


@pytest.fixture(params=native.PATHS)
def path(request):
    """The kind of vectors that this is tested with."""
    with using(request.param) as backend:
        yield backend


@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected), name


@EACH_MODE
@EACH_DTYPE
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_the_same_bits_on_any_number_of_threads_and_from_run_to_run(mode, dtype, shape, path):
    call = Call(mode, dtype, **shape)
    assert call.steps.batch * call.hidden**2 >= LARGE_STEP
    given = call.given()
    with threads(1):
        alone = call.run(native, given)
        assert_same_bits(call.run(native, given), alone)
    for n in (2, 3, 4):
        with threads(n):
            assert_same_bits(call.run(native, given), alone)


def test_calls_from_several_threads_at_the_same_time(path):
    """Each with a work space of its own, and some of them with threads of their own."""
    calls = [
        Call("LSTM", torch.float32, (3,) * 9, 7, 90),
        Call("GRU", torch.float64, (30, 9), 3, 5),
    ]
    expected = [call.run(native) for call in calls]

    def run(n):
        for _ in range(5):
            assert_same_bits(calls[n % 2].run(native), expected[n % 2])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def run_apart(script: str) -> str:
    """Run a script in a process of its own, that may hang without our doing so too."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_native = pytest.mark.usefixtures("_native")
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


@pytest.fixture
def _native():
    with using("native"):
        yield


START = """
import os, threading, torch, bptt
torch.manual_seed(0)
torch.set_num_threads(2)
assert bptt.kernels.backend().name == "native"
lstm = bptt.LSTM(7, 90)  # of torch's own operations none is so large that it takes threads
x = torch.randn(3, 9, 7)

def run():
    lstm.zero_grad()
    y, _ = lstm(x)
    y.sum().backward()
    return [y.detach(), *(p.grad for p in lstm.parameters())]

def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="nothing says how many threads there are")
def test_it_takes_as_many_threads_as_torch_says_now():
    """No more than one at first; the pool then grows when there are to be more."""
    out = run_apart(
        START
        + """
def used():
    with torch.no_grad():
        lstm(x)
    return len(os.listdir("/proc/self/task"))

for n in (1, 3, 4):
    torch.set_num_threads(n)
    print(used())
"""
    )
    one, three, four = map(int, out.split())
    assert (three - one, four - one) == (2, 3)


@needs_native
@needs_fork
def test_a_forked_child_and_its_threads_can_go_on():
    """It has none of the threads that its parent had, and must not wait for them."""
    run_apart(
        START
        + """
before = run()
child = os.fork()
if child == 0:
    results = []
    others = [threading.Thread(target=lambda: results.append(lstm(x)[0].detach())) for _ in "12"]
    [t.start() for t in others]
    [t.join() for t in others]
    os._exit(0 if same(run(), before) and same(results, [before[0]] * 2) else 1)
assert os.waitpid(child, 0)[1] == 0
assert same(run(), before)
"""
    )


@needs_native
@needs_fork
def test_workers_of_a_data_loader_can_run_a_module():
    run_apart(
        START
        + """
from torch.utils.data import DataLoader, Dataset

class Runs(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, n):
        with torch.no_grad():
            return lstm(x + n)[0]

    def __getitems__(self, numbers):
        return [self[n] for n in numbers]

expected = torch.stack([Runs()[n] for n in range(6)])
loader = DataLoader(Runs(), 2, num_workers=2, timeout=60, multiprocessing_context="fork")
assert torch.equal(torch.cat(list(loader)), expected)
"""
    )
