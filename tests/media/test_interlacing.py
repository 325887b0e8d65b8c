"""Interlaced footage, real and pretended: which it is, and what comes of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import BadData
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import interlacing, reel, video
from pipeline.media.detectors import whole
from pipeline.stages import cut
from pipeline.stages import filter as filtering
from tests.making import footage

Film = Callable[..., Path]
KINDS = (
    ("top", "libx264", True, ".mp4"),
    ("bottom", "libx264", True, ".ts"),
    ("top", "mpeg2video", True, ".mpg"),
    ("bottom", "mpeg2video", True, ".ts"),
    ("bottom", "dvvideo", True, ".avi"),
    ("top", "libx264", False, ".mp4"),
    ("bottom", "libx264", False, ".mp4"),
)


def lumas(path: Path, facts: Any = None) -> NDArray[np.int16]:
    facts = facts or video.probe(path)
    frames = [frame for frame, _, _ in video.frames(path, facts)]
    planes: list[Any] = [frame.to_ndarray()[: facts.height] for frame in frames]
    return np.stack(planes).astype(np.int16)


def combs(frames: NDArray[np.int16]) -> int:
    return int(np.abs(2 * frames[:, 1:-1] - frames[:, :-2] - frames[:, 2:]).sum(dtype=np.int64))


@pytest.mark.parametrize("look", ["testsrc2", "mandelbrot"])
@pytest.mark.parametrize(("first", "codec", "flagged", "suffix"), KINDS)
def test_interlaced_footage_is_recognised_and_deinterlaced(
    film: Film, look: str, first: str, codec: str, flagged: bool, suffix: str
) -> None:
    path = film(footage.interlaced, look, first, codec, flagged, suffix=suffix)
    facts = video.probe(path)
    assert facts.scan == first
    shown = list(video.frames(path, facts))
    assert len(shown) == facts.num_frames == 50
    assert [end for _, _, end in shown[:-1]] == [pts for _, pts, _ in shown[1:]]
    assert not any(frame.interlaced_frame for frame, _, _ in shown)
    if codec == "dvvideo":
        return
    woven = lumas(path, replace(facts, scan="progressive"))
    clear = lumas(path, facts)
    assert combs(clear) < 0.7 * combs(woven)
    moments = lumas(film(footage.moments, look, suffix=".mkv"))
    off_first, off_second = (np.abs(clear - moments[field::2]).mean() for field in (0, 1))
    assert off_first < 0.85 * off_second


@pytest.mark.parametrize("look", ["testsrc2", "mandelbrot", "pal75bars"])
def test_progressive_pictures_stay_as_they_are_whatever_their_flags_say(
    film: Film, look: str
) -> None:
    path = film(footage.progressive_segmented, look)
    facts = video.probe(path)
    # where nothing moves the flags are believed, and nothing changes either
    assert facts.scan == ("flagged" if look == "pal75bars" else "progressive")
    untouched = lumas(path, replace(facts, scan="progressive"))
    off = np.abs(lumas(path, facts) - untouched).max()
    assert off <= (2 if look == "pal75bars" else 0)


@pytest.mark.parametrize(("lines", "scan"), [(272, "bottom"), (240, "progressive")])
def test_a_crop_of_interlaced_footage_is_recognised_down_to_270_lines(
    film: Film, lines: int, scan: str
) -> None:
    path = film(footage.interlaced, "mandelbrot", "bottom", "libx264", False, lines)
    assert video.probe(path).scan == scan


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("first", ["top", "bottom"])
def test_telecined_film_is_put_together_again(film: Film, first: str, flagged: bool) -> None:
    path = film(footage.telecined, "testsrc2", first, flagged)
    facts = video.probe(path)
    assert facts.scan == f"mixed-{first}"
    shown, combed = lumas(path, facts), lumas(path, replace(facts, scan="progressive"))
    film_frames = lumas(film(footage.filmed, "testsrc2", suffix=".mkv"))
    assert len(shown) == facts.num_frames
    off, off_combed = (
        [np.abs(film_frames - frame).mean(axis=(1, 2)).min() for frame in frames]
        for frames in (shown, combed)
    )
    assert np.mean(np.array(off_combed) > 0.7) > 0.35  # two of five
    assert np.mean(np.array(off) < 0.7) > 0.95


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_frame_of_telecined_film_is_lost_at_the_end(film: Film, count: int) -> None:
    path = film(footage.telecined, "mandelbrot", "top", False)
    facts = video.probe(path)
    frames = list(video.frames(path, facts, Fraction(1), Fraction(1) + count / facts.average_fps))
    assert len(frames) == count


def test_pictures_that_are_single_fields_are_refused(film: Film) -> None:
    with pytest.raises(BadData, match=r"^interlaced: each picture \(320x120\) is one field"):
        video.probe(film(footage.single_fields))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_frame_is_lost_at_the_end(film: Film, count: int) -> None:
    path = film(footage.interlaced, "testsrc2", "top", "libx264")
    facts = video.probe(path)
    start = Fraction(1)
    frames = list(video.frames(path, facts, start, start + Fraction(count, 25)))
    assert len(frames) == count


def test_a_hole_is_no_neighbour(film: Film, tmp_path: Path) -> None:
    part = film(footage.interlaced, "testsrc2", "top", "mpeg2video", suffix=".ts")
    path = tmp_path / "twice.ts"
    path.write_bytes(part.read_bytes() * 2)
    facts = video.probe(path)
    assert (facts.scan, facts.order) == ("top", "broken")
    once, twice = lumas(part), lumas(path, facts)
    assert len(twice) == 2 * len(once)
    assert np.array_equal(twice[: len(once)], once)
    assert np.array_equal(twice[len(once) :], once)


def test_a_clip_of_an_interlaced_video_has_no_combs(
    film: Film, video_of: Callable[..., Video], store: Store
) -> None:
    path = film(footage.interlaced, "mandelbrot", "bottom", "libx264", False)
    params = reel.Params(size=256, fps=Fraction(25))
    clip = reel.reel_of(video_of(path), params, store)
    pixels = video.read_clip_exactly(store.path(clip["reel"]["sha256"]))[..., 1]
    pairs = itertools.pairwise(pixels)
    opinions = Counter(interlacing.opinion(before, after) for before, after in pairs)
    assert opinions["top"] + opinions["bottom"] <= 0.1 * opinions["progressive"]


def test_interlaced_scenes_are_rejected_where_they_are_not_wanted(
    film: Film, video_of: Callable[..., Video], store: Store
) -> None:
    record = video_of(film(footage.interlaced, "testsrc2", "top", "libx264"))
    setup = Setup((whole.Whole(), reel.Params(size=64)))
    scenes, _ = run_stage(cut.stage(setup), [record], store, Inline(), Progress())
    for value, num_kept in (("deinterlace", 1), ("reject", 0)):
        params = filtering.Params(min_frames=1, interlaced=value)
        stage = filtering.stage(Setup((params, reel.Params(size=64))))
        manifest, _ = run_stage(stage, scenes.records, store, Inline(), Progress())
        assert len(manifest.records) == num_kept
        assert [each.reason for each in manifest.rejections] == ["interlaced"] * (1 - num_kept)


@pytest.mark.parametrize(
    ("opinions", "num_flagged", "scan"),
    [
        ({}, 0, "progressive"),
        ({}, 36, "flagged"),  # nothing moves
        ({"top": 30}, 36, "top"),
        ({"top": 30}, 20, "flagged"),  # flags that change
        ({"bottom": 30, "progressive": 2}, 0, "bottom"),
        ({"top": 5, "bottom": 4, "progressive": 20}, 36, "progressive"),
        ({"top": 15, "progressive": 15}, 36, "mixed-top"),  # film and video, or telecined film
        ({"bottom": 15, "progressive": 15}, 0, "mixed-bottom"),
        ({"top": 15, "progressive": 15}, 20, "flagged"),
        ({"top": 15, "bottom": 5, "progressive": 15}, 0, "progressive"),  # noise
        ({"top": 7}, 0, "progressive"),  # too few
    ],
)
def test_what_opinions_and_flags_say(opinions: dict[Any, int], num_flagged: int, scan: str) -> None:
    assert interlacing.scan_of(Counter(opinions), num_flagged, 36) == scan
