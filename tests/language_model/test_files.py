"""Files are whole; errors name them as they were named."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from bptt._src.atomic import append_line, read_whole, write_whole


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

    real = os.write

    def almost_full(descriptor, data):
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:3])

    monkeypatch.setattr(os, "write", almost_full)
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(path, "three")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == "one\nzwölf\n".encode()


def test_what_is_renamed_is_synced_with_its_directory(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.fstat(d).st_ino) or real(d))
    write_whole(tmp_path / "a", "new")
    assert synced == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


def test_a_directory_that_cannot_be_synced_is_no_reason_to_stop(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_where_links_are_not_followed(tmp_path):
    target, link = tmp_path / "mine", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link, which is not written through"):
        append_line(link, "more")
    write_whole(link, "new", follow_links=False)
    assert not link.is_symlink()
    assert (target.read_text(), link.read_text()) == ("old", "new")


def test_what_is_no_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a plain file"):
            read_whole(path, 100)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="at most 1,000 are allowed"):
        read_whole(tmp_path / "holes", 1000)
