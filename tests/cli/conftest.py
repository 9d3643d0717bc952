"""Running a command in the test's own process, which has imported everything already."""

from __future__ import annotations

import sys
import warnings

import pytest


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a command; give what it printed. It must leave with this status."""
    from bptt.cli import main

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["bptt", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets its own
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert (left.value.code or 0) == status, (out, err)
        return out, err

    return run
