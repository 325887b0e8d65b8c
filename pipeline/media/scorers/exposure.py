"""How bright a clip is, how much of it is black, how much is at the ends of the scale."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Pictures, Score, Scorer, spread

SIDE = 256
NUM_FRAMES = 12
DARK = 25  # of 255, 10 %: ffmpeg's blackdetect calls such a pixel black
BLACK_SHARE = 0.98  # of the pixels, for a black frame, as there
ENDS = (2, 253)


class Exposure(Scorer):
    """Histograms of the brightness of twelve frames."""

    name = "exposure"
    version = 1
    scores = (
        Score("luma", "0..255", 0, 255, "mean brightness"),
        Score(
            "contrast",
            "0..127",
            0,
            127.5,
            "standard deviation of the brightness in a frame, median over frames",
        ),
        Score(
            "black",
            "share",
            0,
            1,
            "frames of which 98 % of the pixels are darker than 10 %",
        ),
        Score(
            "clipped",
            "share",
            0,
            1,
            "pixels that are all black or all white (2 or less, 253 or more)",
        ),
    )
    cost = "0.02 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return spread(clip, NUM_FRAMES)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        lumas, contrasts, blacks, clipped = [], [], [], []
        for index in self.frames(clip):
            gray = pictures.gray(index, SIDE)
            lumas.append(float(gray.mean(dtype=np.float64)))
            contrasts.append(float(gray.std(dtype=np.float64)))
            blacks.append(float((gray < DARK).mean()) >= BLACK_SHARE)
            clipped.append(float(((gray <= ENDS[0]) | (gray >= ENDS[1])).mean()))
        return [
            statistics.fmean(lumas),
            statistics.median(contrasts),
            sum(blacks) / len(blacks),
            statistics.fmean(clipped),
        ]


SCORERS = (Exposure,)
