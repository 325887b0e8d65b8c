from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.params import Setup
from pipeline.core.records import Crop, Scene, Video, grid_index
from pipeline.core.store import Store
from pipeline.media import reel, video
from pipeline.media.reel import Params
from pipeline.stages import extract
from tests.making import broken, footage

Film = Callable[..., Path]
VideoOf = Callable[..., Video]
Pictures = NDArray[np.uint8]
SMALL = Params(size=64)


def planes(path: Path) -> Pictures:
    """Every frame's yuv420p planes as PyAV decodes them: `f (h * 3/2) w`."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])


def reel_path(record: Video, params: Params, store: Store) -> Path:
    return store.path(reel.reel_of(record, params, store)["reel"]["sha256"])


def numbers(path: Path, size: int = 64) -> list[int]:
    return [footage.number_of(luma) for luma in planes(path)[:, :size].mean(axis=(1, 2))]


def by_ffmpeg(path: Path, crop: str) -> Pictures:
    """The first frame's luma as ffmpeg's command line makes it, with its own idea of rotation: `64
    64`.
    """
    scale = (
        "scale=64:64:flags=bicubic+accurate_rnd:in_color_matrix=smpte170m:out_color_matrix=bt709"
    )
    job = ffmpeg.input(str(path)).output(
        "pipe:", format="rawvideo", pix_fmt="yuv420p", vf=f"crop={crop},{scale}", **{"frames:v": 1}
    )
    raw, _ = job.run(cmd=footage.FFMPEG, quiet=True)
    return np.frombuffer(raw, np.uint8)[: 64 * 64].reshape(64, 64)


def psnr(first: Any, second: Any) -> float:
    """Peak signal to noise in dB; 99 where both are the same."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


@pytest.mark.parametrize(
    ("make", "options", "fps"),
    [
        (footage.numbered, {}, Fraction(10)),
        (footage.numbered, {"bf": 3}, Fraction(10)),
        (footage.numbered, {"fps": "30000/1001"}, Fraction(10)),
        (footage.numbered, {"fps": "30000/1001"}, Fraction(24000, 1001)),
        (footage.numbered, {}, Fraction(60)),
        (footage.numbered, {}, Fraction(7, 3)),
        (footage.variable_frame_rate, {}, Fraction(10)),
        (footage.variable_frame_rate, {}, Fraction(30)),
        (footage.negative_start, {"suffix": ".ts"}, Fraction(10)),
        (footage.edit_list, {}, Fraction(10)),
    ],
)
def test_frame_k_of_a_reel_is_what_is_shown_at_that_moment_of_the_grid(
    film: Film,
    video_of: VideoOf,
    store: Store,
    make: Callable[..., Path],
    options: dict[str, Any],
    fps: Fraction,
) -> None:
    path = film(make, **options)
    record = video_of(path)
    facts = record.container
    shown = [
        (pts * facts.time_base, number)
        for (_, pts, _), number in zip(video.frames(path, facts), source_numbers(path), strict=True)
    ]
    whole = reel.reel_of(record, Params(fps=fps, size=64), store)
    assert whole["first_index"] == grid_index(facts.start_pts, facts.time_base, fps)
    assert (
        whole["num_frames"]
        == grid_index(facts.end_pts, facts.time_base, fps) - whole["first_index"]
    )
    moments = [(whole["first_index"] + k) / fps for k in range(whole["num_frames"])]
    expected = [max(number for at, number in shown if at <= moment) for moment in moments]
    assert numbers(store.path(whole["reel"]["sha256"])) == expected


def source_numbers(path: Path) -> list[int]:
    return [footage.number_of(luma) for luma in planes(path)[:, :120].mean(axis=(1, 2))]


def test_a_reel_of_a_time_range_begins_at_its_first_frame(
    film: Film, video_of: VideoOf, store: Store
) -> None:
    record = video_of(film(footage.numbered), Fraction(1), Fraction(2))
    whole = reel.reel_of(record, SMALL, store)
    assert (whole["first_index"], whole["num_frames"]) == (10, 10)
    assert numbers(store.path(whole["reel"]["sha256"])) == [25, 27, 30, 32, 35, 37, 40, 42, 45, 47]


@pytest.mark.parametrize(
    "fps",
    [
        Fraction(10),
        Fraction(24000, 1001),
        Fraction(30000, 1001),
        Fraction(25, 2),
        Fraction(7, 3),
        Fraction(240),
    ],
)
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 4), (1, 3), (2, 2), (3, 1)])
def test_cutting_is_lossless_and_gives_the_promised_frames(
    film: Film,
    video_of: VideoOf,
    store: Store,
    tmp_path: Path,
    fps: Fraction,
    start: int,
    count: int,
) -> None:
    whole = reel_path(
        video_of(film(footage.plain, 4, size="160x120")), Params(fps=fps, size=64), store
    )
    clip = tmp_path / "clip.mp4"
    assert reel.cut_clip(whole, fps, start, count, clip)[0] == count
    assert np.array_equal(planes(clip), planes(whole)[start : start + count])
    assert len(video.read_clip(clip)) == count
    facts = video.probe(clip)
    assert (facts.num_frames, facts.start_pts, facts.average_fps) == (count, 0, fps)


def test_a_cut_past_the_end_says_how_many_frames_there_were(
    film: Film, video_of: VideoOf, store: Store, tmp_path: Path
) -> None:
    whole = reel_path(video_of(film(footage.plain, 2)), SMALL, store)
    assert reel.cut_clip(whole, SMALL.fps, 15, 10, tmp_path / "clip.mp4")[0] == 5


def test_a_long_reel_is_cut_at_the_right_frame_everywhere(
    film: Film, video_of: VideoOf, store: Store, tmp_path: Path
) -> None:
    fps = Fraction(30000, 1001)
    whole = reel_path(video_of(film(footage.plain)), Params(fps=fps, size=64), store)
    pictures = planes(whole)
    assert len(pictures) == 360
    for start in (0, 99, 100, 101, 257, 330):
        clip = tmp_path / f"{start}.mp4"
        assert reel.cut_clip(whole, fps, start, 29, clip)[0] == 29
        assert np.array_equal(planes(clip), pictures[start : start + 29])


def test_clips_of_one_video_are_its_scenes(film: Film, video_of: VideoOf, store: Store) -> None:
    record = video_of(film(footage.numbered))
    scenes = [Scene("a", record, 0, 12800), Scene("b", record, 12800, 30720)]
    clips = [clip for scene in scenes for clip in extract.process(scene, store, SMALL)]
    assert [clip.num_frames for clip in clips] == [10, 14]
    grid = [index * 25 // 10 for index in range(24)]
    assert [numbers(store.path(clip.blob.sha256)) for clip in clips] == [grid[:10], grid[10:]]
    assert {clip.crop for clip in clips} == {Crop(20, 0, 120, 120)}


def test_decord_and_pyav_read_the_same_clip(film: Film, video_of: VideoOf, store: Store) -> None:
    path = reel_path(video_of(film(footage.plain, 2)), SMALL, store)
    pictures = video.read_clip(path)
    assert (pictures.shape, pictures.dtype) == ((20, 64, 64, 3), np.uint8)
    with av.open(str(path)) as container:
        expected = np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        )
    assert psnr(pictures, expected) > 40


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (footage.rotated, [90]),
        (footage.rotated, [180]),
        (footage.rotated, [270]),
        (footage.mirrored, []),
    ],
    ids=["90", "180", "270", "mirrored"],
)
def test_a_telephone_s_display_matrix_is_applied_as_ffmpeg_applies_it(
    film: Film, video_of: VideoOf, store: Store, make: Callable[..., Path], args: list[int]
) -> None:
    path = film(make, *args)
    expected = by_ffmpeg(path, "240:240")
    picture = planes(reel_path(video_of(path), SMALL, store))[0, :64]
    scores = [
        psnr(turned, expected)
        for mirrored in (picture, picture.T)
        for turned in (np.rot90(mirrored, turns) for turns in range(4))
    ]
    assert scores[0] > 30
    assert max(scores[1:]) < 20


def test_pixels_become_square(film: Film, video_of: VideoOf, store: Store) -> None:
    whole = reel.reel_of(video_of(film(footage.anamorphic)), SMALL, store)
    assert whole["crop"] == {"x": 40, "y": 0, "width": 80, "height": 160}
    bright = video.read_clip(store.path(whole["reel"]["sha256"]))[0].mean(axis=2) > 128
    assert (bright.any(axis=0).sum(), bright.any(axis=1).sum()) == (16, 16)
    assert bright[24:40, 24:40].all()


def test_odd_sizes_are_cropped_in_the_centre(film: Film, video_of: VideoOf, store: Store) -> None:
    path = film(footage.odd_size)
    whole = reel.reel_of(video_of(path), SMALL, store)
    assert whole["crop"] == {"x": 184, "y": 0, "width": 272, "height": 272}
    expected = by_ffmpeg(path, "272:272:184:0:exact=1")
    assert psnr(planes(store.path(whole["reel"]["sha256"]))[0, :64], expected) > 30


@pytest.mark.parametrize(
    ("make", "args", "options", "within"),
    [
        (footage.colour_patches, ["bt709"], {}, 4),
        (footage.colour_patches, ["smpte170m"], {}, 4),
        (footage.colour_patches, ["bt709"], {"full_range": True}, 4),
        (footage.colour_patches, ["smpte170m"], {"full_range": True}, 4),
        (footage.colour_patches, ["bt709"], {"pix_fmt": "yuv420p10le"}, 4),
        (footage.colour_patches, ["bt709"], {"pix_fmt": "yuv444p"}, 4),
        (footage.colour_patches, ["smpte170m"], {"tagged": False}, 4),
        (footage.rgb_patches, ["png", "rgb24"], {"suffix": ".mov"}, 4),
        (footage.rgb_patches, ["qtrle", "argb"], {"suffix": ".mov"}, 4),
        (footage.rgb_patches, ["mjpeg", "yuvj420p"], {"suffix": ".avi"}, 6),
        (footage.hdr_patches, [], {}, 40),
        (footage.p3_patches, [], {}, 6),
    ],
    ids=[
        "709",
        "601",
        "709-full",
        "601-full",
        "709-10bit",
        "709-444",
        "untagged",
        "rgb",
        "argb",
        "jpeg",
        "hdr",
        "p3",
    ],
)
def test_colours_come_back_through_reel_and_reader(
    film: Film,
    video_of: VideoOf,
    store: Store,
    make: Callable[..., Path],
    args: list[str],
    options: dict[str, Any],
    within: int,
) -> None:
    path = reel_path(video_of(film(make, *args, **options)), SMALL, store)
    assert_patches(video.read_clip(path)[:1], within)


def assert_patches(pictures: Pictures, within: int) -> None:
    """Every picture has the colours of the patches."""
    colours = np.stack([pictures[:, y, x] for y in (16, 48) for x in (16, 48)], axis=1)
    off = np.abs(colours.astype(int) - np.array(footage.PATCHES)).max(axis=(1, 2))
    assert off.max() <= within, off


FULL_709 = ["bt709"], {"full_range": True}
LIMITED_601 = ["smpte170m"], {}


@pytest.mark.parametrize(
    ("first", "second"), [(LIMITED_601, FULL_709), (FULL_709, LIMITED_601)], ids=["601", "709"]
)
def test_colours_that_change_within_a_film_are_converted_by_the_tags_of_each_frame(
    film: Film, video_of: VideoOf, store: Store, first: Any, second: Any
) -> None:
    parts = [film(footage.colour_patches, *args, **options) for args, options in (first, second)]
    path = film(broken.succession, *map(str, parts), suffix=".ts")
    assert_patches(video.read_clip(reel_path(video_of(path), SMALL, store)), 4)


def test_a_film_that_becomes_hdr_is_converted_by_the_tags_of_each_frame(
    film: Film, video_of: VideoOf, store: Store
) -> None:
    tags = "colorprim=bt709:transfer=bt709:colormatrix=bt709:range=limited"
    parts = [film(footage.hdr_patches, tags) for tags in (tags, footage.PQ)]
    path = film(broken.succession, *map(str, parts), suffix=".ts")
    pictures = video.read_clip(reel_path(video_of(path), SMALL, store))
    alone = [video.read_clip(reel_path(video_of(part), SMALL, store))[0] for part in parts]
    assert psnr(alone[0], alone[1]) < 25
    assert psnr(pictures[0], alone[0]) > 40
    assert psnr(pictures[-1], alone[1]) > 40


@pytest.mark.parametrize("tagged", [True, False])
def test_grey_keeps_its_brightness(
    film: Film, video_of: VideoOf, store: Store, tagged: bool
) -> None:
    path = reel_path(
        video_of(film(footage.numbered, tagged=tagged)), Params(fps=Fraction(25), size=64), store
    )
    levels = [footage.NUMBERED_BLACK + footage.NUMBERED_STEP * n for n in range(60)]
    assert np.abs(planes(path)[:, :64].mean(axis=(1, 2)) - levels).max() <= 1


def test_the_same_reel_twice_has_the_same_bytes(
    film: Film, video_of: VideoOf, store: Store, tmp_path: Path
) -> None:
    path = film(footage.plain, 4)
    other = Store(tmp_path / "other")
    other.prepare()
    record = video_of(path)
    other.link(path)
    assert reel.reel_of(record, SMALL, store) == reel.reel_of(record, SMALL, other)
    scene = Scene("a", record, 0, 12800)
    clips = [next(iter(extract.process(scene, each, SMALL))) for each in (store, other)]
    assert clips[0] == clips[1]


def test_a_reel_is_decoded_once(film: Film, video_of: VideoOf, store: Store) -> None:
    record = video_of(film(footage.plain, 2))
    first = reel.reel_of(record, SMALL, store)
    store.path(record.blob.sha256).unlink()
    assert reel.reel_of(record, SMALL, store) == first


def test_another_parameter_or_time_range_is_another_reel(film: Film, video_of: VideoOf) -> None:
    path = film(footage.plain, 2)
    params = [SMALL, Params(size=128), Params(size=64, fps=Fraction(5)), Params(size=64, crf=20)]
    records = [video_of(path), video_of(path, Fraction(1)), video_of(path, None, Fraction(1))]
    tasks = {canonical.digest(reel.task(record, each)) for record in records for each in params}
    assert len(tasks) == 12


def test_a_frame_rate_may_be_written_as_a_decimal_and_stays_exact() -> None:
    assert Params(fps=12.5).fps == Fraction(25, 2)
    assert Params(fps="30000/1001").fps == Fraction(30000, 1001)


def test_a_reel_s_memo_is_found_by_what_manifests_say_of_the_extract_stage(
    film: Film, video_of: VideoOf, store: Store
) -> None:
    record = video_of(film(footage.plain, 2))
    whole = reel.reel_of(record, SMALL, store)
    memo = store.memo(reel.memo_key(record.identity(), extract.stage(Setup((SMALL,))).params))
    assert memo is not None
    assert memo.outputs == whole
