"""The rows of a table of sources (csv, tsv, jsonl, parquet), as plain values with their numbers.

Rows count as a spreadsheet counts them: the header of a csv file is row 1, a cell of several lines
is one row; a line of jsonl is a row. A table that can be read in two ways is refused, with the
place and what to do: the other way would be wrong data that nobody sees.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.errors import RecipeError, printable
from pipeline.core.reading import shown, shown_value
from pipeline.media.addresses import ADDRESS

LONGEST_FIELD = 1 << 27  # bytes of one field of a csv file, or of a row of a jsonl file
LONGEST_LABEL = 1000  # characters of a path in a message
BATCH = 256  # rows of a parquet file in memory at a time
KINDS = ".csv, .tsv, .jsonl or .parquet"
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# the longer one first: the mark of UTF-32 begins with that of UTF-16
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
AS_UTF8 = "save it as UTF-8 (a spreadsheet calls that 'CSV UTF-8'), or convert it: iconv -f"
Rows = Iterator[tuple[int, Any]]


def label(table: Path) -> str:
    """A table's path for a message: a recipe may name it as it likes."""
    return printable(str(table)[-LONGEST_LABEL:])


def rows_of(table: Path, columns: Collection[str], address: str) -> Rows:
    """The number and the values of each row, read one after the other; `columns` are those that
    are needed, `address` is the one that holds the address, if there is one.

    Raises RecipeError with the row; OSError and ValueError for a file that is none of its kind.
    """
    if not table.is_file():
        raise RecipeError(f"there is no sources table {label(table)}")
    suffix = table.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _rows_of_csv(table, columns, address)
    if suffix == ".jsonl":
        return _rows_of_jsonl(table)
    if suffix == ".parquet":
        return _rows_of_parquet(table, columns)
    raise RecipeError(f"{label(table)}: a sources table ends in {KINDS}")


def no_column(place: str, column: str, names: Sequence[str]) -> RecipeError:
    """A column that the recipe names and the table does not have."""
    listed = shown(", ".join(map(str, names)))
    near = next((name for name in names if str(name).strip().lower() == column.lower()), None)
    hint = f"; did you mean {shown_value(near)}?" if near is not None else ""
    return RecipeError(f"{place}: no column {shown_value(column)}; there are {listed}{hint}")


# Text


def _opened(table: Path) -> TextIO:
    """A text file: UTF-8, or what the mark at its beginning says."""
    with table.open("rb") as file:
        start = file.read(1024)
    encoding = next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in start:
        raise RecipeError(
            f"{label(table)} is not UTF-8: it holds zero bytes, as UTF-16 does; {AS_UTF8} UTF-16 "
            "-t UTF-8"
        )
    return table.open(newline="", encoding=encoding)


def _not_text(table: Path, error: UnicodeDecodeError) -> RecipeError:
    """In which line a table is not UTF-8, and what to do."""
    if error.encoding.lower().replace("_", "-") != "utf-8":
        return RecipeError(f"{label(table)} cannot be read: {shown(str(error))}")
    with table.open("rb") as file:
        lines = iter(lambda: file.readline(LONGEST_FIELD), b"")
        number, line = next(
            ((number, line) for number, line in enumerate(lines, 1) if not _is_utf8(line)), (1, b"")
        )
    guess = line.decode("cp1252", "replace").strip()
    return RecipeError(
        f"{label(table)}: line {number} is not UTF-8; in cp1252 it would be {shown_value(guess)}: "
        f"if that is right, {AS_UTF8} CP1252 -t UTF-8"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rows_of_csv(table: Path, columns: Collection[str], address: str) -> Rows:
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with _opened(table) as file:
            yield from _cells(table, file, columns, address)
    except UnicodeDecodeError as error:
        raise _not_text(table, error) from error


def _cells(table: Path, file: TextIO, columns: Collection[str], address: str) -> Rows:
    first = file.readline(LONGEST_FIELD)
    said = re.fullmatch(r"sep=(.)\s*", first)  # a spreadsheet takes this line away
    if said:
        first = file.readline(LONGEST_FIELD)
    if not first:
        return
    delimiter = said[1] if said else _delimiter(table, first, columns)
    lines = itertools.chain([first], file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        number += 1
        place = f"{label(table)}: row {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecipeError(f"{place}: {_quoting(error)}") from error
        if header is None:
            header = cells
            _check_header(place, header, columns)
        elif any(cells):  # a spreadsheet writes rows without content as commas alone
            _check_cells(place, cells, header, delimiter)
            _check_lines(place, cells, header, delimiter, address)
            yield number, dict(zip(header, cells, strict=False))


def _delimiter(table: Path, first: str, columns: Collection[str]) -> str:
    """What parts the cells: the first character with which the header has all columns that are
    needed.
    """
    if table.suffix.lower() == ".tsv":
        return "\t"
    headers = {
        delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in DELIMITERS
    }
    for delimiter, header in headers.items():
        if set(columns) <= set(header):
            return delimiter
    return max(DELIMITERS, key=lambda delimiter: len(headers[delimiter]))


def _quoting(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return 'a cell begins with a quote (") that is never closed; rows after it would be lost'
    if "expected after" in str(error):
        return (
            'text follows the closing quote (") of a cell: a quote inside a quoted cell is written '
            'twice ("")'
        )
    return f"not csv: {shown(str(error))}"


def _check_header(place: str, header: Sequence[str], columns: Collection[str]) -> None:
    for column in sorted(columns):
        if column not in header:
            raise no_column(place, column, header)
        if header.count(column) > 1:
            name = shown_value(column)
            raise RecipeError(f"{place}: the column {name} stands there twice: rename one")


def _check_cells(place: str, cells: list[str], header: Sequence[str], delimiter: str) -> None:
    surplus = [cell for cell in cells[len(header) :] if cell]
    name = DELIMITERS.get(delimiter, repr(delimiter))
    if surplus:
        raise RecipeError(
            f"{place}: has {len(cells)} cells, the header names {len(header)} columns; too much is "
            f"{shown_value(surplus[0])}: put a cell with {name} inside into quotes"
        )
    if len(cells) < len(header):
        missing = shown_value(header[len(cells)])
        raise RecipeError(
            f"{place}: ends after {len(cells)} of {len(header)} cells, before the column "
            f"{missing}; it holds {shown_value(cells)}: write all {name}, also of empty cells"
        )


def _check_lines(
    place: str, cells: Sequence[str], header: Sequence[str], delimiter: str, address: str
) -> None:
    """Refuse a cell in which whole rows stand: a quote before it was not closed, and another one
    ended it.
    """
    if address not in header:
        return
    for name, cell in zip(header, cells, strict=False):
        for line in cell.splitlines()[1:] if "\n" in cell else ():
            inner = next(csv.reader([line], delimiter=delimiter), [])
            if len(inner) >= len(header) and ADDRESS.fullmatch(inner[header.index(address)]):
                raise RecipeError(
                    f"{place}: the column {shown_value(name)} holds whole rows "
                    f'({shown_value(line)}): a quote (") at its beginning is not closed'
                )


# JSON


def _rows_of_jsonl(table: Path) -> Rows:
    try:
        with _opened(table) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_FIELD), ""), 1):
                if line.strip():
                    yield number, _json(f"{label(table)}: row {number}", line)
    except UnicodeDecodeError as error:
        raise _not_text(table, error) from error


def _json(place: str, line: str) -> Any:
    try:
        row = json.loads(line, object_pairs_hook=_object)
        # half a character can be written in JSON, and nowhere else
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{place}: not JSON: {shown(str(error))}") from error
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown_value(twice)} stands there twice")
    return values


# Arrow


def _rows_of_parquet(table: Path, columns: Collection[str]) -> Rows:
    from pyarrow import parquet

    with parquet.ParquetFile(table) as file:
        names = file.schema_arrow.names
        _check_header(f"{label(table)}: row 1", names, columns)
        number = 0
        for batch in file.iter_batches(BATCH):
            values = {name: _plain_column(batch.column(name)) for name in columns}
            for index in range(batch.num_rows):
                number += 1
                yield number, {name: column[index] for name, column in values.items()}


def _plain_column(column: Any) -> list[Any]:
    """An Arrow array as plain values: numbers as they were written, times as seconds."""
    if _is_exact(column.type):
        return list(column.to_pylist())
    return [_plain(scalar) for scalar in column]


def _is_exact(kind: Any) -> bool:
    """Whether Python's own values say all that values of an Arrow type do."""
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        return False
    if types.is_duration(kind) or types.is_time(kind) or types.is_timestamp(kind):
        return False
    return all(_is_exact(kind.field(index).type) for index in range(kind.num_fields))


def _plain(scalar: Any) -> Any:
    from pyarrow import types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_float16(kind) or types.is_float32(kind):
        # 13.58 in 32 bits is 13.579999923706055: the shortest number that means it was written
        return float(str(kind.to_pandas_dtype()(scalar.as_py())))
    if types.is_duration(kind) or types.is_time(kind):
        return Fraction(scalar.value, {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit])
    if types.is_timestamp(kind):
        return str(scalar)  # a day is no place in a video
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_plain(value) for value in scalar.values]
    return scalar.as_py()
