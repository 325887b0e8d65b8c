"""Black bars: found over the scene, in dark ones and behind subtitles; not found where none are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Crop, Record, Scene, Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import reel, video
from pipeline.media.detectors import adaptive, whole
from pipeline.stages import cut, extract
from tests.making import footage

Film = Callable[..., Path]
VideoOf = Callable[..., Video]
SMALL = reel.Params(size=64)
WHOLE = whole.Whole()


def pictures_of(record: Video, store: Store, detector: Any = WHOLE) -> list[Crop | None]:
    return [scene.picture for scene in scenes_of(record, store, detector)]


def scenes_of(record: Video, store: Store, detector: Any = WHOLE) -> list[Scene]:
    setup = Setup((detector, SMALL))
    manifest, _ = run_stage(cut.stage(setup), [record], store, Inline(), Progress())
    return [scene for scene in manifest.records if isinstance(scene, Scene)]


def clips_of(
    scenes: list[Record] | list[Scene], store: Store, **options: Any
) -> tuple[list[Clip], Any]:
    stage = extract.stage(Setup((reel.Params(size=64, **options),)))
    manifest, _ = run_stage(stage, scenes, store, Inline(), Progress())
    return [record for record in manifest.records if isinstance(record, Clip)], manifest.reasons


LETTERBOX = ("320x134", "0:22")
PILLARBOX = ("100x180", "110:0")
WINDOW = ("160x90", "80:46")
ASYMMETRIC = ("320x134", "0:10")


@pytest.mark.parametrize(
    ("inner", "at", "options"),
    [
        (*LETTERBOX, {}),
        (*PILLARBOX, {}),
        (*WINDOW, {}),
        (*ASYMMETRIC, {}),
        (*LETTERBOX, {"look": "mandelbrot"}),
        (*LETTERBOX, {"written": True}),
        (*PILLARBOX, {"written": True}),
        (*LETTERBOX, {"crf": 35}),
        (*LETTERBOX, {"pix_fmt": "yuv420p10le"}),
        (*LETTERBOX, {"pix_fmt": "yuvj420p"}),
        (*LETTERBOX, {"dim": True}),
    ],
)
def test_the_picture_inside_bars_is_found(
    film: Film, video_of: VideoOf, store: Store, inner: str, at: str, options: dict[str, Any]
) -> None:
    [picture] = pictures_of(video_of(film(footage.barred, inner, at, **options)), store)
    width, height = map(int, inner.split("x"))
    x, y = map(int, at.split(":"))
    assert picture is not None
    assert 0 <= picture.x - x <= 4
    assert 0 <= picture.y - y <= 4
    assert 0 <= (x + width) - (picture.x + picture.width) <= 4
    assert 0 <= (y + height) - (picture.y + picture.height) <= 4


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (footage.plain, [2]),
        (footage.numbered, []),
        (footage.still, [2]),
        (footage.night, []),
        (footage.title, []),
        (footage.black, []),
    ],
)
def test_a_film_without_bars_has_none(
    film: Film, video_of: VideoOf, store: Store, make: Any, args: list[Any]
) -> None:
    assert pictures_of(video_of(film(make, *args)), store) == [None]


def test_a_dark_scene_has_the_rectangle_of_its_film(
    film: Film, video_of: VideoOf, store: Store
) -> None:
    path = film(footage.barred_then_dark)
    bright, dark = pictures_of(video_of(path), store, adaptive.Adaptive())
    assert bright is not None
    assert dark == bright


@pytest.mark.parametrize("inner", [LETTERBOX, PILLARBOX])
def test_the_square_is_cut_from_inside_the_bars(
    film: Film, video_of: VideoOf, store: Store, inner: tuple[str, str]
) -> None:
    path = film(footage.barred, *inner)
    scenes = scenes_of(video_of(path), store)
    [clip], _ = clips_of(scenes, store)
    assert clip.num_frames == scenes[0].num_frames(SMALL.fps)
    pixels = video.read_clip(store.path(clip.blob.sha256))
    assert len(pixels) == clip.num_frames
    lit = pixels.max(axis=(0, 3)) > 30
    assert lit.all(axis=0).any()
    assert lit.any(axis=0).all()
    assert lit.any(axis=1).all()
    [kept], _ = clips_of(scenes, store, bars="keep")
    assert kept.crop == reel.crop_of(scenes[0].video.container)
    rejected, reasons = clips_of(scenes, store, bars="reject")
    assert (rejected, reasons) == ([], {"black-bars": 1})


def test_a_take_inside_bars_has_the_frames_of_the_whole_scene(
    film: Film, video_of: VideoOf, store: Store, tmp_path: Path
) -> None:
    from dataclasses import replace

    path = film(footage.barred, *LETTERBOX, seconds=4)
    [scene] = scenes_of(video_of(path), store)
    middle = (
        scene.start_pts + (scene.end_pts - scene.start_pts) // 2 + 3
    )  # in no frame's first tick
    takes = [replace(scene, end_pts=middle), replace(scene, key="late", start_pts=middle)]
    whole_clip, *parts = clips_of([scene], store)[0] + clips_of(takes, store)[0]
    pixels = [video.read_clip(store.path(clip.blob.sha256)) for clip in (whole_clip, *parts)]
    assert sum(len(part) for part in pixels[1:]) == len(pixels[0])
    difference = np.abs(np.concatenate(pixels[1:]).astype(int) - pixels[0])
    assert difference.mean() < 1


def test_bars_beside_the_square_change_no_clip(film: Film, video_of: VideoOf, store: Store) -> None:
    record = video_of(film(footage.barred, "240x180", "40:0"))
    [scene] = scenes_of(record, store)
    assert scene.picture is not None
    assert not extract.has_own_square(scene, SMALL)
    [clip], _ = clips_of([scene], store)
    assert clip.crop == reel.crop_of(record.container)
