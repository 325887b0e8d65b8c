import gc
import itertools
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.core.errors import BadData
from pipeline.media import reel, video
from pipeline.media.timeline import Loss
from tests.making import footage

Film = Callable[..., Path]


def stamps(
    path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None
) -> list[tuple[int, int]]:
    return [
        (pts, end_pts) for _, pts, end_pts in video.frames(path, video.probe(path), start_s, end_s)
    ]


def numbers(
    path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None
) -> list[int]:
    """Which numbered frames come out."""
    frames = video.frames(path, video.probe(path), start_s, end_s)
    return [
        footage.number_of(frame.reformat(format="gray").to_ndarray().mean() * 219 / 255 + 16)
        for frame, _, _ in frames
    ]


def test_a_plain_video_is_probed(film: Film) -> None:
    facts = video.probe(film(footage.plain))
    assert (facts.format, facts.codec, facts.pix_fmt) == (
        "mov,mp4,m4a,3gp,3g2,mj2",
        "h264",
        "yuv420p",
    )
    assert (facts.width, facts.height, facts.rotation, facts.pixel_aspect) == (320, 240, 0, 1)
    assert (facts.time_base, facts.average_fps) == (Fraction(1, 12800), Fraction(25))
    assert (facts.num_frames, facts.start_pts, facts.end_pts, facts.duration_s) == (
        300,
        0,
        12 * 12800,
        12,
    )
    assert (facts.color_matrix, facts.color_range, facts.color_primaries, facts.color_transfer) == (
        "unknown",
    ) * 4


def test_no_frame_waits_for_the_garbage_collector(film: Film) -> None:
    path = film(footage.plain)
    facts = video.probe(path)
    gc.collect()
    gc.disable()  # a frame of 4K has 12 MB
    try:
        num_frames = sum(1 for _ in video.frames(path, facts))
        assert num_frames == 300
        assert gc.collect() < num_frames
    finally:
        gc.enable()


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
def test_a_codec_goes_by_its_own_name(
    film: Film, make: Callable[..., Path], suffix: str, codec: str, pix_fmt: str
) -> None:
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
    assert numbers(film(footage.negative_start, suffix=".ts"), Fraction(1, 2), Fraction(1)) == list(
        range(13, 25)
    )


def test_frames_that_an_edit_list_hides_are_not_there(film: Film) -> None:
    path = film(footage.edit_list)
    facts = video.probe(path)
    assert numbers(path) == list(range(25, 60))
    assert (facts.start_pts, facts.num_frames, facts.duration_s) == (0, 35, Fraction(35, 25))
    assert numbers(path, Fraction(2, 25), Fraction(4, 25)) == [27, 28]


def test_rotation_is_clockwise(film: Film) -> None:
    turned = {
        degrees: video.probe(film(footage.rotated, degrees)).rotation for degrees in (90, 180, 270)
    }
    assert turned == {90: 270, 180: 180, 270: 90}  # ffmpeg's option counts counter-clockwise


def test_pixels_need_not_be_square_nor_sizes_even(film: Film) -> None:
    assert video.probe(film(footage.anamorphic)).pixel_aspect == 2
    odd = video.probe(film(footage.odd_size))
    assert (odd.width, odd.height, odd.pixel_aspect) == (641, 273, 1)


def test_colours_are_read_from_their_tags(film: Film) -> None:
    probes = [
        video.probe(film(footage.colour_patches, "bt709")),
        video.probe(film(footage.colour_patches, "smpte170m")),
        video.probe(film(footage.colour_patches, "bt709", full_range=True)),
        video.probe(film(footage.colour_patches, "smpte170m", tagged=False)),
        video.probe(film(footage.hdr_patches)),
    ]
    assert [
        (each.color_matrix, each.color_range, each.color_primaries, each.color_transfer)
        for each in probes
    ] == [
        ("bt709", "tv", "bt709", "bt709"),
        ("smpte170m", "tv", "smpte170m", "smpte170m"),
        ("bt709", "pc", "bt709", "bt709"),
        ("unknown", "unknown", "unknown", "unknown"),
        ("bt2020", "tv", "bt2020", "smpte2084"),
    ]


def test_one_frame_is_a_video(film: Film) -> None:
    path = film(footage.one_frame)
    facts = video.probe(path)
    assert (facts.num_frames, facts.duration_s) == (1, 1)
    assert stamps(path) == [(0, facts.end_pts)]


def test_sound_alone_is_no_video(film: Film) -> None:
    with pytest.raises(BadData, match="no-video-stream: the file has audio"):
        video.probe(film(footage.audio_only, suffix=".m4a"))


def test_a_file_cut_in_half_is_truncated(film: Film) -> None:
    with pytest.raises(
        BadData, match=r"truncated: the container promises 12\.00 s of video and holds 6\.0\d s"
    ):
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
def test_what_is_no_video_is_unreadable_and_playlists_are_not_followed(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"^unreadable") as caught:
        video.probe(path)
    assert str(tmp_path) not in str(caught.value)


def test_variable_frame_rate_gives_exact_time_stamps(film: Film) -> None:
    path = film(footage.variable_frame_rate)
    facts = video.probe(path)
    assert (facts.time_base, facts.num_frames) == (Fraction(1, 1000), 60)
    spans = stamps(path)
    assert tuple(pts for pts, _ in spans) == footage.VARIABLE_PTS
    assert tuple(end_pts for _, end_pts in spans) == (*footage.VARIABLE_PTS[1:], facts.end_pts)
    assert numbers(path) == list(range(60))


def test_frames_follow_each_other_without_a_gap(film: Film) -> None:
    path = film(footage.plain)
    spans = stamps(path)
    assert spans[0][0] == 0
    assert all(first[1] == second[0] for first, second in itertools.pairwise(spans))
    assert spans[-1][1] == video.probe(path).end_pts


@pytest.mark.parametrize(
    ("start", "end", "expected"),
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
def test_a_span_holds_the_frames_that_start_inside_it(
    film: Film, start: Fraction | None, end: Fraction | None, expected: range
) -> None:
    assert numbers(film(footage.numbered, g=7, bf=2), start, end) == list(expected)


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
def test_a_span_that_holds_no_frame_is_outside(
    film: Film, start: Fraction | None, end: Fraction | None
) -> None:
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
    ids=lambda value: (
        value if isinstance(value, str) else "-".join(str(each) for each in value.values())
    ),
)
def test_a_span_is_a_slice_of_the_whole_in_every_container(
    film: Film, suffix: str, options: dict[str, object]
) -> None:
    path = film(footage.plain, 4, size="160x120", suffix=suffix, **options)
    facts = video.probe(path)
    start, end = Fraction(3, 2), Fraction(3)
    first, last = (facts.start_pts + at / facts.time_base for at in (start, end))
    slice_of_whole = [
        (pts, frame.to_ndarray())
        for frame, pts, _ in video.frames(path, facts)
        if first <= pts < last
    ]
    part = [(pts, frame.to_ndarray()) for frame, pts, _ in video.frames(path, facts, start, end)]
    assert [pts for pts, _ in part] == [pts for pts, _ in slice_of_whole]
    assert all(
        np.array_equal(picture, expected)
        for (_, picture), (_, expected) in zip(part, slice_of_whole, strict=True)
    )


def test_small_pictures_are_small_bgr_and_keep_the_shape(film: Film) -> None:
    path = film(footage.rgb_patches, "png", "rgb24", suffix=".mov")
    facts = video.probe(path)
    frame = next(video.frames(path, facts))[0]
    small = video.Thumbnails(facts, 40).thumbnail_of(frame)
    assert (small.shape, small.dtype) == ((40, 40, 3), np.uint8)
    assert np.abs(small[10, 10].astype(int) - footage.PATCHES[0][::-1]).max() <= 2
    assert video.Thumbnails(facts, 4000).thumbnail_of(frame).shape == (160, 160, 3)


def test_scdet_scores_cuts_high_and_the_rest_low(film: Film) -> None:
    path = film(footage.joined, [1, 2], seconds=3, size="160x120")
    facts = video.probe(path)
    score = video.SceneScore(facts)
    scores = [score.score_of(frame) for frame, _, _ in video.frames(path, facts)]
    high = [index for index, value in enumerate(scores) if value >= 10]
    assert high == [25, 50]


def test_a_file_that_is_no_clip_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no clip" * 99)
    with pytest.raises(BadData, match=r"^decode-error: decord cannot read the clip"):
        video.read_clip(path)


# What one file may cost

LOOK = """
import resource, sys
from pathlib import Path
from pipeline.media import video
from pipeline.core.errors import BadData
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    losses = []
    for _ in video.frames(Path(sys.argv[1]), video.probe(Path(sys.argv[1])), losses=losses):
        pass
    why = losses[0].why
except BadData as error:
    why = error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, why)
"""


def cost_of(path: Path) -> tuple[int, str]:
    """How many more megabytes a process needs to look at a video, and why it is rejected, or what
    of it is lost first.
    """
    megabytes, _, why = subprocess.run(
        [sys.executable, "-c", LOOK, path], capture_output=True, text=True, check=True
    ).stdout.partition(" ")
    return int(megabytes), why.strip()


def vp9(film: Film) -> bytearray:
    return bytearray(
        film(
            footage.plain, 0.4, size="64x64", codec="libvpx-vp9", suffix=".ivf", deadline="realtime"
        ).read_bytes()
    )


def resized(content: bytearray, frame: int, width: int, height: int) -> None:
    """Have the VP9 key frame at byte `frame` say that it is of another size: two 16-bit numbers
    after 36 bits.
    """
    head = int.from_bytes(content[frame : frame + 12], "big") & ~(0xFFFFFFFF << 28)
    content[frame : frame + 12] = (head | ((width - 1) << 16 | (height - 1)) << 28).to_bytes(
        12, "big"
    )


def test_a_header_that_promises_too_large_pictures_is_believed_before_anything_is_decoded(
    film: Film, tmp_path: Path
) -> None:
    path, honest = (
        tmp_path / "film.mkv",
        film(footage.plain, 0.4, size="64x64", codec="mpeg4", suffix=".mkv").read_bytes(),
    )
    path.write_bytes(
        honest.replace(b"\xb0\x81\x40\xba\x81\x40", b"\xb0\x83\x01\x86\xa0\xba\x81\x40")
    )
    megabytes, why = cost_of(path)
    assert why == "too-large: pixels on a side: 100000 found, 16384 allowed"
    assert megabytes < 100


def test_many_pixels_are_too_many_also_where_no_side_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "film.y4m"
    path.write_bytes(b"YUV4MPEG2 W16000 H8000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000))
    with pytest.raises(
        BadData, match=r"^too-large: pixels of a picture: 128000000 found, 67108864 allowed$"
    ):
        video.probe(path)


def test_a_picture_larger_than_any_header_says_is_never_held(film: Film, tmp_path: Path) -> None:
    path, content = tmp_path / "film.ivf", vp9(film)
    resized(content, 44, 16000, 16000)
    path.write_bytes(content)
    megabytes, why = cost_of(path)
    assert why == "decode-error: Invalid argument"
    assert megabytes < 100


def first_of(content: bytes) -> bytearray:
    """The first frame of an IVF file, as one that comes later."""
    key = bytearray(content[32 : 44 + struct.unpack_from("<I", content, 32)[0]])
    struct.pack_into("<Q", key, 4, 100)
    return key


def test_a_picture_that_grows_on_the_way_is_never_held(film: Film, tmp_path: Path) -> None:
    path, content = tmp_path / "film.ivf", vp9(film)
    key = first_of(content)
    resized(key, 12, 16000, 16000)
    path.write_bytes(content + key)
    megabytes, why = cost_of(path)
    assert why == "0.400 s to 4.040 s: Invalid argument"
    assert megabytes < 100


def of_another_size(film: Film, path: Path, size: str) -> Path:
    """Ten frames of 64x64, and one of another size."""
    other = film(footage.plain, 0.04, size=size, codec="libvpx-vp9", suffix=".ivf").read_bytes()
    path.write_bytes(vp9(film) + first_of(other))
    return path


def test_a_picture_of_another_size_is_left_out_and_counted(film: Film, tmp_path: Path) -> None:
    path = of_another_size(film, tmp_path / "film.ivf", "96x64")
    losses: list[Loss] = []
    facts = video.probe(path)
    shapes = {
        (frame.width, frame.height) for frame, _, _ in video.frames(path, facts, losses=losses)
    }
    assert shapes == {(64, 64)}
    [loss] = losses
    assert loss.reason == "damaged"
    assert loss.why.endswith("the picture changes from 64x64 yuv420p to 96x64 yuv420p")


def test_a_picture_that_becomes_too_large_ends_the_video(film: Film, tmp_path: Path) -> None:
    with pytest.raises(BadData) as caught:
        stamps(of_another_size(film, tmp_path / "film.ivf", "16448x64"))
    assert str(caught.value) == "too-large: pixels on a side: 16448 found, 16384 allowed"


@pytest.mark.parametrize(
    ("setpts", "why"),
    [
        ("N*25*3500", "hours: 57.36 found, 48 allowed"),
        ("N*25*3601", "hours: 59.02 found, 48 allowed"),
    ],
)
def test_time_that_no_reel_could_hold_is_too_large(film: Film, setpts: str, why: str) -> None:
    with pytest.raises(BadData) as caught:
        video.probe(film(footage.numbered, setpts=setpts, fps_mode="passthrough", bf=0))
    assert str(caught.value) == f"too-large: {why}"


@pytest.mark.parametrize(("suffix", "count"), [(".mp4", 60), (".ts", 11)])
def test_frames_are_counted_in_the_header_and_on_the_way(
    film: Film, monkeypatch: pytest.MonkeyPatch, suffix: str, count: int
) -> None:
    path = film(footage.numbered, suffix=suffix)
    monkeypatch.setattr(video, "MAX_FRAMES", 10)
    with pytest.raises(BadData, match=rf"^too-large: frames: {count} found, 10 allowed$"):
        video.probe(path)


# What may be opened


def test_only_regular_files_are_opened(film: Film, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(film(footage.plain, 2, size="160x120"))
    for path in (tmp_path, tmp_path / "link.mp4", Path("/dev/null")):
        with pytest.raises(BadData, match=r"^unreadable: not a regular file$"):
            video.probe(path)
        with pytest.raises(BadData, match=r"^decode-error: .*not a regular file$"):
            video.read_clip(path)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts"])
def test_decord_sees_nothing_but_mp4_files(
    film: Film, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    import torch  # noqa: F401  before decord

    import decord  # isort: skip

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decord was asked")

    path = film(footage.plain, 0.4, size="64x64", suffix=suffix)
    monkeypatch.setattr(decord, "VideoReader", never)
    with pytest.raises(
        BadData, match=r"^decode-error: decord cannot read the clip: not an mp4 file$"
    ):
        video.read_clip(path)


def test_a_clip_that_would_fill_the_memory_is_too_large(
    film: Film, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(footage.plain, 0.4, size="64x64")
    assert video.read_clip(path).shape == (10, 64, 64, 3)
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", 10 * 64 * 64 * 3 - 1)
    with pytest.raises(
        BadData, match=r"^too-large: bytes of pixels: 122880 found, 122879 allowed$"
    ):
        video.read_clip(path)


# What damaged videos taught


@pytest.mark.parametrize(
    "tag",
    [
        b"9e99999999:00:00.0",
        b"1/0:00:00.00000000",
        b"-0:-1:00.000000000",
        b"\xff\xfe:00:00.00000000",
    ],
)
def test_a_duration_that_is_no_duration_is_not_computed(
    film: Film, tmp_path: Path, tag: bytes
) -> None:
    path, honest = (
        tmp_path / "film.mkv",
        film(footage.plain, 2, size="160x120", suffix=".mkv").read_bytes(),
    )
    assert honest.count(b"00:00:02.000000000") == 1
    path.write_bytes(honest.replace(b"00:00:02.000000000", tag))
    start = time.monotonic()
    assert video.probe(path).num_frames == 50
    assert time.monotonic() - start < 5


def test_a_video_that_cannot_be_searched_is_read_from_its_start(
    film: Film, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise av.error.PermissionError(1, "Operation not permitted")

    path = film(footage.numbered)
    monkeypatch.setattr(video, "_seek", refuse)
    assert numbers(path, Fraction(33, 25), Fraction(35, 25)) == [33, 34]


def test_a_stream_that_turns_up_late_ends_the_packets_and_not_the_build() -> None:
    class Late:
        def demux(self, stream: object) -> Iterator[int]:
            yield from (1, 2)
            raise IndexError(
                "list index out of range"
            )  # PyAV 18.1, when it flushes a stream that no header named

    assert list(video._demux(Late(), None)) == [1, 2]


def test_reserved_colours_are_taken_as_untagged(film: Film, tmp_path: Path) -> None:
    tags = {"bsf:v": "h264_metadata=colour_primaries=3"}
    path = film(footage.plain, 0.4, size="64x64", pix_fmt="yuv444p10le", **tags)
    facts = video.probe(path)
    frame = next(video.frames(path, facts))[0]
    assert video.Thumbnails(facts, 32).thumbnail_of(frame).shape == (32, 32, 3)
    writer = reel.Writer(tmp_path / "reel.mp4", facts, reel.Params(size=64))
    writer.add(frame, 0, facts.end_pts)
    writer.close()
    assert writer.num_frames == 4


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({"colorspace": "ycgco"}, "the matrix ycgco of"),
        ({"colorspace": "bt2020c"}, "the matrix bt2020c of"),
        ({"color_trc": "linear"}, "the transfer linear of"),
        ({"color_primaries": "smpte428"}, "the primaries smpte428 of"),
    ],
)
def test_colours_that_cannot_be_converted_are_refused_by_name(
    film: Callable[..., Path], tags: dict[str, str], name: str
) -> None:
    with pytest.raises(BadData, match=name) as raised:
        video.probe(film(footage.coloured, **tags))
    assert raised.value.reason == "unknown-colours"


@pytest.mark.parametrize(
    "tags",
    [
        {"colorspace": "fcc"},
        {"colorspace": "smpte240m", "color_trc": "smpte240m"},
        {"color_primaries": "bt470bg"},
        {"color_primaries": "smpte432"},
    ],
)
def test_colours_that_can_be_converted_are_named(
    film: Callable[..., Path], tags: dict[str, str]
) -> None:
    facts = video.probe(film(footage.coloured, **tags))
    names = {
        "colorspace": facts.color_matrix,
        "color_trc": facts.color_transfer,
        "color_primaries": facts.color_primaries,
    }
    assert {kind: names[kind] for kind in tags} == tags
