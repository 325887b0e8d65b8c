"""What a dataset is called, read from its recipe without checking the rest: in milliseconds, for
programs that only need to know which folder is meant.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import RecipeError, printable

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # of a dataset, and of a source
MOST_BYTES = 1 << 26  # of a recipe: a hundred thousand sources written in it
# a key of so many parts, which would take the parser the square of their number
PART = r"(?:[A-Za-z0-9_-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+"
DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_\"'.-])(?:{PART}){{{canonical.DEEPEST}}}")


def name_of(recipe: Path) -> str:
    """The recipe's `name` key, or without one its file's stem. Raises RecipeError."""
    _, values = toml_of(recipe)
    name = values.get("name", recipe.stem)
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or name.lower() == "store":
        name = printable(repr(name)[:80])
        raise RecipeError(f"{recipe}: name: got {name}, which names no folder of a dataset")
    return name


def toml_of(recipe: Path) -> tuple[str, dict[str, Any]]:
    """A recipe's text, and what it says as plain values. Raises RecipeError."""
    text = _read_text(recipe)
    try:
        if DEEP_KEY.search(text):
            raise ValueError(f"a key in it has more than {canonical.DEEPEST} parts")
        values = tomllib.loads(text)
        canonical.check_plain(values)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise RecipeError(f"{recipe} is not TOML: {printable(str(error))}") from error
    return text, values


def _read_text(recipe: Path) -> str:
    try:
        if recipe.exists() and not recipe.is_file() and not recipe.is_dir():
            raise RecipeError(f"{recipe} is no file")  # a device has no end, and a pipe waits
        with recipe.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise RecipeError(f"{recipe} is longer than {MOST_BYTES >> 20} MiB")
        return content.decode().replace("\r\n", "\n")
    except FileNotFoundError as error:
        names = sorted(other.stem for other in recipe.parent.glob("*.toml"))
        others = f"; beside it: {', '.join(names)}" if names else ""
        raise RecipeError(f"there is no recipe {recipe}{others}") from error
    except ValueError as error:  # not UTF-8
        raise RecipeError(f"{recipe} is not TOML: {error}") from error
    except OSError as error:
        raise RecipeError(f"cannot read {recipe}: {error.strerror}") from error
