"""The native kernels on threads: the same bits on any number, from any thread, after a fork."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from every_engine import Call
from paths import using

from bptt._src.engines import kernel_library, native, threads
from bptt.cells import BY_NAME

NATIVE = sorted(name for name, cell in BY_NAME.items() if cell.is_native)
EACH_MODE = pytest.mark.parametrize("mode", NATIVE)
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


@pytest.fixture(params=kernel_library.ISAS)
def path(request):
    """The kind of vectors that this is tested with."""
    with using(request.param) as backend:
        yield backend


def on(n, work, monkeypatch, processors=None):
    """Run some work with n threads, whatever the processors, or on so many of them.

    In a thread of its own: its first calls have not learnt yet that others use the processors.
    """

    def run():
        if processors is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
        torch.set_num_threads(n)
        return work()

    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "processors", lambda: n)
    try:
        with ThreadPoolExecutor(1) as fresh:
            return fresh.submit(run).result()
    finally:
        torch.set_num_threads(before)
        monkeypatch.undo()


@contextmanager
def teams():
    """See how many threads each call takes, where it is more than one."""
    seen = []
    here = ctypes.CDLL(None)
    if not hasattr(here, "GOMP_parallel"):
        pytest.skip("torch has no GNU OpenMP here, and the kernels no threads")
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    real = kind(("GOMP_parallel", here))

    @kind
    def parallel(work, data, number, flags):
        seen.append(number)
        real(work, data, number, flags)

    rest = [
        ctypes.cast(getattr(here, f"omp_get_{name}"), ctypes.c_void_p)
        for name in ("thread_num", "num_threads")
    ]
    library = kernel_library.library()
    library.bptt_use_threads(ctypes.cast(parallel, ctypes.c_void_p), *rest)
    try:
        yield seen
    finally:
        kernel_library._share_threads(library)


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected), name


@EACH_MODE
@EACH_DTYPE
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_the_same_bits_on_any_number_of_threads_and_from_run_to_run(
    mode, dtype, shape, path, monkeypatch
):
    call = Call(mode, dtype, **shape)
    assert call.steps.batch * call.hidden**2 >= LARGE_STEP
    given = call.given()
    alone = on(1, lambda: call.run(native, given), monkeypatch)
    assert_same_bits(on(1, lambda: call.run(native, given), monkeypatch), alone)
    for n in (2, 3, 4):
        assert_same_bits(on(n, lambda: call.run(native, given), monkeypatch), alone)


@EACH_MODE
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
@pytest.mark.parametrize("processors", [1, 2])
def test_the_same_bits_on_more_threads_than_processors(mode, processors, path, monkeypatch):
    call = Call(mode, torch.float32, **LARGE["packed"])
    given = call.given()
    alone = on(1, lambda: call.run(native, given), monkeypatch)
    with teams() as seen:
        for n in (1, 2, 3, 4, 7):
            found = on(n, lambda: call.run(native, given), monkeypatch, processors)
            assert_same_bits(found, alone)
    assert {2, 3, 4, 7} <= set(seen)  # they did run


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


def large_call():
    return Call("LSTM", torch.float32, **LARGE["batch"])


@needs_native
def test_it_takes_as_many_threads_as_torch_says_now(monkeypatch):
    call = large_call()
    for n in (1, 3, 4):
        with teams() as seen:
            on(n, lambda: call.run(native), monkeypatch)
        assert seen[:1] == ([n] if n > 1 else [])  # alone it needs nobody


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
def test_it_takes_no_more_threads_than_it_may_run_on_processors():
    call, given = large_call(), sorted(os.sched_getaffinity(0))

    def run():
        torch.set_num_threads(len(given) + 2)
        for number in range(1, len(given) + 1):
            os.sched_setaffinity(0, given[:number])
            threads.refresh()
            for _ in range(2):
                call.run(native)
                assert threads.allowed() == number
            assert threads.explained()[0] == number

    before = torch.get_num_threads()
    try:
        with teams() as seen, ThreadPoolExecutor(1) as fresh:
            fresh.submit(run).result()
    finally:
        torch.set_num_threads(before)
    assert all(n <= len(given) for n in seen)
    assert seen[:1] == ([2] if len(given) > 1 else [])


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
def test_a_team_whose_threads_wait_for_a_processor_gets_smaller(monkeypatch):
    call = Call("LSTM", torch.float32, (200,) * 9, 9, 90)
    alone = on(1, lambda: call.run(native), monkeypatch)

    def run():
        for _ in range(10):
            assert_same_bits(call.run(native), alone)

    with teams() as seen:
        on(4, run, monkeypatch, processors=1)
    assert seen[0] == 4
    assert min(seen) < 4
    assert len(seen) < 20  # of 20 passes some ran on one thread


@needs_native
@needs_fork
def test_a_forked_child_and_its_threads_can_go_on():
    """It has none of the threads that its parent had, and must not wait for them."""
    run_apart(
        START
        + """
before = run()
assert bptt.kernels.backend().fewer is None or "processor" in bptt.kernels.backend().fewer
child = os.fork()
if child == 0:
    assert str(bptt.kernels.backend()).endswith("1 thread (2 asked for, this is a forked child)")
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
