"""Damaged videos, the same for the same seed, and what a build makes of them.

    python -m tests.fuzz --count 2000 --seed 7

prints for each codec how many became clips, how many were rejected and why. A small corpus is part
of the tests (test_fuzz.py); a large one is for whoever changes `video.py`, or the version of PyAV.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.making import footage

KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # codec, container, how it is made
    ("h264", "mp4", {"codec": "libx264"}),
    ("h264", "mkv", {"codec": "libx264"}),
    ("h264", "avi", {"codec": "libx264", "bf": 0}),
    ("h264", "ts", {"codec": "libx264"}),
    (
        "hevc",
        "mp4",
        {"codec": "libx265", "x265-params": "pools=none:frame-threads=1:log-level=error"},
    ),
    (
        "hevc",
        "mkv",
        {"codec": "libx265", "x265-params": "pools=none:frame-threads=1:log-level=error"},
    ),
    (
        "hevc",
        "ts",
        {"codec": "libx265", "x265-params": "pools=none:frame-threads=1:log-level=error"},
    ),
    ("vp9", "webm", {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": 8}),
    ("vp9", "mp4", {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": 8}),
    ("av1", "mp4", {"codec": "libsvtav1", "preset": 12, "svtav1-params": "lp=1"}),
    ("av1", "mkv", {"codec": "libsvtav1", "preset": 12, "svtav1-params": "lp=1"}),
    ("mpeg4", "avi", {"codec": "mpeg4"}),
    ("mpeg4", "mp4", {"codec": "mpeg4"}),
    ("mpeg4", "ts", {"codec": "mpeg4"}),
)
CODECS = tuple(dict.fromkeys(codec for codec, _, _ in KINDS))
HEADER = 1024  # bytes at either end, where containers keep what they say of themselves
HUGE = tuple(
    value.to_bytes(4, "big")
    for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF, 0x10000000)
)
BOXES = re.compile(
    rb"moov|mvhd|trak|tkhd|elst|mdia|mdhd|minf|stbl|stsd|stts|ctts|stsc|stsz|stco|avcC|hvcC|mdat|strf|strh|idx1|movi"
)
ELEMENTS = re.compile(
    rb"\x1aE\xdf\xa3|\x18S\x80g|\x15I\xa9f|\x16T\xaek|\x1fC\xb6u|\x2a\xd7\xb1|\xae|\xe0|\xb0|\xba|\xa3|\x1cS\xbbk"
)


def flipped(content: bytearray, rng: random.Random) -> bytearray:
    """Bits of the body."""
    for _ in range(rng.choice((1, 2, 8, 64))):
        content[rng.randrange(min(HEADER, len(content) // 2), len(content))] ^= 1 << rng.randrange(
            8
        )
    return content


def header_changed(content: bytearray, rng: random.Random) -> bytearray:
    """Bytes near the start or the end."""
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(min(HEADER, len(content)))
        content[at if rng.random() < 0.6 else -1 - at] = rng.randrange(256)
    return content


def cut_off(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.randrange(len(content))]


def beheaded(content: bytearray, rng: random.Random) -> bytearray:
    return content[rng.randrange(1, len(content)) :]


def zeroed(content: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice((4, 64, 1024, 8192))
    at = rng.randrange(len(content))
    end = min(len(content), at + size)
    content[at:end] = bytes(end - at)
    return content


def _chunk(content: bytearray, rng: random.Random) -> slice:
    size = rng.choice((1, 16, 188, 1000, 4096))
    at = rng.randrange(len(content))
    return slice(at, at + size)


def swapped(content: bytearray, rng: random.Random) -> bytearray:
    one, two = sorted((_chunk(content, rng), _chunk(content, rng)), key=lambda chunk: chunk.start)
    middle = content[one.stop : two.start]
    return (
        content[: one.start]
        + content[two]
        + middle
        + content[one]
        + content[max(two.stop, one.stop) :]
    )


def doubled(content: bytearray, rng: random.Random) -> bytearray:
    chunk = _chunk(content, rng)
    return content[: chunk.stop] + content[chunk] * rng.choice((1, 2, 20)) + content[chunk.stop :]


def inserted(content: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice((1, 4, 188, 4096))) + content[at:]


def sized(content: bytearray, rng: random.Random) -> bytearray:
    """A box's or element's size, or what stands right behind its name, is huge or nothing."""
    found = [*BOXES.finditer(content), *ELEMENTS.finditer(content)]
    match = rng.choice(found) if found else None
    at = max(
        0,
        (match.start() - 4 if rng.random() < 0.5 else match.end() + 4 * rng.randrange(4))
        if match
        else 0,
    )
    content[at : at + 4] = rng.choice(HUGE)
    return content


DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    flipped,
    header_changed,
    cut_off,
    beheaded,
    zeroed,
    swapped,
    doubled,
    inserted,
    sized,
)


def originals(folder: Path) -> dict[tuple[str, str], bytes]:
    """One whole video of each kind: 96x64, twenty frames in two seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for codec, container, options in KINDS:
        path = footage.plain(folder / f"{codec}.{container}", 2, fps=10, size="96x64", **options)
        made[codec, container] = path.read_bytes()
    return made


def corpus(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Write `count` damaged videos; returns each one's codec by its name. Kinds and damages take
    turns.
    """
    whole = originals(folder / "whole")
    codecs = {}
    for index in range(count):
        codec, container, _ = KINDS[index % len(KINDS)]
        damage = DAMAGES[index // len(KINDS) % len(DAMAGES)]
        name = f"{codec}-{container}-{damage.__name__}-{index:05d}"
        content = damage(bytearray(whole[codec, container]), random.Random(f"{seed}/{name}"))
        (folder / f"{name}.{container}").write_bytes(content)
        codecs[name] = codec
    return codecs


def recipe(folder: Path, cut: str = "adaptive") -> Path:
    """A recipe of all videos of a folder; of every third only a part is wanted, so that there is a
    seek.
    """
    sources = [
        f'[[source]]\nid = "{path.stem}"\nuri = "file:{path.name}"\n'
        + ("start = 0.8\n" if index % 3 == 2 else "")
        for index, path in enumerate(
            sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".toml")
        )
    ]
    path = folder / "fuzz.toml"
    path.write_text(
        "\n".join(
            [
                *sources,
                f'[cut]\ndetector = "{cut}"\n[filter]\nmin_frames = 5\n[extract]\nsize = 64\n',
            ]
        )
    )
    return path


@dataclass(frozen=True)
class Built:
    """What a build said, and what became of every source: "clip", or the reason of its
    rejection.
    """

    code: int
    said: str
    fates: dict[str, list[str]]


def build(path: Path) -> Built:
    """Run the command line as a user does, on two workers."""
    data = path.parent / "data"
    words = ["build", path, "--data", data, "--until", "extract", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    fates: dict[str, list[str]] = defaultdict(list)
    for manifest in sorted((data / "fuzz").glob("?-*.jsonl")):
        for line in map(json.loads, manifest.read_text().splitlines()[1:]):
            if "rejection" in line:
                fates[source_of(line["rejection"]["key"])].append(line["rejection"]["reason"])
            elif manifest.name == "4-extract.jsonl":
                fates[source_of(line["record"]["key"])].append("clip")
    return Built(done.returncode, done.stdout + done.stderr, dict(fates))


def source_of(key: str) -> str:
    """The source's id: a scene's key has its number behind it."""
    return "-".join(key.split("-")[:4])


def table(codecs: dict[str, str], fates: dict[str, list[str]]) -> str:
    """Sources with a clip, and the first rejection of the others, for each codec."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, codec in codecs.items():
        found = fates.get(name, ["lost"])
        counts[codec]["clip" if "clip" in found else found[0]] += 1
    seen = {fate for counter in counts.values() for fate in counter} | {"crashed", "timed-out"}
    columns = ["clip", *sorted(seen - {"clip", "crashed", "timed-out"}), "crashed", "timed-out"]
    lines = ["codec" + "".join(f"  {column}" for column in columns)]
    lines += [
        f"{codec:<5}" + "".join(f"  {counts[codec][column]:>{len(column)}}" for column in columns)
        for codec in CODECS
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=210)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detector", default="adaptive")
    parser.add_argument(
        "--keep", type=Path, help="folder for the videos and the build; otherwise they are deleted"
    )
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.keep or Path(scratch)
        codecs = corpus(folder, wanted.count, wanted.seed)
        built = build(recipe(folder, wanted.detector))
    print(table(codecs, built.fates))
    if built.code:
        print(built.said)
    return built.code


if __name__ == "__main__":
    sys.exit(main())
