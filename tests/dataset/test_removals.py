"""The file of sources that were taken down, which comes with a recipe from whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.core import canonical
from pipeline.core.errors import RecipeError
from pipeline.dataset import removals
from pipeline.dataset.removals import Removal

VIDEO = {"video": "a" * 64, "span": [None, "3/2"]}
LINE = {"source": "a", "at": "2026-01-01T00:00:00Z", "why": "asked to", "videos": {"a": VIDEO}}


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    recipe = folder / "mine.toml"
    content = b"".join(canonical.seal(line) + b"\n" for line in lines)
    removals.path_of(recipe).write_bytes(content)
    return recipe


def test_a_line_comes_back_as_it_was_noted(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    roots = {"before": "b" * 64, "after": ""}
    facts = {"videos": {"a": VIDEO}, "samples": ["a-0000"], "shards": ["00000"]}
    facts["root_digest"] = roots  # type: ignore[assignment]
    removal = Removal("2026-01-01T00:00:00Z", "asked to", facts)
    removals.note(recipe, "a", removal, facts)
    removals.note(recipe, "b", Removal("2026-01-02T00:00:00Z", ""), {})
    assert removals.read(recipe) == {"a": removal, "b": Removal("2026-01-02T00:00:00Z", "")}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"videos": {"a": {**VIDEO, "video": "/etc/passwd"}}}, "videos.a.video"),
        ({"videos": {"a": {**VIDEO, "video": "../" * 21 + "x"}}}, "videos.a.video"),
        ({"videos": {"a": {"video": "a" * 64}}}, "videos.a.span"),
        ({"videos": ["a"]}, "videos"),
        ({"source": 3}, "source"),
        ({"samples": "all"}, "samples"),
        ({"root_digest": {"before": 1, "after": ""}}, "root_digest.before"),
    ],
)
def test_a_line_that_says_something_else_is_refused_by_name_though_its_check_is_right(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    recipe = write(tmp_path, LINE, {**LINE, "source": "b", **change})
    with pytest.raises(RecipeError, match=rf"mine\.removed\.jsonl: line 2 .*\({problem}"):
        removals.read(recipe)
