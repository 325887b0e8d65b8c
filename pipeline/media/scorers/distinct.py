"""How many frames are unlike the one before: a still, a slide show, a raised frame rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Picture, Pictures, Score, Scorer, in_runs, runs

SIDE = 64
SAME = 0.25  # of 255: mean difference of two small pictures below which they are one


class Distinct(Scorer):
    """Mean difference of small pictures, over three runs of eleven frames."""

    name = "distinct"
    version = 1
    scores = (
        Score(
            "distinct",
            "share",
            0,
            1,
            "frames that are unlike the one before: 0 for a still, 0.5 where each frame is there "
            "twice",
        ),
    )
    cost = "0.04 s"

    def frames(self, clip: Clip) -> Sequence[int]:
        return in_runs(clip)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        steps = [
            difference_of(pictures.gray(before, SIDE), pictures.gray(after, SIDE)) > SAME
            for run in runs(clip)
            for before, after in itertools.pairwise(run)
        ]
        return [sum(steps) / len(steps) if steps else None]


def difference_of(before: Picture, after: Picture) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(before.astype(np.int16) - after).mean(dtype=np.float64))


SCORERS = (Distinct,)
