"""Labelled tables as rows: quoted CSV, unquoted TSV with or without a header, and hub data sets.

The traps of the formats are dealt with here: line breaks within a quoted cell, quotes that are plain text, spaces at
the edges, a header's spelling, empty rows that a spreadsheet leaves at the end, integer labels whose meaning depends on
the repository (rows have the labels' names). What labels and ids mean to a benchmark is in `examples`. Files are read
by the csv module and not by pandas, so that an error can name its line.
"""

from __future__ import annotations

import csv
import io
import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deftx.errors import DataError
from deftx.sources.files import FileSource, read_text
from deftx.sources.hub import HubSource, Source, hub_table

log = logging.getLogger("deftx")

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}
_LONGEST_CELL = 2**31 - 1
"""Characters of a cell: the most that the csv module can be told on every platform."""

Cells = tuple[str, Mapping[str, str]]
"""File and line of a row, for messages, and its stripped cells by column."""


@dataclass(frozen=True)
class Layout:
    """The columns of a table that are read, and how its cells are written."""

    text: str
    label: str
    pair: str | None = None
    """The column of the hypothesis, where rows are pairs."""
    id: str | None = None
    """None: the id of a row is its number, from 0."""
    id_optional: bool = False
    """Whether a file may lack the column `id`: the id of a row is then made of the file's digest and its number."""
    header: tuple[str, ...] | None = None
    """The columns of a file without a header line; None: it has one."""
    quoted: bool = False
    """True: CSV with commas and quotes. False: tabs, and a quote is plain text."""
    blank_text: bool = False
    """Whether `text` may be empty; no other column may."""
    codes: tuple[str, ...] = ()
    """The names of integer labels, for a hub data set that does not give them itself."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        id = None if self.id_optional else self.id
        return tuple(column for column in (id, self.text, self.pair, self.label) if column is not None)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A labelled row as written; `where`, its file and line, is for messages."""

    where: str
    id: str
    text: str
    pair: str | None
    label: str


def read_rows(source: Source, layout: Layout) -> list[TableRow]:
    """All rows of a table, in its order.

    Raises:
        DataError: for a missing column, an empty or missing cell or broken quoting, naming file and line; or when
            there are no rows.
        HubError: when a hub data set cannot be loaded.
    """
    cells = _file_cells(source, layout) if isinstance(source, FileSource) else _hub_cells(source, layout)
    # without ids, rows with the same number in different files must not be taken for the same item
    file = f"{source.sha256[:12]}-" if isinstance(source, FileSource) and layout.id_optional else ""
    rows = [_row(f"{file}{number}", where, values, layout) for number, (where, values) in enumerate(cells)]
    if not rows:
        raise DataError(f"{source.where}: the table has no rows")
    if layout.quoted:
        _warn_of_swallowed(rows)
    return rows


def _warn_of_swallowed(rows: Sequence[TableRow]) -> None:
    """Say where a quoted cell goes over lines and holds a label before a line break: it may have swallowed a row."""
    labels = {row.label for row in rows}
    for row in rows:
        for cell in (row.text, row.pair or ""):
            ends = [line.rpartition(",")[2].strip() for line in cell.splitlines()[:-1] if "," in line]
            if found := [end for end in ends if end in labels]:
                asks = f"it holds {found[0]!r} before a line break, as if a row ended there"
                log.warning("%s: a quoted cell goes over several lines; %s: is a quote missing?", row.where, asks)


def _row(number: str, where: str, cells: Mapping[str, str], layout: Layout) -> TableRow:
    id = layout.id if layout.id in cells else None
    for column in (*layout.columns, *([id] if id and layout.id_optional else [])):
        if not cells[column] and not (layout.blank_text and column == layout.text):
            raise DataError(f"{where}: the column {column!r} is empty")
    return TableRow(
        where=where,
        id=cells[id] if id else number,
        text=cells[layout.text],
        pair=cells[layout.pair] if layout.pair else None,
        label=cells[layout.label],
    )


def _file_cells(source: FileSource, layout: Layout) -> Iterator[Cells]:
    text = read_text(source)
    lines = _quoted_lines(text, source.url) if layout.quoted else _plain_lines(text)
    header = layout.header
    for number, cells in _without_empty_end(lines, source.url):
        where = f"{source.url}, line {number}"
        if header is None:
            header = _header(where, cells, layout)
        elif len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            raise DataError(f"{where}: {len(cells)} cells where there should be {len(header)} ({', '.join(header)})")


def _header(where: str, cells: list[str], layout: Layout) -> tuple[str, ...]:
    """The names of a table's columns, those that are read as the layout spells them.

    Raises:
        DataError: when one of them is missing, or stands twice.
    """
    read = [*layout.columns, *([layout.id] if layout.id and layout.id_optional else [])]
    spelt = {_name(column): column for column in read}
    header = tuple(spelt.get(_name(cell), cell) for cell in cells)
    for column in read:
        if len(places := [number for number, name in enumerate(header, start=1) if name == column]) > 1:
            numbers = " and ".join(map(str, places))
            raise DataError(
                f"{where}: the column {column!r} stands {len(places)} times, as columns {numbers}; keep one"
            )
    if missing := [column for column in layout.columns if column not in header]:
        expected = f"found: {', '.join(cells)}; expected: {', '.join(layout.columns)}"
        raise DataError(f"{where}: no column {missing[0]!r}; {expected}{_other_delimiter(cells, layout)}")
    return header


def _name(column: str) -> str:
    """The name of a column as it is compared: case, compatibility forms and marks that no one sees do not matter."""
    folded = unicodedata.normalize("NFKC", column).casefold()
    return "".join(character for character in folded if unicodedata.category(character) not in ("Cf", "Cc")).strip()


def _other_delimiter(cells: list[str], layout: Layout) -> str:
    """What separates the cells of a header in place of what should, in words; empty where nothing does."""
    own = "," if layout.quoted else "\t"
    for delimiter, name in _DELIMITERS.items():
        parts = [_name(part) for cell in cells for part in cell.split(delimiter)]
        if delimiter != own and all(_name(column) in parts for column in layout.columns):
            return f"; its cells are separated by {name}: separate them by {_DELIMITERS[own]}"
    return ""


def _without_empty_end(lines: Iterable[tuple[int, list[str]]], url: str) -> Iterator[tuple[int, list[str]]]:
    """The lines without those of empty cells alone at the end, as a spreadsheet writes them."""
    waiting: list[tuple[int, list[str]]] = []
    for number, cells in lines:
        if not any(cells):
            waiting += [(number, cells)] if len(cells) > 1 else []
            continue
        yield from waiting
        waiting = []
        yield number, cells
    if waiting:
        log.warning("%s: %d empty rows at its end, from line %d on, are passed over", url, len(waiting), waiting[0][0])


def _plain_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of tab-separated text.

    Only a line feed ends a line: `splitlines` would end it at other control characters too, such as U+0085.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, [cell.strip() for cell in line.split("\t")]


def _quoted_lines(text: str, url: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and cells of each row of quoted CSV; a cell may hold line breaks.

    Raises:
        DataError: for a quote that is not closed or stands where no quote may.
    """
    csv.field_size_limit(_LONGEST_CELL)  # whole articles are longer than its 131,072
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, [cell.strip() for cell in cells]
            number = reader.line_num + 1
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            right = 'close it, and write a quote within a quoted cell as two ("")'
            raise DataError(f"{url}, line {number}: a quote opens in this row and is never closed; {right}") from None
        raise DataError(f"{url}, line {number}: not valid CSV ({error})") from None


def _hub_cells(source: HubSource, layout: Layout) -> Iterator[Cells]:
    table = hub_table(source, layout.columns)
    names = getattr(table.features[layout.label], "names", None) or layout.codes
    columns = table[:]
    for number, values in enumerate(zip(*(columns[column] for column in layout.columns), strict=True)):
        where = f"{source.where}, row {number}"
        cells = dict(zip(layout.columns, values, strict=True))
        cells[layout.label] = _label_name(where, cells[layout.label], names)
        yield where, {column: "" if cell is None else str(cell).strip() for column, cell in cells.items()}


def _label_name(where: str, label: object, names: tuple[str, ...]) -> object:
    """The name of an integer label; a label that is text already is returned as it is.

    Raises:
        DataError: for an integer that has no name, such as the -1 of unlabelled rows.
    """
    if not isinstance(label, int):
        return label
    if not 0 <= label < len(names):
        raise DataError(f"{where}: label {label} has no name; names: {', '.join(names) or 'none'}")
    return names[label]
