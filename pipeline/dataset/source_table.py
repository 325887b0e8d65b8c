"""Sources as people write them: one `[[source]]` of a recipe, or one row of a table beside it.

Tables are csv, jsonl or parquet with a column mapping, so that published lists of addresses, time
ranges and captions are usable as they are.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core import canonical
from pipeline.core.errors import RecipeError, printable
from pipeline.core.params import Seconds, Table
from pipeline.core.reading import shown_value
from pipeline.core.records import Source
from pipeline.dataset.naming import NAME

SCHEMES = (
    "https:, http:, file:, pypi:NAME==VERSION/path/in/wheel, or any that fsspec opens "
    "(s3:, gs:, ...)"
)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:[^\x00-\x1f\x7f-\x9f]+")
WHEEL_ADDRESS = re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+/.+")
# plain {column} names and nothing in them that `str.format` would look into objects for
TEMPLATE = re.compile(r"([^{}]|\{\{|\}\}|\{[^][{}.!:]+\})*")
LONGEST_FIELD = 1 << 27  # bytes of one field of a csv file, or of a row of a jsonl file
LONGEST_LIST = 1 << 20  # characters of a list that is written as text
LONGEST_LABEL = 1000  # characters of a path in a message
BATCH = 256  # rows of a parquet file in memory at a time


class SourceEntry(Table):
    """`[[source]]`: one video, or a glob, playlist or channel of many."""

    uri: str = Field(description=f"Where the video is: {SCHEMES}.")
    id: str | None = Field(
        default=None,
        pattern=NAME,
        max_length=60,
        description="Name in keys; by default a digest of uri and time range.",
    )
    caption: str | tuple[str, ...] = Field(
        default=(), description="What is to be seen; several captions are a list."
    )
    license: str | None = Field(default=None, description="An SPDX identifier or a few words.")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="Digest the bytes must have."
    )
    start: Seconds | None = Field(
        default=None, ge=0, description="Use the video from here on: seconds or H:MM:SS."
    )
    end: Seconds | None = Field(
        default=None, gt=0, description="Use the video up to here: seconds or H:MM:SS."
    )

    @field_validator("uri")
    @classmethod
    def _known_form(cls, uri: str) -> str:
        if not ADDRESS.fullmatch(uri):
            raise ValueError(
                f"an address begins with its kind: {SCHEMES}; it holds no control characters"
            )
        if uri.startswith("pypi:") and not WHEEL_ADDRESS.match(uri):
            raise ValueError("a pypi: address has the form pypi:NAME==VERSION/path/in/wheel")
        return uri

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(
                f"end ({float(self.end)} s) must lie after start ({float(self.start or 0)} s)"
            )
        return self

    def source(self) -> Source:
        captions = (self.caption,) if isinstance(self.caption, str) else self.caption
        key = self.id or canonical.digest([self.uri, self.start, self.end])[:12]
        return Source(key, self.uri, captions, self.license, self.sha256, self.start, self.end)


class Columns(Table):
    """`[columns]`: which column of the table holds what; {braces} make a template of columns."""

    uri: str = Field(
        default="uri",
        description='A column, or a template such as "https://www.youtube.com/watch?v={YoutubeID}".',
    )
    id: str | None = Field(default=None, description="Column or template of the id.")
    caption: str | None = Field(
        default=None, description="Column or template of the caption; a list is several captions."
    )
    license: str | None = Field(default=None, description="Column or template of the licence.")
    sha256: str | None = Field(default=None, description="Column of the digest.")
    start: str | None = Field(default=None, description="Column of the start time.")
    end: str | None = Field(default=None, description="Column of the end time.")
    ranges: str | None = Field(
        default=None,
        description=(
            "Column with a list of [start, end]: one source each, with one caption each if there "
            "are as many."
        ),
    )


def label(table: Path) -> str:
    """A table's path for a message: a recipe may name it as it likes."""
    return printable(str(table)[-LONGEST_LABEL:])


def rows_of(table: Path) -> Iterator[Any]:
    """The rows of a table, read one after the other. Raises RecipeError; OSError, ValueError and
    csv.Error for a file that is none of its kind.
    """
    if not table.is_file():
        raise RecipeError(f"there is no sources table {label(table)}")
    if table.suffix == ".csv":
        yield from _rows_of_csv(table)
    elif table.suffix == ".jsonl":
        yield from _rows_of_jsonl(table)
    elif table.suffix == ".parquet":
        yield from _rows_of_parquet(table)
    else:
        raise RecipeError(f"{label(table)}: a sources table ends in .csv, .jsonl or .parquet")


def _rows_of_csv(table: Path) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_FIELD)
    with table.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def _rows_of_jsonl(table: Path) -> Iterator[Any]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_FIELD), ""), 1):
            try:
                row = json.loads(line)
                # half a character can be written in JSON, and nowhere else
                json.dumps(row, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise RecipeError(f"{label(table)}: row {number}: not JSON: {error}") from error
            yield row


def _rows_of_parquet(table: Path) -> Iterator[Any]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(table).iter_batches(BATCH):
        yield from batch.to_pylist()


def values_of_row(row: Mapping[str, Any], columns: Columns) -> Iterator[dict[str, Any]]:
    """One row as the values of one source, or of one per time range. Raises KeyError for a column
    that is not there, ValueError.
    """
    captions = as_list(_cell(row, columns.caption))
    common = _filled(row, columns, ("uri", "id", "license", "sha256"))
    if columns.ranges is None:
        yield {**common, "caption": captions, **_filled(row, columns, ("start", "end"))}
        return
    ranges = as_list(_cell(row, columns.ranges))
    has_caption_each = len(captions) == len(ranges)
    for index, span in enumerate(ranges):
        if not isinstance(span, list | tuple) or len(span) != 2:
            raise ValueError(
                f"{columns.ranges}: got {shown_value(span)}, a time range is [start, end]"
            )
        values = {**common, "start": span[0], "end": span[1], "caption": captions}
        if has_caption_each:
            values["caption"] = captions[index : index + 1]
        if "id" in common:
            values["id"] = f"{common['id']}-{index:03d}"
        yield values


def _filled(row: Mapping[str, Any], columns: Columns, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of those columns that hold something in this row."""
    values = {name: _cell(row, getattr(columns, name)) for name in names}
    return {name: value for name, value in values.items() if value not in (None, "")}


def _cell(row: Mapping[str, Any], column: str | None) -> Any:
    """What stands in a column, or a template of columns."""
    if column is None:
        return None
    if "{" not in column:
        return row[column]
    if not TEMPLATE.fullmatch(column):
        raise ValueError(
            f"{column!r}: a template holds plain {{column}} names: no '.', '[', '!' or ':' in "
            "braces"
        )
    return column.format_map(row)


def as_list(value: Any) -> list[Any]:
    """A list as it is, one written as text read, anything else as a list of one."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.startswith("["):
        if len(value) > LONGEST_LIST:
            raise ValueError(
                f"got {value[:20]!r}..., a list of more than {LONGEST_LIST} characters"
            )
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            if isinstance(error, RecursionError | MemoryError) or "nested" in str(error):
                raise ValueError(
                    f"got {value[:20]!r}..., which is nested too deeply for a list"
                ) from None
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]
