"""Lists that somebody wrote as text: JSON, Python, and what numpy, pandas and datasets print.

    ["a man", null]   ['a man', "it's"]   [array(['0:01', '0:05'], dtype=object)]   [[0.  1.5]]

The items of one list are parted by commas or by blanks, never by both. Strings need commas: of two
that stand side by side Python makes one, and numpy means two. Numbers come as they are written.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

LONGEST = 1 << 20  # characters of a list that is written as text
DEEPEST = 16  # levels
TOKEN = re.compile(
    r"""(?P<blank>\s+)|(?P<comma>,)|(?P<open>[\[(])|(?P<close>[\])])
    |(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<nothing>(?:None|null|nan|NaN|<NA>)(?!\w))
    |(?P<kind>,?\s*dtype=[\w.'<>|]+)
    |(?P<call>(?:np\.|numpy\.)?(?:array|list|tuple|str_|float(?:16|32|64)|u?int(?:8|16|32|64))(?=\())
    """,
    re.VERBOSE | re.DOTALL,
)
QUOTED = re.compile(r"\[\s*['\"\[{]|(?:np\.|numpy\.)?array\(")  # what no caption begins with
HINT = 'a list is written as JSON, ["a", "b"]; a text that only looks like a list, as a list of one'


class _NoListError(Exception):
    """What stands there is no list, and why."""


def is_nothing(value: object) -> bool:
    """Whether a cell is empty: nothing, no text, or the "not a number" that pandas puts there."""
    return value is None or value == "" or value != value


def as_list(value: Any) -> tuple[list[Any], bool]:
    """A list as it is, one written as text read, anything else as a list of one; and whether it
    was a list. Raises ValueError for what begins as a list and is none.
    """
    if is_nothing(value):
        return [], False
    if isinstance(value, list | tuple):
        return list(value), True
    if not isinstance(value, str) or not _looks_like_list(value.strip()):
        return [value], False
    text = value.strip()
    if len(text) > LONGEST:
        raise ValueError(f"got {text[:20]!r}..., a list of more than {LONGEST} characters")
    try:
        return _read(text), True
    except _NoListError as error:
        if "," not in text and not QUOTED.match(text):
            return [value], False  # "[music]"
        raise ValueError(f"got {text[:60]!r}, which is no list: {error}; {HINT}") from None


def _looks_like_list(text: str) -> bool:
    """Whether a text is written as a list, or is the beginning of one that was cut off."""
    if text.startswith("["):
        return text.endswith("]") or QUOTED.match(text) is not None
    return re.match(r"(?:np\.|numpy\.)?array\(\[", text) is not None


def _read(text: str) -> list[Any]:
    try:
        values = json.loads(text, parse_int=str, parse_float=str)
    except RecursionError:
        raise _NoListError("it is nested too deeply for a list") from None
    except ValueError:
        values = _Reader(text).whole()
    if not isinstance(values, list):
        raise _NoListError("it holds one value")
    return values


class _Reader:
    """Reads what Python and numpy print. Raises _NoListError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> Any:
        value = self._value(0)
        self._blank()
        if self._at < len(self._text):
            raise self._wrong()
        return value

    def _wrong(self) -> _NoListError:
        rest = self._text[self._at : self._at + 20]
        return _NoListError(f"{rest!r} stands where a value or an end is due")

    def _next(self, *kinds: str) -> str | None:
        """The text of the next token, if it is of one of these kinds."""
        match = TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup not in kinds:
            return None
        self._at = match.end()
        return match[0]

    def _blank(self) -> bool:
        return self._next("blank") is not None

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise _NoListError("it is nested too deeply for a list")
        self._blank()
        if self._next("call"):
            return self._called(depth)
        if self._next("open"):
            return self._items(depth)
        if (string := self._next("string")) is not None:
            try:
                return ast.literal_eval(string)
            except (ValueError, SyntaxError):
                raise _NoListError(f"{string[:20]!r} is no string") from None
        if self._next("nothing"):
            return None
        if (number := self._next("number")) is not None:
            return number
        raise self._wrong()

    def _called(self, depth: int) -> Any:
        """The value in `array(..., dtype=object)`, or in `np.float64(...)`."""
        self._next("open")
        value = self._value(depth + 1)
        self._next("comma")
        self._blank()
        self._next("kind")
        self._blank()
        if self._next("close") != ")":
            raise self._wrong()
        return value

    def _items(self, depth: int) -> list[Any]:
        values: list[Any] = []
        separators: set[str] = set()
        quoted: list[bool] = []  # of each value, whether it begins with a quote
        while True:
            has_blank = self._blank()
            has_comma = bool(values) and self._next("comma") is not None
            self._blank()
            if self._next("close"):
                return values
            if values:
                if not has_comma and not has_blank:
                    raise self._wrong()
                separators.add("comma" if has_comma else "blank")
            if len(separators) > 1:
                raise _NoListError("some of its values are parted by commas, others by blanks")
            quoted.append(self._text[self._at : self._at + 1] in ("'", '"'))
            if not has_comma and quoted[-2:] == [True, True]:
                raise _NoListError(
                    "two strings stand side by side without a comma: numpy means two, Python one"
                )
            values.append(self._value(depth + 1))
