"""`manifests/NAME.removed.jsonl`: sources that were taken down, and stay so whatever the recipe
says. Lines are only ever added.

It stands beside the recipe and is published with it: a rebuild leaves the same sources out. It
names ids, no addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import RecipeError
from pipeline.core.files import replace_file


@dataclass(frozen=True)
class Removal:
    """When (UTC) a source was taken down, what was said, and what it was: see `note`."""

    at: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def path_of(recipe: Path) -> Path:
    return recipe.with_name(f"{recipe.stem}.removed.jsonl")


def read(recipe: Path) -> dict[str, Removal]:
    """The sources taken down, by key. Raises RecipeError if the file cannot be understood: nothing
    is built without it.
    """
    path = path_of(recipe)
    if not path.is_file():
        return {}
    removals = {}
    try:
        for content in path.read_bytes().splitlines():
            line = canonical.unseal(content)
            source, at, why = (str(line.pop(name)) for name in ("source", "at", "why"))
            removals[source] = Removal(at, why, line)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path} is damaged ({error}); it says which sources were taken down, so nothing is "
            "built without it"
        ) from error
    return removals


def note(recipe: Path, source: str, removal: Removal, facts: Mapping[str, object]) -> None:
    """Add a line: the source, when, why, and `facts` for whoever audits it."""
    path = path_of(recipe)
    line = {"source": source, "at": removal.at, "why": removal.why, **facts}
    before = path.read_bytes() if path.is_file() else b""
    replace_file(path, before + canonical.seal(line) + b"\n")
