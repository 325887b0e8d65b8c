"""Scene -> Scene* or Rejection: long enough, and neither a still nor unwanted? Reads the record
and nothing else.

How many frames a scene gives at the target fps follows from its time stamps, so a short scene costs
nothing more and another `min_frames` decodes nothing. What is longer than `max_frames` is split
into equal takes, because a four-hour drive is one scene.

A take begins and ends at a time stamp. Where one tick of a video's clock holds several frames of
the target (a clock of 1/25 s, clips of 60 fps), not every number of frames can be had: takes are
then only nearly equal, and a scene may lose a few ticks at its end so that all keep the limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core import canonical
from pipeline.core.errors import BadData, RecipeError
from pipeline.core.params import Seconds, Setup, Table
from pipeline.core.records import Scene, grid_index
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import reel

VERSION = 3
MAKES = Scene
MAX_TICKS_LOST = 2  # at the end of a scene; enough for any limits that can be kept at all


class Params(Table):
    """`[filter]`: which scenes become clips."""

    min_frames: int = Field(
        default=100, ge=1, description="Scenes that give fewer frames are rejected."
    )
    max_frames: int | None = Field(
        default=1000,
        ge=1,
        description="Longer scenes are split into equal takes of at most this many frames; "
        "a clip is encoded from memory.",
    )
    trim_s: Seconds = Field(
        default=Fraction(0),
        ge=0,
        le=60,
        description="Seconds to leave away at each end of a scene.",
    )
    min_distinct: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of a scene's frames that must be new pictures: a still has one, footage "
        "of one picture a second a tenth at 10 fps.",
    )
    interlaced: Literal["deinterlace", "reject"] = Field(
        default="deinterlace",
        description="Scenes of interlaced videos: take them, deinterlaced, or reject them.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least = 2 * self.min_frames - 1
        if self.max_frames is not None and self.max_frames < least:
            raise ValueError(
                f"max_frames must be at least {least}: "
                "equal parts of a longer scene would fall below min_frames"
            )
        return self


def stage(setup: Setup) -> Stage:
    params, fps = setup.table(Params), setup.table(reel.Params).fps
    return Stage(
        name="filter",
        version=VERSION,
        params={"fps": canonical.plain(fps), **_plain(params)},
        makes=MAKES,
        process=partial(process, params=params, fps=fps),
        pure=always,
        local=True,
    )


def _plain(params: Params) -> dict[str, Any]:
    """The options as manifests and locks have them. `interlaced` is left away where it is the
    default: it was not there before.
    """
    options: dict[str, Any] = canonical.plain(params.model_dump())
    if options["interlaced"] == Params.model_fields["interlaced"].default:
        del options["interlaced"]
    return options


def always(scene: Scene) -> bool:
    """Every scene is judged anew: the arithmetic takes less time than a memo."""
    return True


def process(scene: Scene, store: Store, params: Params, fps: Fraction) -> Iterator[Scene | BadData]:
    """Trim, split and judge one scene. The outputs replace the scene and keep its video as
    parent. Raises RecipeError if no take of a scene that is too long keeps the limits.
    """
    scan = scene.video.container.scan
    if params.interlaced == "reject" and scan != "progressive":
        yield BadData("interlaced", f"its frames are made of two fields ({scan})")
        return
    ticks = -(-params.trim_s // scene.time_base)
    start_pts = scene.start_pts + ticks
    trimmed = replace(scene, start_pts=start_pts, end_pts=max(start_pts, scene.end_pts - ticks))
    is_long = trimmed.num_frames(fps) >= params.min_frames
    if is_long and scene.distinct is not None and scene.distinct < params.min_distinct:
        yield BadData(
            "too-few-distinct",
            f"{scene.distinct:.3f} of the frames at {fps} fps are new pictures, "
            f"{params.min_distinct} wanted",
        )
        return
    for take in takes(trimmed, params, fps):
        count = take.num_frames(fps)
        if count >= params.min_frames:
            yield take
        else:
            yield BadData(
                "too-few-frames", f"{count} frames at {fps} fps, {params.min_frames} wanted"
            )


def takes(scene: Scene, params: Params, fps: Fraction) -> list[Scene]:
    """The scene, or nearly equal parts of it that keep both limits. Raises RecipeError if there
    are none.
    """
    if params.max_frames is None or scene.num_frames(fps) <= params.max_frames:
        return [scene]
    for num_lost in range(MAX_TICKS_LOST + 1):
        shorter = replace(scene, end_pts=scene.end_pts - num_lost)
        for place_edges in (_even_frames, _even_ticks):
            edges = place_edges(shorter, params.max_frames, fps)
            parts = _split(shorter, edges)
            counts = [part.num_frames(fps) for part in parts]
            if params.min_frames <= min(counts) and max(counts) <= params.max_frames:
                return parts
    frames_a_tick = float(scene.time_base * fps)
    raise RecipeError(
        f"the scene '{scene.key}' has no takes of {params.min_frames} to {params.max_frames} "
        f"frames at {fps} fps: its video's clock ticks every {frames_a_tick:.3g} frames. "
        "Take a higher filter.max_frames, a lower filter.min_frames or a lower extract.fps"
    )


def _even_frames(scene: Scene, max_frames: int, fps: Fraction) -> list[int]:
    """Edges between as few parts as there must be, with equally many frames as far as time stamps
    allow.
    """
    total = scene.num_frames(fps)
    num_parts = -(-total // max_frames)
    first = grid_index(scene.start_pts, scene.time_base, fps)
    rate = scene.time_base * fps  # frames in one tick
    return [int((first + total * part // num_parts) / rate // 1) for part in range(1, num_parts)]


def _even_ticks(scene: Scene, max_frames: int, fps: Fraction) -> list[int]:
    """Edges between parts of equally many ticks, none of which can hold too many frames."""
    ticks_a_part = max(1, int(max_frames // (scene.time_base * fps)))
    total = scene.end_pts - scene.start_pts
    num_parts = -(-total // ticks_a_part)
    return [scene.start_pts + total * part // num_parts for part in range(1, num_parts)]


def _split(scene: Scene, edges: Sequence[int]) -> list[Scene]:
    if not edges:
        return [scene]
    bounds = itertools.pairwise([scene.start_pts, *edges, scene.end_pts])
    return [
        replace(scene, key=f"{scene.key}-{part:03d}", start_pts=start_pts, end_pts=end_pts)
        for part, (start_pts, end_pts) in enumerate(bounds)
    ]
