"""Recordings in which time goes wrong, and damaged ones, made of small real videos."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import av
import ffmpeg

from tests.making import footage

SMALL = "160x120"
TS_PACKET = 188  # bytes


def recorded(path: Path, offset_s: float = 0, look: str = "testsrc2", **options: object) -> Path:
    """4 s of a transport stream whose clock begins at `offset_s`."""
    stream = footage.source(look, 4, 25, str(options.pop("size", SMALL))).filter(
        "format", "yuv420p"
    )
    settings = {"vcodec": "libx264", "g": 25, "output_ts_offset": offset_s, **options}
    return footage.make(path, stream, format="mpegts", **settings)


def joined_files(path: Path, *offsets_s: float) -> Path:
    """Recordings of different pictures, one behind the other in one file, as `cat` does it."""
    parts = [
        recorded(path.with_name(f"{path.stem}-{index}.ts"), offset_s, footage.LOOKS[index])
        for index, offset_s in enumerate(offsets_s)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def resized(path: Path) -> Path:
    """4 s of 160x120, 4 s of 320x240 and 4 s of 160x120 in one transport stream."""
    return changing(path, {}, {"size": "320x240"}, {})


def changing(path: Path, *parts: dict[str, object]) -> Path:
    """Recordings of 4 s, made with these options, one behind the other in one transport stream."""
    files = [
        recorded(path.with_name(f"{path.stem}-{index}.ts"), 4 * index, **{"size": SMALL, **part})
        for index, part in enumerate(parts)
    ]
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    return path


def succession(path: Path, *films: str) -> Path:
    """Films of a second each, one behind the other in one transport stream."""
    content = b""
    for index, film in enumerate(films):
        part = path.with_name(f"{path.stem}-{index}.ts")
        footage.make(part, ffmpeg.input(film), vcodec="copy", output_ts_offset=index)
        content += part.read_bytes()
    path.write_bytes(content)
    return path


def lossy(path: Path, share: float = 0.003, seconds: float = 8) -> Path:
    """A transport stream with a key frame a second, of which a share of the packets is missing."""
    whole = footage.mpegts(path, seconds, gop=25).read_bytes()
    drawn = random.Random(2)
    packets = [whole[at : at + TS_PACKET] for at in range(0, len(whole), TS_PACKET)]
    path.write_bytes(
        b"".join(each for index, each in enumerate(packets) if index < 9 or drawn.random() > share)
    )
    return path


def overwritten(path: Path, codec: str = "libsvtav1", at: float = 0.5) -> Path:
    """8 s with a key frame a second; 200 bytes of it are noise."""
    quick = {"preset": 12, "svtav1-params": "lp=1"} if codec == "libsvtav1" else {}
    content = bytearray(footage.plain(path, 8, size=SMALL, codec=codec, g=25, **quick).read_bytes())
    place = int(len(content) * at)
    content[place : place + 200] = b"\xa5" * 200
    path.write_bytes(content)
    return path


def held(path: Path, stays_s: Sequence[float], fps: int = 25) -> Path:
    """Frames of which the last ones stay as long as `stays_s` says, in an mp4."""
    whole = footage.plain(path.with_name(f"whole-{path.name}"), 4, size=SMALL, bf=0)
    number = 4 * fps - len(stays_s)
    with av.open(str(whole)) as source, av.open(str(path), "w", format="mp4") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        tick = round(1 / (fps * stream.time_base))
        pts = 0
        for index, packet in enumerate(source.demux(stream)):
            if not packet.size:
                continue
            stay = stays_s[index - number] if index >= number else 1 / fps
            packet.pts = packet.dts = pts
            packet.duration = round(stay * fps * tick)
            packet.stream = copy
            pts += packet.duration
            target.mux(packet)
    return path


def slides(path: Path, num_frames: int = 1, stay_s: int = 4, count: int = 5) -> Path:
    """Different pictures of 4 s each, each written as one frame or several."""
    looks = [footage.source(look, 1, 1, SMALL) for look in footage.LOOKS[:count]]
    parts = [
        look.filter("trim", end_frame=1).filter("format", "yuv420p").filter("setsar", 1)
        for look in looks
    ]
    stills = [
        part.filter("loop", loop=num_frames - 1, size=1).filter(
            "setpts", f"N*{stay_s}/{num_frames}/TB"
        )
        for part in parts
    ]
    import ffmpeg

    whole = ffmpeg.concat(*stills).filter("settb", "1/1000")
    whole = whole.filter("setpts", f"N*{1000 * stay_s // num_frames}")
    return footage.make(
        path,
        whole,
        vcodec="libx264",
        fps_mode="passthrough",
        enc_time_base="1/1000",
        video_track_timescale=1000,
        bf=0,
    )


def flashed(path: Path, brightness: float, frames: int = 1) -> Path:
    """9 s of one take that moves, with a white (0.9) or black (-0.9) flash every 3 s."""
    flash = f"between(mod(n,75),40,{39 + frames})"
    stream = footage.source("mandelbrot", 9, 25, SMALL).filter(
        "eq", brightness=brightness, enable=flash
    )
    return footage.make(path, stream, vcodec="libx264", pix_fmt="yuv420p")
