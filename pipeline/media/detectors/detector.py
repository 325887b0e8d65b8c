"""What every cut detector is: a table of options that a recipe may hold, and what they start."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import Field

from pipeline.core.params import Table
from pipeline.core.records import Container


class Detector(Protocol):
    """Sees every frame of a stretch of video once, in order; then says where the cuts are."""

    def see(self, frame: Any, time_s: float) -> None:
        """A frame that is shown from `time_s` on, in seconds from the first one."""
        ...

    def cuts(self) -> list[int]:
        """The index of the first frame after each cut, counted from 0."""
        ...


class Options(Table):
    """`[cut]`: the options of one detector. A subclass has a field `detector`, its name."""

    detector: str
    min_scene_s: float = Field(
        default=0.6,
        ge=0,
        description="Cuts nearer than this to the one before, or to the start, are ignored.",
    )

    def start(self, facts: Container) -> Detector:
        """A new detector with these options, for one video."""
        raise NotImplementedError
