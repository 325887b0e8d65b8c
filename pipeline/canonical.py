"""Stable JSON and digests: equal values are equal bytes, on every machine and in every process.

Keys are sorted, separators fixed, text is UTF-8, a Fraction is the string "30000/1001". What has no
stable form (a callable, a path, bytes, NaN, an object with a default repr) is refused, so that it can
never slip into a task key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any


def plain(value: object) -> Any:
    """The value as JSON types; raises TypeError for what has no stable form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no stable form")
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a mapping with keys that are not strings has no stable form")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no stable form: {value!r}")


def encode(value: object) -> bytes:
    """Canonical JSON, without a trailing newline."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest(value: object) -> str:
    """sha256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(encode(value)).hexdigest()


def seal(value: Mapping[str, object]) -> bytes:
    """Canonical JSON of an object that carries its own check, so that a flipped byte is seen when it is read."""
    return encode({**value, "check": digest(value)[:16]})


def unseal(line: bytes) -> dict[str, Any]:
    """What was sealed, without the check. Raises ValueError for anything that is not exactly that."""
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or "check" not in found:
            raise ValueError("no check in it")
        value = {name: item for name, item in found.items() if name != "check"}
        if seal(value) != line.rstrip(b"\n"):
            raise ValueError("it does not agree with its check: some byte was changed")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"nothing longtake wrote: {error}") from error
    return value


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
