"""Whether a cut or a dissolve was left inside: the one change that is unlike the clip's others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Picture, Pictures, Score, Scorer, moments

SIDE = 32
BINS = 6  # of each colour, of a histogram
SMALL = 0.05  # a change that is nothing, however still the clip is


class InnerCut(Scorer):
    """Small pictures and their histograms at moments half a second apart.

    A change is the geometric mean of how far two pictures are apart and how far their histograms:
    a pan has the first, a cloud before the sun the second, a cut has both. It counts if it lasts:
    what was before still differs from what comes after it, so that a flash is none.
    """

    name = "inner_cut"
    version = 1
    scores = (
        Score(
            "inner_cut",
            "0..1",
            0,
            1,
            "the largest lasting change within half a second or a second, against the clip's "
            "median change: (largest - median) / (largest + median + 0.05)",
        ),
    )
    cost = "0.03 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return moments(clip)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        small = [pictures.bgr(index, SIDE) for index in moments(clip)]
        histograms = [_histogram(picture) for picture in small]

        def change(before: int, after: int) -> float:
            """From one moment to another; those before the first and after the last are these."""
            low, high = max(0, before), min(len(small) - 1, after)
            pixels = np.abs(small[low].astype(np.int16) - small[high]).mean(dtype=np.float64) / 255
            overlap = np.sqrt(histograms[low] * histograms[high]).sum(dtype=np.float64)
            return float(np.sqrt(pixels * np.sqrt(max(0.0, 1 - overlap))))

        scores = [_outlier(change, gap, len(small)) for gap in (1, 2) if len(small) > gap + 2]
        return [max(scores) if scores else None]


def _outlier(change: Callable[[int, int], float], gap: int, count: int) -> float:
    """How far the largest lasting change over `gap` moments stands out, 0 to 1."""
    starts = range(count - gap)
    lasting = [
        min(change(start, start + gap), change(start - 1, start + gap + 1)) for start in starts
    ]
    usual = statistics.median(change(start, start + gap) for start in starts)
    largest = max(lasting)
    return max(0.0, (largest - usual) / (largest + usual + SMALL))


def _histogram(picture: Picture) -> NDArray[np.float64]:
    """Shares of the colours of a picture."""
    bins = picture.reshape(-1, 3).astype(np.int64) * BINS // 256
    places = (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]
    counts = np.bincount(places, minlength=BINS**3)
    return np.asarray(counts / len(places), np.float64)


SCORERS = (InnerCut,)
