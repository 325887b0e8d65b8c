"""The share of frames that are new pictures: stills, slow footage, and what is neither."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.media import stills, video
from tests.making import footage

TEN = Fraction(10)


def share(path: Path, fps: Fraction = TEN, start: Fraction = Fraction(0)) -> float:
    facts = video.probe(path)
    looker = stills.Stills(facts, fps)
    for frame, pts, end_pts in video.frames(path, facts):
        looker.see(frame, pts, end_pts)
    return looker.share(facts.start_pts + int(start / facts.time_base), facts.end_pts)


@pytest.mark.parametrize(
    "options",
    [
        {"vcodec": "libx264"},
        {"vcodec": "libx264", "crf": 35, "g": 25},
        {"vcodec": "mpeg2video", "b:v": "300k"},
        {"vcodec": "libvpx-vp9", "b:v": "100k", "deadline": "realtime", "cpu-used": 8},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_still_has_hardly_a_new_picture_whatever_its_coder_does(
    film: Callable[..., Path], options: dict[str, Any]
) -> None:
    assert share(film(footage.still, 10, suffix=".mkv", **options)) <= 0.03


@pytest.mark.parametrize(
    ("pictures_a_second", "fps", "wanted"),
    [
        (1, TEN, 0.1),
        (2, TEN, 0.2),
        (25, TEN, 1.0),
        (24, Fraction(30), 0.8),
        (Fraction(1, 4), TEN, 0.025),
    ],
)
def test_slow_footage_has_as_many_new_pictures_as_were_filmed(
    film: Callable[..., Path], pictures_a_second: Fraction, fps: Fraction, wanted: float
) -> None:
    path = film(footage.slow, str(pictures_a_second))
    assert share(path, fps) == pytest.approx(wanted, abs=0.03)
    assert share(path, fps, Fraction(4)) == pytest.approx(wanted, abs=0.03)


def test_a_small_thing_that_moves_slowly_is_no_still(film: Callable[..., Path]) -> None:
    assert share(film(footage.small_mover)) > 0.3
