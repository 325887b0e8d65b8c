"""Picks: one line a press, the last of a clip counts, and a kill leaves only whole lines."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from pipeline.core import picks
from pipeline.core.errors import RecipeError
from pipeline.core.picks import Pick

A, B = "a" * 64, "b" * 64
TIME = "2026-11-29T16:40:12Z"


def pick(clip: str, choice: str | None, note: str = "") -> Pick:
    return Pick.model_validate({"clip": clip, "pick": choice, "time": TIME, "note": note})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "mine.picks.jsonl"


def test_what_is_added_is_read_in_order(path: Path) -> None:
    assert picks.read(path) == []
    lines = [pick(A, "keep"), pick(B, "reject", 'a "note" \u202e <b>'), pick(A, "reject")]
    picks.append(path, lines[:1])
    picks.append(path, lines[1:])
    assert picks.read(path) == lines
    assert picks.path_of(Path("manifests/mine.toml")) == Path("manifests/mine.picks.jsonl")


def test_the_last_line_of_a_clip_counts_and_null_takes_back() -> None:
    lines = [pick(A, "keep"), pick(B, "keep"), pick(A, "reject"), pick(B, None)]
    assert picks.last_of_each(lines) == {A: lines[2]}


@pytest.mark.parametrize("torn", [b'{"clip":"aaaa', b"\x00\x00\x00", b'{"clip": 5}'])
def test_a_line_that_was_left_unfinished_is_passed_over_and_cut_off(
    path: Path, torn: bytes
) -> None:
    picks.append(path, [pick(A, "keep")])
    with path.open("ab") as file:
        file.write(torn)
    assert picks.read(path) == [pick(A, "keep")]
    picks.append(path, [pick(B, "reject")])
    assert picks.read(path) == [pick(A, "keep"), pick(B, "reject")]
    assert path.read_bytes().count(b"\n") == 2


def test_a_last_line_without_its_end_counts(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(pick(A, "keep").line().rstrip(b"\n"))
    assert picks.read(path) == [pick(A, "keep")]
    picks.append(path, [pick(B, "keep")])
    assert picks.read(path) == [pick(A, "keep"), pick(B, "keep")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"keep it", "line 2 is no JSON"),
        (b'{"clip":"../../etc","pick":"keep","time":"%s"}' % TIME.encode(), "line 2: clip"),
        (b'{"clip":"%s","pick":"maybe","time":"%s"}' % (A.encode(), TIME.encode()), "pick"),
        (b'{"clip":"%s","pick":"keep","time":"yesterday"}' % A.encode(), "time"),
        (b'{"clip":"%s","time":"%s"}' % (A.encode(), TIME.encode()), "pick"),
        (b"[" * 9000, "longer than 8192 bytes"),
        (b"[" * 4000, "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_no_pick_is_named(path: Path, line: bytes, problem: str) -> None:
    path.parent.mkdir()
    path.write_bytes(pick(A, "keep").line() + line + b"\n")
    with pytest.raises(RecipeError, match=problem) as caught:
        picks.read(path)
    assert "mine.picks.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no regular file"):
        picks.read(tmp_path)
    with pytest.raises(RecipeError, match="cannot add picks"):
        picks.append(tmp_path, [pick(A, "keep")])


def _press(path: Path, clip: str) -> None:
    for _ in range(50):
        picks.append(path, [pick(clip, "keep", "x" * 900)])


def test_two_programs_may_add_to_one_file(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_press, args=(path, clip)) for clip in (A, B)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = picks.read(path)
    assert sorted(line.clip for line in lines) == [A] * 50 + [B] * 50


def timed(clip: str, choice: str | None, time: str) -> Pick:
    return Pick.model_validate({"clip": clip, "pick": choice, "time": f"2026-11-29T16:40:{time}Z"})


def test_files_of_several_people_become_one_by_time_and_conflicts_are_seen() -> None:
    ours = [timed(A, "keep", "12"), timed(B, "reject", "14")]
    theirs = [timed(A, "reject", "12.5"), timed(B, "reject", "13"), ours[0]]
    assert picks.merged([ours, theirs]) == [ours[0], theirs[0], theirs[1], ours[1]]
    assert picks.conflicts([ours, theirs]) == {}  # the last line of theirs keeps A, too
    assert picks.conflicts([ours, theirs[:2]]) == {A: [ours[0], theirs[0]]}
    assert picks.conflicts([ours, [timed(A, None, "20")]]) == {}  # taken back: no pick
