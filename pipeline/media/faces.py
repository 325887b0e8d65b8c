"""Faces in a clip: where they are over time, and how they are covered.

CenterFace looks at every frame. Its detections become tracks: one that is sure may be followed by
unsure ones, gaps are filled in a straight line, and before and after its ends a track stands still
for a while (a head turns away before it is gone). A track is covered by rectangles that stand still
for half a second and hold all that it passes in that time, so no frame in between is open. They are
what is recorded: another machine covers the same pixels, whatever its detector says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.records import Cover
from pipeline.media import video
from pipeline.media.scorers.faces import Faces, faces_in
from pipeline.media.scorers.scorer import network_of, one_thread

VERSION = 1
SURE = 0.5  # the network, of at least one detection of a track
UNSURE = 0.2  # of all others
LEAST_SIDE = 512  # pixels: smaller clips are enlarged for the network
PATCH = 32  # the network wants sides that are multiples of it
GAP_S = 1.0  # without a detection, after which a track is over
HOLD_S = 0.5  # before the first and after the last detection
SPAN_S = Fraction(1, 2)  # for which a cover stands still
REACH = 1.5  # sides of a face that it may move between two detections
PADDING = 0.3  # of a face's side, on each of its sides: hair, chin, ears
GRID = 16  # pixels: what edges of covers are multiples of
EDGE = 16  # pixels at the rim of a cover, over which it fades into the picture
CELLS = 6  # averages across a cover's longer side: all that is left of a face
Boxes = NDArray[np.float64]
Plane = NDArray[np.uint8]


@dataclass
class _Track:
    """One face over time: a box (left, top, right, bottom) at each frame where it was detected, in
    order.
    """

    boxes: dict[int, Boxes] = field(default_factory=dict)
    confidence: float = 0.0

    @property
    def last(self) -> int:
        return next(reversed(self.boxes))

    def add(self, index: int, box: Boxes, confidence: float) -> None:
        self.boxes[index] = box
        self.confidence = max(self.confidence, confidence)

    def distance(self, box: Boxes) -> float:
        """From its last box to another, in sides of the larger; infinite if one is more than
        twice as large.
        """
        here = self.boxes[self.last]
        sides = sorted((_side(here), _side(box)))
        if sides[1] > 2 * sides[0]:
            return math.inf
        between = (here[:2] + here[2:] - box[:2] - box[2:]) / 2
        return float(np.hypot(*between)) / max(sides[1], 1.0)

    def path(self, frames: range) -> Boxes:
        """Its box at each of these frames (`k 4`): in a straight line between detections, still
        beyond them.
        """
        edges = np.stack([*self.boxes.values()], axis=-1)
        known = list(self.boxes)
        return np.stack([np.interp(frames, known, edge) for edge in edges], axis=-1)


def facts() -> dict[str, Any]:
    """What covers depend on besides the clip: for the key of a task. Raises Stopped where the
    network's package is not installed.
    """
    return {"version": VERSION, "weights": canonical.file_digest_once(Faces().network())}


def covers_of(clip: Path, size: int, num_frames: int, fps: Fraction) -> tuple[Cover, ...]:
    """The covers of all faces in a clip of `size x size` pixels. Raises BadData as
    `video.some_frames` does, Stopped where the network's package is not installed.
    """
    import cv2

    network = network_of(Faces().network())
    side = math.ceil(max(size, LEAST_SIDE) / PATCH) * PATCH
    tracks = _Tracks(fps)
    for index, planes in video.some_frames(clip, range(num_frames), size):
        with one_thread():
            picture: Any = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)
            picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)
            boxes, confidence = faces_in(network, picture, UNSURE)
        tracks.add(index, boxes * (size / side), confidence)
    covers = {cover for track in tracks.sure() for cover in _covers(track, size, num_frames, fps)}
    return tuple(sorted(covers, key=lambda cover: (cover.start, cover.x, cover.y, cover.width)))


class _Tracks:
    """Follows faces from frame to frame."""

    def __init__(self, fps: Fraction) -> None:
        self._gap = math.ceil(GAP_S * fps)
        self._tracks: list[_Track] = []

    def add(self, index: int, boxes: Boxes, confidence: NDArray[np.float32]) -> None:
        """A frame's detections, the surest first: each joins the nearest track that has none of
        this frame, or begins one.
        """
        for box, sure in zip(boxes, confidence, strict=True):
            near = [
                (track.distance(box), number)
                for number, track in enumerate(self._tracks)
                if index - self._gap <= track.last < index
            ]
            distance, number = min(near, default=(math.inf, -1))
            if distance > REACH:
                self._tracks.append(_Track())
                number = -1
            self._tracks[number].add(index, box, float(sure))

    def sure(self) -> list[_Track]:
        return [track for track in self._tracks if track.confidence >= SURE]


def _side(box: Boxes) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _covers(track: _Track, size: int, num_frames: int, fps: Fraction) -> Iterator[Cover]:
    """Rectangles over a track, each for one span of the clip."""
    hold, span = math.ceil(HOLD_S * fps), max(1, round(SPAN_S * fps))
    first = max(0, next(iter(track.boxes)) - hold)
    end = min(num_frames, track.last + hold + 1)
    path = track.path(range(first, end))
    for start in range(first // span * span, end, span):
        frames = range(max(first, start), min(end, start + span))
        boxes = path[frames.start - first : frames.stop - first]
        pad = PADDING * max(map(_side, boxes))
        low = np.floor((boxes[:, :2].min(axis=0) - pad) / GRID) * GRID
        high = np.ceil((boxes[:, 2:].max(axis=0) + pad) / GRID) * GRID
        x, y = (int(edge) for edge in np.maximum(low, 0))
        right, bottom = (int(edge) for edge in np.minimum(high, size))
        yield Cover(frames.start, frames.stop, x, y, right - x, bottom - y)


def cover_with(covers: Sequence[Cover]) -> Callable[[int, Plane], Plane]:
    """What covers each frame of a clip, given its index and pixels as `covered` takes them."""

    def cover(index: int, planes: Plane) -> Plane:
        return covered(planes, [cover for cover in covers if cover.start <= index < cover.end])

    return cover


def covered(planes: Plane, covers: Iterable[Cover]) -> Plane:
    """A frame with some of its rectangles blurred beyond recognition: planar YUV 4:2:0
    (`h * 3 / 2, w`), as it is given. Whole numbers alone, so every machine gives the same.
    """
    result = planes.copy()
    size = planes.shape[1]
    half = size // 2
    chroma = result[size:].reshape(2, half, half)
    for cover in covers:
        _blur(result[:size], cover, 1)
        for plane in chroma:
            _blur(plane, cover, 2)
    return result


def _blur(plane: Plane, cover: Cover, scale: int) -> None:
    """Replace a rectangle (in pixels of a plane `scale` times as large) by a few averages."""
    size = len(plane)
    x, y = cover.x // scale, cover.y // scale
    right = min((cover.x + cover.width) // scale, size)
    bottom = min((cover.y + cover.height) // scale, size)
    if x >= right or y >= bottom:
        return
    part = plane[y:bottom, x:right].astype(np.int64)
    cell = max(1, math.ceil(max(part.shape) / CELLS))
    rows, columns = (_Axis(length, cell) for length in part.shape)
    smooth = rows.spread(columns.spread(rows.mean(columns.mean(part.T).T).T).T)
    edge = max(1, EDGE // scale)
    weight = np.minimum.outer(
        _rim(bottom - y, edge, y == 0, bottom == size), _rim(right - x, edge, x == 0, right == size)
    )
    plane[y:bottom, x:right] = (smooth * weight + part * (edge - weight) + edge // 2) // edge


@dataclass(frozen=True)
class _Axis:
    """One axis of a rectangle, divided into cells of so many pixels."""

    length: int
    cell: int

    def mean(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Averages over the cells of the first axis."""
        starts = np.arange(0, self.length, self.cell)
        counts = np.diff(np.append(starts, self.length))
        return np.add.reduceat(lines, starts, axis=0) // counts[:, None]

    def spread(self, means: NDArray[np.int64]) -> NDArray[np.int64]:
        """Back to pixels, in straight lines from the middle of a cell to that of the next."""
        place = 2 * np.arange(self.length) + 1 - self.cell  # in halves of a pixel
        low = np.clip(place // (2 * self.cell), 0, len(means) - 1)
        high = np.minimum(low + 1, len(means) - 1)
        share = np.clip(place - low * 2 * self.cell, 0, 2 * self.cell)[:, None]
        mixed: NDArray[np.int64] = means[low] * (2 * self.cell - share) + means[high] * share
        return mixed // (2 * self.cell)


def _rim(length: int, edge: int, is_first: bool, is_last: bool) -> NDArray[np.int64]:
    """Weight of a cover along one axis, 0 to `edge`: it fades at its rim, but not where that is
    the picture's.
    """
    place = np.arange(length)
    far = np.full(length, edge)
    near = far if is_first else np.minimum(place + 1, edge)
    return np.minimum(near, far if is_last else np.minimum(length - place, edge))


def sentence(covers: Sequence[Cover], size: int, fps: Fraction) -> str:
    """Where the faces are, for a rejection."""
    largest = max(covers, key=lambda cover: cover.width * cover.height)
    share = largest.width * largest.height / size**2
    frames = {index for cover in covers for index in range(cover.start, cover.end)}
    return (
        f"faces in {len(frames)} of its frames, the first at {float(min(frames) / fps):.1f} s; "
        f"the largest takes, with its padding, {share:.0%} of the picture"
    )
