"""The file of sources that were taken down, which comes with a recipe from whoever wrote it."""

from __future__ import annotations

from fractions import Fraction
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


def noted(folder: Path, *sources: str) -> Path:
    """A recipe's path whose removals file has a line for each source."""
    recipe = folder / "mine.toml"
    for source in sources:
        removals.note(recipe, source, Removal("2026-01-01T00:00:00Z", "asked to"), {})
    return recipe


def lines_of(recipe: Path) -> list[bytes]:
    return removals.path_of(recipe).read_bytes().splitlines(keepends=True)


def rewrite(recipe: Path, lines: list[bytes]) -> None:
    removals.path_of(recipe).write_bytes(b"".join(lines))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_line_that_was_cut_out_before_another_is_seen(tmp_path: Path, number: int) -> None:
    recipe = noted(tmp_path, "a", "b", "c", "d")
    lines = lines_of(recipe)
    del lines[number]
    rewrite(recipe, lines)
    with pytest.raises(RecipeError, match=rf"line {number + 1} follows a line that is not there"):
        removals.read(recipe)


def test_an_emptied_file_is_refused_and_so_is_one_that_is_no_file(tmp_path: Path) -> None:
    recipe = noted(tmp_path, "a")
    rewrite(recipe, [])
    with pytest.raises(RecipeError, match=r"mine\.removed\.jsonl is empty; it says which sources"):
        removals.read(recipe)
    removals.path_of(recipe).unlink()
    removals.path_of(recipe).symlink_to("nowhere")
    with pytest.raises(RecipeError, match=r"mine\.removed\.jsonl cannot be read"):
        removals.read(recipe)
    removals.path_of(recipe).unlink()
    removals.path_of(recipe).symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match=r"mine\.removed\.jsonl is no regular file"):
        removals.read(recipe)


@pytest.mark.parametrize("num_left", [0, 1, 2])
def test_lines_that_were_cut_off_at_the_end_are_seen_by_the_lock(
    tmp_path: Path, num_left: int
) -> None:
    recipe = noted(tmp_path, "a", "b", "c")
    head = removals.head_of(removals.read(recipe))
    assert head is not None
    removals.check(recipe, removals.read(recipe), head, tmp_path / "mine.lock.jsonl")
    removals.note(recipe, "d", Removal("2026-01-01T00:00:00Z", ""), {})
    removals.check(recipe, removals.read(recipe), head, tmp_path / "mine.lock.jsonl")
    lines = lines_of(recipe)[:num_left]
    rewrite(recipe, lines)
    removed = removals.read(recipe) if lines else {}
    with pytest.raises(
        RecipeError, match=rf"has lost lines: .*mine\.lock\.jsonl knows of 3, there are {num_left};"
    ):
        removals.check(recipe, removed, head, tmp_path / "mine.lock.jsonl")


def test_lines_of_two_branches_may_be_merged_in_either_order(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    recipe, other = noted(tmp_path, "a", "b"), noted(tmp_path / "other", "a", "b")
    assert lines_of(recipe) == lines_of(other)
    noted(tmp_path, "c")
    noted(tmp_path / "other", "d", "e")
    [mine], theirs = lines_of(recipe)[2:], lines_of(other)[2:]
    for merged in ([mine, *theirs], [*theirs, mine]):
        rewrite(recipe, [*lines_of(other)[:2], *merged])
        removed = removals.read(recipe)
        assert sorted(removed) == ["a", "b", "c", "d", "e"]
        for branch in (recipe, other):
            head = removals.head_of(removals.read(branch))
            assert head is not None
            removals.check(recipe, removed, head, tmp_path / "mine.lock.jsonl")


def test_a_file_of_before_whose_lines_name_no_other_is_read_and_goes_on_as_a_chain(
    tmp_path: Path,
) -> None:
    recipe = write(tmp_path, LINE, {**LINE, "source": "b"})
    noted(tmp_path, "c")
    assert list(removals.read(recipe)) == ["a", "b", "c"]
    lines = lines_of(recipe)
    rewrite(recipe, [lines[0], lines[2]])
    with pytest.raises(RecipeError, match="line 2 follows a line that is not there"):
        removals.read(recipe)
    rewrite(recipe, [lines[1], lines[2], lines[0]])
    with pytest.raises(RecipeError, match="line 3 does not name a line that it follows"):
        removals.read(recipe)


def part_of(key: str, sha256: str, start: int | None, end: int | None, **facts: Any) -> str | None:
    """Under which key a part of a video was taken down, if VIDEO was as `a`."""
    removal = Removal("2026-01-01T00:00:00Z", "", {"videos": {"a": VIDEO}, **facts})
    footage = removals.footage_of({"a": removal})
    span = (None if start is None else Fraction(start), None if end is None else Fraction(end))
    result = footage.removal_of_part(key, sha256, span)
    return result[0] if result else None


def test_footage_is_known_by_its_bytes_under_any_name() -> None:
    assert part_of("new", "a" * 64, None, None) == "a"  # VIDEO is the first 1.5 s
    assert part_of("new", "a" * 64, 1, 2) == "a"
    assert part_of("new", "a" * 64, 2, None) is None
    assert part_of("new", "b" * 64, None, None) is None
    assert part_of("twin", "a" * 64, None, None, others=("twin",)) is None
