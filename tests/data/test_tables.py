"""Tables: no text is lost or moved without a word, however they are written."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from bptt.data import open_corpus
from bptt.errors import BpttWarning, CorpusError


def cells(path: Path, content: str | bytes, column: str = "text") -> list[str]:
    """The cells of the column, where none holds a blank line."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return "".join(open_corpus(path, column=column).pieces()).split("\n\n")


def name(path: Path) -> str:
    return open_corpus(path, column="text").name


def refused(path: Path, content: str, *matches: str) -> None:
    with pytest.raises(CorpusError) as error:
        cells(path, content)
    for match in matches:
        assert match in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


@pytest.fixture
def tabs(tmp_path: Path) -> Path:
    return tmp_path / "a.tsv"


# Rows that are too long or too short


def test_a_row_with_more_cells_than_the_header_is_refused_by_number(table: Path) -> None:
    rows = "id,text\n1,fine\n\n2,a film, a song\n3,fine\n"
    refused(table, rows, "row 3 has 3 cells, but the header 2", "'text'", "quotation marks")


def test_empty_cells_at_a_row_s_end_are_nothing(table: Path) -> None:
    assert cells(table, "id,text\n1,one,,\n2,two, \n") == ["one", "two"]


def test_rows_without_the_column_are_counted(table: Path) -> None:
    with pytest.warns(BpttWarning, match="2 rows have too few .* column 'text' .* is row 2"):
        assert cells(table, "id,text\n1\n2,two\n\n3\n") == ["two"]
    assert cells(table, "id,text,note\n1,one\n2,two,x\n") == ["one", "two"]  # nothing is lost


# Quotation marks


def test_a_quotation_mark_at_the_beginning_of_a_tsv_cell_is_text(tabs: Path) -> None:
    rows = [f"{i}\t{chr(34) * (i % 10 == 5)}number {i}" for i in range(40)]
    assert cells(tabs, "id\ttext\n" + "\n".join(rows)) == [row.split("\t")[1] for row in rows]
    assert name(tabs) == "column 'text' of a.tsv"


def test_quotation_marks_that_lines_apart_would_fit_swallow_nothing(
    table: Path, tabs: Path
) -> None:
    """The first opens a cell that the last closes, two rows on."""
    rows = 'id,text\n1,"Great film\n2,good\n3,film"\n'
    assert cells(table, rows) == ['"Great film', "good", 'film"']
    assert "quotation marks are text" in name(table)
    assert cells(tabs, rows.replace(",", "\t")) == ['"Great film', "good", 'film"']


def test_tsv_written_with_quotes_is_read_with_them(tabs: Path) -> None:
    assert cells(tabs, 'id\ttext\n1\t"He said ""hi"""\n2\tb\n') == ['He said "hi"', "b"]
    assert "quoted where needed" in name(tabs)
    assert cells(tabs, 'id\ttext\n1\t"a\tb"\n2\t"c\nd"\n') == ["a\tb", "c\nd"]
    assert cells(tabs, '"id"\t"text"\n"1"\t"a"\n') == ["a"]
    assert cells(tabs, 'id\ttext\n1\t"said"\n2\tb\n') == ['"said"', "b"]  # may be meant


def test_an_unbalanced_quotation_mark_is_refused_by_its_row(table: Path) -> None:
    good = 'id,text\n1,"a, b"\n'
    refused(table, good + '2,"open, and\n3,c\n4,d\n', "row 3", "opened and not closed")
    refused(table, good + '2,"a" b, c\n3,c\n', "row 3", "text follows the quotation mark")


def test_a_cell_that_never_ends_takes_no_memory(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt._src.data.tables.LARGEST", 1000)
    refused(table, 'id,text\n1,"a, b"\n2,"' + "x, y\n" * 1000, "row 3", "not closed")
    assert csv.field_size_limit() == 131_072


def test_quotation_marks_within_cells_are_text(table: Path) -> None:
    assert cells(table, 'id,text\n1,a 5" disk\n2,b\n') == ['a 5" disk', "b"]
    assert cells(table, 'id,text\n1,"Great" film\n2,b\n') == ['"Great" film', "b"]


def test_backslash_escapes(table: Path) -> None:
    rows = r"id,text" + "\n" + r'1,"He said \"hi\", C:\new \\ a\nb"' + "\n2,b\n"
    assert cells(table, rows) == [r'He said "hi", C:\new ' + "\\" + r" a\nb", "b"]
    assert "backslash escapes" in name(table)
    assert cells(table, "id,text\n1,hello\\, world\n") == ["hello, world"]
    assert cells(table, "id,text\n1,C:\\new\n") == ["C:\\new"]  # nothing is escaped


def test_a_quoted_cell_after_a_space(table: Path) -> None:
    assert cells(table, 'id, text\n1, "a, b"\n2, c\n') == ["a, b", "c"]
    assert "spaces after separators skipped" in name(table)
    assert cells(table, 'id,text\n1, "a, b"\n') == ["a, b"]
    assert cells(table, 'id,text\n1, "a"\n') == ["a"]
    assert cells(table, "id,text\n1, a\n") == [" a"]  # as it is written


# The header


@pytest.mark.parametrize(
    ("separator", "said"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_the_separator_is_the_one_that_makes_the_column(
    table: Path, separator: str, said: str
) -> None:
    rows = f"id{separator}text{separator}a, b\n1{separator}one, two{separator}x\n"
    assert cells(table, rows) == ["one, two"]
    assert f"cells between {said}" in name(table)


def test_what_excel_says_of_the_separator(table: Path) -> None:
    assert cells(table, "sep=;\nid;text\n1;a,b\n") == ["a,b"]
    assert cells(table, "sep=#\nid#text\n1#a,b\n") == ["a,b"]
    assert "'#' signs" in name(table)


@pytest.mark.parametrize("before", ["\n\n", " \n", "\ufeff", "\ufeff\n"])
def test_what_may_be_before_the_header(table: Path, before: str) -> None:
    assert cells(table, before + "id,text\n1,a\n") == ["a"]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends(table: Path, end: str) -> None:
    assert cells(table, f'id,text{end}1,"a{end}b"{end}2,c{end}') == ["a\nb", "c"]


def test_a_column_must_be_there_once(table: Path) -> None:
    refused(table, "text,text\n1,a\n", "2 columns named 'text'", "rename")
    refused(table, "1,hello\n2,world\n", "no column 'text'", "1, hello")
    assert cells(table, "x,x,text\n1,2,a\n") == ["a"]


def test_a_single_column(table: Path, tabs: Path) -> None:
    assert cells(table, 'text\n"a, b"\nc\n') == ["a, b", "c"]
    assert cells(table, "text\nhello, world\nc\n") == ["hello, world", "c"]
    assert "one column" in name(table)
    assert cells(table, 'text\n"Great, he said\nc, d\n') == ['"Great, he said', "c, d"]
    assert cells(tabs, 'text\n"Great\nc\n') == ['"Great', "c"]
    assert cells(table, 'text\n"one\ntwo"\nc\n') == ["one\ntwo", "c"]


def test_several_tables_say_how_they_are_written(tmp_path: Path) -> None:
    for number, separator in enumerate(",;|"):
        (tmp_path / f"{number}.csv").write_text(f"id{separator}text\n1{separator}a\n")
    with pytest.warns(BpttWarning, match=r"1\.csv \(cells between semi.*2\.csv \(.* bars"):
        open_corpus(tmp_path, column="text")


# Against the csv module


def dialect_of(draw: random.Random, suffix: str) -> dict[str, object]:
    """A way of writing whose files can be told from any other."""
    if suffix == ".tsv":
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    return {
        "delimiter": draw.choice(",;|\t"),
        "quoting": draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "doublequote": draw.random() < 0.8,
    }


def random_rows(draw: random.Random, alphabet: str, width: int) -> list[list[str]]:
    return [
        ["".join(draw.choices(alphabet, k=draw.randint(1, 9))) + "." for _ in range(width)]
        for _ in range(draw.randint(1, 12))
    ]


def check_random_tables(directory: Path, seeds: range) -> None:
    for seed in seeds:
        draw = random.Random(seed)
        suffix = draw.choice([".csv", ".csv", ".tsv"])
        how = dialect_of(draw, suffix)
        width = draw.randint(2, 4)
        alphabet = "ab é;|'" if suffix == ".tsv" else 'ab é,;|"\n\t'
        if suffix == ".tsv" and draw.random() < 0.5:
            alphabet += ",\u3000"
        if not how.get("doublequote", True):
            how |= {"escapechar": "\\", "quoting": csv.QUOTE_ALL}
        rows = random_rows(draw, alphabet, width)
        if suffix == ".tsv":  # quotation marks that nothing closes
            rows[0][-1] = '"' + rows[0][-1]
        header = [f"c{i}" for i in range(width)]
        header[draw.randrange(width)] = "text"
        file = io.StringIO()
        csv.writer(file, lineterminator="\n", **how).writerows([header, *rows])  # type: ignore[arg-type]
        path = directory / f"{seed}{suffix}"
        path.write_text("\n" * draw.randint(0, 2) + file.getvalue(), encoding="utf-8")
        column = header.index("text")
        expected = [row[column] for row in rows]
        found = [
            "".join(document)
            for each in open_corpus(path, column="text")._files
            for document in each.documents()
        ]
        assert found == expected, (seed, how, path.read_text(encoding="utf-8"))


def test_random_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    check_random_tables(tmp_path, range(150))


@pytest.mark.long
def test_many_random_tables(tmp_path: Path, survived) -> None:  # type: ignore[no-untyped-def]
    check_random_tables(tmp_path, range(1000, 6000))
    survived("random tables against the csv module", 5000)
