"""Scene -> Scene* or Rejection: long enough? Reads the record and nothing else.

How many frames a scene gives at the target fps follows from its time stamps, so a short scene costs
nothing more and another `min_frames` decodes nothing. What is longer than `max_frames` is split
into equal takes, because a four-hour drive is one scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Self

from pydantic import Field, model_validator

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Seconds, Setup, Table
from pipeline.core.records import Scene, grid_index
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import reel

VERSION = 1
MAKES = Scene


class Params(Table):
    """`[filter]`: which scenes become clips."""

    min_frames: int = Field(
        default=100, ge=1, description="Scenes that give fewer frames are rejected."
    )
    max_frames: int | None = Field(
        default=1000,
        ge=1,
        description="Longer scenes are split into equal takes of at most this many frames; a clip is encoded from memory.",
    )
    trim_s: Seconds = Field(
        default=Fraction(0),
        ge=0,
        le=60,
        description="Seconds to leave away at each end of a scene.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_frames is not None and self.max_frames < 2 * self.min_frames - 1:
            wanted = 2 * self.min_frames - 1
            raise ValueError(
                f"max_frames must be at least {wanted}: equal parts of a longer scene would fall below min_frames"
            )
        return self


def stage(setup: Setup) -> Stage:
    params, fps = setup.table(Params), setup.table(reel.Params).fps
    return Stage(
        name="filter",
        version=VERSION,
        params={"fps": canonical.plain(fps), **canonical.plain(params.model_dump())},
        makes=MAKES,
        process=partial(process, params=params, fps=fps),
        pure=always,
        local=True,
    )


def always(scene: Scene) -> bool:
    """Every scene is judged anew: the arithmetic takes less time than a memo."""
    return True


def process(scene: Scene, store: Store, params: Params, fps: Fraction) -> Iterator[Scene | BadData]:
    """Trim, split and judge one scene. The outputs replace the scene and keep its video as
    parent.
    """
    ticks = -(-params.trim_s // scene.time_base)
    trimmed = replace(
        scene,
        start_pts=scene.start_pts + ticks,
        end_pts=max(scene.start_pts + ticks, scene.end_pts - ticks),
    )
    for take in takes(trimmed, params.max_frames, fps):
        count = take.num_frames(fps)
        if count >= params.min_frames:
            yield take
        else:
            yield BadData(
                "too-few-frames", f"{count} frames at {fps} fps, {params.min_frames} wanted"
            )


def takes(scene: Scene, max_frames: int | None, fps: Fraction) -> list[Scene]:
    """The scene, or equal parts of it that do not exceed `max_frames` frames."""
    total = scene.num_frames(fps)
    parts = 1 if max_frames is None else max(1, -(-total // max_frames))
    if parts == 1:
        return [scene]
    first = grid_index(scene.start_pts, scene.time_base, fps)
    rate = scene.time_base * fps
    edges = [int((first + total * part // parts) / rate // 1) for part in range(1, parts)]
    bounds = [scene.start_pts, *edges, scene.end_pts]
    return [
        replace(
            scene, key=f"{scene.key}-{part:03d}", start_pts=bounds[part], end_pts=bounds[part + 1]
        )
        for part in range(parts)
    ]
