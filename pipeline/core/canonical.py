"""Stable JSON and digests: equal values are equal bytes, on every machine and in every process.

Keys are sorted, separators fixed, text is UTF-8, a Fraction is the string "30000/1001". What has no
stable form (a callable, a path, bytes, NaN, an object with a default repr) is refused, so that it
can never slip into a task key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any


def plain(value: object) -> Any:
    """The value as JSON types; raises TypeError for what has no stable form."""
    kind = type(value)
    if kind in _AS_THEY_ARE or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no stable form")
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(kind):
        return {name: plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a mapping with keys that are not strings has no stable form")
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"{kind.__name__} has no stable form: {value!r}")


_AS_THEY_ARE = frozenset({str, int, bool, type(None)})
_text = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
).encode


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def encode(value: object) -> bytes:
    """Canonical JSON, without a trailing newline."""
    return _text(plain(value)).encode()


def digest(value: object) -> str:
    """sha256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(encode(value)).hexdigest()


def seal(value: Mapping[str, object]) -> bytes:
    """Canonical JSON of an object that carries its own check, so that a flipped byte is seen when
    it is read.
    """
    return _sealed(plain(value))


def _sealed(value: dict[str, Any]) -> bytes:
    check = hashlib.sha256(_text(value).encode()).hexdigest()[:16]
    return _text({**value, "check": check}).encode()


def unseal(line: bytes) -> dict[str, Any]:
    """What was sealed, without the check. Raises ValueError for anything that is not exactly
    that.
    """
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or value.pop("check", None) is None:
            raise ValueError("no check in it")
        if _sealed(value) != line.rstrip(b"\n"):
            raise ValueError("it does not agree with its check: some byte was changed")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"nothing longtake wrote: {error}") from error
    return value


def file_digest_once(path: Path) -> str:
    """`file_digest`, computed once in a process for as long as the file's size, time of change and
    inode stay. For large files that are not changed in place, such as weights.
    """
    status = path.stat()
    return _remembered_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _remembered_digest(path: Path, *stamp: int) -> str:
    return file_digest(path)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
