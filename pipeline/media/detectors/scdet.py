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
        self._options = options
        self._index = 0
        self._last_s = 0.0
        self._cuts: list[int] = []

    def see(self, frame: Any, time_s: float) -> None:
        is_cut = self._score.score_of(frame) >= self._options.threshold
        if is_cut and time_s - self._last_s >= self._options.min_scene_s:
            self._cuts.append(self._index)
            self._last_s = time_s
        self._index += 1

    def cuts(self) -> list[int]:
        return self._cuts


DETECTORS = (Scdet,)
