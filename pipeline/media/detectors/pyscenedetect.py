"""PySceneDetect's detectors, fed with small frames.

Their frame numbers are ticks of a clock here, so that a variable frame rate needs no special care.
"""

from __future__ import annotations

import bisect
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.core.records import Container
from pipeline.media import video
from pipeline.media.detectors.detector import Detector, Options

TICKS = 90_000  # a second


class _SmallFrames(Options):
    """What all of them share. `kind` is the name of PySceneDetect's class."""

    kind: ClassVar[str]
    width: int = Field(
        default=96, ge=32, description="Width of the small frames the detector looks at."
    )

    def start(self, facts: Container) -> Detector:
        return _PySceneDetect(self, facts)


class Content(_SmallFrames):
    """Change of hue, saturation and brightness between two frames."""

    kind = "ContentDetector"
    detector: Literal["content"] = "content"
    threshold: float = Field(default=27.0, ge=0, le=255, description="Change that is a cut.")


class Histogram(_SmallFrames):
    """Correlation of brightness histograms."""

    kind = "HistogramDetector"
    detector: Literal["histogram"] = "histogram"
    threshold: float = Field(default=0.2, ge=0, le=1, description="Change that is a cut.")
    bins: int = Field(default=128, ge=2, le=256, description="Bins of the histogram.")


class Hash(_SmallFrames):
    """Distance of perceptual hashes."""

    kind = "HashDetector"
    detector: Literal["hash"] = "hash"
    threshold: float = Field(
        default=0.35, ge=0, le=1, description="Share of differing bits that is a cut."
    )
    size: int = Field(default=8, ge=2, description="Side of the hash.")
    lowpass: int = Field(default=2, ge=1, description="How much fine detail the hash leaves out.")


class Threshold(_SmallFrames):
    """Fades to and from black."""

    kind = "ThresholdDetector"
    detector: Literal["threshold"] = "threshold"
    threshold: int = Field(
        default=8, ge=0, le=255, description="Mean brightness below which a frame is black."
    )
    fade_bias: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="Where in the black the cut lies: -1 at its start, 1 at its end.",
    )


class _PySceneDetect:
    """Feeds one of PySceneDetect's detectors and collects its cuts."""

    def __init__(self, options: _SmallFrames, facts: Container) -> None:
        self._small = video.Thumbnails(facts, options.width)
        self._detector = _detector_of(options, max(1, round(options.min_scene_s * TICKS)))
        self._indices: dict[int, int] = {}  # of frames, by tick
        self._cuts: list[int] = []

    def see(self, frame: Any, time_s: float) -> None:
        tick = round(time_s * TICKS)
        self._indices[tick] = len(self._indices)
        cuts = self._detector.process_frame(_timecode(tick), self._small.thumbnail_of(frame))
        self._cuts += [cut.frame_num for cut in cuts]

    def cuts(self) -> list[int]:
        last = max(self._indices, default=0)
        late = [cut.frame_num for cut in self._detector.post_process(_timecode(last))]
        ticks = sorted(self._indices)
        return [bisect.bisect_left(ticks, cut) for cut in self._cuts + late]


def _timecode(tick: int) -> Any:
    from scenedetect.common import FrameTimecode

    return FrameTimecode(tick, fps=float(TICKS))


def _detector_of(options: _SmallFrames, min_ticks: int) -> Any:
    from scenedetect import detectors

    arguments = options.model_dump(exclude={"detector", "width", "min_scene_s"})
    return getattr(detectors, options.kind)(min_scene_len=min_ticks, **arguments)


DETECTORS = (Content, Histogram, Hash, Threshold)
