"""cut and extract: every detector, exact time stamps, and one decode for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Scene, Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import detectors, reel, video
from pipeline.media.detectors import adaptive, pyscenedetect, scdet, whole
from pipeline.stages import cut, extract
from tests.making import broken, footage

SMALL = reel.Params(size=64)
HARD = (
    adaptive.Adaptive(),
    pyscenedetect.Content(),
    pyscenedetect.Hash(),
    pyscenedetect.Histogram(),
    scdet.Scdet(),
)


def scenes_of(record: Video, store: Store, params: detectors.Options) -> list[Scene]:
    setup = Setup((params, SMALL))
    manifest, _ = run_stage(cut.stage(setup), [record], store, Inline(), Progress())
    return [scene for scene in manifest.records if isinstance(scene, Scene)]


def seconds(scenes: list[Scene]) -> list[tuple[float, float]]:
    return [
        (float(scene.start_pts * scene.time_base), float(scene.end_pts * scene.time_base))
        for scene in scenes
    ]


@pytest.mark.parametrize("params", HARD, ids=lambda params: params.detector)
def test_every_detector_of_hard_cuts_finds_them_to_the_frame(
    film: Callable[..., Path],
    video_of: Callable[..., Video],
    store: Store,
    params: detectors.Options,
) -> None:
    record = video_of(film(footage.joined, (2.0, 3.6), 6))
    assert seconds(scenes_of(record, store, params)) == [(0, 2), (2, 3.6), (3.6, 6)]


def test_the_fade_detector_cuts_in_the_black(
    tmp_path: Path, film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    import ffmpeg

    stream = ffmpeg.input(str(film(footage.plain, 4))).filter(
        "fade", type="out", start_time=1.2, duration=0.6
    )
    other = ffmpeg.input(str(film(footage.plain, 4))).filter(
        "fade", type="in", start_time=0.2, duration=0.6
    )
    both = ffmpeg.concat(stream.trim(duration=2), other.trim(duration=2))
    spans = seconds(
        scenes_of(
            video_of(footage.make(tmp_path / "faded.mp4", both, vcodec="libx264")),
            store,
            pyscenedetect.Threshold(),
        )
    )
    assert len(spans) == 2
    assert 1.5 < spans[0][1] < 2.5


def test_without_a_detector_the_video_or_its_time_range_is_one_scene(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    path = film(footage.joined, (2.0, 3.6), 6)
    assert seconds(scenes_of(video_of(path), store, whole.Whole())) == [(0, 6)]
    assert seconds(
        scenes_of(video_of(path, Fraction(1), Fraction(5, 2)), store, whole.Whole())
    ) == [(1, 2.5)]


def test_a_cut_a_few_frames_before_the_end_is_found(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    spans = seconds(scenes_of(video_of(film(footage.joined, (3.72,), 4)), store, detectors.DEFAULT))
    assert spans == [(0, 3.72), (3.72, 4)]


def test_a_video_of_one_frame_is_one_scene(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    for params in (*HARD, pyscenedetect.Threshold()):
        assert len(scenes_of(video_of(film(footage.plain, 0.04)), store, params)) == 1


def test_scenes_lie_on_time_stamps_of_a_variable_frame_rate(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    record = video_of(film(footage.variable_frame_rate))
    [scene] = scenes_of(record, store, whole.Whole())
    assert (scene.start_pts, scene.end_pts) == (
        record.container.start_pts,
        record.container.end_pts,
    )


def test_what_gives_no_frames_is_a_rejection_beside_the_scenes(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    record = video_of(film(broken.joined_files, 0, 20, suffix=".ts"))
    setup = Setup((detectors.DEFAULT, SMALL))
    manifest, _ = run_stage(cut.stage(setup), [record], store, Inline(), Progress())
    assert (manifest.num_in, manifest.num_split, len(manifest.records)) == (1, 2, 2)
    assert manifest.reasons == {"gap": 1}
    scenes = [scene for scene in manifest.records if isinstance(scene, Scene)]
    assert scenes[0].end_pts < scenes[1].start_pts


@pytest.mark.parametrize(
    ("make", "args", "frames"),
    [
        (broken.joined_files, (0, 20), [40, 40]),
        (broken.joined_files, (7, 3, 5), [40, 40, 40]),
        (broken.resized, (), [40, 40]),
    ],
)
def test_clips_are_cut_on_both_sides_of_a_hole(
    film: Callable[..., Path],
    video_of: Callable[..., Video],
    store: Store,
    make: Callable[..., Path],
    args: tuple[float, ...],
    frames: list[int],
) -> None:
    scenes = scenes_of(video_of(film(make, *args, suffix=".ts")), store, whole.Whole())
    manifest, _ = run_stage(extract.stage(Setup((SMALL,))), scenes, store, Inline(), Progress())
    assert not manifest.rejections
    clips = [record for record in manifest.records if isinstance(record, Clip)]
    assert [clip.num_frames for clip in clips] == frames
    assert [len(video.read_clip(store.path(clip.blob.sha256))) for clip in clips] == frames


def test_a_reel_made_again_by_extract_has_the_same_holes(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    record = video_of(film(broken.joined_files, 0, 20, suffix=".ts"))
    with store.scratch(".mp4") as scratch:
        writer = reel.Writer(scratch, record.container, SMALL)
        cut.watch(record, store, whole.Whole(), SMALL.fps, writer, [])
        by_cut = reel.finish(writer, scratch, store)
    assert reel.reel_of(record, SMALL, store)["reel"]["sha256"] == by_cut["reel"].sha256


def test_cuts_outside_the_video_are_left_away_and_twins_are_one() -> None:
    assert cut.scenes([10, 20, 30, 40], 50, [0, 2, 2, 4, 9]) == [(10, 30), (30, 50)]


def test_cut_and_extract_decode_a_video_once(
    film: Callable[..., Path],
    video_of: Callable[..., Video],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[Any] = []
    frames = video.frames
    monkeypatch.setattr(video, "frames", lambda *args: decoded.append(args) or frames(*args))
    scenes = scenes_of(video_of(film(footage.joined, (2.0, 3.6), 6)), store, detectors.DEFAULT)
    manifest, _ = run_stage(extract.stage(Setup((SMALL,))), scenes, store, Inline(), Progress())
    assert len(decoded) == 1
    clips = [record for record in manifest.records if isinstance(record, Clip)]
    assert [clip.num_frames for clip in clips] == [20, 16, 24]
    assert [len(video.read_clip(store.path(clip.blob.sha256))) for clip in clips] == [20, 16, 24]


def test_another_size_decodes_once_more_and_finds_the_same_frames(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    scenes = scenes_of(video_of(film(footage.joined, (2.0, 3.6), 6)), store, detectors.DEFAULT)
    manifest, _ = run_stage(
        extract.stage(Setup((reel.Params(size=128),))), scenes, store, Inline(), Progress()
    )
    assert [record.num_frames for record in manifest.records if isinstance(record, Clip)] == [
        20,
        16,
        24,
    ]


def test_a_scene_its_reel_does_not_hold_is_rejected(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    [scene] = scenes_of(video_of(film(footage.plain, 2)), store, whole.Whole())
    longer = replace(scene, end_pts=2 * scene.end_pts)
    manifest, _ = run_stage(extract.stage(Setup((SMALL,))), [longer], store, Inline(), Progress())
    assert [(rejection.reason, rejection.detail) for rejection in manifest.rejections] == [
        ("too-few-frames", "40 frames promised by the time stamps, 20 decoded")
    ]
