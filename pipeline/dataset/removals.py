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

from pydantic import BaseModel, Field, ValidationError

from pipeline.core import canonical
from pipeline.core.errors import RecipeError
from pipeline.core.files import replace_file


@dataclass(frozen=True)
class Removal:
    """When (UTC) a source was taken down, what was said, and what it was: see `note`."""

    at: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Video(BaseModel):
    """A video that was taken down: its digest, and the part of it, as exact seconds."""

    video: str = Field(pattern=r"^[0-9a-f]{64}$")
    span: tuple[str | None, str | None]


class _Roots(BaseModel):
    before: str
    after: str


class _Line(BaseModel):
    """What a line must say. It comes with a recipe, so somebody else may have written it."""

    source: str
    at: str
    why: str
    videos: dict[str, _Video] = {}
    samples: list[str] = []
    shards: list[str] = []
    root_digest: _Roots | None = None

    def facts(self) -> dict[str, Any]:
        """What it says beside who, when and why."""
        return self.model_dump(mode="json", exclude={"source", "at", "why"}, exclude_defaults=True)


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
    for number, content in enumerate(path.read_bytes().splitlines(), 1):
        try:
            facts = canonical.unseal(content)
            line = _Line.model_validate(facts)
        except ValueError as error:
            raise RecipeError(
                f"{path}: line {number} is damaged ({_problem(error)}); it says which sources were "
                "taken down, so nothing is built without it"
            ) from error
        removals[line.source] = Removal(line.at, line.why, line.facts())
    return removals


def _problem(error: ValueError) -> str:
    """What is wrong with a line, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def note(recipe: Path, source: str, removal: Removal, facts: Mapping[str, object]) -> None:
    """Add a line: the source, when, why, and `facts` for whoever audits it."""
    path = path_of(recipe)
    line = {"source": source, "at": removal.at, "why": removal.why, **facts}
    before = path.read_bytes() if path.is_file() else b""
    replace_file(path, before + canonical.seal(line) + b"\n")
