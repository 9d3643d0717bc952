from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import sys
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bptt._src.data.corpora import PIECE, _cut
from bptt.data import Corpus, cache_directory, load_prepared, open_corpus, prepare
from bptt.errors import BpttWarning, ConfigError, CorpusError


def text_of(corpus: Corpus) -> str:
    return "".join(corpus.pieces())


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def refused(*sources: object, match: str, **options: str) -> None:
    """Opening or reading is refused by one line that matches."""
    with pytest.raises(CorpusError, match=match) as error:
        text_of(open_corpus(list(sources), **options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# Files and directories


def test_a_file_is_read_as_it_is_again_and_again(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", "  One.\n\nTwo\x0bthree…\n no end")
    corpus = open_corpus([path])
    assert text_of(corpus) == text_of(corpus) == "  One.\n\nTwo\x0bthree…\n no end"
    assert corpus.name == "book.txt"
    assert corpus.sources == (str(path),)
    assert text_of(open_corpus(path)) == text_of(corpus)


def test_sources_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "book.txt", "text")
    monkeypatch.chdir(tmp_path)
    assert open_corpus(["book.txt"]).sources == (str(tmp_path / "book.txt"),)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
def test_a_blank_line_is_between_files(tmp_path: Path, end: str) -> None:
    paths = [write(tmp_path / "a.txt", f"A{end}"), write(tmp_path / "b.txt", "B\n")]
    corpus = open_corpus(paths)
    assert text_of(corpus) == ("A\n\n\nB\n" if end == "\n\n\n" else "A\n\nB\n")
    assert corpus.name == "2 files"


def test_a_directory_is_read_sorted_without_hidden_empty_and_other_files(tmp_path: Path) -> None:
    root = tmp_path / "books"
    for name in ("b.txt", "a/z.md", "a/y.rst", "c.txt.gz", ".hidden.txt", ".git/x.txt", "d.py"):
        content: str | bytes = name
        write(root / name, gzip.compress(b"c.txt.gz") if name.endswith("gz") else content)
    write(root / "empty.txt", "")
    corpus = open_corpus([root])
    assert text_of(corpus) == "a/y.rst\n\na/z.md\n\nb.txt\n\nc.txt.gz"
    assert corpus.name == "4 files in books"
    assert corpus.sources == (str(root),)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compressed_text(tmp_path: Path, suffix: str, compress: object) -> None:
    data = compress(b"compressed text\n" * 100)  # type: ignore[operator]
    assert text_of(open_corpus([write(tmp_path / f"a.txt{suffix}", data)])).startswith("compr")
    refused(write(tmp_path / f"b.txt{suffix}", data[:-9]), match="cannot read .*complete")
    refused(write(tmp_path / f"c.txt{suffix}", b"not compressed"), match="cannot read")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.txt", match="no file or directory .*none.txt")
    refused("a\0b", match="cannot read")
    refused(write(tmp_path / "empty.txt", ""), match="empty.txt is empty")
    refused(write(tmp_path / "blank.txt", " \n\t\n"), match="only white space")
    refused(write(tmp_path / "bom.txt", b"\xef\xbb\xbf"), match="only white space")
    (tmp_path / "dir").mkdir()
    refused(tmp_path / "dir", match=r"holds no text: looked for .*\.txt")
    refused("/dev/zero", match="device")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_permissions_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "secret.txt", "text")
    path.chmod(0)
    refused(path, match="Permission denied")


def test_a_file_that_vanishes_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    corpus = open_corpus([path])
    path.unlink()
    with pytest.raises(CorpusError, match="cannot read"):
        text_of(corpus)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_followed_once_and_broken_ones_counted(tmp_path: Path) -> None:
    root = tmp_path / "books"
    write(tmp_path / "elsewhere/b.txt", "b")
    write(root / "a.txt", "a")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert text_of(open_corpus([root])) == "a\n\nb"
    (root / "gone.txt").symlink_to(tmp_path / "nowhere")
    (root / "self.txt").symlink_to(root / "self.txt")
    os.mkfifo(root / "pipe.txt")
    with pytest.warns(BpttWarning, match=r"3 entries .* the first is .*gone\.txt"):
        assert text_of(open_corpus([root])) == "a\n\nb"


def test_a_file_that_is_read_twice_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    for sources in ([path, path], [tmp_path, path]):
        with pytest.warns(BpttWarning, match=r"a\.txt is read 2 times"):
            open_corpus(sources)


def test_a_name_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "~notes.txt", "notes")
    write(tmp_path / "home/book.txt", "book")
    corpus = open_corpus("~notes.txt")
    assert text_of(corpus) == "notes"
    assert corpus.sources == (str(tmp_path / "~notes.txt"),)
    assert text_of(open_corpus("~/book.txt")) == "book"
    refused("~nobody-of-that-name/x.txt", match="no file or directory ~nobody-of-that-name/x.txt")


def test_a_cache_in_no_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPTT_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(ConfigError, match=r"~nobody-of-that-name/x .* BPTT_CACHE"):
        cache_directory()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("text " * 100)
    corpus = open_corpus([path])
    assert text_of(corpus) == "text " * 100
    text = prepare(corpus, level="char")
    found = load_prepared(text.fingerprint)
    assert found is not None
    assert found.name == os.fsdecode(b"caf\xe9.txt")


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "Größe 𝄞\r\nx".encode(encoding))
    assert text_of(open_corpus([path])) == "Größe 𝄞\nx"
    assert text_of(open_corpus([path], encoding=encoding.removesuffix("-sig"))) == "Größe 𝄞\nx"


def test_an_encoding_is_used_for_all_and_changes_the_result(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "déjà vu".encode("latin-1"))
    assert text_of(open_corpus([path], encoding="latin-1")) == "déjà vu"
    assert text_of(open_corpus([path], encoding="cp1251")) != "déjà vu"
    path = write(tmp_path / "b.txt", ("日本語" * 40000).encode("shift_jis"))
    assert text_of(open_corpus([path], encoding="shift_jis")) == "日本語" * 40000


@pytest.mark.parametrize("name", ["klingon", "base64", "utf-8\0"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, name: str) -> None:
    refused(write(tmp_path / "a.txt", "a"), encoding=name, match="unknown encoding .* such as")


def test_bad_bytes_are_replaced_counted_and_placed_once(tmp_path: Path) -> None:
    good = "é" * 50_000  # the bad ones lie behind the first block
    path = write(tmp_path / "a.txt", good.encode() + b"ab\xffcd\xfe\xfeok" + good.encode())
    corpus = open_corpus([path])
    with pytest.warns(BpttWarning) as caught:
        assert text_of(corpus) == good + "ab\ufffdcd\ufffd\ufffdok" + good
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "3 undecodable" in message
    assert "byte 100,002" in message
    assert "encoding" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_of(corpus)


def test_a_sequence_cut_off_at_the_end_is_bad(tmp_path: Path) -> None:
    corpus = open_corpus([write(tmp_path / "a.txt", b"x" * 200 + "é".encode()[:1])])
    with pytest.warns(BpttWarning, match="1 undecodable byte sequence became .* byte 200"):
        assert text_of(corpus).endswith("x\ufffd")


@pytest.mark.parametrize(
    "content",
    [
        b"text\0text" * 10,
        bytes(range(256)) * 10,
        ("déjà vu, naïve café " * 30).encode("latin-1"),
        "no mark".encode("utf-16-le"),
        b"\x01\x02\x03abcd" * 20,
    ],
)
def test_binary_and_other_encodings_are_refused_with_both_remedies(
    tmp_path: Path, content: bytes
) -> None:
    refused(write(tmp_path / "a.bin", content), match="latin-1.*binary")


def test_text_that_is_hard_to_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x" * 70_000 + "\0")  # beyond the first block
    with pytest.raises(CorpusError, match=r"a\.txt has a NUL byte after its first 65,536 bytes"):
        text_of(open_corpus([path]))
    path = write(tmp_path / "b.txt", b"a +2D0- b +2D3eAA- c" + b"." * 100)  # surrogates
    text = text_of(open_corpus([path], encoding="utf-7"))
    assert text.startswith("a \ufffd b \U0001f600 c") or "\ufffd" in text
    text.encode("utf-8")


def test_marks_within_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\n\ufefftwo" + "x" * 70_000 + "\ufeff")
    corpus = open_corpus([path])
    with pytest.warns(BpttWarning, match="2 byte order marks") as told:
        assert text_of(corpus) == text_of(corpus) == "one\ntwo" + "x" * 70_000
    assert len(told) == 1


def test_an_encoding_that_the_mark_denies_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufefftext")
    refused(path, encoding="latin-1", match="mark of utf-8, but .* latin-1: leave encoding out")
    assert text_of(open_corpus([path], encoding="utf8")) == "text"


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_newlines_become_one(tmp_path: Path, newline: str) -> None:
    text = "ab\n" * 60_000  # so that \r\n falls across the edges of blocks
    path = write(tmp_path / "a.txt", text.replace("\n", newline))
    assert text_of(open_corpus([path])) == text


# Pieces


@given(st.lists(st.text("ab\n", max_size=60), max_size=20), st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pieces_are_the_text_whatever_the_blocks(blocks: list[str], piece: int) -> None:
    text = "".join(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt._src.data.corpora.PIECE", piece)
        pieces = list(_cut(blocks))
        assert pieces == list(_cut([text]))
    assert "".join(pieces) == text
    assert all(0 < len(p) <= piece for p in pieces)
    for p in pieces[:-1]:
        assert p.endswith("\n") or (len(p) == piece and "\n" not in p)


def test_a_large_file_without_newlines_comes_in_pieces(tmp_path: Path) -> None:
    corpus = open_corpus([write(tmp_path / "a.txt", "word " * 200_000)])
    sizes = [len(piece) for piece in corpus.pieces()]
    assert sum(sizes) == 1_000_000
    assert max(sizes) == PIECE


# Tables


TABLE = 'id,body,note\n1,"Said ""yes"",\r\nthen left.",a\n2,,b\n3,  ,c\n4,Größe,d\n'


def test_a_column_of_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + TABLE.encode())
    corpus = open_corpus([path], column="body")
    assert text_of(corpus) == 'Said "yes",\nthen left.\n\nGröße'
    assert corpus.name == "column 'body' of a.csv"
    assert text_of(open_corpus([path], column="note")) == "a\n\nb\n\nc\n\nd"
    assert text_of(open_corpus([path], column="id"))[0] == "1"  # the mark is not in the header


def test_other_separators(tmp_path: Path) -> None:
    tabs = write(tmp_path / "a.tsv", "x\tbody\n1\ta, b\n")
    assert text_of(open_corpus([tabs], column="body")) == "a, b"
    semicolons = write(tmp_path / "a.csv", "x;body\n1;a\n")
    assert text_of(open_corpus([semicolons], column="body")) == "a"


def test_tables_of_a_directory_and_compressed(tmp_path: Path) -> None:
    write(tmp_path / "d/a.csv", TABLE)
    write(tmp_path / "d/readme.txt", "not this")
    write(tmp_path / "d/b.csv.gz", gzip.compress(b"body\nlast\n"))
    corpus = open_corpus([tmp_path / "d"], column="body")
    assert text_of(corpus) == 'Said "yes",\nthen left.\n\nGröße\n\nlast'


def test_a_cell_may_be_larger_than_csvs_limit(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    path = write(tmp_path / "a.csv", 'body\n"' + "long line\n" * 50_000 + '"\n')
    assert len(text_of(open_corpus([path], column="body"))) == 500_000
    assert csv.field_size_limit() == 131_072


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    table, text = write(tmp_path / "a.csv", TABLE), write(tmp_path / "a.txt", "text")
    refused(table, column="text", match="no column 'text'.*id, body, note")
    refused(table, match="name the column.*id, body, note")
    refused(text, column="body", match="no table")
    refused(column="body", match="without a table")
    refused(write(tmp_path / "b.csv", "id,body\n1,\n"), column="body", match="all cells are empty")
    refused(write(tmp_path / "c.csv", "\n"), column="body", match="columns are none")


# Standard input


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_standard_input_is_read_once_and_given_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin("from a pipe, é\n".encode()))
    corpus = open_corpus(["-"])
    assert text_of(corpus) == text_of(corpus) == "from a pipe, é\n"
    assert (corpus.name, corpus.sources) == ("standard input", ("-",))
    spool = corpus._files[0].path
    assert spool.exists()
    del corpus
    assert not spool.exists()


def test_standard_input_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("-", "-", match="twice")
    monkeypatch.setattr(sys, "stdin", _Stdin(b""))
    refused("-", match="standard input is empty")
    monkeypatch.setattr(sys, "stdin", None)
    refused("-", match="no standard input")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read_like_standard_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("through a pipe"))
    writer.start()
    corpus = open_corpus([pipe])
    writer.join()
    assert text_of(corpus) == text_of(corpus) == "through a pipe"
