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
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

DEEPEST = 64  # lists and objects in one another; ours go to 12
TOO_DEEP = f"it is nested more than {DEEPEST} times"
TOO_LARGE = "a whole number in it has more than 64 bits"


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
    value = parse(line)
    if not isinstance(value, dict) or value.pop("check", None) is None:
        raise ValueError("no check in it")
    if _sealed(value) != line.rstrip(b"\n"):
        raise ValueError("it does not agree with its check: some byte was changed")
    return value


def parse(content: bytes | str) -> Any:
    """JSON from somebody else. Raises ValueError for what is none, and for what JSON may hold and
    we never write: whole numbers beyond 64 bits, numbers that are not finite, half characters, and
    values that are nested more than `DEEPEST` times.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        value = _decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    # numbers were checked as they were read; the walk is for what can be deep or half a character
    if text.count("[") + text.count("{") > DEEPEST or "\\u" in text:
        check_plain(value)
    return value


def check_plain(value: object) -> None:
    """ValueError for plain values, of JSON, TOML or a table, that are nested too deeply, hold a
    whole number beyond 64 bits or half a character. Costs a walk through all of them.
    """
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [item for parent in level for item in _items(parent)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _items(value: object) -> Iterable[object]:
    """What is directly in a value; it is checked itself."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(TOO_LARGE)
    if isinstance(value, str) and not value.isascii():
        value.encode()  # raises UnicodeEncodeError, a ValueError, for half a character
    return ()


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or (number := int(digits)).bit_length() > 63:
        raise ValueError(TOO_LARGE)
    return number


def _finite_number(digits: str) -> float:
    number = float(digits) if len(digits) <= 400 else math.inf
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is not finite")
    return number


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


_decode = json.JSONDecoder(
    parse_int=_whole_number, parse_float=_finite_number, parse_constant=_no_number
).decode


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
