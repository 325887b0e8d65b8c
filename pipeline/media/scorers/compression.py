"""How hard the source is compressed, and its frame rate: from what its container says."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.records import Clip
from pipeline.media.scorers.scorer import Pictures, Score, Scorer


class Compression(Scorer):
    """Size of the file, its pixels and frames. No picture is looked at."""

    name = "compression"
    version = 1
    scores = (
        Score(
            "bits_per_pixel",
            "bits",
            0,
            None,
            "bits of the source's file, sound and all, for each pixel of each frame",
        ),
        Score("source_fps", "fps", 0, None, "the source's mean frame rate"),
    )
    cost = "none"

    def frames(self, clip: Clip) -> Sequence[int]:
        return []

    def about(self, clip: Clip) -> object:
        video = clip.scene.video
        container = video.container
        pixels = [container.width, container.height, container.num_frames]
        return [video.blob.num_bytes, pixels, container.average_fps]

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        video = clip.scene.video
        container = video.container
        pixels = container.width * container.height * container.num_frames
        bits = 8.0 * video.blob.num_bytes / pixels if pixels else None
        return [bits, float(container.average_fps)]


SCORERS = (Compression,)
