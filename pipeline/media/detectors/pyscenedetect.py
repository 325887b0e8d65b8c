"""PySceneDetect's detectors, fed with small frames.

They are given frame numbers instead of times, so a variable frame rate needs no special care.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.core.records import Container
from pipeline.media import video
from pipeline.media.detectors.detector import Detector, Options


class _SmallFrames(Options):
    """What all of them share. `kind` is the name of PySceneDetect's class."""

    kind: ClassVar[str]
    width: int = Field(
        default=96, ge=32, description="Width of the small frames the detector looks at."
    )

    def start(self, facts: Container) -> Detector:
        return _PySceneDetect(self, facts)


class Adaptive(_SmallFrames):
    """Change of hue, saturation and brightness against a rolling average: stands camera motion."""

    kind = "AdaptiveDetector"
    detector: Literal["adaptive"] = "adaptive"
    adaptive_threshold: float = Field(
        default=2.5, gt=0, description="How many times the neighbours' change is a cut."
    )
    min_content_val: float = Field(
        default=10.0, ge=0, description="Changes below this are never a cut."
    )
    window_width: int = Field(
        default=12,
        ge=1,
        description="Frames before and after that make the average; wide sees slow fades.",
    )


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
        from scenedetect.common import FrameTimecode

        fps = float(facts.average_fps)
        self._small = video.Thumbnails(facts, options.width)
        self._detector = _detector_of(options, max(1, round(options.min_scene_s * fps)))
        self._clock = partial(FrameTimecode, fps=fps)
        window = options.window_width if isinstance(options, Adaptive) else 0
        self._recent: deque[Any] = deque(maxlen=window + 1)
        self._index = 0
        self._cuts: list[int] = []

    def see(self, frame: Any) -> None:
        picture = self._small.thumbnail_of(frame)
        self._recent.append(picture)
        self._feed(picture)

    def _feed(self, picture: Any) -> None:
        cuts = self._detector.process_frame(self._clock(self._index), picture)
        self._cuts += [cut.frame_num for cut in cuts]
        self._index += 1

    def cuts(self) -> list[int]:
        # a rolling average judges a frame by those after it, so the end is mirrored
        for picture in list(self._recent)[-2::-1]:
            self._feed(picture)
        last = self._clock(max(0, self._index - 1))
        return self._cuts + [cut.frame_num for cut in self._detector.post_process(last)]


def _detector_of(options: _SmallFrames, min_frames: int) -> Any:
    from scenedetect import detectors

    arguments = options.model_dump(exclude={"detector", "width", "min_scene_s"})
    return getattr(detectors, options.kind)(min_scene_len=min_frames, **arguments)


DETECTORS = (Adaptive, Content, Histogram, Hash, Threshold)
