"""How much of the picture is text: PP-OCR's detector."""

from __future__ import annotations

import statistics
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

NUM_FRAMES = 4
THRESHOLD = 0.3  # of a pixel's probability, as PP-OCR has it
BOX_THRESHOLD = 0.6  # of a box's mean probability
UNCLIP = 1.6  # how far a box reaches beyond what the network marks: DB, Liao et al., AAAI 2020
MIN_SIDE = 4  # pixels of what the network marks
MAX_HEIGHT = 0.4  # of the picture, of a box: what is higher is no line of text (a planet, a lamp)
# of the network's training set, BGR, of 0 to 1
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Text(Scorer):
    """PP-OCRv6's small text detector, whose weights come in `rapidocr` (Apache-2.0)."""

    name = "text"
    version = 2
    scores = (
        Score("text", "share", 0, 1, "area under text, median of four frames"),
        Score(
            "overlay_text",
            "share",
            0,
            1,
            "area under text in more than half of the four frames, at the same place: subtitles, "
            "logos; signs, too, where the camera stands still",
        ),
    )
    cost = "0.17 s"
    weights = Weights("rapidocr==3.10.0", "rapidocr", "models/PP-OCRv6_det_small.onnx")

    side: NetworkSide = Field(
        default=320, description="Side of the picture the network sees: small text needs more."
    )

    def frames(self, clip: Clip) -> Sequence[int]:
        return spread(clip, NUM_FRAMES)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        network = network_of(self.network())
        masks = [text_in(network, pictures.bgr(index, self.side)) for index in self.frames(clip)]
        standing = np.sum(masks, axis=0) > len(masks) / 2
        return [
            statistics.median(float(mask.mean()) for mask in masks),
            float(standing.mean()) if len(masks) > 1 else None,
        ]


def text_in(network: Any, picture: Picture) -> NDArray[np.bool_]:
    """Which pixels lie under a box around text: `h w`."""
    import cv2

    normalised = (np.asarray(picture, np.float32) / 255 - MEAN) / DEVIATION
    blob = np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)
    probability = outputs_of(network, blob)[0][0, 0]
    marked = (probability > THRESHOLD).astype(np.uint8)
    contours, _ = cv2.findContours(marked, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    mask = np.zeros(marked.shape, np.uint8)
    for contour in contours:
        inside = np.zeros(marked.shape, np.uint8)
        cv2.drawContours(inside, [contour], -1, 1, -1)
        centre, (width, height), angle = cv2.minAreaRect(contour)
        is_weak = float(probability[inside > 0].mean()) < BOX_THRESHOLD
        if is_weak or min(width, height) < MIN_SIDE:
            continue
        reach = 2 * width * height * UNCLIP / (2 * (width + height))
        if min(width, height) + reach > MAX_HEIGHT * len(mask):
            continue
        box = cv2.boxPoints((centre, (width + reach, height + reach), angle))
        cv2.fillConvexPoly(mask, box.round().astype(np.int32), 1)
    return mask > 0


SCORERS = (Text,)
