"""Which frames: windows cut from clips, known and unknown positions, and the 5 -> 17 -> 65
arithmetic.

Whole numbers only, and nothing but the standard library, so that presets and help are there at
once. What is asked for and cannot be is a ValueError: these are a programmer's arguments, not a
user's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["unconditional", "first", "ends", "every", "prefix"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Window:
    """`num_frames` frames of a clip, `stride` apart: every frame is 1, every other one 2."""

    num_frames: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.stride < 1:
            raise ValueError(
                "a window needs at least one frame and a stride of at least 1, not "
                f"{self.num_frames}@{self.stride}"
            )

    def __str__(self) -> str:
        return f"{self.num_frames}@{self.stride}"

    @property
    def span(self) -> int:
        """Frames of the clip from the window's first to its last, both counted."""
        return (self.num_frames - 1) * self.stride + 1

    def indices(self, start: int) -> range:
        """The clip's frames it takes when its first one is frame `start`."""
        return range(start, start + self.span, self.stride)


def interpolated(num_frames: int, factor: int = 4) -> int:
    """Frames there are when every gap is cut into `factor`: 2 -> 5 -> 17 -> 65 -> 257."""
    if num_frames < 1 or factor < 1:
        raise ValueError(f"cannot cut the gaps of {num_frames} frames into {factor}")
    return (num_frames - 1) * factor + 1


def known_frames(task: Task, num_frames: int, every: int = 4, prefix: int = 1) -> tuple[bool, ...]:
    """Which frames a model is given (True) and which it makes (False).

    `unconditional` gives none; `first` the first; `ends` the first and the last; `every` frames 0,
    every, 2 * every, ..., of which the last frame is one whenever the number of frames is
    `interpolated(m, every)`; `prefix` the first `prefix`. ValueError if there is no such task, or
    if it leaves no frame to make.
    """
    positions: dict[str, set[int]] = {
        "unconditional": set(),
        "first": {0},
        "ends": {0, num_frames - 1},
        "every": set(range(0, num_frames, every)) if every > 0 else set(range(num_frames)),
        "prefix": set(range(prefix)),
    }
    if task not in positions:
        raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)}")
    known = tuple(index in positions[task] for index in range(num_frames))
    if all(known) or (task == "prefix" and prefix < 1):
        raise ValueError(
            f"{task!r} of {num_frames} frames (every {every}, prefix {prefix}): it must give some "
            "and leave some to make"
        )
    return known


def neighbours(known: tuple[bool, ...]) -> list[tuple[int | None, int | None, float]]:
    """For each frame the nearest known frame at or before it, the nearest at or after it, and the
    weight of the latter.

    The weight is that of a linear blend in time: 0 at the left one, 1 at the right one. A known
    frame is its own neighbour on both sides, with weight 0; with a neighbour on one side only the
    weight is that side's; with none it is 0.
    """
    rows: list[tuple[int | None, int | None, float]] = []
    for index in range(len(known)):
        left = next((at for at in range(index, -1, -1) if known[at]), None)
        right = next((at for at in range(index, len(known)) if known[at]), None)
        if left is not None and right is not None:
            weight = (index - left) / (right - left) if left != right else 0.0
        else:
            weight = 0.0 if right is None else 1.0
        rows.append((left, right, weight))
    return rows


def window_plan(num_keyframes: int, max_keyframes: int) -> list[range]:
    """The keyframes of each window, to interpolate a long sequence in parts that fit into memory.

    A window holds at most `max_keyframes` consecutive keyframes and shares exactly one with the
    next, so that seams are exact and each gap is made once. As few windows as can be, of sizes that
    differ by one at most: none is a mere stub.
    """
    if num_keyframes < 2 or max_keyframes < 2:
        raise ValueError(
            f"a gap has two ends: {num_keyframes} keyframes in windows of {max_keyframes} have none"
        )
    num_gaps = num_keyframes - 1
    num_windows = -(-num_gaps // (max_keyframes - 1))
    edges = [index * num_gaps // num_windows for index in range(num_windows + 1)]
    return [range(first, last + 1) for first, last in itertools.pairwise(edges)]


def frames_between(keyframes: range, factor: int = 4) -> range:
    """The frames of the interpolated sequence from the first to the last of these keyframes, both
    included.
    """
    return range(keyframes[0] * factor, keyframes[-1] * factor + 1)
