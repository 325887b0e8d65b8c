"""ffmpeg's scdet filter, the cheapest detector."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.core.records import Container
from pipeline.media import video
from pipeline.media.detectors.detector import Detector, Options


class Scdet(Options):
    """ffmpeg's scene change score."""

    detector: Literal["scdet"] = "scdet"
    threshold: float = Field(default=10.0, ge=0, le=100, description="Score that is a cut.")

    def start(self, facts: Container) -> Detector:
        return _Scdet(self, facts)


class _Scdet:
    """A score at or over the threshold is a cut, unless the last one is too near."""

    def __init__(self, options: Scdet, facts: Container) -> None:
        self._score = video.SceneScore(facts)
        self._threshold = options.threshold
        self._min_frames = options.min_scene_s * float(facts.average_fps)
        self._index = 0
        self._cuts: list[int] = []

    def see(self, frame: Any) -> None:
        score = self._score.score_of(frame)
        last = self._cuts[-1] if self._cuts else 0
        if score >= self._threshold and self._index - last >= self._min_frames:
            self._cuts.append(self._index)
        self._index += 1

    def cuts(self) -> list[int]:
        return self._cuts


DETECTORS = (Scdet,)
