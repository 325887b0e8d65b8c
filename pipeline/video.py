"""The only module that opens videos: probe, exact frames with time stamps, small pictures, clips.

PyAV in process, one thread per video (two videos side by side beat one video on two threads). Only
regular files in the containers named here are opened, with the `file` protocol alone, so that a
playlist which calls itself a video is refused instead of followed.
"""

from __future__ import annotations

import itertools
import logging
import math
import struct
from collections.abc import Iterator
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

from pipeline.errors import BadData
from pipeline.records import Container

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,mxf,nut,yuv4mpegpipe,gif,dv"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
MISSING_S = Fraction(1)  # a container may promise this much more than it holds, or 5 %, whichever is more

SEEK_BACK_S = 2  # where a container finds no key frame before a point, how much earlier to look at first

MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
RANGES = {1: "tv", 2: "pc"}
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 12: "smpte432"}
TRANSFERS = {1: "bt709", 6: "smpte170m", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67"}
UNKNOWN = "unknown"

logging.getLogger("libav").setLevel(logging.CRITICAL)  # broken input is reported as a rejection, once


def _open(path: Path) -> Any:
    try:
        return av.open(str(path), options=OPTIONS)
    except (FFmpegError, ValueError) as error:
        raise BadData("unreadable", f"not a video longtake can open: {_why(error)}") from error


def _why(error: Exception) -> str:
    """FFmpeg's reason without the path, so that equal failures are equal text."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _video_stream(container: Any) -> Any:
    streams = [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams})
        raise BadData("no-video-stream", f"the file has {', '.join(kinds) or 'no streams'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise BadData("unreadable", "no decoder for the video stream")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def probe(path: Path) -> Container:
    """Container facts from one pass over the packets and the first decoded frame.

    Raises BadData: unreadable, no-video-stream, no-timestamps, truncated or decode-error.
    """
    with _open(path) as container:
        stream = _video_stream(container)
        stamps = _packet_stamps(container, stream)
        declared = _declared_s(stream)
        name = container.format.name
    with _open(path) as container:
        stream = _video_stream(container)
        first = next(_decode(container, stream), None)
        if first is None:
            raise BadData("decode-error", "no frame can be decoded")
        pts, end_pts, steps = stamps
        mirrored, rotation = _display(first)
        held = (end_pts - pts[0]) * stream.time_base
        if declared is not None and declared - held > max(MISSING_S, declared / 20):
            raise BadData("truncated", f"the container promises {float(declared):.2f} s of video and holds {float(held):.2f} s")
        return Container(
            format=name,
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
            average_fps=Fraction(len(pts)) / held if held else Fraction(1),
            num_frames=len(pts),
            start_pts=pts[0],
            end_pts=end_pts,
            variable_fps=max(steps, default=0) - min(steps, default=0) > 2,
        )


def _display(frame: VideoFrame) -> tuple[bool, int]:
    """(flip left to right first, then turn clockwise by so many degrees), from the display matrix."""
    sides: Any = frame.side_data
    side = sides.get(Type.DISPLAYMATRIX)
    if side is None:
        return False, 0
    a, b, _, c, d = struct.unpack_from("=5i", side)
    mirrored = a * d < b * c
    turn = math.atan2(-b, -a) if mirrored else math.atan2(b, a)
    return mirrored, round(turn / (math.pi / 2)) * 90 % 360


def _packet_stamps(container: Any, stream: Any) -> tuple[list[int], int, list[int]]:
    """Sorted time stamps, the end of the last frame, and the steps between frames."""
    pts, durations = [], {}
    try:
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                pts.append(packet.pts)
                durations[packet.pts] = packet.duration or 0
    except FFmpegError as error:
        if not pts:
            raise BadData("unreadable", _why(error)) from error
    if not pts:
        raise BadData("no-timestamps", "no packet of the video stream carries a time stamp")
    pts = sorted(set(pts))
    steps = [b - a for a, b in itertools.pairwise(pts)]
    rate = stream.average_rate or stream.guessed_rate
    fallback = steps[-1] if steps else (round(1 / (rate * stream.time_base)) if rate else 1)
    return pts, pts[-1] + max(1, durations[pts[-1]] or fallback), steps


def _declared_s(stream: Any) -> Fraction | None:
    """How long the container says this stream is; None where it does not say."""
    if stream.duration and stream.container.format.name != "mpegts":
        return Fraction(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = tag.split(":")
        return Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None


def _decode(container: Any, stream: Any) -> Iterator[VideoFrame]:
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except FFmpegError as error:
        raise BadData("decode-error", f"after {count} frames: {_why(error)}") from error


def frames(
    path: Path, facts: Container, start_s: Fraction | None = None, end_s: Fraction | None = None
) -> Iterator[tuple[VideoFrame, int, int]]:
    """Decode in display order: (frame, its pts, the pts at which the next one replaces it).

    `start_s` and `end_s` count from the video's first frame, as a player does; frames that start
    inside [start_s, end_s) are given. Raises BadData: decode-error, no-timestamps, outside-span.
    """
    low = facts.start_pts + (-(-start_s // facts.time_base) if start_s else 0)
    high = facts.end_pts if end_s is None else min(facts.end_pts, facts.start_pts - (-end_s // facts.time_base))
    with _open(path) as container:
        stream = _video_stream(container)
        if start_s:
            _seek(container, stream, low)
        held: tuple[VideoFrame, int] | None = None
        step, given = 1, False
        for frame in _decode(container, stream):
            if frame.pts is None:
                raise BadData("no-timestamps", "a decoded frame has no time stamp")
            if held is not None and frame.pts <= held[1]:
                continue
            if held is not None:
                step = frame.pts - held[1]
                if low <= held[1]:
                    given = True
                    yield (*held, min(frame.pts, high))
            held = (frame, frame.pts)
            if frame.pts >= high:
                break
        if held is not None and low <= held[1] < high:
            yield (*held, min(high, held[1] + (held[0].duration or step)))
        elif not given:
            raise BadData("outside-span", f"no frame in the time range that begins at {float(start_s or 0):.3f} s")


def _seek(container: Any, stream: Any, pts: int) -> None:
    """Go to a frame at or before `pts` that decoding can start from; to the start if there is none."""
    start = stream.start_time or 0
    target, back = pts, math.ceil(SEEK_BACK_S / stream.time_base)
    while target > start:
        container.seek(target, stream=stream, backward=True)
        first = next((packet for packet in container.demux(stream) if packet.pts is not None and packet.is_keyframe), None)
        if first is not None and first.pts <= pts:
            break
        target, back = pts - back, back * 4
    container.seek(max(start, target), stream=stream, backward=True)


def graph(frame: VideoFrame, time_base: Fraction, *filters: tuple[str, str]) -> Graph:
    """A one-threaded chain of filters for frames like this one."""
    made = Graph()
    made.threads = 1
    nodes = [made.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)]
    nodes += [made.add(name, args) for name, args in filters]
    nodes.append(made.add("buffersink"))
    made.link_nodes(*nodes).configure()
    return made


def through(chain: Graph, frame: VideoFrame) -> VideoFrame:
    """Push one frame, pull one frame."""
    chain.push(frame)
    return chain.pull()  # type: ignore[return-value]


class Thumbnails:
    """Frames as small `h w 3` uint8 BGR arrays, which is what PySceneDetect's detectors eat."""

    def __init__(self, facts: Container, width: int) -> None:
        self._time_base = facts.time_base
        self._width = min(width, facts.width)
        self._height = max(2, round(facts.height * self._width / facts.width))
        self._graph: Graph | None = None

    def of(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._graph is None:
            scale = ("scale", f"{self._width}:{self._height}:flags=fast_bilinear")
            self._graph = graph(frame, self._time_base, scale, ("format", "bgr24"))
        pixels: NDArray[np.uint8] = through(self._graph, frame).to_ndarray()  # type: ignore[assignment]
        return pixels


class SceneScore:
    """ffmpeg's scdet: the score of a frame against the one before, 0 to 100."""

    def __init__(self, facts: Container) -> None:
        self._time_base = facts.time_base
        self._graph: Graph | None = None

    def of(self, frame: VideoFrame) -> float:
        if self._graph is None:
            self._graph = graph(frame, self._time_base, ("scdet", "threshold=100"))
        return float(through(self._graph, frame).metadata.get("lavfi.scd.score", 0.0))


def read_clip(path: Path) -> NDArray[np.uint8]:
    """All frames of a clip as `f h w c` uint8 RGB, read with decord. Raises BadData('decode-error')."""
    import torch  # noqa: F401  before decord: the other order binds torch to a BLAS that is not there

    import decord  # isort: skip

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels: NDArray[np.uint8] = reader.get_batch(range(len(reader))).asnumpy()
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        raise BadData("decode-error", f"decord cannot read the clip: {type(error).__name__}") from error
    return pixels
