"""The black bars of letterboxed and pillarboxed films: the rectangle of the picture inside them.

Twice a second it is noted of every row and column of a frame, at full size, which share of its
pixels is *lit*: brighter than black. A row of the picture is lit at some time of the scene over
most of its width. A bar never is: it is black, but for subtitles and logos, and it ends at once, in
a straight line. A night sky is black as well, but what stands before it has no straight edge.

A scene too dark to tell has the rectangle of the film's other scenes, if it is black outside.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Container, Crop
from pipeline.media import reel, video

EVERY_S = Fraction(1, 2)
MOST_LOOKS = 4096  # of a stretch; of a longer one every second look is forgotten, again and again
LIT = 24  # luma of black is 16 in limited range; ffmpeg's cropdetect has the same limit
FULL = 0.6  # of the widest row's lit share: what a row of the picture has
WRITTEN = 0.35  # of its lit share: what subtitles and logos light of a row, at most
DARK = 0.02  # and a row of a bar that nothing is written on
FREE = 0.15  # of a bar's rows: on so many nothing is written
ACROSS = 320  # pixels of a row that are looked at, at least
SOFT = 3  # rows at the edge of a bar that a coder may blur
LEAST = 0.02  # of the side: a thinner bar is none
SMALLEST = 0.2  # of the frame: a picture inside that is less is a thing that is lit
DENSE = 0.6  # of its rows and columns, the picture inside has so many that are lit
THIN = 0.3  # over so much of its width or height

Shares = NDArray[np.uint8]  # of each row or column, 255 for all pixels


@dataclass
class Looks:
    """Sees every frame of a stretch once, in order, and looks at some; then tells of any span."""

    facts: Container
    _stamps: array[int] = field(default_factory=lambda: array("q"))
    _rows: list[Shares] = field(default_factory=list)
    _columns: list[Shares] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._luma = video.Conversion(self.facts, _limited)
        self._step = EVERY_S / self.facts.time_base
        self._next: Fraction | None = None

    def see(self, frame: Any, pts: int) -> None:
        if self._next is not None and pts < self._next:
            return
        self._next = pts + self._step
        lit = _luma(self._luma.convert(frame)) > LIT
        self._stamps.append(pts)
        self._rows.append(_shares(lit))
        self._columns.append(_shares(lit.T))
        if len(self._stamps) > MOST_LOOKS:
            self._stamps, self._step = self._stamps[::2], self._step * 2
            self._rows, self._columns = self._rows[::2], self._columns[::2]

    def profile(self, start_pts: int, end_pts: int) -> Profile:
        """How much of every row and column is lit at some time of the span."""
        first, end = (bisect_left(self._stamps, pts) for pts in (start_pts, end_pts))
        if first == end:  # too short for a look of its own
            first, end = max(0, first - 1), first or 1
        return Profile(
            np.max(self._rows[first:end], axis=0), np.max(self._columns[first:end], axis=0)
        )


def _limited(facts: Container) -> video.Filters:
    return ("scale", f"flags=bitexact:{reel.to_limited(facts)}"), ("format", "yuv420p")


def _shares(lit: NDArray[np.bool_]) -> Shares:
    """Of every row, how many of its pixels are lit."""
    some = lit[:, :: max(1, lit.shape[1] // ACROSS)]
    shares: Shares = (np.count_nonzero(some, axis=1) * 255 // some.shape[1]).astype(np.uint8)
    return shares


def _luma(frame: Any) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: frame.height, : frame.width]


@dataclass(frozen=True)
class Profile:
    """Of every row and column of the coded picture, the share that is lit at some time."""

    rows: Shares
    columns: Shares

    def picture(self) -> Crop | None:
        """The rectangle inside the bars, on even positions; None where there are none."""
        height, width = len(self.rows), len(self.columns)
        top, bottom = _inside(self.rows)
        left, right = _inside(self.columns)
        if (top, bottom, left, right) == (0, height, 0, width):
            return None
        if (right - left) * (bottom - top) < SMALLEST * width * height:
            return None
        for shares, first, end, across in (
            (self.rows, top, bottom, (right - left) / width),
            (self.columns, left, right, (bottom - top) / height),
        ):
            # a title on black has straight edges, too, but is not filled
            if np.mean(shares[first:end] >= THIN * 255 * across) < DENSE:
                return None
        x, y = -(-left // 2) * 2, -(-top // 2) * 2
        return Crop(x, y, (right - x) // 2 * 2, (bottom - y) // 2 * 2)

    def is_black_outside(self, picture: Crop) -> bool:
        """Whether nothing but subtitles and logos is lit outside of a rectangle."""
        end_x, end_y = picture.x + picture.width, picture.y + picture.height
        for shares, first, end in (
            (self.rows, picture.y, end_y),
            (self.columns, picture.x, end_x),
        ):
            outside = np.concatenate([shares[: max(0, first - SOFT)], shares[end + SOFT :]])
            if outside.size and (
                outside.max() > WRITTEN * 255 or np.mean(outside <= DARK * 255) < FREE
            ):
                return False
        return True

    def is_dark(self) -> bool:
        """Whether nowhere near the whole width or height is lit: what bars are cannot be told."""
        return bool(np.mean(self.rows >= FULL * 255) < DENSE / 2)


def _inside(shares: Shares) -> tuple[int, int]:
    """The first row behind the bar at the start, and the end of the last before the one at the
    end.
    """
    return _bar(shares), len(shares) - _bar(shares[::-1])


def _bar(shares: Shares) -> int:
    """How many rows from the start are a bar."""
    peak = int(np.quantile(shares, 0.98))
    full = np.flatnonzero(shares >= FULL * peak)
    if not peak or not full.size:
        return 0
    width = int(full[0])
    bar = shares[: max(0, width - SOFT)]
    if width < max(SOFT + 1, LEAST * len(shares)):
        return 0
    if bar.max() > WRITTEN * peak or np.mean(bar <= DARK * 255) < FREE:
        return 0
    return width


def pictures(
    profiles: Sequence[Profile], durations: Sequence[int], facts: Container
) -> list[Crop | None]:
    """Of every scene of a film the rectangle inside its bars. Rectangles that are nearly the same
    are one, the smallest of them: dark edges make the difference.
    """
    alone = [profile.picture() for profile in profiles]
    groups: list[list[int]] = []
    for index, picture in enumerate(alone):
        if picture is None:
            continue
        group = next((each for each in groups if _near(alone[each[0]], picture, facts)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    if not groups:
        return alone
    united = list(alone)
    common = {id(group): _common([alone[index] for index in group]) for group in groups}
    for group in groups:
        for index in group:
            united[index] = common[id(group)]
    longest = max(groups, key=lambda group: sum(durations[index] for index in group))
    film = common[id(longest)]
    for index, profile in enumerate(profiles):
        if alone[index] is None and profile.is_dark() and profile.is_black_outside(film):
            united[index] = film
    return united


def _edges(picture: Crop) -> tuple[int, int, int, int]:
    return picture.x, picture.y, picture.x + picture.width, picture.y + picture.height


def _near(first: Crop | None, second: Crop, facts: Container) -> bool:
    assert first is not None
    steps = [abs(a - b) for a, b in zip(_edges(first), _edges(second), strict=True)]
    sides = (facts.width, facts.height) * 2
    return all(step <= max(4, LEAST * side) for step, side in zip(steps, sides, strict=True))


def _common(pictures: Sequence[Crop | None]) -> Crop:
    """What is in all of them."""
    edges = [_edges(picture) for picture in pictures if picture is not None]
    left, top = max(edge[0] for edge in edges), max(edge[1] for edge in edges)
    right, bottom = min(edge[2] for edge in edges), min(edge[3] for edge in edges)
    return Crop(left, top, right - left, bottom - top)
