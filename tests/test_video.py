import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.errors import BadData
from tests import footage

Film = Callable[..., Path]


def stamps(path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None) -> list[tuple[int, int]]:
    return [(pts, end_pts) for _, pts, end_pts in video.frames(path, video.probe(path), start_s, end_s)]


def numbers(path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None) -> list[int]:
    """Which numbered frames come out."""
    found = video.frames(path, video.probe(path), start_s, end_s)
    return [footage.number_of(frame.reformat(format="gray").to_ndarray().mean() * 219 / 255 + 16) for frame, _, _ in found]


def test_a_plain_video_is_probed(film: Film) -> None:
    facts = video.probe(film(footage.plain))
    assert (facts.format, facts.codec, facts.pix_fmt) == ("mov,mp4,m4a,3gp,3g2,mj2", "h264", "yuv420p")
    assert (facts.width, facts.height, facts.rotation, facts.pixel_aspect) == (320, 240, 0, 1)
    assert (facts.time_base, facts.average_fps, facts.variable_fps) == (Fraction(1, 12800), Fraction(25), False)
    assert (facts.num_frames, facts.start_pts, facts.end_pts, facts.duration_s) == (300, 0, 12 * 12800, 12)
    assert (facts.color_matrix, facts.color_range, facts.color_primaries, facts.color_transfer) == ("unknown",) * 4


def test_ntsc_is_an_exact_fraction(film: Film) -> None:
    facts = video.probe(film(footage.numbered, fps="30000/1001"))
    assert (facts.average_fps, facts.num_frames) == (Fraction(30000, 1001), 60)
    assert facts.duration_s == Fraction(60 * 1001, 30000)


@pytest.mark.parametrize(
    ("make", "suffix", "codec", "pix_fmt"),
    [
        (footage.av1, ".mp4", "av1", "yuv420p"),
        (footage.hevc_10_bit, ".mp4", "hevc", "yuv420p10le"),
        (footage.mpegts, ".ts", "h264", "yuv420p"),
    ],
)
def test_a_codec_goes_by_its_own_name(film: Film, make: Callable[..., Path], suffix: str, codec: str, pix_fmt: str) -> None:
    facts = video.probe(film(make, suffix=suffix))
    assert (facts.codec, facts.pix_fmt) == (codec, pix_fmt)


def test_a_transport_stream_starts_where_its_clock_says(film: Film) -> None:
    facts = video.probe(film(footage.mpegts, suffix=".ts"))
    assert (facts.time_base, facts.num_frames, facts.duration_s) == (Fraction(1, 90000), 100, 4)
    assert facts.start_pts > 0


def test_time_may_start_before_zero(film: Film) -> None:
    path = film(footage.negative_start, suffix=".ts")
    facts = video.probe(path)
    assert (facts.start_pts, facts.end_pts, facts.num_frames) == (-90000, 126000, 60)
    assert numbers(path) == list(range(60))


def test_a_span_counts_from_the_first_frame_also_before_zero(film: Film) -> None:
    assert numbers(film(footage.negative_start, suffix=".ts"), Fraction(1, 2), Fraction(1)) == list(range(13, 25))


def test_frames_that_an_edit_list_hides_are_not_there(film: Film) -> None:
    path = film(footage.edit_list)
    facts = video.probe(path)
    assert numbers(path) == list(range(25, 60))
    assert (facts.start_pts, facts.num_frames, facts.duration_s) == (0, 35, Fraction(35, 25))
    assert numbers(path, Fraction(2, 25), Fraction(4, 25)) == [27, 28]


def test_rotation_is_clockwise(film: Film) -> None:
    turned = {degrees: video.probe(film(footage.rotated, degrees)).rotation for degrees in (90, 180, 270)}
    assert turned == {90: 270, 180: 180, 270: 90}  # ffmpeg's option counts counter-clockwise


def test_pixels_need_not_be_square_nor_sizes_even(film: Film) -> None:
    assert video.probe(film(footage.anamorphic)).pixel_aspect == 2
    odd = video.probe(film(footage.odd_size))
    assert (odd.width, odd.height, odd.pixel_aspect) == (641, 273, 1)


def test_colours_are_read_from_their_tags(film: Film) -> None:
    found = [
        video.probe(film(footage.colour_patches, "bt709")),
        video.probe(film(footage.colour_patches, "smpte170m")),
        video.probe(film(footage.colour_patches, "bt709", full_range=True)),
        video.probe(film(footage.colour_patches, "smpte170m", tagged=False)),
        video.probe(film(footage.hdr_patches)),
    ]
    assert [(each.color_matrix, each.color_range, each.color_primaries, each.color_transfer) for each in found] == [
        ("bt709", "tv", "bt709", "bt709"),
        ("smpte170m", "tv", "smpte170m", "smpte170m"),
        ("bt709", "pc", "bt709", "bt709"),
        ("unknown", "unknown", "unknown", "unknown"),
        ("bt2020", "tv", "bt2020", "smpte2084"),
    ]


def test_one_frame_is_a_video(film: Film) -> None:
    path = film(footage.one_frame)
    facts = video.probe(path)
    assert (facts.num_frames, facts.duration_s, facts.variable_fps) == (1, 1, False)
    assert stamps(path) == [(0, facts.end_pts)]


def test_sound_alone_is_no_video(film: Film) -> None:
    with pytest.raises(BadData, match="no-video-stream: the file has audio"):
        video.probe(film(footage.audio_only, suffix=".m4a"))


def test_a_file_cut_in_half_is_truncated(film: Film) -> None:
    with pytest.raises(BadData, match=r"truncated: the container promises 12\.00 s of video and holds 6\.0\d s"):
        video.probe(film(footage.truncated))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video at all " * 99,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
    ids=["empty", "text", "playlist", "concat"],
)
def test_what_is_no_video_is_unreadable_and_playlists_are_not_followed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"^unreadable") as caught:
        video.probe(path)
    assert str(tmp_path) not in str(caught.value)


def test_variable_frame_rate_gives_exact_time_stamps(film: Film) -> None:
    path = film(footage.variable_frame_rate)
    facts = video.probe(path)
    assert (facts.time_base, facts.variable_fps, facts.num_frames) == (Fraction(1, 1000), True, 60)
    found = stamps(path)
    assert tuple(pts for pts, _ in found) == footage.VARIABLE_PTS
    assert tuple(end_pts for _, end_pts in found) == (*footage.VARIABLE_PTS[1:], facts.end_pts)
    assert numbers(path) == list(range(60))


def test_frames_follow_each_other_without_a_gap(film: Film) -> None:
    path = film(footage.plain)
    found = stamps(path)
    assert found[0][0] == 0
    assert all(one[1] == two[0] for one, two in itertools.pairwise(found))
    assert found[-1][1] == video.probe(path).end_pts


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (None, None, range(60)),
        (Fraction(10, 25), None, range(10, 60)),
        (Fraction(10, 25) + Fraction(1, 10**6), None, range(11, 60)),
        (Fraction(10, 25) - Fraction(1, 10**6), None, range(10, 60)),
        (None, Fraction(10, 25), range(10)),
        (None, Fraction(10, 25) + Fraction(1, 12800), range(11)),
        (Fraction(33, 25), Fraction(34, 25), range(33, 34)),
        (Fraction(59, 25), Fraction(99), range(59, 60)),
    ],
)
def test_a_span_holds_the_frames_that_start_inside_it(film: Film, start: Fraction | None, end: Fraction | None, wanted: range) -> None:
    assert numbers(film(footage.numbered, g=7, bf=2), start, end) == list(wanted)


def test_the_last_frame_of_a_span_ends_with_it(film: Film) -> None:
    assert stamps(film(footage.numbered), Fraction(1), Fraction(51, 50))[-1] == (12800, 13056)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (Fraction(3), None),
        (Fraction(3), Fraction(4)),
        (Fraction(1, 100), Fraction(2, 100)),
        (Fraction(1), Fraction(1)),
        (None, Fraction(0)),
        (Fraction(119, 50), None),
    ],
)
def test_a_span_that_holds_no_frame_is_outside(film: Film, start: Fraction | None, end: Fraction | None) -> None:
    with pytest.raises(BadData, match="outside-span"):
        stamps(film(footage.numbered), start, end)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {"g": 250}),
        (".mkv", {"g": 12}),
        (".ts", {"g": 12}),
        (".ts", {"g": 250}),
        (".avi", {"codec": "mpeg4"}),
        (".gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        (".webm", {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(each) for each in value.values()),
)
def test_a_span_is_a_slice_of_the_whole_in_every_container(film: Film, suffix: str, options: dict[str, object]) -> None:
    path = film(footage.plain, 4, size="160x120", suffix=suffix, **options)
    facts = video.probe(path)
    start, end = Fraction(3, 2), Fraction(3)
    first, last = (facts.start_pts + at / facts.time_base for at in (start, end))
    wanted = [(pts, frame.to_ndarray()) for frame, pts, _ in video.frames(path, facts) if first <= pts < last]
    found = [(pts, frame.to_ndarray()) for frame, pts, _ in video.frames(path, facts, start, end)]
    assert [pts for pts, _ in found] == [pts for pts, _ in wanted]
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(found, wanted, strict=True))


def test_small_pictures_are_small_bgr_and_keep_the_shape(film: Film) -> None:
    path = film(footage.rgb_patches, "png", "rgb24", suffix=".mov")
    facts = video.probe(path)
    frame = next(video.frames(path, facts))[0]
    small = video.Thumbnails(facts, 40).of(frame)
    assert (small.shape, small.dtype) == ((40, 40, 3), np.uint8)
    assert np.abs(small[10, 10].astype(int) - footage.PATCHES[0][::-1]).max() <= 2
    assert video.Thumbnails(facts, 4000).of(frame).shape == (160, 160, 3)


def test_scdet_scores_cuts_high_and_the_rest_low(film: Film) -> None:
    path = film(footage.joined, [1, 2], seconds=3, size="160x120")
    facts = video.probe(path)
    score = video.SceneScore(facts)
    scores = [score.of(frame) for frame, _, _ in video.frames(path, facts)]
    high = [index for index, value in enumerate(scores) if value >= 10]
    assert high == [25, 50]


def test_a_file_that_is_no_clip_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no clip" * 99)
    with pytest.raises(BadData, match=r"^decode-error: decord cannot read the clip"):
        video.read_clip(path)
