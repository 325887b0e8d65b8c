"""A stage's ordered result as JSON lines: a header, the records, the rejections. Equal is equal
bytes.

Every line carries a check of its own, so that `verify` names the line a byte was flipped in.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import replace_file
from pipeline.core.reading import Count, Facts, Text, Whole, adapter, checked, unsealed
from pipeline.core.records import Record, Rejection

LONGEST_LINE = 1 << 30  # bytes: that of a shard tells of all its samples


class Header(Facts):
    """The first line of a manifest."""

    longtake: Literal["manifest"]
    stage: Text
    version: Count
    params: dict[Text, Any]
    num_in: Count = Field(alias="in")
    num_split: Whole = Field(alias="split")
    num_out: Count = Field(alias="out")
    rejected: dict[Text, Count]


def facts(record: Record) -> dict[str, Any]:
    """A record without key and parent: what its task found out, as plain JSON."""
    left_out = ("key", record.parent)
    return {
        f.name: canonical.plain(getattr(record, f.name))
        for f in dataclasses.fields(record)
        if f.name not in left_out
    }


def changes(record: Record, output: Record) -> dict[str, Any]:
    """The facts in which an output differs from the record of the same type it came from."""
    before = facts(record)
    return {name: value for name, value in facts(output).items() if value != before[name]}


def restore(kind: type[Record], values: Mapping[str, Any], key: str, parent: Record) -> Record:
    """The record that `facts` came from, under a key and a parent."""
    context = {"key": key} if kind.parent is None else {"key": key, kind.parent: parent}
    record: Record = adapter(kind).validate_python({**values, **context})
    return record


@dataclass(frozen=True)
class Manifest:
    """What one stage made of its input.

    `num_in` counts records in; `num_split` the extra ones from records that gave several. The
    conservation law `num_in + num_split = records + rejections` is checked when a manifest is made.
    """

    stage: str
    version: int
    params: Mapping[str, Any]
    num_in: int
    num_split: int
    records: tuple[Record, ...]
    rejections: tuple[Rejection, ...]

    def __post_init__(self) -> None:
        out = len(self.records) + len(self.rejections)
        if self.num_in + self.num_split != out:
            sums = f"{self.num_in} in + {self.num_split} split != {out} out and rejected"
            raise AssertionError(f"stage '{self.stage}' lost records: {sums}")
        keys = [record.key for record in self.records]
        if len(set(keys)) != len(keys):
            twice = [key for key, count in Counter(keys).items() if count > 1]
            raise RecipeError(
                f"the key '{twice[0]}' would stand for two records: "
                "give one of their sources another id"
            )

    @property
    def reasons(self) -> Counter[str]:
        return Counter(rejection.reason for rejection in self.rejections)

    def encode(self) -> bytes:
        header = {
            "longtake": "manifest",
            "stage": self.stage,
            "version": self.version,
            "params": self.params,
            "in": self.num_in,
            "split": self.num_split,
            "out": len(self.records),
            "rejected": dict(self.reasons),
        }
        lines = [header]
        lines += [{"record": canonical.plain(r)} for r in sorted(self.records, key=lambda r: r.key)]
        lines += [
            {"rejection": canonical.plain(r)}
            for r in sorted(self.rejections, key=lambda r: (r.key, r.reason, r.detail))
        ]
        return b"".join(canonical.seal(line) + b"\n" for line in lines)

    def write(self, path: Path) -> None:
        """Write the file; one that holds the same manifest is left alone."""
        content = self.encode()
        if path.is_file() and path.read_bytes() == content:
            return
        replace_file(path, content)


def read(path: Path, kind: type[Record]) -> Manifest:
    """Read a manifest of records of one kind. Raises Damaged with the line that is none of its."""
    header, lines = read_lines(path.name, path.read_bytes())
    records: list[Record] = []
    rejections: list[Rejection] = []
    for number, line in lines:
        place = f"{path.name}: line {number}"
        if line.keys() == {"record"}:
            records.append(checked(kind, line["record"], place, "record"))
        elif line.keys() == {"rejection"}:
            rejections.append(checked(Rejection, line["rejection"], place, "rejection"))
        else:
            raise Damaged(f"{place}: neither a record nor a rejection")
    try:
        return Manifest(
            stage=header.stage,
            version=header.version,
            params=header.params,
            num_in=header.num_in,
            num_split=header.num_split,
            records=tuple(records),
            rejections=tuple(rejections),
        )
    except (AssertionError, RecipeError) as error:  # a line is missing, or there twice
        raise Damaged(f"{path.name}: {error}") from None


def read_lines(name: str, content: bytes) -> tuple[Header, list[tuple[int, dict[str, Any]]]]:
    """A manifest's header, and the other lines as plain JSON with their numbers. Raises Damaged."""
    (_, first), *lines = unsealed(name, io.BytesIO(content), LONGEST_LINE)
    return checked(Header, first, f"{name}: line 1"), lines
