"""media: what is read is upright, square and on time; what is written can be opened, with the right
number of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.core.store import Store
from pipeline.media import reel, video
from tests.making import footage
from training import media, writing
from training.errors import ShardError, Stopped, UsageError

Film = Callable[..., Path]


@pytest.fixture
def frames() -> Any:
    """12 frames of a bright square that walks over a gradient."""
    pictures = np.tile(
        np.linspace(40, 160, 64, dtype=np.uint8)[None, None, :, None], (12, 64, 1, 3)
    )
    for index in range(12):
        pictures[index, 20:40, 4 * index : 4 * index + 16] = (220, 60, 30)
    return pictures


def test_a_picture_becomes_its_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    read = media.read_start(tmp_path / "wide.png", 32, Fraction(10))
    assert read.shape == (1, 32, 32, 3)
    assert (read[0, :, 2:-2] == (10, 200, 30)).all()


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path: Path, frames: Any) -> None:
    Image.fromarray(frames[3]).save(tmp_path / "a.png")
    assert np.array_equal(media.read_start(tmp_path / "a.png", 64, Fraction(10))[0], frames[3])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_kind_are_read(tmp_path: Path, mode: str) -> None:
    grey = np.full((16, 16), 120, np.uint8)
    image = (
        Image.fromarray(grey.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(grey).convert(mode)
    )
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    assert np.abs(media.read_start(path, 16, Fraction(10)).astype(int) - 120).max() <= 2


def test_a_phone_s_picture_is_turned_upright(tmp_path: Path) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(half).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = media.read_start(tmp_path / "a.jpg", 32, Fraction(10))[0]
    assert read[:8].min() > 200
    assert read[-8:].max() < 50


def test_a_clip_is_read_by_time_and_its_end_is_kept(film: Film) -> None:
    path = film(footage.plain, 2, size="64x64")
    every = media.read_start(path, 64, Fraction(25), 50)
    tenths = media.read_start(path, 64, Fraction(10), 50)
    assert (len(every), len(tenths)) == (50, 20)
    shown = [int(Fraction(index, 10) * 25) for index in range(20)]
    assert np.array_equal(tenths, every[shown])
    assert np.array_equal(media.read_start(path, 64, Fraction(10), 7), tenths[-7:])


def test_a_turned_clip_is_upright(film: Film) -> None:
    straight = media.read_start(film(footage.plain, 1), 64, Fraction(10), 1)[0].astype(int)
    for degrees in (90, 180, 270):
        turned = media.read_start(film(footage.rotated, degrees), 64, Fraction(10), 1)[0].astype(
            int
        )
        off = [np.abs(np.rot90(straight, turns) - turned).mean() for turns in range(4)]
        assert off[degrees // 90] < 3, degrees
        assert min(off) == off[degrees // 90]


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (footage.hdr_patches, []),
        (footage.hlg_patches, []),
        (footage.p3_patches, []),
        (footage.hd_patches, []),
        (footage.mirrored, []),
        (footage.rotated, [90]),
        (footage.rotated, [270]),
        (footage.anamorphic, []),
        (footage.colour_patches, ["bt709"]),
    ],
)
def test_a_start_is_what_the_pipeline_makes_of_the_same_film(
    film: Film, video_of: Callable[..., Any], store: Store, make: Any, args: list[Any]
) -> None:
    path = film(make, *args)
    params = reel.Params(size=64, fps=Fraction(10))
    whole = reel.reel_of(video_of(path), params, store)
    clip = video.read_clip_exactly(store.path(whole["reel"]["sha256"]))
    start = media.read_start(path, 64, Fraction(10), len(clip))
    assert len(start) == len(clip)
    assert np.abs(start.astype(int) - clip).mean() < 2


def test_pixels_need_not_be_square(film: Film) -> None:
    bright = media.read_start(film(footage.anamorphic), 160, Fraction(10), 1)[0, :, :, 0] > 128
    rows, columns = np.nonzero(bright)
    assert np.ptp(rows) == pytest.approx(39, abs=2)
    assert np.ptp(columns) == pytest.approx(39, abs=2)


def test_what_is_neither_picture_nor_clip_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        media.read_start(tmp_path / "none.png", 64, Fraction(10))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="neither a picture nor a video"):
        media.read_start(tmp_path / "notes.txt", 64, Fraction(10))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(UsageError, match="cannot be read"):
        media.read_start(tmp_path / "half.png", 64, Fraction(10))


@pytest.mark.parametrize("fps", [Fraction(10), Fraction(40), Fraction(10, 16)])
def test_an_mp4_holds_every_frame_at_its_time(tmp_path: Path, frames: Any, fps: Fraction) -> None:
    media.write_mp4(tmp_path / "a.mp4", frames, fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == (
            "h264",
            "yuv420p",
            fps,
        )
        assert [frame.pts * frame.time_base for frame in decoded] == [
            index / fps for index in range(12)
        ]
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    assert np.abs(shown.astype(int) - frames.astype(int)).mean() < 3


def test_frames_are_read_by_number_and_missing_ones_refused(tmp_path: Path, frames: Any) -> None:
    media.write_mp4(tmp_path / "a.mp4", frames, Fraction(10))
    every = media.read_frames(tmp_path / "a.mp4", range(12))
    assert np.abs(every.astype(int) - frames.astype(int)).mean() < 3
    assert np.array_equal(media.read_frames(tmp_path / "a.mp4", [1, 5, 9]), every[[1, 5, 9]])
    with pytest.raises(ShardError, match="frames 3 to 12"):
        media.read_frames(tmp_path / "a.mp4", range(3, 13))


@pytest.mark.parametrize("fps", [Fraction(10), Fraction(40)])
def test_a_gif_has_one_palette_loops_and_lasts_as_long(
    tmp_path: Path, frames: Any, fps: Fraction
) -> None:
    media.write_gif(tmp_path / "a.gif", frames, fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 12
        assert gif.info["loop"] == 0
        total = 0
        for index in range(12):
            gif.seek(index)
            total += gif.info["duration"]
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frames[index]).mean() < 12
    assert total == 12 * 1000 / fps
    content = (tmp_path / "a.gif").read_bytes()
    assert content[10] & 0x80  # a global palette
    assert content.count(b"\x21\xf9\x04") == 12


def test_a_contact_sheet_shows_all_frames_and_marks_those_given(frames: Any) -> None:
    known = [index == 0 for index in range(12)]
    sheet = np.asarray(media.contact_sheet(frames, known, "a walk", side=64))
    tile = media.GAP + 64
    top = media.LINE + 2 * media.GAP
    assert sheet.shape == (top + 2 * tile, 9 * tile + media.GAP, 3)
    second = sheet[top : top + 64, media.GAP + tile : media.GAP + tile + 64]
    assert np.array_equal(second, frames[1])
    marked = (sheet == media.MARK).all(-1)
    assert marked.any()
    assert not marked[:, media.GAP + tile - 1 :].any()


def test_rows_stand_under_their_labels(frames: Any) -> None:
    rows = [("truth", frames[:3], [True, False, True]), ("model", frames[3:6], [True, False, True])]
    sheet = np.asarray(media.side_by_side(rows, "", side=64))
    assert sheet.shape[0] == media.LINE + 2 * media.GAP + 2 * (media.LINE + 64 + media.GAP)
    assert (sheet == media.INK).all(-1).any()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "a.gif"
    media.write_gif(path, frames, Fraction(10))
    before = path.read_bytes()

    def fail(frames: Any) -> None:
        with writing.beside(path) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail(frames)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, frames: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Stopped, match=r"a\.mp4: cannot be written"):
        media.write_mp4(tmp_path / "file" / "a.mp4", frames, Fraction(10))
