"""Small real videos, made by ffmpeg from its own test sources: each deterministic and done in a
second.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PATCHES = (
    (176, 48, 32),
    (40, 160, 72),
    (48, 72, 184),
    (200, 200, 200),
)  # RGB: top left, top right, bottom left, bottom right
PATCH = 80  # side of one of the four patches, in pixels
NUMBERED_STEP = 3  # levels of brightness from one numbered frame to the next
NUMBERED_BLACK = 20
VARIABLE_PTS = tuple(n * 40 + n * n % 7 * 5 for n in range(60))  # milliseconds
LOOKS = ("testsrc2", "mandelbrot", "smptehdbars", "rgbtestsrc", "pal75bars", "yuvtestsrc")
PQ = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"
UNTAGGED = {"color_primaries": "unknown", "color_trc": "unknown", "colorspace": "unknown"}


def source(name: str, seconds: float, fps: Any, size: str) -> Any:
    """A lavfi source that ends."""
    options = f"{name}=size={size}:rate={fps}"
    return ffmpeg.input(
        f"{options}:maxiter=64" if name == "mandelbrot" else options, f="lavfi", t=seconds
    )


def make(path: Path, stream: Any, **options: Any) -> Path:
    """Run ffmpeg on one thread, without version strings in the file."""
    quick = {"preset": "ultrafast"} if options.get("vcodec") in ("libx264", "libx265") else {}
    fixed = {"threads": 1, "filter_threads": 1, "fflags": "+bitexact", "flags:v": "+bitexact"}
    job = stream.output(str(path), **{**fixed, **quick, **options}).global_args(
        "-loglevel", "error"
    )
    job.overwrite_output().run(cmd=FFMPEG, quiet=True)
    return path


def plain(
    path: Path,
    seconds: float = 12,
    fps: Any = 25,
    size: str = "320x240",
    codec: str = "libx264",
    **options: Any,
) -> Path:
    """Moving test picture with a counter, a key frame at least every 12 frames."""
    return make(
        path,
        source("testsrc2", seconds, fps, size),
        **{"vcodec": codec, "pix_fmt": "yuv420p", "g": 12, **options},
    )


def still(path: Path, seconds: float = 10, **options: Any) -> Path:
    """One picture that stays."""
    picture = source("mandelbrot", 0.04, 25, "320x180").filter("loop", loop=-1, size=1)
    return make(
        path, picture.filter("setpts", "N/25/TB"), t=seconds, r=25, pix_fmt="yuv420p", **options
    )


def slow(path: Path, pictures_a_second: str) -> Path:
    """Eight seconds of a film of so many pictures a second, each of them shown until the next."""
    stream = source("testsrc2", 8, pictures_a_second, "320x180").filter("fps", 30)
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p", t=8)


def small_mover(path: Path) -> Path:
    """A still over which a ball of a fortieth of the width goes 40 pixels a second."""
    ball = ffmpeg.input("color=white:size=8x8:rate=25", f="lavfi", t=6)
    stream = source("smptehdbars", 6, 25, "320x180").overlay(ball, x="20+40*t", y=60)
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p")


def barred(
    path: Path,
    inner: str,
    at: str,
    seconds: float = 2,
    look: str = "testsrc2",
    written: bool = False,
    dim: bool = False,
    **options: Any,
) -> Path:
    """A film of 320x180 with its picture, `inner` pixels, at `at` of a black frame. On its bars
    there may be white subtitles and a logo.
    """
    stream = source(look, seconds, 25, inner)
    if dim:
        stream = stream.filter("eq", brightness=-0.3)
    stream = stream.filter("pad", 320, 180, *at.split(":"))
    if written:
        for x, y, width, height in ((90, 166, 40, 2), (140, 166, 50, 2), (4, 4, 16, 8)):
            stream = stream.drawbox(x, y, width, height, "white", "fill")
    return make(path, stream, **{"vcodec": "libx264", "pix_fmt": "yuv420p", **options})


def barred_then_dark(path: Path) -> Path:
    """Two scenes inside the same bars, the second a night with a lamp in it."""
    lamp = ffmpeg.input("color=black:size=320x134:rate=25", f="lavfi", t=2)
    lamp = lamp.drawbox(150, 60, 30, 20, "yellow", "fill")
    bright = source("testsrc2", 2, 25, "320x134")
    stream = ffmpeg.concat(bright, lamp).filter("pad", 320, 180, 0, 22)
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p")


def night(path: Path) -> Path:
    """A black sky above hills that are lit."""
    hills = "18+150*gt(Y,110+30*sin(X/25)+10*sin(X/7+T))"
    stream = source("color", 2, 25, "320x180").filter("geq", lum=hills, cb=128, cr=128)
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p")


def title(path: Path) -> Path:
    """White writing (bars, for there may be no fonts) in the middle of black."""
    stream = ffmpeg.input("color=black:size=320x180:rate=25", f="lavfi", t=2)
    for line in range(3):
        for word in range(6):
            stream = stream.drawbox(60 + 34 * word, 70 + 16 * line, 26, 8, "white", "fill")
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p")


def black(path: Path) -> Path:
    """Nothing."""
    return make(path, source("color", 2, 25, "320x180"), vcodec="libx264", pix_fmt="yuv420p")


def joined(
    path: Path,
    cuts: Sequence[float],
    seconds: float = 12,
    fps: int = 25,
    size: str = "320x240",
    **options: Any,
) -> Path:
    """Different pictures with hard cuts at the given seconds."""
    edges = [0, *cuts, seconds]
    spans = [end - start for start, end in itertools.pairwise(edges)]
    parts = [
        source(LOOKS[index % len(LOOKS)], span, fps, size).filter("format", "yuv420p")
        for index, span in enumerate(spans)
    ]
    parts = [part.filter("setsar", 1) for part in parts]
    return make(
        path, ffmpeg.concat(*parts), **{"vcodec": "libx264", "pix_fmt": "yuv420p", **options}
    )


def numbered(
    path: Path,
    frames: int = 60,
    fps: Any = 25,
    size: str = "160x120",
    setpts: str = "N",
    tagged: bool = True,
    **options: Any,
) -> Path:
    """Grey frames whose brightness is their number: see `number_of`."""
    level = f"{NUMBERED_BLACK}+{NUMBERED_STEP}*N"
    stream = ffmpeg.input(f"nullsrc=size={size}:rate={fps}", f="lavfi").filter(
        "trim", end_frame=frames
    )
    stream = (
        stream.filter("format", "yuv420p")
        .filter("geq", lum=level, cb="128", cr="128")
        .filter("setpts", setpts)
    )
    tags = (
        {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "range": "tv"}
        if tagged
        else {}
    )
    stream = stream.filter("setparams", **tags)
    return make(path, stream, **{"vcodec": "libx264", "pix_fmt": "yuv420p", "crf": 4, **options})


def number_of(luma: float) -> int:
    """Which numbered frame has this mean luma (16 to 235)."""
    return round((luma - NUMBERED_BLACK) / NUMBERED_STEP)


def variable_frame_rate(path: Path) -> Path:
    """Numbered frames at the irregular times VARIABLE_PTS; the last one has no say how long it
    lasts.
    """
    setpts = "N*40+mod(N*N,7)*5"
    fine = {
        "fps_mode": "passthrough",
        "enc_time_base": "1/1000",
        "video_track_timescale": 1000,
        "bf": 0,
    }
    return numbered(path, frames=len(VARIABLE_PTS), fps=1000, setpts=setpts, **fine)


def av1(path: Path) -> Path:
    return plain(path, 2, size="160x120", codec="libsvtav1", preset=12, **{"svtav1-params": "lp=1"})


def hevc_10_bit(path: Path) -> Path:
    return plain(
        path,
        2,
        size="160x120",
        codec="libx265",
        pix_fmt="yuv420p10le",
        **{"profile:v": "main10", **_x265("")},
    )


def mpegts(path: Path, seconds: float = 4, gop: int = 12) -> Path:
    return plain(path, seconds, size="160x120", g=gop, format="mpegts")


def negative_start(path: Path) -> Path:
    """Numbered frames from one second before time zero on, all of them to be shown (MPEG-TS)."""
    early = {
        "output_ts_offset": -1,
        "avoid_negative_ts": "disabled",
        "muxdelay": 0,
        "muxpreload": 0,
    }
    return numbered(path, format="mpegts", bf=0, **early)


def edit_list(path: Path) -> Path:
    """60 numbered frames, of which the container says that the first 25 are not to be shown, as
    after `-ss 1 -c copy`.
    """
    return numbered(path, output_ts_offset=-1, avoid_negative_ts="disabled", bf=0)


def rotated(path: Path, degrees: int = 90) -> Path:
    """A landscape picture with a display matrix that turns it counter-clockwise, as telephones
    write it.
    """
    return _displayed(path, display_rotation=degrees)


def mirrored(path: Path) -> Path:
    """A display matrix that swaps left and right, as some front cameras write it."""
    return _displayed(path, display_hflip=None)


def _displayed(path: Path, **matrix: Any) -> Path:
    upright = plain(path.with_name(f"upright-{path.name}"), 1)
    made = make(path, ffmpeg.input(str(upright), **matrix), vcodec="copy")
    upright.unlink()
    return made


def anamorphic(path: Path) -> Path:
    """160x160 coded, 320x160 displayed: a white box, square when displayed (40x40), in the centre
    of black.
    """
    stream = source("color", 1, 10, "160x160").filter(
        "drawbox", x=70, y=60, w=20, h=40, color="white", t="fill"
    )
    return make(path, stream.filter("setsar", "2/1"), vcodec="libx264", pix_fmt="yuv420p", crf=4)


def odd_size(path: Path) -> Path:
    stream = (
        source("testsrc2", 1, 25, "640x272")
        .filter("format", "yuv444p")
        .filter("scale", 641, 273)
        .filter("setsar", 1)
    )
    return make(path, stream, vcodec="libx264", pix_fmt="yuv444p")


def audio_only(path: Path) -> Path:
    return make(path, ffmpeg.input("sine=frequency=440", f="lavfi", t=2), acodec="aac")


def one_frame(path: Path) -> Path:
    return plain(path, 1, fps=1)


def truncated(path: Path) -> Path:
    """The first half of a file whose header, at the front, promises 12 seconds."""
    whole = plain(path, movflags="faststart")
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    return whole


def patches(fps: int = 10, seconds: float = 1) -> Any:
    """Four exact RGB colours."""
    colours = [f"0x{red:02x}{green:02x}{blue:02x}" for red, green, blue in PATCHES]
    parts = [
        ffmpeg.input(
            f"color=c={c}:size={PATCH}x{PATCH}:rate={fps},format=gbrp", f="lavfi", t=seconds
        )
        for c in colours
    ]
    rows = [ffmpeg.filter(parts[:2], "hstack"), ffmpeg.filter(parts[2:], "hstack")]
    return ffmpeg.filter(rows, "vstack")


def colour_patches(
    path: Path,
    matrix: str,
    *,
    full_range: bool = False,
    pix_fmt: str = "yuv420p",
    tagged: bool = True,
) -> Path:
    """Patches as YUV of one matrix ("bt709", "smpte170m") and range, tagged as such or not at
    all.
    """
    levels = "pc" if full_range else "tv"
    stream = (
        patches()
        .filter("scale", out_color_matrix=matrix, out_range=levels)
        .filter("format", pix_fmt)
    )
    tags = (
        {"color_primaries": matrix, "color_trc": matrix, "colorspace": matrix}
        if tagged
        else UNTAGGED
    )
    stream = stream.filter("setparams", **tags, range=levels if tagged else "unknown")
    return make(path, stream, vcodec="libx264", crf=4, pix_fmt=pix_fmt)


def rgb_patches(path: Path, codec: str, pix_fmt: str) -> Path:
    """Patches in a codec that stores RGB."""
    return make(path, patches(), vcodec=codec, pix_fmt=pix_fmt)


def hdr_patches(path: Path, tags: str = PQ) -> Path:
    """Patches as 10-bit BT.2020 PQ, with SDR white at 203 cd/m2; tagged as such or as others."""
    stream = (
        patches()
        .filter("scale", out_color_matrix="bt709", out_range="tv")
        .filter("format", "yuv420p")
    )
    stream = stream.filter(
        "setparams", colorspace="bt709", color_primaries="bt709", color_trc="bt709", range="tv"
    )
    stream = stream.filter("zscale", t="linear", npl=203).filter("format", "gbrpf32le")
    stream = stream.filter(
        "zscale", p="bt2020", t="smpte2084", m="bt2020nc", r="tv", npl=203
    ).filter("format", "yuv420p10le")
    return make(path, stream, vcodec="libx265", crf=4, pix_fmt="yuv420p10le", **_x265(tags))


def hlg_patches(path: Path) -> Path:
    """Patches as 10-bit BT.2020 HLG."""
    stream = patches().filter("scale", out_color_matrix="bt709", out_range="tv")
    stream = stream.filter("format", "yuv420p10le")
    tags = "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc:range=limited"
    return make(path, stream, vcodec="libx265", crf=4, pix_fmt="yuv420p10le", **_x265(tags))


def p3_patches(path: Path) -> Path:
    """Patches in the colours of a phone's screen, P3 with the white of daylight."""
    stream = patches().filter("scale", out_color_matrix="bt709", out_range="tv")
    tags = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "range": "tv"}
    stream = stream.filter("format", "yuv444p").filter("setparams", **tags)
    stream = stream.filter("zscale", p="smpte432").filter("format", "yuv420p")
    tags["color_primaries"] = "smpte432"
    stream = stream.filter("setparams", **tags)
    return make(path, stream, vcodec="libx264", crf=4, pix_fmt="yuv420p")


def hd_patches(path: Path) -> Path:
    """Patches of 1280x720, which say nothing of their colours."""
    stream = patches().filter("scale", 1280, 720, flags="neighbor", out_color_matrix="bt709")
    stream = stream.filter("format", "yuv420p").filter("setparams", **UNTAGGED, range="unknown")
    return make(path, stream, vcodec="libx264", crf=4, pix_fmt="yuv420p")


def coloured(path: Path, **tags: str) -> Path:
    """A film tagged with any colours."""
    stream = source("testsrc2", 0.4, 25, "160x120").filter("format", "yuv420p")
    return make(path, stream.filter("setparams", **tags), vcodec="libx264", pix_fmt="yuv420p")


def _x265(params: str) -> dict[str, str]:
    return {
        "x265-params": ":".join(
            filter(None, [params, "pools=none:frame-threads=1:log-level=error"])
        )
    }


def moments(path: Path, look: str) -> Path:
    """What is filmed at 50 moments a second, two of which an interlaced frame holds."""
    return make(path, source(look, 2, 50, "320x480"), vcodec="ffv1", pix_fmt="yuv420p")


def interlaced(
    path: Path, look: str, first: str, codec: str, flagged: bool = True, lines: int = 480
) -> Path:
    """The same moments as 25 frames a second, the field `first` ("top", "bottom") first; `flagged`
    as such or as progressive. Of the `lines` some may be cut off.
    """
    size = "720x576" if codec == "dvvideo" else "320x480"
    stream = source(look, 2, 50, size).filter("tinterlace", f"interleave_{first}")
    if lines < 480:
        stream = stream.filter("crop", 320, lines, 0, (480 - lines) // 4 * 2)
    stream = stream.filter("setfield", f"{first[0]}ff" if flagged else "prog")
    options: dict[str, Any] = {"vcodec": codec, "pix_fmt": "yuv420p", "crf": 12, "g": 12}
    if codec != "libx264":
        del options["crf"]
        options["qscale:v"] = 2
    if flagged:
        options["flags:v"] = "+bitexact+ilme+ildct"
    return make(path, stream, **options)


def progressive_segmented(path: Path, look: str) -> Path:
    """Progressive pictures in an interlaced stream, as cameras and broadcasters store them."""
    stream = source(look, 2, 25, "320x480").filter("setfield", "tff")
    return make(
        path,
        stream,
        **{"vcodec": "libx264", "pix_fmt": "yuv420p", "flags:v": "+bitexact+ilme+ildct"},
    )


def filmed(path: Path, look: str) -> Path:
    """24 frames a second, before they are telecined."""
    return make(path, source(look, 2, 24, "320x480"), vcodec="ffv1", pix_fmt="yuv420p")


def telecined(path: Path, look: str, first: str, flagged: bool) -> Path:
    """Film as television has it: 24 frames a second in 60 fields, so that two frames of five are
    made of two pictures.
    """
    stream = source(look, 2, 24, "320x480").filter("telecine", first_field=first, pattern="23")
    stream = stream.filter("setfield", f"{first[0]}ff" if flagged else "prog")
    options = {"flags:v": "+bitexact+ilme+ildct"} if flagged else {}
    return make(path, stream, vcodec="libx264", pix_fmt="yuv420p", crf=6, **options)


def single_fields(path: Path) -> Path:
    """HEVC with one field a picture, as it codes interlaced footage."""
    stream = source("testsrc2", 2, 50, "320x240").filter("tinterlace", "interleave_top")
    stream = stream.filter("setfield", "tff").filter("separatefields").filter("setsar", 1)
    return make(path, stream, vcodec="libx265", pix_fmt="yuv420p", **_x265("interlace=tff"))
