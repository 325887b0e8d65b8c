"""The one reader of our own files: bounded bytes, strict JSON, and facts that have the types they
are said to have.

Locks, removals and indexes come with a recipe, from a stranger. Whatever is wrong with one (a
number where a text is due, a digest that is none, a bomb) is an error of one printable line that
names the file, the line and the field. The types below are those of all facts: a record that has
been read holds no value that arithmetic, a path or a terminal would choke on.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from pipeline.core import canonical
from pipeline.core.errors import Damaged, printable

LONGEST_LINE = 8 << 20  # bytes of a line of a file that comes with a recipe
SHOWN = 200  # characters of a wrong value, or of what is said of it
DIGITS = 100  # of a numerator or a denominator: its float is finite, also times a time stamp
MOST_PROBLEMS = 1000  # of a value with more, none is named

T = TypeVar("T")


def _rational(value: object) -> object:
    """A fraction from its canonical form, "30000/1001"."""
    if isinstance(value, Fraction):
        return value
    if isinstance(value, str) and re.fullmatch(
        rf"-?[0-9]{{1,{DIGITS}}}/[0-9]{{1,{DIGITS}}}", value
    ):
        numerator, denominator = value.split("/")
        if int(denominator):
            return Fraction(int(numerator), int(denominator))
    raise PydanticCustomError("fraction", 'Input is not a valid fraction such as "30000/1001"')


Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Rational = Annotated[Fraction, BeforeValidator(_rational)]
Positive = Annotated[Fraction, BeforeValidator(_rational), Field(gt=0)]
Digest = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
# a key becomes file names
Key = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=250)]
Texts = Annotated[tuple[Text, ...], FailFast()]


class Facts(BaseModel):
    """What one line or file of ours must say. What it says besides is of another version."""

    model_config = ConfigDict(frozen=True)


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks values for a type; made once for each."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def checked(kind: type[T], value: object, place: str, name: str = "") -> T:
    """The value as one of that type. Raises Damaged with the place, and with what is wrong: the
    first wrong field of the value, which is called `name` in its line.
    """
    try:
        result: T = adapter(kind).validate_python(value)
    except ValidationError as error:
        raise Damaged(f"{place}: {problem_of(error, name)}") from None
    return result


def is_one(kind: Any, value: object) -> bool:
    """Whether a value is of a type, as `checked` sees it."""
    try:
        adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def problem_of(error: ValueError, name: str = "") -> str:
    """What is wrong with a value, in one printable line: the first field that is, and how."""
    if not isinstance(error, ValidationError):
        return shown(str(error))
    count = error.error_count()
    if count > MOST_PROBLEMS:
        return f"{count} fields are not what they should be"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(map(str, (name, *first["loc"]) if name else first["loc"]))
    return shown(f"{field}: {first['msg']}" if field else first["msg"])


def shown(text: str) -> str:
    """Somebody else's words as a part of a line: printable, and not too many."""
    return printable(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def shown_value(value: object) -> str:
    """A value as Python writes it, for a message."""
    try:
        return shown(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} that is too large to be shown"


def whole(path: Path, most: int) -> bytes:
    """A file's bytes. Raises Damaged for one that is longer than `most`, or no regular file."""
    with _opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Damaged(f"{path.name} is longer than {most >> 20} MiB")
    return content


def _opened(path: Path) -> BinaryIO:
    """A regular file: a device has no end, and a pipe waits."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Damaged(f"{path.name} is no regular file")
    return path.open("rb")


class EndlessError(Exception):
    """A stream went on beyond the bytes it may have."""


class Bounded(io.RawIOBase):
    """A stream that may give so many bytes and no more: EndlessError."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream = stream
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise EndlessError
        buffer[: len(content)] = content
        return len(content)


def sealed_lines(path: Path, name: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file that comes with a recipe, numbered from 1, each checked as it is read.
    Raises Damaged.
    """
    with _opened(path) as file:
        yield from unsealed(name or path.name, file)


def unsealed(
    name: str, file: io.RawIOBase | BinaryIO, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Sealed lines, numbered from 1, from a file that is open. Raises Damaged with the line, and
    what it seems to be about.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise Damaged(f"{name}: line {number} is longer than {longest >> 20} MiB")
        try:
            yield number, canonical.unseal(line.rstrip(b"\r\n"))
        except ValueError as error:
            key = re.search(rb'"key":"([A-Za-z0-9_-]{1,250})"', line)
            about = f" (about '{key[1].decode()}')" if key else ""
            problem = shown(str(error))
            raise Damaged(f"{name}: line {number}{about} is damaged: {problem}") from None
    if not number:
        raise Damaged(f"{name} is empty")
