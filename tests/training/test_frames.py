"""Index arithmetic: windows, known frames, and sequences interpolated in parts."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.making.imports import roots
from training import frames
from training.frames import (
    TASKS,
    Window,
    frames_between,
    interpolated,
    known_frames,
    neighbours,
    window_plan,
)


def test_a_window_is_num_frames_positions_stride_apart() -> None:
    window = Window(5, 16)
    assert window.span == 65
    assert list(window.indices(3)) == [3, 19, 35, 51, 67]
    assert Window(1, 9).span == 1
    assert Window(65).indices(0) == range(65)
    assert str(window) == "5@16"


@pytest.mark.parametrize("arguments", [(0, 1), (5, 0), (-1, 1), (5, -4)])
def test_no_window_without_frames_or_with_a_stride_that_goes_nowhere(
    arguments: tuple[int, int],
) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Window(*arguments)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 1000))
def test_a_window_never_leaves_its_span(num_frames: int, stride: int, start: int) -> None:
    window = Window(num_frames, stride)
    taken = list(window.indices(start))
    assert len(taken) == num_frames
    assert taken[0] == start
    assert taken[-1] == start + window.span - 1


def test_five_frames_become_17_then_65_then_257() -> None:
    chain = [2]
    for _ in range(4):
        chain.append(interpolated(chain[-1]))
    assert chain == [2, 5, 17, 65, 257]
    assert interpolated(1) == 1
    assert interpolated(7, factor=1) == 7


@pytest.mark.parametrize("stride", [16, 4])
def test_the_three_models_windows_cover_the_same_span(stride: int) -> None:
    assert Window(interpolated(5, 16 // stride), stride).span == Window(5, 16).span == 65


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        ("unconditional", "........."),
        ("first", "X........"),
        ("ends", "X.......X"),
        ("every", "X...X...X"),
        ("prefix", "XXX......"),
    ],
)
def test_each_task_gives_the_frames_it_says(task: str, pattern: str) -> None:
    known = known_frames(task, 9, every=4, prefix=3)  # type: ignore[arg-type]
    assert "".join("X" if is_known else "." for is_known in known) == pattern


def test_there_are_no_other_tasks() -> None:
    assert TASKS == ("unconditional", "first", "ends", "every", "prefix")
    with pytest.raises(ValueError, match="no task 'middle': there are unconditional, first"):
        known_frames("middle", 9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "num_frames", "options"),
    [
        ("first", 1, {}),
        ("ends", 2, {}),
        ("every", 9, {"every": 1}),
        ("every", 9, {"every": 0}),
        ("prefix", 5, {"prefix": 5}),
        ("prefix", 5, {"prefix": 0}),
        ("prefix", 5, {"prefix": -2}),
        ("unconditional", 0, {}),
    ],
)
def test_a_task_that_leaves_nothing_to_make_or_gives_nothing_is_refused(
    task: str, num_frames: int, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="leave some to make"):
        known_frames(task, num_frames, **options)  # type: ignore[arg-type]


@given(st.integers(2, 60), st.integers(2, 9))
def test_every_kth_gives_the_last_frame_of_an_interpolated_sequence(
    num_keyframes: int, every: int
) -> None:
    known = known_frames("every", interpolated(num_keyframes, every), every=every)
    assert known[0]
    assert known[-1]
    assert sum(known) == num_keyframes


def test_neighbours_say_what_lies_left_and_right_and_how_near() -> None:
    known = known_frames("every", 5, every=4)
    assert neighbours(known) == [(0, 0, 0.0), (0, 4, 0.25), (0, 4, 0.5), (0, 4, 0.75), (4, 4, 0.0)]
    assert neighbours((False, True, False)) == [(None, 1, 1.0), (1, 1, 0.0), (1, None, 0.0)]
    assert neighbours((False, False)) == [(None, None, 0.0)] * 2


@given(st.lists(st.booleans(), min_size=1, max_size=40).map(tuple))
def test_a_blend_of_neighbours_is_exact_on_a_straight_line(known: tuple[bool, ...]) -> None:
    for index, (left, right, weight) in enumerate(neighbours(known)):
        assert left is None or (known[left] and not any(known[left + 1 : index + 1]))
        assert right is None or (known[right] and not any(known[index:right]))
        if left is not None and right is not None:
            assert (1 - weight) * left + weight * right == pytest.approx(index)


@given(st.integers(2, 400), st.integers(2, 40))
def test_windows_share_one_keyframe_cover_each_gap_once_and_fit(
    num_keyframes: int, max_keyframes: int
) -> None:
    plan = window_plan(num_keyframes, max_keyframes)
    gaps = [gap for window in plan for gap in range(window[0], window[-1])]
    assert gaps == list(range(num_keyframes - 1))
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(plan))
    sizes = [len(window) for window in plan]
    assert 2 <= min(sizes) <= max(sizes) <= max_keyframes
    assert max(sizes) - min(sizes) <= 1
    assert len(plan) == -(-(num_keyframes - 1) // (max_keyframes - 1))


def test_65_frames_to_257_in_windows_of_17_keyframes() -> None:
    plan = window_plan(65, 17)
    assert plan == [range(17), range(16, 33), range(32, 49), range(48, 65)]
    assert [frames_between(window) for window in plan] == [
        range(65),
        range(64, 129),
        range(128, 193),
        range(192, 257),
    ]


@pytest.mark.parametrize("arguments", [(1, 5), (5, 1), (0, 2)])
def test_one_keyframe_has_no_gap_to_fill(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two ends"):
        window_plan(*arguments)


def test_nothing_but_the_standard_library_is_imported() -> None:
    assert roots(Path(frames.__file__)) <= sys.stdlib_module_names
