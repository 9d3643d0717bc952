"""Files are whole; errors name them as they were named."""

from __future__ import annotations

import os
import threading

import pytest

from bptt import files
from bptt.files import append_line, write_whole


def test_a_link_stays_one(tmp_path):
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_whole(pipe, "through it")
    reader.join(10)
    assert read == ["through it"]
    assert pipe.is_fifo()


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    for write in (write_whole, append_line):
        for path in (tmp_path / "nowhere" / "a.json", tmp_path):
            with pytest.raises(OSError, match=r"directory") as caught:
                write(path, "text")
            assert caught.value.filename == str(path)


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "zwölf")
    assert path.read_bytes() == "one\nzwölf\n".encode()

    real = files.Path.open

    def almost_full(self, *arguments, **options):
        file = real(self, *arguments, **options)

        class Short(type(file)):
            def write(self, data):
                return super().write(data[:3])

        file.close()
        return Short(self, "ab")

    monkeypatch.setattr(files.Path, "open", almost_full)
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(path, "three")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == "one\nzwölf\n".encode()
