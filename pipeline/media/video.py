"""The only module that opens videos: probe, exact frames with time stamps, small pictures, clips.

PyAV in process, one thread per video (two videos side by side beat one video on two threads). Only
regular files in the containers named here are opened, with the `file` protocol alone, so that a
playlist which calls itself a video is refused instead of followed. Limits: docs/security.md.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import re
import stat
import struct
import weakref
from array import array
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

# named again, for the trainer, which may not import core
from pipeline.core.errors import BadData as BadData
from pipeline.core.records import Container as Container

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,"
    "asf,ogg,mxf,nut,yuv4mpegpipe,gif,dv"
)
MAX_SIDE = 16384  # pixels
MAX_PIXELS = 8192 * 8192  # of one picture; a decoder holds up to 17 of them
MAX_HOURS = 48
# how long one picture may stay: a broken time stamp would fill the reel with copies of it
MAX_STILL_S = 3600
MAX_FRAMES = 20_000_000
MAX_CLIP_BYTES = 16 * 10**9  # of a clip's pixels, which are in memory all at once
OPTIONS = {
    "format_whitelist": CONTAINERS,
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}
# a container may promise this much more than it holds, or 5 %, whichever is more
MISSING_S = Fraction(1)
# where a container finds no key frame before a point, how much earlier to look at first
SEEK_BACK_S = 2

MATRICES = {
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
RANGES = {1: "tv", 2: "pc"}
PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020",
    12: "smpte432",
}
TRANSFERS = {
    1: "bt709",
    6: "smpte170m",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    18: "arib-std-b67",
}
UNKNOWN = "unknown"
UNTAGGED = ("setparams", "colorspace=unknown:color_primaries=unknown:color_trc=unknown")

# broken input is reported once, as a rejection
logging.getLogger("libav").setLevel(logging.CRITICAL)


class Reading:
    """A file that FFmpeg reads through us. What the disk refuses arrives as an OSError; FFmpeg by
    itself would take it for the end of the video, or use the same words for damaged bytes.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -errno.EINVAL  # a place that cannot be: it is the video that asks for it

    def tell(self) -> int:
        return self.seek(0, os.SEEK_CUR)


def _open(path: Path) -> Any:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BadData("unreadable", "not a regular file")
    file = Reading(path)
    try:
        return av.open(file, options=OPTIONS, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise BadData("unreadable", f"not a video longtake can open: {_why(error)}") from error


def _why(error: Exception) -> str:
    """FFmpeg's reason without the path, so that equal failures are equal text."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _check(what: str, number: float, limit: float) -> None:
    if number > limit:
        raise BadData("too-large", f"{what}: {round(number, 2):.15g} found, {limit:.15g} allowed")


def _check_picture(width: int, height: int) -> None:
    _check("pixels on a side", max(width, height), MAX_SIDE)
    _check("pixels of a picture", width * height, MAX_PIXELS)


def _video_stream(container: Any) -> Any:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams})
        raise BadData("no-video-stream", f"the file has {', '.join(kinds) or 'no streams'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise BadData("unreadable", "no decoder for the video stream")
    _check_picture(stream.codec_context.width, stream.codec_context.height)
    _check("frames", stream.frames, MAX_FRAMES)
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # said to the decoder too, for pictures that are larger than the header says
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def probe(path: Path) -> Container:
    """Container facts from one pass over the packets and the first decoded frame.

    Raises BadData: unreadable, no-video-stream, no-timestamps, too-large, truncated or
    decode-error.
    """
    with _open(path) as container:
        stream = _video_stream(container)
        stamps, end_pts = _packet_stamps(container, stream)
        declared_s = _declared_s(stream)
    with _open(path) as container:
        stream = _video_stream(container)
        first = next(_decode(container, stream), None)
        if first is None:
            raise BadData("decode-error", "no frame can be decoded")
        start_pts = int(stamps[0])
        duration_s = (end_pts - start_pts) * stream.time_base
        if declared_s is not None and declared_s - duration_s > max(MISSING_S, declared_s / 20):
            raise BadData(
                "truncated",
                f"the container promises {float(declared_s):.2f} s of video "
                f"and holds {float(duration_s):.2f} s",
            )
        mirrored, rotation = _display(first)
        return Container(
            format=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=first.format.name,
            width=first.width,
            height=first.height,
            mirrored=mirrored,
            rotation=rotation,
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 1) or Fraction(1),
            color_matrix=MATRICES.get(first.colorspace, UNKNOWN),
            color_range=RANGES.get(first.color_range, UNKNOWN),
            color_primaries=PRIMARIES.get(first.color_primaries, UNKNOWN),
            color_transfer=TRANSFERS.get(first.color_trc, UNKNOWN),
            time_base=Fraction(stream.time_base),
            average_fps=Fraction(len(stamps)) / duration_s if duration_s else Fraction(1),
            num_frames=len(stamps),
            start_pts=start_pts,
            end_pts=end_pts,
        )


def _display(frame: VideoFrame) -> tuple[bool, int]:
    """(flip left to right first, then turn clockwise by so many degrees), from the display
    matrix.
    """
    sides: Any = frame.side_data
    side = sides.get(Type.DISPLAYMATRIX)
    if side is None:
        return False, 0
    a, b, _, c, d = struct.unpack_from("=5i", side)
    mirrored = a * d < b * c
    turn = math.atan2(-b, -a) if mirrored else math.atan2(b, a)
    return mirrored, round(turn / (math.pi / 2)) * 90 % 360


def _demux(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets and an empty one, which flushes the decoder."""
    # after that PyAV flushes the other streams, and stumbles over one that turned up late
    with contextlib.suppress(IndexError):
        yield from container.demux(stream)


def _packet_stamps(container: Any, stream: Any) -> tuple[NDArray[np.int64], int]:
    """Sorted time stamps, and the end of the last frame."""
    pts, duration = _read_stamps(container, stream)
    stamps = np.unique(np.frombuffer(pts, np.int64))
    first, last = int(stamps[0]), int(stamps[-1])
    # before differences are taken, which may overflow
    _check("hours", float((last - first) * stream.time_base / 3600), MAX_HOURS)
    steps = np.diff(stamps)
    rate = stream.average_rate or stream.guessed_rate
    if not duration and steps.size:
        duration = int(steps[-1])
    elif not duration and rate:
        duration = round(1 / (rate * stream.time_base))
    end = last + max(1, duration)
    longest = max(end - last, int(steps.max(initial=0)))
    _check("seconds of one picture", float(longest * stream.time_base), MAX_STILL_S)
    return stamps, end


def _read_stamps(container: Any, stream: Any) -> tuple[array[int], int]:
    """Time stamps in the order of the file, and the duration of the frame shown last, 0 if the
    file does not say.
    """
    pts, top, duration = array("q"), -math.inf, 0
    try:
        for packet in _demux(container, stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                pts.append(packet.pts)
                _check("frames", len(pts), MAX_FRAMES)
                if packet.pts >= top:
                    top, duration = packet.pts, packet.duration or 0
    except FFmpegError as error:
        if not pts:
            raise BadData("unreadable", _why(error)) from error
    if not pts:
        raise BadData("no-timestamps", "no packet of the video stream carries a time stamp")
    return pts, duration


def _declared_s(stream: Any) -> Fraction | None:
    """How long the container says this stream is; None where it does not say."""
    if stream.duration and stream.container.format.name != "mpegts":
        return Fraction(stream.duration * stream.time_base)
    tag = re.fullmatch(
        r"(\d{1,9}):(\d{1,9}):(\d{1,9}(\.\d{1,20})?)", stream.metadata.get("DURATION", ""), re.ASCII
    )
    return Fraction(tag[1]) * 3600 + Fraction(tag[2]) * 60 + Fraction(tag[3]) if tag else None


def _decode(container: Any, stream: Any) -> Iterator[VideoFrame]:
    count = 0
    try:
        for frame in (frame for packet in _demux(container, stream) for frame in packet.decode()):
            _check_picture(frame.width, frame.height)
            _check("frames", count, MAX_FRAMES)
            yield frame
            count += 1
    except FFmpegError as error:
        raise BadData("decode-error", f"after {count} frames: {_why(error)}") from error


def frames(
    path: Path, facts: Container, start_s: Fraction | None = None, end_s: Fraction | None = None
) -> Iterator[tuple[VideoFrame, int, int]]:
    """Decode in display order: (frame, its pts, the pts at which the next one replaces it).

    `start_s` and `end_s` count from the video's first frame, as a player does; frames that start
    inside [start_s, end_s) are given. Raises BadData: decode-error, no-timestamps, outside-span,
    too-large.
    """
    low = facts.start_pts + (-(-start_s // facts.time_base) if start_s else 0)
    high = facts.end_pts
    if end_s is not None:
        high = min(high, facts.start_pts - (-end_s // facts.time_base))
    with _open_at(path, low) if start_s else _open(path) as container:
        stream = _video_stream(container)
        # a frame's end is known when the next one comes, so each waits for it here
        waiting: tuple[VideoFrame, int] | None = None
        step, is_empty = 1, True
        for frame in _decode(container, stream):
            if frame.pts is None:
                raise BadData("no-timestamps", "a decoded frame has no time stamp")
            if waiting is not None and frame.pts <= waiting[1]:
                continue
            _check_same(frame, facts)
            if waiting is not None:
                step = frame.pts - waiting[1]
                shown = min(frame.pts, high) - waiting[1]
                _check("seconds of one picture", float(shown * facts.time_base), MAX_STILL_S)
                if low <= waiting[1]:
                    is_empty = False
                    yield (*waiting, min(frame.pts, high))
            waiting = (frame, frame.pts)
            if frame.pts >= high:
                break
        if waiting is not None and low <= waiting[1] < high:
            yield (*waiting, min(high, waiting[1] + (waiting[0].duration or step)))
        elif is_empty:
            raise BadData(
                "outside-span",
                f"no frame in the time range that begins at {float(start_s or 0):.3f} s",
            )


def _check_same(frame: VideoFrame, facts: Container) -> None:
    """Filters are made for one size and format: a frame of another they would read beyond its
    end.
    """
    was = f"{facts.width}x{facts.height} {facts.pix_fmt.replace('yuvj', 'yuv')}"
    now = f"{frame.width}x{frame.height} {frame.format.name.replace('yuvj', 'yuv')}"
    if was != now:
        raise BadData("decode-error", f"the picture changes from {was} to {now}")


def _open_at(path: Path, pts: int) -> Any:
    container = _open(path)
    with contextlib.suppress(FFmpegError, OverflowError):
        _seek(container, _video_stream(container), pts)
        return container
    container.close()  # it cannot be searched: from the start, then
    return _open(path)


def _seek(container: Any, stream: Any, pts: int) -> None:
    """Go to a frame at or before `pts` that decoding can start from; to the start if there is
    none.
    """
    start = stream.start_time or 0
    target, back = pts, math.ceil(SEEK_BACK_S / stream.time_base)
    while target > start:
        container.seek(target, stream=stream, backward=True)
        first = _next_key_frame(container, stream)
        if first is not None and first <= pts:
            break
        target, back = pts - back, back * 4
    container.seek(max(start, target), stream=stream, backward=True)


def _next_key_frame(container: Any, stream: Any) -> int | None:
    """The time stamp of the next packet that decoding can start from."""
    for packet in _demux(container, stream):
        if packet.pts is not None and packet.is_keyframe:
            return int(packet.pts)
    return None


def graph(frame: VideoFrame, time_base: Fraction, *filters: tuple[str, str]) -> Graph:
    """A chain of filters on one thread, for frames of this one's size and format."""
    chain = Graph()
    chain.threads = 1
    source = chain.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=time_base
    )
    nodes = [source, *(chain.add(name, args) for name, args in filters), chain.add("buffersink")]
    chain.link_nodes(*nodes).configure()
    return chain


def through(chain: Graph, frame: VideoFrame) -> VideoFrame:
    """Push one frame, pull one frame. Raises BadData('decode-error') for a picture that cannot be
    converted.
    """
    try:
        chain.push(frame)
        return chain.pull()  # type: ignore[return-value]
    except FFmpegError as error:
        raise BadData("decode-error", f"the picture cannot be converted: {_why(error)}") from error


class Conversion:
    """A chain of filters for all frames of a video. Where swscale does not know the colours that a
    frame is tagged with, the tags are dropped.
    """

    def __init__(self, facts: Container, *filters: tuple[str, str]) -> None:
        self._time_base, self._filters = facts.time_base, filters
        self._graph: Graph | None = None

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """The frame after the filters. Raises BadData('decode-error')."""
        self._graph = self._graph or graph(frame, self._time_base, *self._filters)
        try:
            return through(self._graph, frame)
        except BadData:
            self._graph = graph(frame, self._time_base, UNTAGGED, *self._filters)
            return through(self._graph, frame)


class Thumbnails:
    """Frames as small `h w 3` uint8 BGR arrays, the input of PySceneDetect's detectors."""

    def __init__(self, facts: Container, width: int) -> None:
        width = min(width, facts.width)
        height = max(2, round(facts.height * width / facts.width))
        self._small = Conversion(
            facts, ("scale", f"{width}:{height}:flags=fast_bilinear"), ("format", "bgr24")
        )

    def thumbnail_of(self, frame: VideoFrame) -> NDArray[np.uint8]:
        small: Any = self._small.convert(frame)
        pixels: NDArray[np.uint8] = small.to_ndarray()
        return pixels


class SceneScore:
    """ffmpeg's scdet: the score of a frame against the one before, 0 to 100."""

    def __init__(self, facts: Container) -> None:
        self._scdet = Conversion(facts, ("scdet", "threshold=100"))

    def score_of(self, frame: VideoFrame) -> float:
        return float(self._scdet.convert(frame).metadata.get("lavfi.scd.score", 0.0))


def read_clip(path: Path) -> NDArray[np.uint8]:
    """All frames of a clip as `f h w c` uint8 RGB, read with decord. Raises BadData: decode-error
    or too-large.
    """
    import torch  # noqa: F401  before decord: the other order binds torch to a BLAS that is not there

    import decord  # isort: skip

    frame_bytes = clip_frame_bytes(path)
    content = io.BytesIO(path.read_bytes())  # by us: what the disk refuses is an OSError
    try:
        reader = decord.VideoReader(content, num_threads=1)
        _check("bytes of pixels", len(reader) * frame_bytes, MAX_CLIP_BYTES)
        pixels: NDArray[np.uint8] = reader.get_batch(range(len(reader))).asnumpy()
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        raise BadData(
            "decode-error", f"decord cannot read the clip: {type(error).__name__}"
        ) from error
    return pixels


def clip_frame_bytes(path: Path) -> int:
    """Bytes of one picture of a clip. decord takes no options, so what it must not open is held
    back here. Raises BadData: decode-error or too-large.
    """
    try:
        with _open(path) as container, path.open("rb") as file:
            if file.read(8)[4:] != b"ftyp":
                raise BadData("decode-error", "not an mp4 file")
            context = _video_stream(container).codec_context
            return int(context.width * context.height * 3)
    except BadData as error:
        if error.reason == "too-large":
            raise
        raise BadData("decode-error", f"decord cannot read the clip: {error.detail}") from error


def some_frames(
    path: Path, indexes: Collection[int], most: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Some frames of a clip, by index, in order, as planar YUV 4:2:0 (`h * 3 / 2, w` uint8, BT.709,
    limited range), scaled down to `most` pixels a side. Every frame of a clip is a key frame, so no
    other is decoded. Raises BadData: decode-error, or too-few-frames where one is not there.
    """
    chosen, sent = set(indexes), []
    chain: Graph | None = None

    def packets(container: Any, stream: Any) -> Iterator[Any]:
        for position, packet in enumerate(_demux(container, stream)):
            is_last = not packet.size  # it flushes the decoder
            if position in chosen and not is_last:
                sent.append(position)
            if position in chosen or is_last:
                yield packet

    count = 0
    if chosen:
        with _open(path) as container:
            stream = _video_stream(container)
            try:
                for packet in packets(container, stream):
                    for frame in packet.decode():
                        if max(frame.width, frame.height) > most:
                            scale = ("scale", f"{most}:{most}:flags=area+accurate_rnd+bitexact")
                            chain = chain or graph(frame, stream.time_base, scale)
                            frame = through(chain, frame)
                        yield sent[count], frame.to_ndarray(format="yuv420p")
                        count += 1
            except FFmpegError as error:
                problem = f"frame {sent[count]} of the clip: {_why(error)}"
                raise BadData("decode-error", problem) from error
    if count < len(chosen):
        raise BadData("too-few-frames", f"the clip has no frame {sorted(chosen)[count]}")
