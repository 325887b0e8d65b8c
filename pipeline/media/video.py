"""The only module that opens videos: probe, exact frames with time stamps, small pictures, clips.

PyAV in process, one thread per video (two videos side by side beat one video on two threads). Only
regular files in the containers named here are opened, with the `file` protocol alone, so that a
playlist which calls itself a video is refused instead of followed. Limits: docs/security.md.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import math
import os
import re
import stat
import struct
import weakref
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

# named again, for the trainer, which may not import core
from pipeline.core.errors import BadData as BadData
from pipeline.core.errors import Reason
from pipeline.core.records import Container as Container
from pipeline.media import interlacing, timeline

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,"
    "asf,ogg,mxf,nut,yuv4mpegpipe,gif,dv"
)
MAX_SIDE = 16384  # pixels
MAX_PIXELS = 8192 * 8192  # of one picture; a decoder holds up to 17 of them
MAX_HOURS = 48
MAX_FRAMES = 20_000_000
MAX_CLIP_BYTES = 16 * 10**9  # of a clip's pixels, which are in memory all at once
OPTIONS = {
    "format_whitelist": CONTAINERS,
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}
# a container may promise this much more than it holds, or 5 %, whichever is more
MISSING_S = Fraction(1)
# these declare how long a stream is; all others, where it ends
LENGTH_DECLARED = ("mov,mp4,m4a,3gp,3g2,mj2",)
# raw streams: pictures without times
TIMELESS = ("h264", "hevc", "obu", "m4v", "mpegvideo")
PICTURES = (
    (rb"RIFF....WEBP", "WebP"),
    (rb"\x89PNG", "PNG or APNG"),
    (rb"\xff\xd8\xff", "JPEG or MJPEG"),
    (rb"....ftyp(heic|heix|mif1)", "HEIC"),
    (rb"BM", "BMP"),
    (rb"II\*\x00|MM\x00\*", "TIFF"),
)
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
# of the pictures of the longest stream; what has fewer is no film
LEAST_OF_A_FILM = 0.05
MAX_SENT = 64  # packets whose frames may be on the way
# where a container finds no key frame before a point, how much earlier to look at first
SEEK_BACK_S = 2

UNKNOWN = "unknown"
# Colours by their numbers in H.273: those longtake converts, and unspecified or reserved ones
MATRICES = {
    **dict.fromkeys((2, 3), UNKNOWN),
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020",
}
RANGES = {1: "tv", 2: "pc"}
PRIMARIES = {
    **dict.fromkeys((0, 2, 3), UNKNOWN),
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    11: "smpte431",
    12: "smpte432",
    22: "jedec-p22",
}
TRANSFERS = {
    **dict.fromkeys((0, 2, 3), UNKNOWN),
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    18: "arib-std-b67",
}
# those it does not
STRANGE_MATRICES = {
    0: "gbr",
    8: "ycgco",
    10: "bt2020c",
    11: "smpte2085",
    12: "chroma-derived-nc",
    13: "chroma-derived-c",
    14: "ictcp",
    15: "ipt-c2",
    16: "ycgco-re",
    17: "ycgco-ro",
}
STRANGE_PRIMARIES = {10: "smpte428"}
STRANGE_TRANSFERS = {8: "linear", 9: "log100", 10: "log316", 17: "smpte428"}
# of a clip, which is always BT.709 in limited range
EXACT_RGB = (
    (
        "scale",
        "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
        ":in_color_matrix=bt709:in_range=tv:out_range=pc",
    ),
    ("format", "rgb24"),
)
Filters = Sequence[tuple[str, str]]  # names and arguments
Tags = tuple[str, int, int, int, int]  # pixel format, matrix, range, primaries, transfer
BGR, GREY = ("format", "bgr24"), ("format", "gray")
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
        name = _picture_format(path)
        why = f"{name} is none of the containers longtake opens" if name else _why(error)
        raise BadData("unreadable", f"not a video longtake can open: {why}") from error


def _picture_format(path: Path) -> str:
    """The name of a format for pictures, "" for other files. Some of them move."""
    with path.open("rb") as file:
        head = file.read(16)
    return next((name for start, name in PICTURES if re.match(start, head, re.DOTALL)), "")


def _why(error: Exception) -> str:
    """FFmpeg's reason without the path, so that equal failures are equal text."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _check(what: str, number: float, limit: float) -> None:
    if number > limit:
        raise BadData("too-large", f"{what}: {round(number, 2):.15g} found, {limit:.15g} allowed")


def _check_picture(width: int, height: int) -> None:
    _check("pixels on a side", max(width, height), MAX_SIDE)
    _check("pixels of a picture", width * height, MAX_PIXELS)


def _streams(container: Any) -> list[Any]:
    """The streams that may be the film: no cover picture, nothing that only belongs to another."""
    streams = [each for each in container.streams.video if not each.disposition & NO_FILM]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams})
        raise BadData("no-video-stream", f"the file has {', '.join(kinds) or 'no streams'}")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise BadData("unreadable", "no decoder for the video stream")
    return [_ready(stream) for stream in streams]


def _ready(stream: Any) -> Any:
    """The stream, with a decoder on one thread."""
    _check_picture(stream.codec_context.width, stream.codec_context.height)
    _check("frames", stream.frames, MAX_FRAMES)
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # said to the decoder too, for pictures that are larger than the header says
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _film(container: Any, facts: Container) -> Any:
    """The stream that the probe chose."""
    if facts.stream >= len(container.streams):
        raise BadData("no-video-stream", f"there is no stream {facts.stream} in the file")
    return _ready(container.streams[facts.stream])


def probe(path: Path) -> Container:
    """Container facts from one pass over the packets and the first decoded frame.

    Raises BadData: unreadable, no-video-stream, no-timestamps, too-large, truncated, decode-error,
    unknown-colours or interlaced (one field a picture).
    """
    with _open(path) as container:
        _check_container(container)
        streams = _streams(container)
        packets = _read_packets(container, streams)
        stream = _chosen(streams, packets)
        line = _line_of(stream, packets[stream.index])
        _check_whole(stream, line, packets[stream.index])
        index = stream.index
    with _open(path) as container:
        stream = _ready(container.streams[index])
        first = _first_frame(container, stream)
        mirrored, rotation = _display(first)
        _check_colours(first)
        facts = Container(
            format=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=first.width,
            height=first.height,
            mirrored=mirrored,
            rotation=rotation,
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 1) or Fraction(1),
            **_colours(first),
            time_base=Fraction(stream.time_base),
            average_fps=Fraction(line.num_frames) / (line.shown * stream.time_base),
            num_frames=line.num_frames,
            start_pts=line.start_pts,
            end_pts=line.end_pts,
            stream=index,
            order=line.order,
        )
    return replace(facts, scan=_scan(path, facts, first.interlaced_frame))


def _check_container(container: Any) -> None:
    name = container.format.name
    if name in TIMELESS:
        raise BadData(
            "no-timestamps",
            f"a raw {name} stream does not say when its pictures are shown: put it into a "
            "container, with the rate it was filmed at (ffmpeg -r RATE -i FILE -c copy film.mkv)",
        )


@dataclass
class _Packets:
    """What the packets of one stream say: time stamps in the order of the file, and how long the
    picture stays that is shown last.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    top: float = -math.inf
    last: int = 0

    def add(self, packet: Any) -> None:
        before = self.dts[-1] if self.dts else packet.pts
        self.pts.append(packet.pts)
        self.dts.append(before if packet.dts is None else packet.dts)
        _check("frames", len(self.pts), MAX_FRAMES)
        if packet.pts >= self.top:
            self.top, self.last = packet.pts, packet.duration or 0


def _read_packets(container: Any, streams: list[Any]) -> dict[int, _Packets]:
    """One pass over the packets, for every stream that may be the film."""
    packets = {stream.index: _Packets() for stream in streams}
    try:
        for packet in _demux(container, streams):
            if packet.size and packet.pts is not None and not packet.is_discard:
                packets[packet.stream_index].add(packet)
    except FFmpegError as error:
        if not any(each.pts for each in packets.values()):
            raise BadData("unreadable", _why(error)) from error
    if not any(each.pts for each in packets.values()):
        raise BadData("no-timestamps", "no packet of the video stream carries a time stamp")
    return packets


def _chosen(streams: list[Any], packets: dict[int, _Packets]) -> Any:
    """The film among the streams: not a picture that stands still beside a film (a cover, a
    thumbnail), not a grey one beside a coloured one (a depth map); of the rest the one marked as
    default, then the largest, then the one with most pictures, then the first.
    """
    most = max(len(each.pts) for each in packets.values())

    def rank(stream: Any) -> tuple[bool, bool, bool, int, int, int]:
        context, count = stream.codec_context, len(packets[stream.index].pts)
        return (
            count > most * LEAST_OF_A_FILM,
            not (context.pix_fmt or "").startswith("gray"),
            bool(stream.disposition & Disposition.default),
            context.width * context.height,
            count,
            -stream.index,
        )

    return max(streams, key=rank)


def _line_of(stream: Any, packets: _Packets) -> timeline.Line:
    if not packets.pts:
        raise BadData("no-timestamps", "no packet of the video stream carries a time stamp")
    first, top = min(packets.pts), max(packets.pts)
    # before differences are taken, which may overflow
    _check("hours", float((top - first) * stream.time_base / 3600), MAX_HOURS)
    pts, dts = (np.frombuffer(each, np.int64) for each in (packets.pts, packets.dts))
    rate = stream.average_rate or stream.guessed_rate
    last = packets.last
    if not last and len(pts) == 1 and rate:
        last = round(1 / (rate * stream.time_base))
    line = timeline.line_of(pts, dts, last, stream.time_base, stream.container.format.name)
    _check("hours", float((line.end_pts - line.start_pts) * stream.time_base / 3600), MAX_HOURS)
    # a container without time stamps of its own counts packets, in the order of the file
    if line.order == "steady" and stream.codec_context.has_b_frames and not np.ptp(pts - dts):
        line = line._replace(order="unordered")
    return line


def _check_whole(stream: Any, line: timeline.Line, packets: _Packets) -> None:
    """Raises BadData('truncated') where the container promises more than is there."""
    declared_s = _declared_s(stream)
    if declared_s is None:
        return
    # its last picture may be promised for longer than it is believed
    end = max(line.end_pts, int(packets.top) + packets.last)
    duration_s = (end - line.start_pts) * stream.time_base
    if stream.container.format.name not in LENGTH_DECLARED:
        duration_s = max(duration_s, line.end_pts * stream.time_base)
    if declared_s - duration_s > max(MISSING_S, declared_s / 20):
        raise BadData(
            "truncated",
            f"the container promises {float(declared_s):.2f} s of video "
            f"and holds {float(duration_s):.2f} s",
        )


def _colours(frame: VideoFrame) -> dict[str, Any]:
    """What a frame says of its pixels and colours, as fields of a Container."""
    return {
        "pix_fmt": frame.format.name,
        "color_matrix": MATRICES.get(frame.colorspace, UNKNOWN),
        "color_range": RANGES.get(frame.color_range, UNKNOWN),
        "color_primaries": PRIMARIES.get(frame.color_primaries, UNKNOWN),
        "color_transfer": TRANSFERS.get(frame.color_trc, UNKNOWN),
    }


def _tags(frame: VideoFrame) -> Tags:
    """What tells frames apart whose pixels are to be read differently."""
    return (
        frame.format.name,
        frame.colorspace,
        frame.color_range,
        frame.color_primaries,
        frame.color_trc,
    )


def _check_colours(frame: VideoFrame) -> None:
    """Raises BadData('unknown-colours') for a frame tagged with what longtake cannot convert."""
    has_matrix = not is_rgb(frame.format.name) and len(frame.format.components) > 2
    tags = (
        *([("matrix", frame.colorspace, MATRICES, STRANGE_MATRICES)] if has_matrix else []),
        ("primaries", frame.color_primaries, PRIMARIES, STRANGE_PRIMARIES),
        ("transfer", frame.color_trc, TRANSFERS, STRANGE_TRANSFERS),
    )
    for kind, number, converted, strange in tags:
        if number not in converted:
            name = strange.get(number, f"number {int(number)}")
            names = ", ".join(name for name in converted.values() if name != UNKNOWN)
            raise BadData(
                "unknown-colours",
                f"the {kind} {name} of its colours cannot be converted, only {names}",
            )


def is_rgb(pix_fmt: str) -> bool:
    """Whether pixels are RGB, which has no matrix and is never in limited range."""
    pixels = VideoFormat(pix_fmt)
    return bool(pixels.is_rgb or pixels.has_palette)


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


def _demux(container: Any, streams: Any) -> Iterator[Any]:
    """The packets of one stream or several, and an empty one of each, which flushes its decoder."""
    # after that PyAV flushes the other streams, and stumbles over one that turned up late
    with contextlib.suppress(IndexError):
        yield from container.demux(streams)


def _declared_s(stream: Any) -> Fraction | None:
    """How long the container says this stream is; None where it does not say."""
    if stream.duration and stream.container.format.name != "mpegts":
        return Fraction(stream.duration * stream.time_base)
    tag = re.fullmatch(
        r"(\d{1,9}):(\d{1,9}):(\d{1,9}(\.\d{1,20})?)", stream.metadata.get("DURATION", ""), re.ASCII
    )
    return Fraction(tag[1]) * 3600 + Fraction(tag[2]) * 60 + Fraction(tag[3]) if tag else None


def _first_frame(container: Any, stream: Any) -> VideoFrame:
    """The first whole frame. Raises BadData('decode-error') if there is none."""
    why = ""
    for picture in _pictures(container, stream):
        if picture.frame is not None and picture.is_whole:
            return picture.frame
        why = why or picture.trouble
    raise BadData("decode-error", why or "no frame can be decoded")


def _scan(path: Path, facts: Container, is_flagged: bool) -> interlacing.Scan:
    """Whether a video is interlaced, from a few frames of it."""
    if not interlacing.is_possible(facts, is_flagged):
        return "progressive"
    if is_flagged and interlacing.is_single_field(facts):
        raise BadData(
            "interlaced",
            f"each picture ({facts.width}x{facts.height}) is one field of a frame, which FFmpeg's "
            "decoder does not put together: do it beforehand (ffmpeg -i FILE -vf weave OUT)",
        )
    to_luma = Conversion(facts, lambda _: (("scale", "flags=accurate_rnd+bitexact"), GREY))
    opinions: Counter[interlacing.Scan] = Counter()
    num_flagged = num_frames = 0
    can_seek = facts.order != "broken"
    num_places = interlacing.NUM_PLACES if can_seek else 1
    num_looks = interlacing.FRAMES_A_PLACE * interlacing.NUM_PLACES // num_places
    for place in range(num_places):
        low = facts.start_pts + (facts.end_pts - facts.start_pts) * place // num_places
        with _open_for(path, facts, low) as container:
            before = None
            for frame in _first_frames(container, facts, num_looks):
                num_frames += 1
                num_flagged += frame.interlaced_frame
                grey: Any = to_luma.convert(frame)
                luma = grey.to_ndarray()
                if before is not None and (scan := interlacing.opinion(before, luma)):
                    opinions[scan] += 1
                before = luma
    return interlacing.scan_of(opinions, num_flagged, num_frames)


def _first_frames(container: Any, facts: Container, count: int) -> Iterator[Any]:
    """Some frames from where a container is, those that are not whole left out."""
    pictures = _pictures(container, _film(container, facts))
    for frame, _, is_whole, _ in itertools.islice(pictures, count):
        if frame is not None and is_whole and not _change(frame, facts):
            yield frame


class _Picture(NamedTuple):
    """A decoded frame, and what went wrong since the last whole one, "" if nothing. Without a frame
    it says what went wrong at the end of the video.
    """

    frame: VideoFrame | None
    trouble: str = ""
    is_whole: bool = False  # neither damaged nor made of damaged ones
    aspect: Fraction | None = None  # of its pixels, as the decoder says


@dataclass
class _Sent:
    """A packet on its way through the decoder."""

    index: int
    is_key: bool
    aspect: Fraction | None = None


class _Faults:
    """Which decoded frames are whole: a fault in a packet spoils all frames from it on, in the
    order of the file, up to the next key frame. That must be one to the container, too: a damaged
    AV1 stream shows an old key frame again.
    """

    def __init__(self) -> None:
        self._index = 0  # of the last packet
        self._sent: dict[int, _Sent] = {}  # whose frame has not come, by time stamp
        self._last = _Sent(0, True)
        self._faults: deque[tuple[int, str]] = deque()
        self._spoiled: int | None = None
        self._why = ""
        self.is_stuck = False  # the decoder refused the last packet

    def see(self, packet: Any, is_join: bool) -> None:
        """A packet on its way to the decoder. Where two recordings are joined (`is_join`: time goes
        back) what the container finds wrong is that they do not fit together.
        """
        self._index += 1
        self._last = _Sent(self._index, packet.is_keyframe)
        self.is_stuck = False
        if packet.size and packet.pts is not None and not packet.is_discard:
            self._sent[packet.pts] = self._last
            if len(self._sent) > MAX_SENT:
                del self._sent[next(iter(self._sent))]
        if packet.is_corrupt and not is_join:
            self.add("a damaged packet")

    def add(self, why: str) -> None:
        """A fault in the packet that was sent last."""
        self._faults.append((self._index, why))

    def see_aspect(self, aspect: Fraction | None) -> None:
        """What the decoder says of pixels after the last packet. Its frame may come later."""
        self._last.aspect = aspect

    def judge(self, frame: VideoFrame) -> _Picture:
        sent = _Sent(self._index, True, self._last.aspect)
        if frame.pts is not None:
            sent = self._sent.pop(frame.pts, sent)
        index, is_key = sent.index, sent.is_key
        if frame.is_corrupt:
            self._faults.appendleft((index, "a frame the decoder calls corrupt"))
        while self._faults and self._faults[0][0] <= index:
            self._spoiled, self._why = self._faults.popleft()
        why = self._why
        if self._spoiled is not None and frame.key_frame and is_key and index > self._spoiled:
            self._spoiled = None
        is_whole = self._spoiled is None
        if is_whole:
            self._why = ""
        return _Picture(frame, why, is_whole, sent.aspect)

    def num_lost(self, before: int) -> int:
        """How many packets were to be shown before this time and gave no frame; they are
        forgotten.
        """
        lost = [pts for pts in self._sent if pts < before]
        for pts in lost:
            del self._sent[pts]
        return len(lost)

    def rest(self) -> _Picture | None:
        """What went wrong behind the last frame."""
        why = self._why or (self._faults[0][1] if self._faults else "")
        return _Picture(None, why) if why else None


def _pictures(container: Any, stream: Any, faults: _Faults | None = None) -> Iterator[_Picture]:
    """All frames that can be decoded, in the order in which they are shown, whole or not."""
    faults = faults or _Faults()
    for count, frame in enumerate(_decode(container, stream, faults)):
        _check_picture(frame.width, frame.height)
        _check("frames", count, MAX_FRAMES)
        yield faults.judge(frame)
    rest = faults.rest()
    if rest is not None:
        yield rest


def _decode(container: Any, stream: Any, faults: _Faults) -> Iterator[VideoFrame]:
    decoder = stream.codec_context
    try:
        for packet, is_join in _with_joins(_demux(container, stream)):
            if packet.is_keyframe and faults.is_stuck:
                decoder.flush_buffers()  # some stay broken until they begin anew
            faults.see(packet, is_join)
            frames = _frames_of(packet.decode, faults)
            faults.see_aspect(decoder.sample_aspect_ratio)
            yield from frames
            del frames  # into memory that is not held, and warm, the next one is decoded
    except FFmpegError as error:  # the container itself: no packet will say that this was the last
        faults.add(_why(error))
        yield from _frames_of(decoder.decode, faults)


def _frames_of(decode: Callable[[], list[VideoFrame]], faults: _Faults) -> list[VideoFrame]:
    try:
        return decode()
    except FFmpegError as error:
        faults.add(_why(error))
        faults.is_stuck = True
        return []


def _with_joins(packets: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Each packet, and whether time goes back at one of the next two. (FFmpeg notes a fault a
    packet too early, because it knows where one ends when the next begins.)
    """
    ahead: deque[Any] = deque()
    failure: FFmpegError | None = None
    try:
        for packet in packets:
            ahead.append(packet)
            if len(ahead) == 3:
                yield ahead[0], _is_join(ahead)
                ahead.popleft()
    except FFmpegError as error:
        failure = error
    while ahead:
        yield ahead[0], _is_join(ahead)
        ahead.popleft()
    if failure is not None:
        raise failure


def _is_join(packets: Iterable[Any]) -> bool:
    times = [packet.dts for packet in packets if packet.dts is not None]
    return any(
        not 0 <= after - before <= timeline.WRAP // 2 for before, after in itertools.pairwise(times)
    )


def frames(
    path: Path,
    facts: Container,
    start_s: Fraction | None = None,
    end_s: Fraction | None = None,
    losses: list[timeline.Loss] | None = None,
) -> Iterator[tuple[VideoFrame, int, int]]:
    """Decode in display order: (frame, its pts, the pts at which it is no longer shown).

    Time stamps are those of the video's line (`pipeline.media.timeline`): where a frame's pts is
    not the end of the one before, a new stretch begins. What gives no frames is added to `losses`:
    gaps, and damage up to the next key frame.

    `start_s` and `end_s` count from the video's first frame, as a player does; frames that start
    inside [start_s, end_s) are given. Raises BadData: outside-span, too-large, or the reason of the
    first loss where nothing is left.
    """
    low = facts.start_pts + (-(-start_s // facts.time_base) if start_s else 0)
    high = None if end_s is None else facts.start_pts - (-end_s // facts.time_base)
    losses = [] if losses is None else losses
    is_empty = True
    with _open_for(path, facts, low) as container:
        showing = _Showing(container, facts, low, high, losses)
        for frame, pts, end_pts in _progressive(showing, facts):
            if pts >= low:
                is_empty = False
                yield frame, pts, end_pts
    if is_empty and losses:
        raise BadData(losses[0].reason, losses[0].why)
    if is_empty:
        raise BadData(
            "outside-span",
            f"no frame in the time range that begins at {float(start_s or 0):.3f} s",
        )


def shown(
    path: Path, facts: Container, start_pts: int, end_pts: int
) -> Iterator[tuple[VideoFrame, int, int]]:
    """What is on the screen from `start_pts` to `end_pts`: as `frames`, but the first one may have
    come before; it is said to be shown from `start_pts` on.
    """
    with _open_for(path, facts, start_pts) as container:
        showing = _Showing(container, facts, start_pts, end_pts, [])
        for frame, pts, end in _progressive(showing, facts):
            yield frame, max(pts, start_pts), end


def _open_for(path: Path, facts: Container, low: int) -> Any:
    """A video to be read from `low` on. A broken line has to be followed from its start."""
    can_seek = low > facts.start_pts and facts.order != "broken"
    return _open_at(path, facts, low) if can_seek else _open(path)


class _Showing:
    """The whole frames of an open video shown from `low` up to `high` (None: to the end), and, in
    `losses`, the holes between them.
    """

    def __init__(
        self,
        container: Any,
        facts: Container,
        low: int,
        high: int | None,
        losses: list[timeline.Loss],
    ) -> None:
        self._container, self._facts = container, facts
        self._low, self._high, self._losses = low, high, losses
        usual = 1 / (facts.average_fps * facts.time_base)
        self._kind = _Kind(facts, _film(container, facts).codec_context.sample_aspect_ratio)
        self._steps = timeline.Steps.of(usual, facts.time_base, facts.format)
        self._clock = timeline.Clock(self._steps)
        self._faults = _Faults()
        self._why = ""  # what went wrong since the last whole frame
        self._edge = low  # up to here all frames are shown or lost
        self._is_first = True
        self._is_gap = False

    def __iter__(self) -> Iterator[tuple[VideoFrame, int, int]]:
        # a frame's end is known when the next one comes, so each waits for it here
        waiting: tuple[VideoFrame, int] | None = None
        for frame, pts, end in self._placed():
            if waiting is not None:
                yield from self._show(*waiting, end)
                waiting = None
            if frame is None:
                continue
            self._close_hole(pts)
            waiting = (frame, pts)
            if self._high is not None and pts >= self._high:
                return
        if waiting is not None:
            yield from self._show(*waiting, self._clock.end())
        self._close_end()

    def _placed(self) -> Iterator[tuple[VideoFrame | None, int, int]]:
        """Each frame (None for one that is not whole), its pts, and the end of the one before."""
        last = self._edge
        for stamp, (frame, trouble, is_whole, aspect) in self._in_order():
            self._why = self._why or trouble
            if frame is None:
                return
            place = self._clock.place(stamp, frame.duration)
            if place is None:
                continue
            pts, end = place
            self._is_gap |= pts - end > 1
            num_lost = 0 if stamp is None else self._faults.num_lost(stamp)
            if num_lost and pts - last > timeline.LONG_STEPS * self._steps.usual:
                self._why = self._why or f"{num_lost} packets that give no picture"
            if self._why:  # nobody knows how long the frame before was to be shown
                end = min(end, last + max(1, round(self._steps.usual)))
            change = self._kind.change(frame, aspect)
            self._why = change or self._why
            yield (frame if is_whole and not change else None), pts, end
            last = pts

    def _in_order(self) -> Iterator[tuple[int | None, _Picture]]:
        pictures = _pictures(self._container, _film(self._container, self._facts), self._faults)
        stamped = (
            (None if picture.frame is None else picture.frame.pts, picture) for picture in pictures
        )
        return timeline.in_order(stamped) if self._facts.order == "unordered" else stamped

    def _show(self, frame: VideoFrame, pts: int, end: int) -> Iterator[tuple[VideoFrame, int, int]]:
        if self._high is not None:
            end = min(end, self._high)
        self._edge = end
        if pts < end and end > self._low:
            yield frame, pts, end

    def _close_hole(self, pts: int) -> None:
        """A whole frame comes at `pts`: what is between it and the last one is lost."""
        # before the first frame a little space is nothing that is lost, and where time goes back
        # there is a tick of it
        if pts - self._edge > (self._little() if self._is_first else 1):
            self._lose(pts)
        self._is_first, self._is_gap, self._why = False, False, ""

    def _close_end(self) -> None:
        """What the container promises behind the last frame."""
        # where a line is broken, damage before its end may have moved it
        is_sure = self._why or self._facts.order != "broken"
        end = self._facts.end_pts if is_sure else self._edge
        if end - self._edge > self._little():
            self._why = self._why or "no picture can be decoded"
            self._lose(end)
        if self._clock.num_timeless:
            why = f"{self._clock.num_timeless} pictures with the time of the one before"
            self._losses.append(timeline.Loss("no-timestamps", self._low, self._edge, why))

    def _little(self) -> Fraction:
        """What may be missing without a reason."""
        return Fraction(0) if self._why else timeline.LONG_STEPS * self._steps.usual

    def _lose(self, end: int) -> None:
        start = max(self._edge, self._low)
        end = end if self._high is None else min(end, self._high)
        if start >= end:
            return
        first_s, last_s = (
            float((pts - self._facts.start_pts) * self._facts.time_base) for pts in (start, end)
        )
        reason: Reason = "damaged" if self._why and not self._is_gap else "gap"
        why = f"{first_s:.3f} s to {last_s:.3f} s: {self._why or 'no picture'}"
        self._losses.append(timeline.Loss(reason, start, end, why))


def _progressive(
    showing: Iterable[tuple[VideoFrame, int, int]], facts: Container
) -> Iterator[tuple[VideoFrame, int, int]]:
    """The same frames; those of an interlaced video deinterlaced, anew after each hole and where
    the tags of colours change.
    """
    if facts.scan == "progressive":
        yield from showing
        return
    # where bwdif does not take the pixels as they are, they are repacked without rounding
    repack = ("scale", "flags=accurate_rnd+full_chroma_int+full_chroma_inp+bitexact")
    chain: Graph | None = None
    colours: dict[str, Any] = {}
    waiting: deque[tuple[int, int]] = deque()  # a frame is done when the next one comes

    def done(frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, int, int]]:
        for frame in frames:
            yield (frame, *waiting.popleft())

    for frame, pts, end in showing:
        is_neighbour = bool(waiting) and waiting[-1][1] == pts and _colours(frame) == colours
        if chain is not None and waiting and not is_neighbour:
            yield from done(_pushed(chain, None))
            chain = None
        if chain is None:
            colours = _colours(frame)
            chain = graph(frame, facts.time_base, repack, *interlacing.deinterlacers(facts.scan))
        frame.pts = pts
        waiting.append((pts, end))
        yield from done(_pushed(chain, frame))
    if chain is not None:
        yield from done(_pushed(chain, None))


def _change(frame: VideoFrame, facts: Container) -> str:
    """How a frame differs from the first one, "" if it does not. Filters are made for one size and
    format: a frame of another they would read beyond its end.
    """
    name = frame.format.name
    if (frame.width, frame.height, name) == (facts.width, facts.height, facts.pix_fmt):
        return ""
    was = f"{facts.width}x{facts.height} {facts.pix_fmt.replace('yuvj', 'yuv')}"
    now = f"{frame.width}x{frame.height} {name.replace('yuvj', 'yuv')}"
    return "" if was == now else f"the picture changes from {was} to {now}"


class _Kind:
    """Whether frames are of the kind that the probe found: what filters and the square are made
    for. (Tags of colours may change: each frame is converted by its own.) `aspect` is of pixels, as
    the decoder knows it before the first frame.
    """

    def __init__(self, facts: Container, aspect: Fraction | None) -> None:
        self._facts = facts
        self._turn = facts.mirrored, facts.rotation
        self._rotation: int | None = None  # of the last frame
        self._tags: Tags | None = None  # of the last frame whose colours can be converted
        # where the container says another, it counts, and for all frames
        self._is_by_decoder = (aspect or 1) == facts.pixel_aspect

    def change(self, frame: VideoFrame, aspect: Fraction | None) -> str:
        """How a frame differs, "" if it does not."""
        facts, upright = self._facts, (self._facts.mirrored, self._facts.rotation)
        # a frame and its side data hold each other, so that its memory is not used again at once
        if frame.rotation != self._rotation:
            self._rotation = frame.rotation
            sides: Any = frame.side_data
            if sides.get(Type.DISPLAYMATRIX) is not None:  # a turn holds until a frame says another
                self._turn = _display(frame)
        if change := _change(frame, facts):
            return change
        if self._is_by_decoder and (aspect or 1) != facts.pixel_aspect:
            was, now = _ratio(facts.pixel_aspect), _ratio(aspect or Fraction(1))
            return f"the shape of pixels changes from {was} to {now}"
        if self._turn != upright:
            was, now = _turn_name(*upright), _turn_name(*self._turn)
            return f"the picture changes from {was} to {now}"
        tags = _tags(frame)
        if tags != self._tags:
            try:
                _check_colours(frame)
            except BadData as error:
                return error.detail
            self._tags = tags
        return ""


def _ratio(aspect: Fraction) -> str:
    return f"{aspect.numerator}:{aspect.denominator}"


def _turn_name(mirrored: bool, rotation: int) -> str:
    return f"{'mirrored and ' if mirrored else ''}turned by {rotation} degrees"


def _open_at(path: Path, facts: Container, pts: int) -> Any:
    container = _open(path)
    with contextlib.suppress(FFmpegError, OverflowError):
        _seek(container, _film(container, facts), pts)
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


def _pushed(chain: Graph, frame: VideoFrame | None) -> Iterator[VideoFrame]:
    """Push one frame, or None at the end, and pull those that are done. Raises
    BadData('decode-error') for a picture that cannot be converted.
    """
    try:
        chain.push(frame)
        while True:
            yield chain.pull()  # type: ignore[misc]
    except (BlockingIOError, EOFError):  # the next one is needed; there is no more
        return
    except FFmpegError as error:
        raise BadData("decode-error", f"the picture cannot be converted: {_why(error)}") from error


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
    """Filters for all frames of a video: `filters` says which, for frames with the colours that a
    Container says. Frames whose tags are others than those of the first one have their own chain.
    Where swscale does not know the colours that a frame is tagged with, the tags are dropped.
    """

    def __init__(self, facts: Container, filters: Callable[[Container], Filters]) -> None:
        self._facts, self._filters = facts, filters
        self._graphs: dict[Tags, Graph] = {}

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """The frame after the filters. Raises BadData('decode-error')."""
        key = _tags(frame)
        if key not in self._graphs:
            self._graphs[key] = self._graph(frame)
        try:
            return through(self._graphs[key], frame)
        except BadData:
            self._graphs[key] = self._graph(frame, UNTAGGED)
            return through(self._graphs[key], frame)

    def _graph(self, frame: VideoFrame, *before: tuple[str, str]) -> Graph:
        facts = replace(self._facts, **_colours(frame))
        return graph(frame, facts.time_base, *before, *self._filters(facts))


class ExactRgb:
    """Pictures of a clip as `h w c` uint8 RGB, the same on every kind of CPU."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def pixels_of(self, frame: VideoFrame) -> NDArray[np.uint8]:
        self._graph = self._graph or graph(frame, Fraction(1, 1000), *EXACT_RGB)
        converted: Any = through(self._graph, frame)
        pixels: NDArray[np.uint8] = converted.to_ndarray()
        return pixels


class Thumbnails:
    """Frames as small `h w 3` uint8 BGR arrays, the input of PySceneDetect's detectors."""

    def __init__(self, facts: Container, width: int) -> None:
        width = min(width, facts.width)
        height = max(2, round(facts.height * width / facts.width))
        self._small = Conversion(
            facts, lambda _: (("scale", f"{width}:{height}:flags=fast_bilinear"), BGR)
        )

    def thumbnail_of(self, frame: VideoFrame) -> NDArray[np.uint8]:
        small: Any = self._small.convert(frame)
        pixels: NDArray[np.uint8] = small.to_ndarray()
        return pixels


class SceneScore:
    """ffmpeg's scdet: the score of a frame against the one before, 0 to 100."""

    def __init__(self, facts: Container) -> None:
        self._scdet = Conversion(facts, lambda _: (("scdet", "threshold=100"),))

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


def read_clip_exactly(path: Path) -> NDArray[np.uint8]:
    """All frames of a clip as `f h w c` uint8 RGB, the same on every kind of CPU. Raises BadData:
    decode-error or too-large.

    decord's conversion to RGB is a level darker in the mean, and rounds otherwise on a CPU without
    SSSE3; swscale with these flags does neither, in twice the time (0.7 ms for 256 x 256).
    """
    frame_bytes = clip_frame_bytes(path)
    pictures: list[NDArray[np.uint8]] = []
    to_rgb = ExactRgb()
    with _open(path) as container:
        stream = _streams(container)[0]
        for frame, trouble, is_whole, _ in _pictures(container, stream):
            if frame is None or not is_whole:
                raise BadData("decode-error", f"the clip is damaged: {trouble}")
            _check("bytes of pixels", (len(pictures) + 1) * frame_bytes, MAX_CLIP_BYTES)
            pictures.append(to_rgb.pixels_of(frame))
    if not pictures:
        raise BadData("decode-error", "the clip has no frame")
    return np.stack(pictures)


def clip_frame_bytes(path: Path) -> int:
    """Bytes of one picture of a clip. decord takes no options, so what it must not open is held
    back here. Raises BadData: decode-error or too-large.
    """
    try:
        with _open(path) as container, path.open("rb") as file:
            if file.read(8)[4:] != b"ftyp":
                raise BadData("decode-error", "not an mp4 file")
            context = _streams(container)[0].codec_context
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
            stream = _streams(container)[0]
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


def rgb_of(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of `some_frames` as `h w c` uint8 RGB, by the matrix of BT.709 (ITU-R BT.709-6,
    item 3.2), limited range. Chroma is repeated, not interpolated.
    """
    height, width = len(planes) * 2 // 3, planes.shape[1]
    luma = (planes[:height].astype(np.float32) - 16) * (255 / 219)
    chroma = planes[height:].reshape(2, height // 2, width // 2).astype(np.float32)
    blue, red = ((chroma - 128) * (255 / 224)).repeat(2, axis=1).repeat(2, axis=2)
    green = luma - 0.18732 * blue - 0.46812 * red
    pixels = np.stack([luma + 1.5748 * red, green, luma + 1.8556 * blue], axis=-1)
    return pixels.round().clip(0, 255).astype(np.uint8)
