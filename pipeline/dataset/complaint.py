"""What is wrong with a recipe, in words: the line, the field, what it got, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.columns import Columns
from pipeline.core.errors import printable
from pipeline.core.params import Table
from pipeline.core.reading import shown, shown_value
from pipeline.dataset.source_table import SourceEntry
from pipeline.media import detectors

Location = list[Any]  # names of tables and fields, and indices, from the outside in
UNION_BRANCH = re.compile(r"^str$|\[")  # a type's name that pydantic puts among the fields


def complaint_of(problem: Any, path: Path, text: str, recipe_type: type[Table]) -> str:
    """One problem pydantic found in a recipe, as a line for people. `text` is the recipe's."""
    location = [part for part in problem["loc"] if not UNION_BRANCH.search(str(part))]
    location = location or ["the recipe"]
    # pydantic names the kind of detector in the place of a field, the recipe does not
    detector = location.pop(1) if location[0] == "cut" and len(location) > 1 else None
    if problem["type"] == "union_tag_invalid":
        location.append("detector")
    place = f"{path}:{line_of(text, location)}: {_dotted(location)}"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{place}: got {shown_value(context['tag'])}, allowed are {context['expected_tags']}"
    if problem["type"] == "extra_forbidden":
        allowed = _allowed_keys(location, detector, recipe_type)
        near = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{place}: unknown key; {hint}allowed are {', '.join(allowed)}"
    return f"{place}: {value_complaint(problem)}"


def value_complaint(problem: Any) -> str:
    """What a field got, and what it wants."""
    if problem["type"] == "missing":
        return "is missing"
    if problem["loc"] and re.match(r"str$|tuple\[", str(problem["loc"][-1])):
        got = shown_value(problem["input"])
        return f"got {got}, wanted is a string or a list of strings"
    rule = printable(problem["msg"].removeprefix("Value error, "))
    return f"got {shown_value(problem['input'])}, {rule[0].lower()}{rule[1:]}"


def _dotted(location: Location) -> str:
    """A location as people write it: `source[2].uri`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return shown("".join(parts).lstrip(".")) or "the recipe"


def _allowed_keys(location: Location, detector: str | None, recipe_type: type[Table]) -> list[str]:
    """The keys of the table a field stands in."""
    if len(location) < 2:
        return sorted(recipe_type.model_fields)
    if location[0] == "source":
        return sorted(SourceEntry.model_fields)
    if location[0] == "columns":
        return sorted(Columns.model_fields)
    if location[0] == "cut":
        options = detectors.options_of(detector or "") or detectors.Options
        return sorted(options.model_fields)
    table = recipe_type.model_fields[location[0]].annotation
    if isinstance(table, type) and issubclass(table, Table):
        return sorted(table.model_fields)
    return []


def line_of(text: str, location: Location) -> int:
    """The line of a field in a recipe's text, or of its table, or 1."""
    lines = text.splitlines()
    index = next((part for part in location if isinstance(part, int)), 0)
    names = [str(part) for part in location]
    tables = [".".join(names[:depth]) for depth in range(len(names), 0, -1)]
    headers = next((rows for table in tables if (rows := header_lines(text, table))), ())
    if not headers:  # a key before the first table, or a table written in one line
        headers, location = [-1], location[:1]
    if index >= len(headers):
        return 1
    start = headers[index]
    key = next(part for part in reversed(location) if not isinstance(part, int))
    assignment = re.compile(rf"\s*{re.escape(str(key))}\s*=")
    for number in range(start + 1, len(lines)):
        if lines[number].lstrip().startswith("["):
            break
        if assignment.match(lines[number]):
            return number + 1
    return max(start, 0) + 1


def header_lines(text: str, table: str) -> Sequence[int]:
    """Indices of the lines that begin a table, or one of an array of tables."""
    header = re.compile(rf"\s*\[\[?\s*{re.escape(table)}\s*\]")
    return [index for index, line in enumerate(text.splitlines()) if header.match(line)]
