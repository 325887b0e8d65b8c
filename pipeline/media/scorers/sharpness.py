"""How sharp a clip is: the variance of the Laplacian."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Pictures, Score, Scorer, spread

NUM_FRAMES = 5


class Sharpness(Scorer):
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of the brightness, at the clip's
    own size up to 512 pixels.
    """

    name = "sharpness"
    version = 1
    scores = (
        Score(
            "sharpness",
            "levels²",
            0,
            None,
            "variance of the Laplacian, median of five frames; it grows with detail and grain, "
            "and depends on the clip's size",
        ),
    )
    cost = "0.01 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return spread(clip, NUM_FRAMES)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        import cv2

        values = [
            float(cv2.Laplacian(pictures.gray(index, 0), cv2.CV_16S).var(dtype=np.float64))
            for index in self.frames(clip)
        ]
        return [statistics.median(values)]


SCORERS = (Sharpness,)
