"""What a dataset is called, read from its recipe without checking the rest: in milliseconds, for
programs that only need to know which folder is meant.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pipeline.core.errors import RecipeError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # of a dataset, and of a source


def name_of(recipe: Path) -> str:
    """The recipe's `name` key, or without one its file's stem. Raises RecipeError."""
    if not recipe.is_file():
        raise RecipeError(f"there is no recipe {recipe}")
    try:
        name = tomllib.loads(recipe.read_text("utf-8")).get("name", recipe.stem)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{recipe} is not TOML: {error}") from error
    if not isinstance(name, str) or not re.match(NAME, name) or name.lower() == "store":
        raise RecipeError(f"{recipe}: name: got {name!r}, which names no folder of a dataset")
    return name
