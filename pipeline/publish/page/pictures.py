"""Strips of small pictures, by which a page shows a clip before it plays, and a scene that no clip
was made of. Each is made once and remembered in the store, by the digest of the clip or video.

A clip's pictures come from the clip, those of a rejected scene from its video's reel: both are
files that longtake encoded itself, and all of their frames are key frames, so six pictures cost six
decoded frames (20 ms, 30 kB at 192 pixels).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.reading import Facts
from pipeline.core.records import Blob, Clip, Scene, grid_index
from pipeline.core.store import Store
from pipeline.media import reel, video

VERSION = 1
NUM_PICTURES = 6  # of a strip, from left to right; tiles.js has it too
SIDE = 192  # pixels
QUALITY = 72  # WebP


class _Strip(Facts):
    """What is remembered of a strip; null where the pictures cannot be decoded."""

    strip: Blob | None


def strip_of_clip(clip: Clip, store: Store) -> Blob | None:
    """The strip of a clip; None where the clip is gone or cannot be read."""
    if not store.has(clip.blob):
        return None
    task = ["strip", VERSION, clip.identity()]
    return _strip(task, store.path(clip.blob.sha256), clip.fps, range(clip.num_frames), store)


def strip_of_scene(scene: Scene, params: reel.Params, store: Store) -> Blob | None:
    """The strip of a scene, from its video's reel; None where there is no reel, or it has no frame
    of the scene.
    """
    memo = store.recall(canonical.digest(reel.task(scene.video, params)))
    if memo is None or not store.has(Blob(**memo["reel"])):
        return None
    first, count = memo["first_index"], memo["num_frames"]
    start = grid_index(scene.start_pts, scene.time_base, params.fps) - first
    end = grid_index(scene.end_pts, scene.time_base, params.fps) - first
    frames = range(max(0, start), min(end, count))
    if not frames:
        return None
    span = [scene.start_pts, scene.end_pts, scene.time_base]
    task = ["strip", VERSION, scene.video.identity(), span, reel.stage_params(params)]
    return _strip(task, store.path(memo["reel"]["sha256"]), params.fps, frames, store)


def _strip(
    task: list[object], path: Path, fps: Fraction, frames: range, store: Store
) -> Blob | None:
    def make() -> Mapping[str, Any]:
        try:
            return {"strip": store.put(_drawn(path, fps, spread(frames)))}
        except BadData:
            return {"strip": None}

    strip = store.once(task, make, _Strip)["strip"]
    return Blob(**strip) if strip else None


def spread(frames: range) -> list[int]:
    """Frames in the middle of equal parts; of few frames some more than once."""
    count = len(frames)
    return [frames[count * (2 * part + 1) // (2 * NUM_PICTURES)] for part in range(NUM_PICTURES)]


def _drawn(path: Path, fps: Fraction, indexes: Sequence[int]) -> bytes:
    """A WebP of the frames side by side. Raises BadData."""
    from PIL import Image

    strip = Image.new("RGB", (SIDE * len(indexes), SIDE))
    for place, picture in enumerate(_small(path, fps, indexes)):
        square = Image.fromarray(picture).resize((SIDE, SIDE))
        strip.paste(square, (place * SIDE, 0))
    content = io.BytesIO()
    strip.save(content, "WEBP", quality=QUALITY, method=4)
    return content.getvalue()


def _small(path: Path, fps: Fraction, indexes: Sequence[int]) -> Iterator[Any]:
    """Those frames as small `h w 3` uint8 RGB."""
    facts = video.probe(path)
    small = video.Thumbnails(facts, SIDE)
    for index in indexes:
        start_s = index / fps
        frame, _, _ = next(video.frames(path, facts, start_s, start_s + 1 / fps))
        yield small.thumbnail_of(frame)[:, :, ::-1]
