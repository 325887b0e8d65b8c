"""No detector: for videos that are cut already."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.core.records import Container
from pipeline.media.detectors.detector import Detector, Options


class Whole(Options):
    """No cuts: the video, or the time range its source names, is one scene."""

    detector: Literal["none"] = "none"

    def start(self, facts: Container) -> Detector:
        return _Nothing()


class _Nothing:
    def see(self, frame: Any, time_s: float) -> None:
        """There is nothing to look at."""

    def cuts(self) -> list[int]:
        return []


DETECTORS = (Whole,)
