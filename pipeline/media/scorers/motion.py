"""How much moves: dense optical flow between frames half a second apart."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Picture, Pictures, Score, Scorer, moments, step_of

SIDE = 256


class Motion(Scorer):
    """DIS optical flow (Kroeger et al., ECCV 2016), OpenCV's `ultrafast` preset."""

    name = "motion"
    version = 1
    scores = (
        Score(
            "motion",
            "side/s",
            0,
            None,
            "how far pixels move, whether camera or things: mean length of the flow, median over "
            "pairs of frames half a second apart",
        ),
    )
    cost = "0.04 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return moments(clip)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        lengths = [
            float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64))
            for flow in (flow_of(*pair) for pair in pairs(clip, pictures))
        ]
        return [statistics.median(lengths) * per_second(clip) if lengths else None]


def pairs(clip: Clip, pictures: Pictures) -> list[tuple[Picture, Picture]]:
    """Brightness at each moment and at the next."""
    series = [pictures.gray(index, SIDE) for index in moments(clip)]
    return list(itertools.pairwise(series))


def per_second(clip: Clip) -> float:
    """What makes pixels from a moment to the next a share of the side per second."""
    return float(clip.fps) / step_of(clip) / SIDE


def flow_of(before: Picture, after: Picture) -> NDArray[np.float32]:
    """Where each pixel goes: `h w 2`, x and y in pixels."""
    import cv2

    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    field: NDArray[np.float32] = flow.calc(before, after, None)
    return field


SCORERS = (Motion,)
