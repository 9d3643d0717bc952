"""Which kernels run: what BPTT_KERNELS asks for, what is said of it, and that it is so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from paths import using

import bptt
from bptt._src.engines import backend as choice
from bptt._src.engines import kernel_library, sequence
from bptt.errors import KernelError
from bptt.kernels import Backend

NATIVE = ("native", *kernel_library.ISAS)


@pytest.fixture
def fresh():
    """Nothing is chosen yet, and no library loaded; all is put back at the end."""
    with bptt.kernels.use("auto"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "_choice", choice._Choice())
            patch.delenv("BPTT_KERNELS", raising=False)
            kernel_library.library.cache_clear()
            yield patch
        kernel_library.library.cache_clear()


@pytest.fixture
def without_library(fresh):
    def missing():
        raise FileNotFoundError("no library in here: it is compiled elsewhere")

    fresh.setattr(kernel_library, "library_path", missing)
    return fresh


def run():
    """A step of a small network."""
    torch.manual_seed(0)
    rnn = bptt.GRU(2, 3)
    y, _ = rnn(torch.ones(4, 1, 2))
    y.sum().backward()
    return y


# ------------------------------------------------------------------------ what the variable says


@pytest.mark.parametrize("name", NATIVE)
def test_the_variable_chooses_the_kernels(name, fresh):
    with using(name) as chosen:
        assert chosen.name == "native"
        expected = chosen.isa
    fresh.setattr(choice, "_choice", choice._Choice())
    fresh.setenv("BPTT_KERNELS", name)
    backend = bptt.kernels.backend()
    assert (backend.name, backend.isa, backend.reason) == ("native", expected, None)
    if name != "native":
        assert backend.isa == name


def test_the_widest_path_is_taken_where_none_is_named(fresh):
    with using("native"):
        there = [
            p for n, p in enumerate(kernel_library.ISAS) if kernel_library.library().bptt_has_isa(n)
        ]
    for name in ("auto", "native"):
        with bptt.kernels.use("portable"), bptt.kernels.use(name) as chosen:
            assert chosen.isa == there[-1]


def test_the_variable_is_read_by_a_new_process():
    def ask(name):
        script = "import bptt; print(bptt.kernels.backend())"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "BPTT_KERNELS": name},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    assert ask("twin").startswith("plain torch (twin), ")
    assert "KernelError: BPTT_KERNELS must be one of auto, native, twin, " in ask("fast")


def test_a_name_that_is_none_is_said(fresh):
    fresh.setenv("BPTT_KERNELS", "AVX2")
    expected = "BPTT_KERNELS must be one of auto, native, twin, portable, avx2, avx512, got 'AVX2'"
    for ask in (bptt.kernels.backend, run):
        with pytest.raises(KernelError) as e:
            ask()
        assert str(e.value) == expected


def test_a_path_that_the_processor_lacks_is_said_with_those_it_has(fresh):
    with using("native"):
        library = kernel_library.library()

    class Narrow:
        """The library, on a processor without wide vectors."""

        def __getattr__(self, name):
            return getattr(library, name)

        def bptt_has_isa(self, path):
            return int(path == 0)

        def bptt_use_isa(self, path):
            return 0 if path == 0 else -1

    fresh.setattr(kernel_library, "library", Narrow)
    with pytest.raises(KernelError) as e, bptt.kernels.use("avx512"):
        pass
    assert str(e.value) == (
        "BPTT_KERNELS=avx512: this processor or this build has no avx512; it has portable"
    )


# --------------------------------------------------------------------- where there is no library


def test_without_a_library_the_twin_runs_and_says_why(without_library):
    backend = bptt.kernels.backend()
    assert (backend.name, backend.isa) == ("twin", None)
    assert backend.reason == (
        "the native kernels cannot be used: no library in here: it is compiled elsewhere"
    )
    assert run().isfinite().all()


@pytest.mark.parametrize("name", NATIVE)
def test_without_a_library_what_was_asked_for_by_name_is_an_error(name, without_library):
    without_library.setenv("BPTT_KERNELS", name)
    for ask in (bptt.kernels.backend, run):
        with pytest.raises(KernelError, match="cannot be used: no library in here"):
            ask()


def test_a_file_that_is_no_library_is_one_that_cannot_be_used(fresh, tmp_path):
    (tmp_path / "broken.so").write_text("not a library")
    fresh.setattr(kernel_library, "library_path", lambda: tmp_path / "broken.so")
    backend = bptt.kernels.backend()
    assert backend.name == "twin"
    assert backend.reason.startswith("the native kernels cannot be used: ")
    assert "broken.so" in backend.reason
    assert "\n" not in str(backend)


def test_a_library_of_another_version_is_not_used(fresh, tmp_path):
    class Old:
        def __init__(self, path):
            pass

        def bptt_interface(self):
            return kernel_library.INTERFACE - 1

    fresh.setattr(kernel_library, "library_path", lambda: tmp_path / "old.so")
    fresh.setattr(ctypes, "CDLL", Old)
    expected = (
        f"{tmp_path / 'old.so'} is of another version of bptt "
        f"(interface {kernel_library.INTERFACE - 1}, "
        f"expected {kernel_library.INTERFACE}): install bptt again"
    )
    assert bptt.kernels.backend().reason == expected
    with pytest.raises(KernelError) as e:
        kernel_library.library()
    assert str(e.value) == expected


# -------------------------------------------------------------------- what was chosen is what runs


def refuse(*_, **__):
    raise AssertionError("ran")


@pytest.mark.parametrize("name", ["twin", *NATIVE])
def test_what_was_chosen_is_what_runs(name, monkeypatch):
    with using(name):
        chosen, other = ("twin", "native") if name == "twin" else ("native", "twin")
        for part in ("forward", "backward"):
            monkeypatch.setattr(getattr(sequence, other), part, refuse)
        run()
        for part in ("backward", "forward"):
            monkeypatch.setattr(getattr(sequence, chosen), part, refuse)
            with pytest.raises(AssertionError, match="ran"):
                run()


def test_native_kernels_leave_to_the_twin_what_they_do_not_have(monkeypatch):
    monkeypatch.setattr(sequence.native, "forward", refuse)
    with using("native"):
        bptt.Recurrent(bptt.cells.BY_NAME["RNN_TANH"], 2, 3, proj_size=2)(torch.ones(4, 1, 2))
        leaky = bptt.Cell("LEAKY", 1, 1, lambda x, h, s, units: (0.9 * s[0] + x[0] + h[0],))
        bptt.Recurrent(leaky, 2, 3)(torch.ones(4, 1, 2))
        with pytest.raises(AssertionError, match="ran"):
            bptt.LSTM(2, 3)(torch.ones(4, 1, 2))


@pytest.mark.parametrize("outer", ["twin", "native", "portable"])
@pytest.mark.parametrize("inner", ["twin", "portable", "auto"])
def test_after_the_block_it_is_as_before_an_error_or_not(outer, inner):
    with using(outer) as before:
        with using(inner):
            pass
        assert bptt.kernels.backend() == before
        with pytest.raises(ZeroDivisionError), bptt.kernels.use(inner):
            raise ZeroDivisionError
        assert bptt.kernels.backend() == before
        with pytest.raises(KernelError), bptt.kernels.use("none"):
            pass
        assert bptt.kernels.backend() == before


def test_a_backend_is_one_line():
    assert str(Backend("native", "avx2", 2, None)) == "native kernels, avx2, 2 threads"
    assert str(Backend("native", "avx512", 1, None)) == "native kernels, avx512, 1 thread"
    twin = Backend("twin", None, 4, "asked for by name")
    assert str(twin) == "plain torch (twin), 4 threads: asked for by name"
    with bptt.kernels.use("twin") as backend:
        assert backend == Backend("twin", None, torch.get_num_threads(), "asked for by name")


def test_the_peak_is_measured_with_the_path_in_use():
    with using("native"):
        assert kernel_library.fma_peak(1, 0.001) > 0.01
