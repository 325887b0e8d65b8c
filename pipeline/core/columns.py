"""`[columns]`: which column of a table, or field of a sample in an archive, holds what; and a cell
read as what it is meant as.

A cell keeps its meaning: a number is a text where a text is due, a duration is a time; what cannot
be meant is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import time, timedelta
from decimal import Decimal
from fractions import Fraction
from string import Formatter
from typing import Any

from pydantic import Field

from pipeline.core.params import LONGEST, Table
from pipeline.core.reading import shown, shown_value
from pipeline.core.written_lists import as_list, is_nothing

# plain {column} names and nothing in them that `str.format` would look into objects for
TEMPLATE = re.compile(r"([^{}]|\{\{|\}\}|\{[^][{}.!:]+\})*")
LARGEST_WHOLE = 2**53  # larger whole numbers lose digits as a float


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
    """The columns that a template names; of what is none, itself. `filled` says what is wrong with
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
        super().__init__(f"{shown(column)}: {problem}")


def captions_of(row: Mapping[str, Any], column: str | None) -> tuple[list[str | None], bool]:
    """The captions of a row, None for one that is left out of a list, and whether they are one."""
    if column is None:
        return [], False
    value = row[column] if "{" not in column else filled(row, column)
    captions, is_list = in_column(column, as_list, value)
    return [None if is_nothing(one) else text_of(column, one) for one in captions], is_list


def in_column(column: str, read: Callable[[Any], Any], value: object) -> Any:
    try:
        return read(value)
    except CellError:
        raise
    except ValueError as error:
        raise CellError(column, str(error)) from error


def text_in(row: Mapping[str, Any], column: str | None) -> str | None:
    """The text in a column, or a template of columns; None if nothing stands there."""
    if column is None:
        return None
    if "{" in column:
        return filled(row, column)
    value = row[column]
    return None if is_nothing(value) else text_of(column, value)


def time_in(row: Mapping[str, Any], column: str | None) -> object:
    if column is None:
        return None
    value = row[column] if "{" not in column else filled(row, column)
    return None if is_nothing(value) else seconds_of(column, value)


def filled(row: Mapping[str, Any], template: str) -> str | None:
    """A template, filled; None if all its columns are empty. Raises CellError if one of them is:
    half an address is another one.
    """
    if not TEMPLATE.fullmatch(template):
        raise ValueError(
            f"{shown_value(template)}: a template holds plain {{column}} names: no '.', '[', '!' "
            "or ':' in braces"
        )
    names = names_in(template)
    empty = [name for name in names if is_nothing(row[name])]
    if names and len(empty) == len(names):
        return None
    if empty:
        raise CellError(empty[0], f"is empty, and {shown_value(template)} needs it")
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
