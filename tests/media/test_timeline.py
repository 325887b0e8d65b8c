"""Time is what the player shows: any time stamps become stretches that only go forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import BadData
from pipeline.media import timeline, video
from pipeline.media.timeline import Clock, Loss, Steps
from tests.making import broken, footage

Film = Callable[..., Path]
TICK, TS_TICK = Fraction(1, 1000), Fraction(1, 90_000)
MP4, TS = "mov,mp4,m4a,3gp,3g2,mj2", "mpegts"


def shown(
    path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None
) -> tuple[list[tuple[float, float]], list[Loss], int]:
    """The stretches in seconds from the start, what is lost, and how many frames there are."""
    facts = video.probe(path)
    losses: list[Loss] = []
    spans: list[list[int]] = []
    count = 0
    for _, pts, end_pts in video.frames(path, facts, start_s, end_s, losses):
        count += 1
        assert not spans or pts >= spans[-1][1], "time only goes forward"
        if spans and pts == spans[-1][1]:
            spans[-1][1] = end_pts
        else:
            spans.append([pts, end_pts])
    seconds = [
        tuple(round(float((each - facts.start_pts) * facts.time_base), 2) for each in span)
        for span in spans
    ]
    return seconds, losses, count  # type: ignore[return-value]


def reasons(losses: list[Loss]) -> list[str]:
    return [loss.reason for loss in losses]


# Order


@pytest.mark.parametrize("bf", [0, 1, 3])
def test_b_frames_in_avi_are_shown_in_their_order_and_none_is_left_out(film: Film, bf: int) -> None:
    path = film(footage.numbered, suffix=".avi", bf=bf, preset="veryfast")
    facts = video.probe(path)
    frames = list(video.frames(path, facts))
    levels = [
        frame.reformat(format="gray").to_ndarray().mean() * 219 / 255 + 16 for frame, *_ in frames
    ]
    assert [footage.number_of(level) for level in levels] == list(range(60))
    assert facts.order == ("unordered" if bf else "steady")
    ends = [end for *_, end in frames]
    assert [pts for _, pts, _ in frames][1:] == ends[:-1]


# Gaps


@pytest.mark.parametrize("gap_s", [2, 588])
def test_a_gap_in_a_transport_stream_ends_the_stretch_and_is_counted(
    film: Film, gap_s: int
) -> None:
    spans, losses, _ = shown(film(broken.joined_files, 0, 4 + gap_s, suffix=".ts"))
    assert spans == [(0, pytest.approx(4, abs=0.1)), (4 + gap_s, 8 + gap_s)]
    assert reasons(losses) == ["gap"]
    assert losses[0].why.startswith("3.9") or losses[0].why.startswith("4.0")


def test_a_picture_stays_where_its_container_says_so_up_to_a_bound(film: Film) -> None:
    assert shown(film(broken.held, [0.04, 6, 0.04])) == ([(0, 9.96)], [], 100)
    spans, losses, count = shown(film(broken.held, [0.04, 40, 0.04]))
    assert (spans, count) == ([(0, 3.96), (43.92, 43.96)], 100)
    assert [(loss.reason, loss.why) for loss in losses] == [
        ("gap", "3.960 s to 43.920 s: no picture")
    ]


def test_a_last_picture_of_half_a_minute_is_not_believed(film: Film) -> None:
    assert shown(film(broken.held, [30])) == ([(0, 4)], [], 100)
    assert shown(film(broken.held, [0.5])) == ([(0, 4.46)], [], 100)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_slow_pictures_are_no_gaps(film: Film, suffix: str) -> None:
    path = film(footage.plain, 900, fps="1/60", size="160x120", suffix=suffix)
    assert shown(path) == ([(0, 900)], [], 15)


# Time that goes back


@pytest.mark.parametrize(
    "offsets_s", [(0, 0), (2, 0), (500, 3, 100), (0.1, 0)], ids=lambda value: str(value)
)
def test_time_that_starts_anew_is_a_stretch_of_its_own(
    film: Film, offsets_s: tuple[float, ...]
) -> None:
    path = film(broken.joined_files, *offsets_s, suffix=".ts")
    spans, losses, count = shown(path)
    facts = video.probe(path)
    assert facts.order == "broken"
    gaps = sum(after > before for before, after in itertools.pairwise(offsets_s))
    assert reasons(losses) == ["gap"] * gaps
    assert len(spans) == len(offsets_s)
    assert count >= 100 * len(offsets_s) - 2 * gaps
    assert facts.num_frames == 100 * len(offsets_s)


def test_a_span_of_a_recording_that_starts_anew_is_a_slice_of_the_whole(film: Film) -> None:
    path = film(broken.joined_files, 50, 3, suffix=".ts")
    spans, _, count = shown(path, Fraction(3), Fraction(6))
    assert (spans, count) == ([(3, 4), (4, 6)], 75)


def test_a_clock_that_runs_over_goes_on(film: Film) -> None:
    path = film(broken.recorded, timeline.WRAP / 90000 - 3, suffix=".ts")
    assert shown(path) == ([(0, 4)], [], 100)
    assert video.probe(path).num_frames == 100


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi", ".nut", ".flv", ".mp4", ".mov"])
def test_pictures_that_start_late_are_all_there(film: Film, suffix: str) -> None:
    codec = {"codec": "libvpx", "deadline": "realtime"} if suffix == ".webm" else {}
    path = film(footage.plain, 4, size="160x120", suffix=suffix, output_ts_offset=60, bf=0, **codec)
    spans, losses, count = shown(path)
    assert (spans, losses, count) == ([(0, 4)], [], 100)


def test_a_late_start_is_not_taken_for_what_is_missing(film: Film, tmp_path: Path) -> None:
    whole = film(footage.plain, 12, size="160x120", suffix=".mkv", output_ts_offset=60)
    path = tmp_path / "half.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadData, match=r"^truncated: the container promises 72\.00 s"):
        video.probe(path)


# Damage


def test_a_picture_that_changes_its_size_costs_that_stretch(film: Film) -> None:
    spans, losses, _ = shown(film(broken.resized, suffix=".ts"))
    assert [start for start, _ in spans] == [0, 8]
    assert reasons(losses) == ["damaged"]
    assert "the picture changes from 160x120 yuv420p to 320x240 yuv420p" in losses[0].why


H264, MPEG2 = {"bf": 0, "aspect": "4:3"}, {"vcodec": "mpeg2video", "aspect": "4:3"}
TURN = {"bsf:v": "h264_metadata=display_orientation=insert:rotate=90"}
YCGCO = {"bsf:v": "h264_metadata=matrix_coefficients=8"}


@pytest.mark.parametrize(
    ("usual", "other", "why"),
    [
        (H264, {"pix_fmt": "yuv422p10le"}, "from 160x120 yuv420p to 160x120 yuv422p10le"),
        (H264, {"aspect": "16:9"}, "the shape of pixels changes from 1:1 to 4:3"),
        (MPEG2, {"aspect": "16:9"}, "the shape of pixels changes from 1:1 to 4:3"),
        (H264 | {"colorspace": "bt709"}, YCGCO, "the matrix ycgco of its colours"),
    ],
    ids=["format", "aspect", "aspect-mpeg2", "colours"],
)
def test_a_picture_that_changes_in_another_way_costs_that_stretch(
    film: Film, usual: dict[str, Any], other: dict[str, Any], why: str
) -> None:
    path = film(broken.changing, usual, usual | other, usual, suffix=".ts")
    spans, losses, _ = shown(path)
    assert [start for start, _ in spans] == [0, pytest.approx(8, abs=0.1)]
    lost = [loss for loss in losses if loss.reason == "damaged"]
    assert why in lost[0].why
    assert float((lost[-1].end_pts - lost[0].start_pts) * TS_TICK) == pytest.approx(4, abs=0.2)


def test_a_picture_that_is_turned_on_the_way_costs_what_follows(film: Film) -> None:
    spans, losses, _ = shown(film(broken.changing, H264, H264 | TURN, suffix=".ts"))
    assert len(spans) == 1
    assert "from turned by 0 degrees to turned by 270 degrees" in losses[0].why
    # a turn that only the first frame tells of holds for all
    assert shown(film(broken.changing, H264 | TURN, suffix=".ts"))[1] == []


@pytest.mark.parametrize(("codec", "at"), [("libsvtav1", 0.5), ("libx264", 0.4), ("libx265", 0.6)])
def test_damaged_bytes_cost_what_is_up_to_the_next_key_frame(
    film: Film, codec: str, at: float
) -> None:
    spans, losses, count = shown(film(broken.overwritten, codec, at))
    assert (spans[0][0], spans[-1][1]) == (0, 8)
    assert count >= 160
    assert set(reasons(losses)) <= {"damaged"}
    assert len(losses) == len(spans) - 1


def test_no_smeared_picture_of_a_lossy_stream_is_shown(film: Film) -> None:
    whole = film(footage.mpegts, 8, gop=25, suffix=".ts")
    clear = {
        pts: frame.to_ndarray(format="gray").astype(np.int16)
        for frame, pts, _ in video.frames(whole, video.probe(whole))
    }
    path = film(broken.lossy, suffix=".ts")
    losses: list[Loss] = []
    count = 0
    for frame, pts, _ in video.frames(path, video.probe(path), losses=losses):
        count += 1
        picture = frame.to_ndarray(format="gray").astype(np.int16)
        assert np.abs(picture - clear[pts]).max() == 0
    assert count >= 50
    assert set(reasons(losses)) == {"damaged"}


# Streams


def test_the_stream_marked_as_default_is_the_film(film: Film) -> None:
    facts = video.probe(film(two_streams, "160x90", "320x180", 1, suffix=".mkv"))
    assert (facts.width, facts.stream) == (320, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_equal_streams_the_larger_is_the_film(film: Film, suffix: str) -> None:
    facts = video.probe(film(two_streams, "160x90", "320x180", None, suffix=suffix))
    assert facts.width == 320


def test_a_cover_picture_is_not_the_film_however_large(film: Film) -> None:
    facts = video.probe(film(two_streams, "640x480", "160x90", 0, True, suffix=".mkv"))
    assert (facts.width, facts.num_frames) == (160, 50)


def test_a_grey_stream_beside_a_coloured_one_is_a_depth_map(film: Film) -> None:
    facts = video.probe(film(two_streams, "320x180", "160x90", 0, False, "gray", suffix=".mkv"))
    assert facts.width == 160


def two_streams(
    path: Path,
    first: str,
    second: str,
    default: int | None,
    is_cover: bool = False,
    pix_fmt: str = "yuv420p",
) -> Path:
    import ffmpeg

    one = footage.source("testsrc2", 2, 25, first).filter("format", pix_fmt)
    if is_cover:
        one = one.filter("trim", end_frame=1)
    two = footage.source("mandelbrot", 2, 25, second).filter("format", "yuv420p")
    marks = {
        f"disposition:v:{index}": "default" if default in (index, None) else 0 for index in (0, 1)
    }
    job = ffmpeg.output(
        one, two, str(path), vcodec="ffv1" if pix_fmt == "gray" else "mpeg4", **marks
    )
    job.global_args("-loglevel", "error").run(cmd=footage.FFMPEG, quiet=True)
    return path


# The clock


@given(
    steps=st.lists(st.integers(-100_000, 100_000), max_size=40),
    container=st.sampled_from([MP4, TS]),
)
def test_any_time_stamps_become_a_line_that_only_goes_forward(
    steps: list[int], container: str
) -> None:
    clock = Clock(Steps.of(Fraction(40), TICK, container))
    stamps = list(itertools.accumulate(steps, initial=5))
    last = None
    num_placed = 0
    for stamp in stamps:
        place = clock.place(stamp)
        if place is None:
            continue
        num_placed += 1
        pts, end = place
        if last is not None:
            assert last < end <= pts
            assert end - last <= 10_000, "no picture is shown longer than the bound"
        last = pts
    assert num_placed + clock.num_timeless == len(stamps)


def test_a_picture_without_a_time_stamp_comes_as_usual() -> None:
    clock = Clock(Steps.of(Fraction(40), TICK, MP4))
    assert [clock.place(stamp) for stamp in (0, None, None, 120)] == [
        (0, 0),
        (40, 40),
        (80, 80),
        (120, 120),
    ]


def test_pictures_with_the_time_of_the_one_before_are_counted(film: Film) -> None:
    clock = Clock(Steps.of(Fraction(40), TICK, MP4))
    assert [clock.place(stamp) for stamp in (0, 0, -10, 40)] == [(0, 0), None, None, (40, 40)]
    assert clock.num_timeless == 2


def test_the_line_of_packets_is_that_of_frames() -> None:
    pts = np.array([0, 120, 40, 80, 160, 20_000, 20_040], np.int64)
    dts = np.array([-40, 0, 40, 80, 120, 19_960, 20_000], np.int64)
    line = timeline.line_of(pts, dts, 40, TICK, MP4)
    assert line == timeline.Line(0, 20_080, 280, 7, "steady")
    twice = timeline.line_of(np.concatenate([pts, pts]), np.concatenate([dts, dts]), 40, TICK, MP4)
    assert twice == timeline.Line(0, 2 * 20_080 + 1, 560, 14, "broken")
