"""What the camera does, what moves against it, and whether it shakes.

A similarity (shift, turn, zoom) is fitted to corners that are followed from frame to frame; RANSAC
leaves out those on things that move by themselves. A slow zoom into a photograph has camera motion
and no object motion. Where all corners lie on one thing before a plain ground, nobody can tell the
thing from the camera; and on a plain wall no flow is seen, whatever moves.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Clip
from pipeline.media.scorers.motion import SIDE, flow_of, pairs, per_second
from pipeline.media.scorers.scorer import (
    Picture,
    Pictures,
    Score,
    Scorer,
    in_runs,
    moments,
    runs,
)

MAX_CORNERS = 200
MIN_INLIERS = 12
MIN_SHARE = 0.25  # of the corners that were followed, for a fit to count
MIN_AREA = 0.1  # of the picture, that the corners of a fit span
PLAIN = 2.0  # levels: standard deviation over AROUND pixels, below which no flow can be seen
AROUND = 15
MAX_ERROR = 2.0  # pixels, of a corner followed forth and back, and of an inlier
SMOOTH = 5  # steps of the camera's path that make its average
UNIT = "side/s"
Similarity = NDArray[np.float64]  # 2 3


class Camera(Scorer):
    """Shi-Tomasi corners, pyramidal Lucas-Kanade, RANSAC; as OpenCV has them."""

    name = "camera"
    version = 2
    scores = (
        Score(
            "camera",
            UNIT,
            0,
            None,
            "how far the fitted similarity moves pixels, on average; median over pairs of frames "
            "half a second apart",
        ),
        Score(
            "object_motion",
            UNIT,
            0,
            None,
            "how far pixels move against the camera: mean length of the flow minus the "
            "similarity, 0 on plain ground; median over the same pairs",
        ),
        Score(
            "shake",
            UNIT,
            0,
            None,
            "how far the camera's speed is from its average over five frames, on average: the "
            "jitter of a hand",
        ),
    )
    cost = "0.18 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return [*moments(clip), *in_runs(clip)]

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        cameras, objects = [], []
        num_pairs = 0
        for before, after in pairs(clip, pictures):
            num_pairs += 1
            similarity = similarity_of(before, after)
            if similarity is None:
                continue
            field = field_of(similarity)
            cameras.append(_mean_length(field))
            against = (flow_of(before, after) - field) * has_texture(before)[..., None]
            objects.append(_mean_length(against))
        jitters = [jitter for run in runs(clip) for jitter in _jitters(run, clip, pictures)]
        shake = statistics.fmean(jitters) if jitters else None
        if 2 * len(cameras) <= num_pairs:
            return [None, None, shake]
        rate = per_second(clip)
        return [statistics.median(cameras) * rate, statistics.median(objects) * rate, shake]


def similarity_of(before: Picture, after: Picture) -> Similarity | None:
    """The similarity that takes a picture's corners to where they are in the next; None if there
    are too few to tell, or all in one place: a face before a plain wall is no camera.
    """
    import cv2

    corners: Any = cv2.goodFeaturesToTrack(before, MAX_CORNERS, 0.01, 7)
    if corners is None or len(corners) < MIN_INLIERS:
        return None
    moved, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)  # type: ignore[call-overload]
    back, back_status, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None)  # type: ignore[call-overload]
    error = np.abs(corners - back).reshape(-1, 2).max(axis=1)
    good = (status.ravel() == 1) & (back_status.ravel() == 1) & (error < MAX_ERROR)
    if good.sum() < MIN_INLIERS:
        return None
    cv2.setRNGSeed(0)
    matrix, inliers = cv2.estimateAffinePartial2D(
        corners[good], moved[good], ransacReprojThreshold=MAX_ERROR
    )
    if matrix is None or inliers.sum() < max(MIN_INLIERS, MIN_SHARE * good.sum()):
        return None
    hull = cv2.convexHull(corners[good][inliers.ravel() == 1])
    if cv2.contourArea(hull) < MIN_AREA * before.size:
        return None
    return np.asarray(matrix, np.float64)


def has_texture(picture: Picture) -> NDArray[np.bool_]:
    """Where a picture is not plain, so that a flow can be seen: `h w`."""
    import cv2

    levels = picture.astype(np.float32)
    mean, mean_square = (cv2.blur(values, (AROUND, AROUND)) for values in (levels, levels**2))
    return np.asarray(mean_square - mean**2 > PLAIN**2)


def field_of(similarity: Similarity) -> NDArray[np.float32]:
    """Where a similarity takes each pixel, as a flow: `h w 2`."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    linear, shift = similarity[:, :2], similarity[:, 2]
    dx = linear[0, 0] * x + linear[0, 1] * y + shift[0] - x
    dy = linear[1, 0] * x + linear[1, 1] * y + shift[1] - y
    return np.stack([dx, dy], axis=-1).astype(np.float32)


def _mean_length(field: NDArray[np.float32]) -> float:
    return float(np.hypot(field[..., 0], field[..., 1]).mean(dtype=np.float64))


def _jitters(run: range, clip: Clip, pictures: Pictures) -> list[float]:
    """How far the speed of the picture's centre is from its moving average, at each step of a run
    of frames. A frame that repeats the one before counts as time, not as a step.
    """
    speeds = []
    last, waited = run[0], 0
    for before, after in itertools.pairwise(run):
        waited += 1
        if np.array_equal(pictures.gray(before, SIDE), pictures.gray(after, SIDE)):
            continue
        similarity = similarity_of(pictures.gray(last, SIDE), pictures.gray(after, SIDE))
        if similarity is None:
            return []
        centre = np.array([SIDE / 2, SIDE / 2, 1.0])
        speeds.append((similarity @ centre - centre[:2]) / waited)
        last, waited = after, 0
    if not speeds:
        return [0.0] * (len(run) - SMOOTH)
    path = np.array(speeds)
    if len(path) < SMOOTH:
        return []
    middle = SMOOTH // 2
    jitters = [
        path[step] - path[step - middle : step + middle + 1].mean(axis=0)
        for step in range(middle, len(path) - middle)
    ]
    return [float(np.hypot(*jitter)) * float(clip.fps) / SIDE for jitter in jitters]


SCORERS = (Camera,)
