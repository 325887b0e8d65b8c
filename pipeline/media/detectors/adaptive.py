"""The default detector: sudden change against a rolling average, and two second looks.

The change between two frames is PySceneDetect's (`ContentDetector`: mean difference of hue,
saturation and brightness), and so is the first look, but the average is over a time and not over a
number of frames. The second looks are at very small pictures (16 x 9): a change after which the
film is soon what it was before is a flash; and where a second of film is one picture going over
into another, straight on, it is a dissolve. All sums are of whole numbers, so that they are the
same on every machine.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.records import Container
from pipeline.media import video
from pipeline.media.detectors.detector import Detector, Options

Tiny = NDArray[np.int64]  # 9 * 16 * 3 values, 0 to 255
TINY = (16, 9)
EPS_S = 1e-6  # so that frames at the edge of a window are inside it
FLASH_S = 0.5  # a flash and what it leaves behind are over by then
FLASH_SHARE = 0.35  # of the jump: what may be left of it when a flash is over
SAMPLE_S = 0.08  # between two pictures that are looked at for dissolves
SPANS_S = (0.7, 1.0, 1.4)  # how long a dissolve may take
SLACK_S = 0.2  # how much shorter a span may turn out where frames are far apart
LEAST_CHANGE = 12  # levels between the pictures before and after a dissolve, in the mean
LEAST_INSIDE = 0.3  # of a picture, without its bars: a phone's film in a wide one leaves 0.32
MOST_LEFT = 0.3  # of the change: how far the pictures between are off the straight line
BLACK = 10  # levels: rows and columns at the edges that are no brighter are bars
MOST_ALIKE = 0.6  # correlation of both pictures: more is the same film in another light
BACKWARDS = 0.1  # of the way, at a step between two pictures
BEYOND = 0.15  # of the way, before its start or behind its end
MOST_AT_ONCE = 0.5  # of the way, in one step: more is a hard cut
APART_S = 0.9  # between a dissolve and the next cut


class Adaptive(Options):
    """Change of hue, saturation and brightness against a rolling average: stands camera motion.
    Flashes are no cuts, dissolves are.
    """

    detector: Literal["adaptive"] = "adaptive"
    width: int = Field(
        default=96, ge=32, description="Width of the small frames the detector looks at."
    )
    adaptive_threshold: float = Field(
        default=2.5, gt=0, description="How many times the neighbours' change is a cut."
    )
    min_content_val: float = Field(
        default=10.0, ge=0, description="Changes below this are never a cut."
    )
    window_s: float = Field(
        default=0.48,
        gt=0,
        le=60,
        description="Seconds before and after that make the average; wide sees slow fades.",
    )

    def start(self, facts: Container) -> Detector:
        return _Adaptive(self, facts)


class _Adaptive:
    def __init__(self, options: Adaptive, facts: Container) -> None:
        self._options = options
        self._small = video.Thumbnails(facts, options.width)
        self._times = array("d")
        self._changes = array("d")  # from the frame before
        self._before: Any = None
        self._flashes = _Flashes()
        self._dissolves = _Dissolves()

    def see(self, frame: Any, time_s: float) -> None:
        import cv2

        picture = self._small.thumbnail_of(frame)
        hsv = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
        change = 0.0 if self._before is None else sum(cv2.mean(cv2.absdiff(hsv, self._before))) / 3
        self._before = hsv
        tiny = cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA)
        tiny = tiny.astype(np.int64).reshape(-1)
        index = len(self._times)
        self._flashes.see(tiny, time_s, index, change >= self._options.min_content_val)
        self._dissolves.see(tiny, time_s, index)
        self._times.append(time_s)
        self._changes.append(change)

    def cuts(self) -> list[int]:
        times, changes = np.array(self._times), np.array(self._changes)
        cuts: list[int] = []
        last_s = float(times[0]) if times.size else 0.0
        for index in self._sudden(times, changes):
            is_far = times[index] - last_s >= self._options.min_scene_s - EPS_S
            if is_far and index not in self._flashes.indices:
                cuts.append(index)
                last_s = float(times[index])
        return self._with_dissolves(cuts, times)

    def _sudden(self, times: NDArray[np.float64], changes: NDArray[np.float64]) -> list[int]:
        """Frames that differ from the one before by so much more than their neighbours do."""
        options, window_s = self._options, self._options.window_s + EPS_S
        sums = np.concatenate([[0.0], np.cumsum(changes)])
        places: list[int] = []
        for index in np.flatnonzero(changes >= options.min_content_val):
            first = max(1, int(np.searchsorted(times, times[index] - window_s)))
            end = int(np.searchsorted(times, times[index] + window_s))
            around = max(0.0, float(sums[end] - sums[first] - changes[index]))
            average = around / max(1, end - first - 1)
            if changes[index] >= options.adaptive_threshold * average:
                places.append(int(index))
        return places

    def _with_dissolves(self, cuts: list[int], times: NDArray[np.float64]) -> list[int]:
        """Dissolves are added, the clearest first, where no other cut is near."""
        apart_s = max(APART_S, self._options.min_scene_s)
        for dissolve in sorted(self._dissolves.candidates):
            edges = [0, *cuts]
            if np.abs(times[edges] - times[dissolve.frame]).min() >= apart_s:
                cuts.append(dissolve.frame)
        return sorted(cuts)


@dataclass
class _Jump:
    """A sudden change, the pictures before it, and how large it was."""

    index: int
    time_s: float
    before: NDArray[np.int64]  # n d
    size: int  # sum of differences


class _Flashes:
    """Finds changes that are undone: any picture up to FLASH_S before is much like any one up to
    FLASH_S after.
    """

    def __init__(self) -> None:
        self.indices: set[int] = set()
        self._recent: deque[tuple[float, Tiny]] = deque()
        self._jumps: list[_Jump] = []

    def see(self, tiny: Tiny, time_s: float, index: int, is_jump: bool) -> None:
        while self._recent and time_s - self._recent[0][0] > FLASH_S + EPS_S:
            self._recent.popleft()
        if is_jump and self._recent:
            before = np.stack([picture for _, picture in self._recent])
            size = int(np.abs(before[-1] - tiny).sum())
            self._jumps.append(_Jump(index, time_s, before, size))
        self._jumps = [jump for jump in self._jumps if time_s - jump.time_s <= FLASH_S + EPS_S]
        for jump in self._jumps:
            if np.abs(jump.before - tiny).sum(axis=1).min() < FLASH_SHARE * jump.size:
                self.indices.add(jump.index)
        self._jumps = [jump for jump in self._jumps if jump.index not in self.indices]
        self._recent.append((time_s, tiny))


@dataclass
class _Sample:
    """A picture that is looked at for dissolves."""

    time_s: float
    number: int
    tiny: Tiny

    @cached_property
    def lit(self) -> NDArray[np.int64]:
        """Where it is not black: top, left, -bottom, -right, so that the least of two hold both.
        Of a black one: bottom, right, 0, 0.
        """
        width, height = TINY
        lit = self.tiny.reshape(height, width, -1).max(axis=2) > BLACK
        rows, columns = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return np.array([height, width, 0, 0])
        return np.array([rows[0], columns[0], -rows[-1] - 1, -columns[-1] - 1])


class _Dissolve(NamedTuple):
    """How far off the straight line its pictures are, and the frame that is half way."""

    left: float
    frame: int


class _Dissolves:
    """Finds spans in which every picture is a mixture of the first and the last, ever more of the
    last: `first + share * (last - first)`, with the share going from 0 to 1.
    """

    def __init__(self) -> None:
        self.candidates: list[_Dissolve] = []
        self._samples: deque[_Sample] = deque()

    def see(self, tiny: Tiny, time_s: float, index: int) -> None:
        samples = self._samples
        if samples and time_s - samples[-1].time_s < SAMPLE_S - EPS_S:
            return
        samples.append(_Sample(time_s, index, tiny))
        while time_s - samples[0].time_s > max(SPANS_S) + EPS_S:
            samples.popleft()
        times = np.array([sample.time_s for sample in samples])
        pictures: NDArray[np.int64] | None = None
        for span_s in SPANS_S:
            first = int(np.searchsorted(times, time_s - span_s - EPS_S))
            if time_s - times[first] < span_s - SLACK_S or len(times) - first < 5:
                continue
            change = np.abs(tiny - samples[first].tiny).sum()
            if change < LEAST_CHANGE * LEAST_INSIDE * tiny.size:
                continue
            inside = _Inside.of(samples[first], samples[-1])
            if change < LEAST_CHANGE * inside.size:
                continue
            if pictures is None:
                pictures = np.stack([sample.tiny for sample in samples])
            mixture = _mixture(pictures[first:])
            if mixture is not None and inside.is_other_film():
                left, half = mixture
                self.candidates.append(_Dissolve(left, samples[first + half].number))


def _mixture(pictures: NDArray[np.int64]) -> tuple[float, int] | None:
    """How far the pictures `n d` are off the straight line from the first to the last, and which is
    half way; None if they are no dissolve.
    """
    first, last = pictures[0], pictures[-1]
    way = last - first
    length = int(way @ way)
    between = pictures[1:-1] - first
    shares = between @ way / length
    # what is left of each is between - share * way: of squares, Pythagoras
    left = float(np.sqrt(np.maximum(0, (between * between).sum(axis=1) / length - shares**2)).max())
    if left > MOST_LEFT:
        return None
    strides = np.diff(np.concatenate([[0.0], shares, [1.0]]))
    is_straight = shares.min() >= -BEYOND and shares.max() <= 1 + BEYOND
    if not is_straight or strides.min() < -BACKWARDS or strides.max() > MOST_AT_ONCE:
        return None
    return left, 1 + int(np.abs(shares - 0.5).argmin())


class _Inside(NamedTuple):
    """Two pictures without what is black in both at their edges: with bars on them any two films
    are alike.
    """

    first: Tiny
    last: Tiny
    place: tuple[slice, slice]
    size: int

    @classmethod
    def of(cls, first: _Sample, last: _Sample) -> _Inside:
        width, height = TINY
        top, left, bottom, right = np.minimum(first.lit, last.lit).tolist()
        if bottom == 0:  # both are black
            top, left, bottom, right = 0, 0, -height, -width
        place = slice(top, -bottom), slice(left, -right)
        size = (-bottom - top) * (-right - left) * first.tiny.size // (width * height)
        return cls(first.tiny, last.tiny, place, size)

    def is_other_film(self) -> bool:
        """Whether they differ by enough, and by more than their light."""
        width, height = TINY
        before, after = (
            tiny.reshape(height, width, -1)[self.place].reshape(-1)
            for tiny in (self.first, self.last)
        )
        has_changed = np.abs(after - before).sum() >= LEAST_CHANGE * self.size
        return bool(has_changed) and _alike(before, after) <= MOST_ALIKE


def _alike(first: Tiny, last: Tiny) -> float:
    """Correlation of two pictures, whatever their brightness and contrast: -1 to 1."""
    count = first.size
    both = count * int(first @ last) - int(first.sum()) * int(last.sum())
    alone = [count * int(each @ each) - int(each.sum()) ** 2 for each in (first, last)]
    return both / math.sqrt(alone[0] * alone[1]) if all(alone) else 0.0


DETECTORS = (Adaptive,)
