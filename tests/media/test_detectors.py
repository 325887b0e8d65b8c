"""The list of detectors: recipe, schema and messages follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffmpeg
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.media import detectors, video
from pipeline.media.detectors import adaptive
from tests.making import broken, footage

NAMES = [options.model_fields["detector"].default for options in detectors.ALL]


def test_every_detector_has_a_name_of_its_own_by_which_it_is_found() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert [detectors.options_of(name) for name in NAMES] == list(detectors.ALL)
    assert detectors.options_of("contnt") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_table_that_names_a_detector_is_that_detector_s_options(
    film: Callable[..., Path], name: str
) -> None:
    options = TypeAdapter(detectors.CutTable).validate_python({"detector": name})
    assert type(options) is detectors.options_of(name)
    path = film(footage.plain, 1, size="64x64")
    facts = video.probe(path)
    detector = options.start(facts)
    for frame, pts, _ in video.frames(path, facts):
        detector.see(frame, float(pts * facts.time_base))
    assert detector.cuts() == []


def test_an_unknown_detector_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(detectors.CutTable).validate_python({"detector": "contnt"})
    assert all(f"'{name}'" in str(caught.value) for name in NAMES)


def test_every_detector_and_every_option_of_it_is_described() -> None:
    for options in detectors.ALL:
        schema = options.model_json_schema()
        assert schema["description"]
        fields = {name: each for name, each in schema["properties"].items() if name != "detector"}
        assert all(each["description"] for each in fields.values())


def cuts_of(path: Path, options: detectors.Options = detectors.DEFAULT) -> list[float]:
    """Where a detector cuts, in seconds."""
    facts = video.probe(path)
    detector = options.start(facts)
    times = []
    for frame, pts, _ in video.frames(path, facts):
        times.append(float((pts - facts.start_pts) * facts.time_base))
        detector.see(frame, times[-1])
    return [times[cut] for cut in detector.cuts()]


@pytest.mark.parametrize("num_frames", [1, 4, 100])
def test_slides_have_the_same_cuts_however_many_frames_a_picture_is(
    film: Callable[..., Path], num_frames: int
) -> None:
    assert cuts_of(film(broken.slides, num_frames)) == [4, 8, 12, 16]


@pytest.mark.parametrize("fps", [10, 25, 60])
def test_windows_are_in_seconds_at_any_frame_rate(film: Callable[..., Path], fps: int) -> None:
    path = film(footage.joined, (2.0, 3.6), 6, fps=fps, size="160x120")
    assert cuts_of(path) == pytest.approx([2, 3.6])
    assert cuts_of(path, adaptive.Adaptive(min_scene_s=1.7)) == pytest.approx([2])


@pytest.mark.parametrize("brightness", [0.9, -0.9], ids=["white", "black"])
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_a_flash_is_no_cut(film: Callable[..., Path], brightness: float, frames: int) -> None:
    assert cuts_of(film(broken.flashed, brightness, frames)) == []


@pytest.mark.parametrize("seconds", [0.5, 0.8, 1.2])
def test_a_dissolve_is_one_cut_inside_it(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "dissolve.mp4"
    footage.make(path, dissolved("160x120", seconds), vcodec="libx264", pix_fmt="yuv420p")
    [cut] = cuts_of(path)
    assert 2 <= cut <= 2 + seconds


@pytest.mark.parametrize(
    ("inner", "at"), [("320x80", (0, 50)), ("80x180", (120, 0))], ids=["letterbox", "pillarbox"]
)
def test_black_bars_hide_no_dissolve(tmp_path: Path, inner: str, at: tuple[int, int]) -> None:
    stream = dissolved(inner, 0.8).filter("pad", 320, 180, *at)
    path = footage.make(tmp_path / "bars.mp4", stream, vcodec="libx264", pix_fmt="yuv420p")
    [cut] = cuts_of(path)
    assert 2 <= cut <= 2.8


def dissolved(size: str, seconds: float) -> Any:
    """One film that goes over into another after 2 s."""
    both = [
        footage.source(look, 4, 25, size).filter("format", "yuv420p").filter("setsar", 1)
        for look in ("testsrc2", "mandelbrot")
    ]
    return ffmpeg.filter(both, "xfade", transition="fade", duration=seconds, offset=2)


def test_other_light_is_no_dissolve(tmp_path: Path) -> None:
    stream = footage.source("mandelbrot", 4, 25, "160x120").filter(
        "eq", brightness="0.4*clip(t-1,0,1)", eval="frame"
    )
    path = footage.make(tmp_path / "light.mp4", stream, vcodec="libx264", pix_fmt="yuv420p")
    assert cuts_of(path) == []
