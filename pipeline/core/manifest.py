"""A stage's ordered result as JSON lines: a header, the records, the rejections. Equal is equal
bytes.

Every line carries a check of its own, so that `verify` names the line a byte was flipped in.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import replace_file
from pipeline.core.records import Record, Rejection

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


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
    record: Record = _adapter(kind).validate_python({**values, **context})
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
    """Read a manifest of records of one kind. Raises Damaged."""
    header, *lines = lines_of(path.name, path.read_bytes())
    try:
        return _made(header, lines, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{path.name}: its lines are not those of a manifest of {kind.__name__}s: {error!r}"
        ) from error


def _made(header: dict[str, Any], lines: list[dict[str, Any]], kind: type[Record]) -> Manifest:
    return Manifest(
        stage=header["stage"],
        version=header["version"],
        params=header["params"],
        num_in=header["in"],
        num_split=header["split"],
        records=tuple(
            _adapter(kind).validate_python(line["record"]) for line in lines if "record" in line
        ),
        rejections=tuple(
            _adapter(Rejection).validate_python(line["rejection"])
            for line in lines
            if "rejection" in line
        ),
    )


def lines_of(name: str, content: bytes) -> list[dict[str, Any]]:
    """The lines of a manifest or a lock, each checked. Raises Damaged with the line and what it
    seems to be about.
    """
    lines = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            lines.append(canonical.unseal(line))
        except ValueError as error:
            key = re.search(rb'"key":"([A-Za-z0-9_-]+)"', line)
            about = f" (about '{key[1].decode()}')" if key else ""
            raise Damaged(f"{name}: line {number}{about} is damaged: {error}") from error
    if not lines:
        raise Damaged(f"{name} is empty")
    return lines
