"""Running a command in the test's own process, which has imported everything already."""

from __future__ import annotations

import signal
import sys
import warnings

import pytest
from cli import offered, processes


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(monkeypatch, tmp_path_factory):
    """Not the one of whoever runs the tests."""
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with texts, a table and a trained run."""
    where = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(where / "cache"))
        offered.make_world(where)
    return where


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test():
    yield
    processes.end()


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a command; give what it printed. It must leave with this status."""
    from bptt._src.cli import main
    from bptt.errors import BpttWarning

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["bptt", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets its own
        before = signal.getsignal(signal.SIGINT)
        with warnings.catch_warnings():
            warnings.filterwarnings("default", category=BpttWarning)  # and not raised
            with pytest.raises(SystemExit) as left:
                main()
        signal.signal(signal.SIGINT, before)
        out, err = capsys.readouterr()
        found = left.value.code or 0
        assert found in (status if isinstance(status, tuple) else (status,)), (out, err)
        return out, err

    return run
