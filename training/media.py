"""Pictures and clips: reads what a video starts from, writes mp4, GIF and contact sheets.

Pixels are `f h w c` uint8 RGB. An mp4 is h264 in yuv420p, tagged BT.709, which plays everywhere;
its chroma is halved, so what must stay exact stays in the arrays.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch  # noqa: F401 - before decord: the other order binds torch to a BLAS that is not there
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from pipeline.media import reel, video
from pipeline.media.encoders import Pixels
from training.errors import ShardError, UsageError
from training.writing import beside

import decord  # isort: skip

Row = tuple[str, Pixels, Sequence[bool]]  # a label, frames, and which of them are known
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")  # EPS would start another program
LARGE = 100_000_000  # pixels of frames that are kept as they were decoded
CRF = 16
GIF_SIDE = 256
BT709 = 1  # ffmpeg's number of it, for matrix, primaries and transfer
INK, PAPER, MARK = (40, 40, 40), (255, 255, 255), (240, 120, 0)
GAP, LINE = 4, 18  # pixels between tiles, and of a line of text


def read_start(path: Path, size: int, fps: Fraction, max_frames: int = 1) -> Pixels:
    """What a video starts from, `f size size c`: a picture, or the last `max_frames` frames of a
    clip, taken at `fps` by time. The centre square is kept and resized.

    A clip goes the way of the pipeline's own: the same containers, limits, colours and turns, up to
    the encoding. Raises UsageError if the file is neither.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a picture or a video to start from")
    picture = _read_picture(path, size)
    if picture is not None:
        return picture[None]
    path_of_file = path.resolve()  # the opener takes no links, which may be a stranger's
    try:
        facts = video.probe(path_of_file)
        _check_size(path, round(facts.width * facts.pixel_aspect), facts.height)
        shown = _by_time(video.frames(path_of_file, facts), facts, fps, max_frames)
        square = reel.square_of(facts, reel.crop_of(facts), size)
        to_rgb = video.ExactRgb()
        if facts.width * facts.height * max_frames <= LARGE:
            shown = iter(deque(shown, max_frames))  # made of the last frames alone: faster
        squares = deque((to_rgb.pixels_of(square.convert(frame)) for frame in shown), max_frames)
    except (video.BadData, av.FFmpegError, ValueError) as error:
        reason = error.detail if isinstance(error, video.BadData) else error
        raise UsageError(
            f"{path}: neither a picture nor a video that can be read: {reason}"
        ) from error
    if not squares:
        raise UsageError(f"{path}: no frame in it can be decoded")
    return np.stack(squares)


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > video.MAX_SIDE or width * height > video.MAX_PIXELS:
        raise UsageError(
            f"{path}: a picture of {width} x {height}; at most {video.MAX_SIDE} on a side "
            f"and {video.MAX_PIXELS} pixels are read"
        )


def _read_picture(path: Path, size: int) -> Pixels | None:
    """The centre square of a picture, `size size c`; None for a file that is no picture, or one
    that moves.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=PICTURES) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if getattr(picture, "is_animated", False):
                return None
            _check_size(path, *picture.size)
            return _square(ImageOps.exif_transpose(picture), size)
    except (UsageError, MemoryError):
        raise
    except UnidentifiedImageError:
        return None
    except Exception as error:  # Pillow's readers raise errors of every kind for damaged files
        raise UsageError(f"{path}: this picture cannot be read: {error}") from error


def _by_time(
    decoded: Iterable[tuple[av.VideoFrame, int, int]],
    facts: video.Container,
    fps: Fraction,
    max_frames: int,
) -> Iterator[av.VideoFrame]:
    """What is on the screen `n / fps` seconds after the first frame, for every `n`; of a frame that
    stays, no more than `max_frames` times.
    """
    num_shown, begin = 0, None
    for frame, pts, end_pts in decoded:
        begin = pts if begin is None else begin
        end_s = (end_pts - begin) * facts.time_base
        num_due = max(1, math.ceil(end_s * fps))
        for _ in range(min(num_due - num_shown, max_frames)):
            yield frame
        num_shown = max(num_due, num_shown)


def _square(image: Image.Image, size: int) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def read_frames(path: Path, indices: Sequence[int]) -> Pixels:
    """Frames of a clip by number, as the shards' encoder saw them. Raises ShardError if it has no
    such frames.
    """
    try:
        video.clip_frame_bytes(path)  # decord takes no list of containers
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels: Pixels = reader.get_batch(list(indices)).asnumpy()
    except (RuntimeError, IndexError, decord.DECORDError, video.BadData) as error:
        raise ShardError(
            f"{path}: frames {indices[0]} to {indices[-1]} cannot be read "
            f"({type(error).__name__}); build it again"
        ) from error
    return pixels


def write_image(path: Path, image: Image.Image) -> None:
    with beside(path) as partial:
        image.save(partial, format=path.suffix.removeprefix(".").upper() or "PNG")


def write_mp4(path: Path, frames: Iterable[Pixels], fps: Fraction) -> None:
    """Frames `h w c`, all at once or one by one, as h264; height and width must be even."""
    pictures = iter(frames)
    first = next(pictures)
    with (
        beside(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": str(CRF)})
        stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = int(ColorRange.MPEG)
        for pixels in itertools.chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Pixels, fps: Fraction) -> None:
    """A GIF that repeats for ever: at most 256 pixels wide, one palette for all frames. Its clock
    ticks in hundredths of a second.
    """
    side = min(GIF_SIDE, frames.shape[2])
    height = max(1, round(frames.shape[1] * side / frames.shape[2]))
    small = [
        Image.fromarray(pixels).resize((side, height), Image.Resampling.LANCZOS)
        for pixels in frames
    ]
    palette = _palette(small)
    shown = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in small]
    edges = [round(index * 100 / fps) for index in range(len(shown) + 1)]
    durations = [max(2, after - before) * 10 for before, after in itertools.pairwise(edges)]
    with beside(path) as partial:
        shown[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=shown[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """256 colours for all of them, from at most 16."""
    sampled = list(images)
    if len(images) > 16:
        sampled = [images[round(index * (len(images) - 1) / 15)] for index in range(16)]
    strip = Image.new("RGB", (sampled[0].width, sampled[0].height * len(sampled)))
    for index, image in enumerate(sampled):
        strip.paste(image, (0, index * image.height))
    return strip.quantize(256, method=Image.Quantize.MEDIANCUT)


def contact_sheet(
    frames: Pixels, known: Sequence[bool], caption: str, side: int = 128
) -> Image.Image:
    """All frames in reading order; known ones have an orange border."""
    columns = len(frames) if len(frames) <= 9 else 9 if len(frames) <= 18 else 13
    rows: list[Row] = []
    for start in range(0, len(frames), columns):
        part = slice(start, start + columns)
        rows.append(("", frames[part], known[part]))
    return side_by_side(rows, caption, side)


def side_by_side(rows: Sequence[Row], caption: str, side: int = 128) -> Image.Image:
    """A picture with a row of frames for each row, its label above it; known frames have an orange
    border. Equal times stand in one column.
    """
    across = max(len(frames) for _, frames, _ in rows)
    tops, y = [], LINE + 2 * GAP
    for label, _, _ in rows:
        y += LINE if label else 0
        tops.append(y)
        y += side + GAP
    sheet = Image.new("RGB", (max(across * (side + GAP) + GAP, 320), y), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((GAP, GAP), caption, INK, font)
    for top, (label, frames, known) in zip(tops, rows, strict=True):
        if label:
            draw.text((GAP, top - LINE), label, INK, font)
        for column, (pixels, is_known) in enumerate(zip(frames, known, strict=True)):
            x = GAP + column * (side + GAP)
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, top))
            if is_known:
                draw.rectangle((x - 1, top - 1, x + side, top + side), outline=MARK, width=3)
    return sheet
