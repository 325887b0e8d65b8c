"""Which pictures of a scene are new: the share of distinct frames, known before any clip is made.

Looked at is what a clip would show: the picture at every point of the grid n / fps, as a small grey
copy. It is new if a part of it differs from the last new one, so that a slow drift counts and a
still does not, although its coder touches it up at every key frame.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Container, grid_index
from pipeline.media import video

WIDTH = 160
PART = 5  # side of a part, in pixels of the small picture
# levels of 255, in the mean over a part. Six coders changed a still by up to 0.9; the earth that
# turns in the demo changes by 4.5, the median of its frames
NEW = 2


class Stills:
    """Sees every frame of a stretch once, in order; then says how many are distinct."""

    def __init__(self, facts: Container, fps: Fraction) -> None:
        self._time_base, self._fps = facts.time_base, fps
        width = min(WIDTH, facts.width)
        height = max(2, round(facts.height * width / facts.width))
        scale = ("scale", f"{width}:{height}:flags=area+bitexact")
        self._small = video.Conversion(facts, lambda _: (scale, video.GREY))
        self._last: NDArray[np.int64] | None = None
        self._new = array("q")  # time stamps of the pictures that are new

    def see(self, frame: Any, pts: int, end_pts: int) -> None:
        if self._index(pts) == self._index(end_pts):
            return  # no clip shows it
        small: Any = self._small.convert(frame)
        parts = _sums(small.to_ndarray())
        if self._last is None or np.abs(parts - self._last).max() > NEW * PART * PART:
            self._new.append(pts)
            self._last = parts

    def share(self, start_pts: int, end_pts: int) -> float:
        """Of the frames that a span gives at the target fps, those that are distinct: not what is
        shown before. The first one is.
        """
        count = self._index(end_pts) - self._index(start_pts)
        if not count:
            return 1.0
        # a picture that came before the span is there at its first frame
        num_later = bisect_left(self._new, end_pts) - bisect_right(self._new, start_pts)
        return min(1.0, (1 + num_later) / count)

    def _index(self, pts: int) -> int:
        return grid_index(pts, self._time_base, self._fps)


def _sums(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sums of a picture's parts; what is left over at its edges belongs to none."""
    side = min(PART, *picture.shape)
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    whole = picture[: rows * side, : columns * side].astype(np.int64)
    sums: NDArray[np.int64] = whole.reshape(rows, side, columns, side).sum(axis=(1, 3))
    return sums
