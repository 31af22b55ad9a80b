"""Tables as spreadsheets and scripts write them: what is read, what is refused by line, what is warned of."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftx.data.tables import Layout, read_rows
from deftx.errors import DataError
from deftx.sources.files import file_source

OWN = Layout(id="id", text="text", label="label", quoted=True, id_optional=True)
Rows = list[tuple[str, str, str]]


def read(folder: Path, text: str) -> Rows:
    (folder / "t.csv").write_text(text, encoding="utf-8", newline="")
    return [(row.id, row.text, row.label) for row in read_rows(file_source(str(folder / "t.csv")), OWN)]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("id,text,label,label", r"line 1: the column 'label' stands 2 times, as columns 3 and 4; keep one"),
        ("id,text,text,label", r"line 1: the column 'text' stands 2 times, as columns 2 and 3; keep one"),
        ("ID,text,label,id", r"line 1: the column 'id' stands 2 times, as columns 1 and 4; keep one"),
        ("text,TEXT,label,x", r"line 1: the column 'text' stands 2 times, as columns 1 and 2; keep one"),
    ],
)
def test_a_column_that_stands_twice_is_refused_with_both_places(tmp_path: Path, header: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read(tmp_path, f"{header}\n1,a,positive,negative\n")


def test_columns_that_are_not_read_may_stand_twice(tmp_path: Path) -> None:
    assert read(tmp_path, "id,text,label,,\n1,a,positive,,\n") == [("1", "a", "positive")]


@pytest.mark.parametrize(
    "header", ["\ufeff\ufeffid,text,label", "ID,Text,LABEL", " id , text\u200b,\u00adlabel", "\uff49\uff44,text,label"]
)
def test_case_and_marks_of_a_header_do_not_matter(tmp_path: Path, header: str) -> None:
    assert read(tmp_path, f"{header}\n8,a,positive\n") == [("8", "a", "positive")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_as_programs_write_it(tmp_path: Path, end: str) -> None:
    """Any line end, an index column, spaces after commas, words that others take for no value or a number."""
    lines = [",id,text,label", "0,1, NA, Positive", "1,2,null,1.0", '2,3,"a, ""b""",-']
    assert read(tmp_path, end.join(lines)) == [("1", "NA", "Positive"), ("2", "null", "1.0"), ("3", 'a, "b"', "-")]


def test_a_cell_of_any_length(tmp_path: Path) -> None:
    article = "bam " * 50_000
    assert read(tmp_path, f'id,text,label\n1,"{article}",positive\n') == [("1", article.strip(), "positive")]


@pytest.mark.parametrize("rows", [1, 6000])
def test_a_quote_that_is_never_closed_is_named_by_its_line(tmp_path: Path, rows: int) -> None:
    text = "id,text,label\n1,a,positive\n" + '2,"bam rumed,positive\n' + "3,b,positive\n" * rows
    with pytest.raises(DataError, match=r"line 3: a quote opens in this row and is never closed; close it"):
        read(tmp_path, text)


def test_a_quoted_cell_that_swallowed_a_row_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = 'id,text,label\n1,"bam rumed,positive\n2,goqes ducil",negative\n3,tum,neutral\n4,b,positive\n'
    assert len(read(tmp_path, text)) == 3
    (told,) = caplog.messages
    assert "line 2: a quoted cell goes over several lines; it holds 'positive' before a line break" in told


def test_a_cell_of_several_lines_is_ordinary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = 'id,text,label\n1,"He came,\nand saw, well,\nso",positive\n2,b,negative\n'
    assert read(tmp_path, text)[0] == ("1", "He came,\nand saw, well,\nso", "positive")
    assert not caplog.messages


def test_empty_rows_at_the_end_are_passed_over_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "id,text,label\n1,a,positive\n,,\n , ,\n   \n") == [("1", "a", "positive")]
    (told,) = caplog.messages
    assert told.endswith("t.csv: 2 empty rows at its end, from line 3 on, are passed over")


def test_an_empty_row_amid_the_others_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: the column 'text' is empty"):
        read(tmp_path, "id,text,label\n1,a,positive\n,,\n2,b,positive\n")
    assert len(read(tmp_path, "id,text,label\n1,a,positive\n\n   \n2,b,positive\n")) == 2


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_delimiter_is_recognised_and_named(tmp_path: Path, mark: str, name: str) -> None:
    with pytest.raises(
        DataError, match=f"no column 'text'; .*; its cells are separated by {name}: separate them by comm"
    ):
        read(tmp_path, mark.join(["id", "Text", "label"]) + "\n" + mark.join(["1", "a", "positive"]) + "\n")


_CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda cell: cell == cell.strip() != ""
)


@given(st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=8))
def test_what_the_csv_module_writes_is_read(rows: list[tuple[str, str]]) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("id", "text", "label"), *((str(n), *row) for n, row in enumerate(rows))])
    with tempfile.TemporaryDirectory() as folder:
        assert [row[1:] for row in read(Path(folder), written.getvalue())] == rows
