"""How much of damaged footage is used, and how much of that is what was filmed: the same videos for
the same seed.

    python -m tests.salvage --count 140 --seed 1

Videos of 8 s with a key frame a second, of the codecs and containers of `tests.fuzz`, are damaged
in turn in one of five ways. A frame that is used is what was filmed if some frame of the whole
video is like it, to 30 dB. The figures are in docs/footage.md; run this again after a change of
`video.py` or another version of PyAV.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import BadData
from pipeline.media import video
from tests.fuzz import KINDS
from tests.making import footage

SECONDS, FPS = 8, 25
HEAD = 4096  # bytes that stay whole, where most containers say what they hold
LIKE_DB = 30
TS_PACKET = 188  # bytes


def cut(content: bytearray, rng: random.Random) -> bytearray:
    """A download that broke off near the middle."""
    return content[: round(len(content) * rng.uniform(0.4, 0.6))]


def flipped(content: bytearray, rng: random.Random) -> bytearray:
    """Eight bits."""
    for _ in range(8):
        content[rng.randrange(HEAD, len(content))] ^= 1 << rng.randrange(8)
    return content


def noise(content: bytearray, rng: random.Random) -> bytearray:
    """200 bytes, as long as before."""
    at = rng.randrange(HEAD, len(content) - 200)
    content[at : at + 200] = rng.randbytes(200)
    return content


def zeros(content: bytearray, rng: random.Random) -> bytearray:
    """64 bytes."""
    at = rng.randrange(HEAD, len(content) - 64)
    content[at : at + 64] = bytes(64)
    return content


def dropped(content: bytearray, rng: random.Random) -> bytearray:
    """Ten packets of a transport stream, or as many bytes, are missing."""
    at = rng.randrange(HEAD, len(content) - 10 * TS_PACKET) // TS_PACKET * TS_PACKET
    return content[:at] + content[at + 10 * TS_PACKET :]


DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    cut,
    flipped,
    noise,
    zeros,
    dropped,
)


@dataclass(frozen=True)
class Salvage:
    """What is used of one damaged video, in frames."""

    damage: str
    num_frames: int  # of the whole video
    num_used: int
    num_wrong: int  # that are not what was filmed


def corpus(folder: Path, count: int, seed: int) -> Iterator[Salvage]:
    """Damage `count` videos and read each as the pipeline does."""
    whole: dict[tuple[str, str], tuple[bytes, NDArray[np.float32]]] = {}
    for index in range(count):
        codec, container, options = KINDS[index % len(KINDS)]
        if (codec, container) not in whole:
            path = folder / f"{codec}.{container}"
            footage.plain(path, SECONDS, fps=FPS, size="160x120", **{"g": FPS, **options})
            whole[codec, container] = path.read_bytes(), frames_of(path)
        content, filmed = whole[codec, container]
        damage = DAMAGES[index // len(KINDS) % len(DAMAGES)]
        rng = random.Random(f"{seed}/{index}")
        path = folder / f"damaged.{container}"
        path.write_bytes(damage(bytearray(content), rng))
        used = frames_of(path)
        num_wrong = int((psnr(used, filmed) < LIKE_DB).sum()) if len(used) else 0
        yield Salvage(damage.__name__, len(filmed), len(used), num_wrong)


def frames_of(path: Path) -> NDArray[np.float32]:
    """The frames the pipeline uses of a video, `f (h w)`, luma; none where it is rejected."""
    frames: list[Any] = []
    try:
        facts = video.probe(path)
        for frame, _, _ in video.frames(path, facts):
            plane: Any = frame.to_ndarray(format="gray")
            frames.append(plane.reshape(-1).astype(np.float32))
    except BadData:
        return np.zeros((0, 0), np.float32)
    return np.stack(frames)


def psnr(used: NDArray[np.float32], filmed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each frame against the one that is most like it, `f`, in dB."""
    if used.shape[1] != filmed.shape[1]:
        return np.zeros(len(used))
    squares = (used**2).sum(axis=1)[:, None] + (filmed**2).sum(axis=1)[None, :]
    errors = (squares - 2 * used @ filmed.T).min(axis=1) / used.shape[1]
    return 10 * np.log10(255**2 / np.maximum(errors.astype(np.float64), 1e-3))


def table(outcomes: list[Salvage]) -> str:
    """A line for each kind of damage, and one for all."""
    rows: dict[str, list[Salvage]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.damage].append(outcome)
    rows["all"] = outcomes
    lines = ["| damage | videos | nothing used | frames used | of these wrong |"]
    lines += ["|---|--:|--:|--:|--:|"]
    for damage, each in rows.items():
        num_frames, num_used, num_wrong = (
            sum(getattr(outcome, name) for outcome in each)
            for name in ("num_frames", "num_used", "num_wrong")
        )
        nothing = sum(not outcome.num_used for outcome in each)
        lines.append(
            f"| {damage} | {len(each)} | {nothing} | {100 * num_used / num_frames:.1f} % | "
            f"{100 * num_wrong / max(1, num_used):.1f} % |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=140)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(table(list(corpus(Path(folder), arguments.count, arguments.seed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
