"""Where the pictures of a video stand in time: one line that only goes forward.

Containers say when each picture is shown, and not all of them say it well: a recording may have
gaps, start anew in the middle, repeat itself, or count in 33 bits that run over. Here any time
stamps become *stretches*: pictures that follow each other without a hole. A stretch ends where a
picture's end is not the start of the next one, and a scene never goes over such a border. The rules
are in docs/footage.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import Reason

T = TypeVar("T")
Order = Literal["steady", "unordered", "broken"]
# A picture that stays longer than this, and longer than LONG_STEPS usual steps, is a gap: ffmpeg's
# own threshold (`-dts_delta_threshold`). Broadcast streams must stamp every 0.7 s (H.222.0, 2.7.4).
LONGEST_S = 10
LONGEST_IN_A_STREAM_S = 1
LONG_STEPS = 3
STREAMS = ("mpegts", "mpeg")  # they have no index, so nothing in them says how long a picture stays
WRAP = 1 << 33  # their clock runs over
REORDERED = 16  # pictures that a decoder may hold back, at most (H.264, A.4.2)


class Loss(NamedTuple):
    """A part of a video, [start_pts, end_pts) of its line, that gives no pictures, and why."""

    reason: Reason
    start_pts: int
    end_pts: int
    why: str


class Line(NamedTuple):
    """The line of all pictures of a video: `shown` is the time in which there is a picture."""

    start_pts: int
    end_pts: int
    shown: int
    num_frames: int
    order: Order


@dataclass(frozen=True)
class Steps:
    """What is usual between two pictures, and what is too long for one; in ticks."""

    usual: Fraction
    longest: Fraction
    longest_last: Fraction  # of the last picture of a stretch, which no other one ends
    wrap: int  # 0 where the clock does not run over

    @classmethod
    def of(cls, usual: Fraction, time_base: Fraction, container: str) -> Steps:
        is_stream = container in STREAMS
        base_s = LONGEST_IN_A_STREAM_S if is_stream else LONGEST_S
        return cls(
            usual,
            max(base_s / time_base, LONG_STEPS * usual),
            max(LONGEST_IN_A_STREAM_S / time_base, LONG_STEPS * usual),
            WRAP if is_stream else 0,
        )

    def last(self, duration: int | None, before: int | None) -> int:
        """How long the last picture of a stretch stays: as long as its container says, or as the
        one before it, or as usual; never longer than `longest_last`.
        """
        for stay in (duration, before):
            if stay and stay <= self.longest_last:
                return stay
        return max(1, round(self.usual))

    def modular(self, step: int) -> int:
        """The step that is meant, where the clock may have run over."""
        return (step + self.wrap // 2) % self.wrap - self.wrap // 2 if self.wrap else step


class Clock:
    """Places pictures on the line, as they are shown one after the other."""

    def __init__(self, steps: Steps) -> None:
        self.num_timeless = 0
        self._steps = steps
        self._raw: int | None = None  # of the last picture
        self._pts = 0
        self._stay: int | None = None
        self._duration: int | None = None

    def place(self, stamp: int | None, duration: int | None = None) -> tuple[int, int] | None:
        """The picture's place, and the end of the one before it, which is earlier only at a border.

        None for a picture that is never shown, because its time is that of the one before or
        hardly earlier. Time that goes back further is a new stretch, one tick after the last.
        """
        if self._raw is None:
            raw = stamp or 0
            self._raw, self._pts, self._duration = raw, raw, duration
            return raw, raw
        step = round(self._steps.usual) if stamp is None else stamp - self._raw
        step = self._steps.modular(max(1, step) if stamp is None else step)
        if step <= 0 and -step <= self._steps.usual:
            self.num_timeless += 1
            return None
        end = self._pts + step
        if not 0 < step <= self._steps.longest:
            end = self.end()
        pts = self._pts + step if step > 0 else end + 1
        self._stay = pts - self._pts if end == pts else None
        self._raw = self._raw + step if stamp is None else stamp
        self._pts, self._duration = pts, duration
        return pts, end

    def end(self) -> int:
        """The end of the last picture, as far as it is known without the next one."""
        return self._pts + self._steps.last(self._duration, self._stay)


def line_of(
    pts: NDArray[np.int64], dts: NDArray[np.int64], last: int, time_base: Fraction, container: str
) -> Line:
    """The line of a stream, from the time stamps of its packets in the order of the file. `last` is
    how long its container shows the picture that is last, 0 if it does not say.
    """
    if container in STREAMS:
        pts, dts = _without_wraps(pts, dts)
    parts = [np.unique(part) for part in _split(pts, dts)]
    steps_of_all = np.concatenate([np.diff(part) for part in parts])
    usual = Fraction(int(np.median(steps_of_all))) if steps_of_all.size else Fraction(max(1, last))
    steps = Steps.of(usual, time_base, container)
    start, end, shown, offset = int(parts[0][0]), 0, 0, 0
    for index, part in enumerate(parts):
        if index:
            offset = max(offset, end + 1 - int(part[0]))
        strides = np.diff(part)
        is_gap = strides > steps.longest
        before = int(strides[-1]) if strides.size and not is_gap[-1] else None
        is_last = index == len(parts) - 1
        if is_last and not steps_of_all.size:  # the only picture: nothing says what is usual
            stay = max(1, min(last, int(steps.longest)))
        else:
            stay = steps.last(last if is_last else None, before)
        end = int(part[-1]) + offset + stay
        shown += int(strides[~is_gap].sum()) + int(is_gap.sum()) * max(1, round(usual)) + stay
    order: Order = "steady" if len(parts) == 1 else "broken"
    return Line(start, end, shown, sum(len(part) for part in parts), order)


def _without_wraps(
    pts: NDArray[np.int64], dts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Time stamps of a clock that does not run over."""

    def meant(step: NDArray[np.int64]) -> NDArray[np.int64]:
        return (step + WRAP // 2) % WRAP - WRAP // 2

    straight = dts[0] + np.concatenate([[0], np.cumsum(meant(np.diff(dts)))])
    return straight + meant(pts - dts), straight


def _split(pts: NDArray[np.int64], dts: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    """The packets between places where time goes back, in the order of the file. Where it goes
    back and nothing overlaps, it was a packet out of order.
    """
    places = np.flatnonzero(np.diff(dts) < 0) + 1
    parts: list[NDArray[np.int64]] = []
    for part in np.split(pts, places):
        if parts and part.min() > parts[-1].max():
            parts[-1] = np.concatenate([parts[-1], part])
        else:
            parts.append(part)
    return parts


def in_order(pictures: Iterable[tuple[int | None, T]]) -> Iterator[tuple[int | None, T]]:
    """Pictures in the order in which they are shown, whose time stamps are in the order of the
    file, as AVI has them: each gets the least time stamp that is left. A few pictures wait here.
    """
    stamps: list[int] = []
    waiting: list[T] = []
    for stamp, picture in pictures:
        if stamp is None:
            stamp = max(stamps, default=-1) + 1
        heapq.heappush(stamps, stamp)
        waiting.append(picture)
        if len(waiting) > REORDERED:
            yield heapq.heappop(stamps), waiting.pop(0)
    for picture in waiting:
        yield heapq.heappop(stamps), picture
