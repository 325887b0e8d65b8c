"""quality and ffmpeg: each measure has the properties it should, and together they tell frozen,
stuttering, blended and even motion apart.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pipeline.media.encoders import MAX_PSNR_DB, psnr_db
from tests.making.frames import ramp, sliding
from training import ffmpeg, quality, rivals
from training.errors import Stopped
from training.frames import known_frames
from training.quality import Motion

KNOWN = known_frames("every", 9)


@pytest.fixture
def picture() -> Any:
    return (
        np.random.default_rng(0)
        .integers(40, 200, (1, 16, 16, 3), dtype=np.uint8)
        .repeat(2, 1)
        .repeat(2, 2)
    )


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    black = np.zeros((2, 8, 8, 3), np.uint8)
    assert psnr_db(black, black + 255) == 0
    assert psnr_db(black, black + 1) == pytest.approx(48.1308, abs=1e-3)
    assert psnr_db(black, black) == MAX_PSNR_DB


def test_ssim_is_one_for_equal_pictures_symmetric_and_falls_with_noise(picture: Any) -> None:
    noise = np.random.default_rng(1).normal(0, 1, picture.shape)
    noisy = [(picture + sigma * noise).clip(0, 255).astype(np.uint8) for sigma in (5, 15, 45)]
    scores = [quality.ssim(picture, each) for each in noisy]
    assert quality.ssim(picture, picture) == pytest.approx(1, abs=1e-12)
    assert 1 > scores[0] > scores[1] > scores[2] > -1
    assert quality.ssim(noisy[1], picture) == pytest.approx(scores[1], abs=1e-12)
    assert quality.ssim(picture, 255 - picture) < 0


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    dark, bright = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert quality.ssim(dark, bright) == pytest.approx(
        (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-9
    )


def test_ssim_is_its_definition_window_by_window(picture: Any) -> None:
    other = np.roll(picture, 1, axis=2)
    x, y = (
        frames[0, :11, :11].astype(float) @ [0.299, 0.587, 0.114] for frames in (picture, other)
    )
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy, cov = (
        (weights * (x - mx) ** 2).sum(),
        (weights * (y - my) ** 2).sum(),
        (weights * (x - mx) * (y - my)).sum(),
    )
    c1, c2 = 2.55**2, 7.65**2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert quality.ssim(picture[:, :11, :11], other[:, :11, :11]) == pytest.approx(score, abs=1e-9)


def test_change_and_seam_tell_frozen_stuttering_and_even_motion_apart() -> None:
    frames = ramp(9)
    frozen = frames[:1].repeat(9, 0)
    assert quality.change(frames) == pytest.approx(np.full(8, 8.0))
    assert quality.change(frozen).max() == 0
    assert quality.seam(frames, KNOWN) == pytest.approx(1)
    assert quality.seam(frozen, KNOWN) is None
    stuttering = frames.copy()
    for key in (0, 4):
        stuttering[key + 1 : key + 4] = (
            frames[key + 2].astype(int) + np.array([-1, 0, 1])[:, None, None, None]
        )
    assert quality.seam(stuttering, KNOWN) == pytest.approx(15)


@pytest.fixture(scope="module")
def slide() -> tuple[Any, Motion]:
    frames = sliding(17)
    return frames, quality.motion(frames, known_frames("every", 17))


def test_travel_tells_what_moves_from_what_boils(slide: tuple[Any, Motion]) -> None:
    frames, _ = slide
    boiling = frames.copy()
    for number, frame in enumerate(boiling):  # the same textures, at places that tell nothing
        frame[:] = np.roll(frame[:: (-1) ** number], 37 * number**2, axis=(0, 1))
    moves, boils = quality.travel(frames), quality.travel(boiling)
    assert moves is not None
    assert boils is not None
    assert moves > 0.9
    assert boils < 0.7
    assert quality.change(boiling).mean() > quality.change(frames).mean()
    assert quality.travel(frames[:1].repeat(3, 0)) is None


def test_a_pixel_moves_in_a_gap_in_which_it_changes_and_in_no_other() -> None:
    frames = np.full((9, 8, 8, 3), 100, np.uint8)
    frames[6, 2, 3] = 140  # passes by between two keyframes
    frames[8, 4, 6] = 60  # arrives with the second of them
    frames[1:, 5, 5] = 110  # too little to be more than a flicker
    moves = quality.moving(frames, KNOWN)
    assert moves.shape == (8, 8, 8)
    places = {(2, 3), (4, 6)}
    assert {(int(y), int(x)) for _, y, x in np.argwhere(moves)} == places
    assert set(np.argwhere(moves)[:, 0].tolist()) == {4, 5, 6, 7}
    other = frames.copy()
    other[7, 2, 3] = 255
    at_both = np.array([[2, 4], [3, 6]])
    moved, still = (video[5:8][:, at_both[0], at_both[1]] for video in (other, frames))
    assert quality.psnr_moving(other, frames, moves, KNOWN) == pytest.approx(psnr_db(moved, still))
    assert quality.psnr_moving(other, frames, np.zeros_like(moves), KNOWN) is None


def test_a_frame_that_was_given_does_not_count_among_moving_pixels(
    slide: tuple[Any, Motion],
) -> None:
    frames, motion = slide
    known = known_frames("every", 17)
    other = frames.copy()
    other[list(known)] = 0
    assert quality.psnr_moving(other, frames, motion.moves, known) == MAX_PSNR_DB


def test_flows_tell_the_truth_frozen_copied_and_blended_frames_apart(
    slide: tuple[Any, Motion],
) -> None:
    frames, motion = slide
    known = known_frames("every", 17)
    assert motion.speed == pytest.approx(2, abs=1)
    videos = {
        "truth": frames,
        "frozen": frames[:1].repeat(17, 0),
        "nearest": rivals.nearest(frames, known),
        "blend": rivals.pixel_blend(frames, known),
    }
    flows = {name: quality.flows(video) for name, video in videos.items()}
    ratios = {name: quality.flow_ratio(flow, motion) or 0 for name, flow in flows.items()}
    errors = {name: quality.flow_error(flow, motion) or 0 for name, flow in flows.items()}
    assert (ratios["truth"], errors["truth"]) == (1, 0)
    assert (ratios["frozen"], errors["frozen"]) == pytest.approx((0, 1), abs=0.1)
    assert errors["nearest"] > 1.2  # it waits, and jumps too far
    assert ratios["blend"] < 0.7 * ratios["nearest"]


def test_warping_error_grows_with_flicker_and_with_staying_behind(
    slide: tuple[Any, Motion],
) -> None:
    frames, motion = slide
    own = quality.warping_error(frames, motion) or 0
    frozen = quality.warping_error(frames[:1].repeat(17, 0), motion) or 0
    flicker = frames.astype(int)
    flicker[::2] += 10
    assert own < 2
    assert frozen > own + 1
    assert quality.warping_error(flicker.clip(0, 255).astype(np.uint8), motion) == pytest.approx(
        own + 10, abs=2
    )


def test_where_nothing_moves_there_is_no_motion_to_compare_with() -> None:
    still = sliding(9, 0)
    motion = quality.motion(still, KNOWN)
    moving = quality.flows(sliding(9))
    assert motion.speed == 0
    assert quality.flow_ratio(moving, motion) is None
    assert quality.flow_error(moving, motion) is None


def test_vmaf_and_xpsnr_are_highest_for_the_truth_and_fall_with_noise() -> None:
    frames = sliding(9)
    noise = np.random.default_rng(3).normal(0, 1, frames.shape)
    noisy = [(frames + sigma * noise).clip(0, 255).astype(np.uint8) for sigma in (5, 40)]
    videos = [frames, *noisy]
    measured = [ffmpeg.scores(video, frames, Fraction(5, 2)) for video in videos]
    assert measured[0].keys() == {"vmaf", "xpsnr_db"}
    for name in ("vmaf", "xpsnr_db"):
        best, better, worst = (float(each[name].mean()) for each in measured)
        assert best > better > worst
        assert len(measured[0][name]) == 9
    assert measured[0]["xpsnr_db"].max() == MAX_PSNR_DB


def test_a_score_is_of_the_frame_that_is_worse_and_of_no_other() -> None:
    frames = sliding(9)
    other = frames.copy()
    other[4] = 255 - other[4]
    measured = ffmpeg.scores(other, frames, Fraction(5, 2))
    assert int(measured["vmaf"].argmin()) == 4
    assert int(measured["xpsnr_db"].argmin()) == 4


def test_pictures_too_small_for_vmaf_have_no_score() -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    assert ffmpeg.scores(frames, frames, Fraction(5)) == {}


def test_an_ffmpeg_without_a_filter_leaves_its_metric_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "filters", lambda: frozenset({"xpsnr"}))
    frames = sliding(5)
    assert ffmpeg.scores(frames, frames, Fraction(5)).keys() == {"xpsnr_db"}


def test_an_ffmpeg_that_fails_says_why() -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)  # no room for its blocks
    with pytest.raises(Stopped, match="ffmpeg ended with"):
        ffmpeg.minterpolate(frames, 4)
