"""Files have one subject each: none is long."""

from pathlib import Path

import bptt

MOST = 400


def test_no_source_file_is_longer_than_a_reader_keeps_in_mind():
    root = Path(bptt.__file__).parent
    files = [p for kind in ("*.py", "*.h", "*.cpp") for p in root.rglob(kind)]
    assert len(files) > 100
    long = {
        str(p.relative_to(root)): n for p in files if (n := len(p.read_text().splitlines())) > MOST
    }
    assert long == {}
