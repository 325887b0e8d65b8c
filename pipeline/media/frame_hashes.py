"""Perceptual hashes of a clip's frames: 64 bits that stay when a picture is coded again, scaled,
brightened, cropped a little, or gets a logo.

A frame is averaged down to 32 x 32 and faded out towards its edges, where logos, subtitles and
crops are. A hash holds the signs of the 64 lowest frequencies of its cosine transform (Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010), so the hash of the
mirrored picture follows from it. All sums are of whole numbers: every machine gets the same bits.
No library, because none fades the edges (a logo then changes 17 bits instead of 4) or mirrors a
hash.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Clip

VERSION = 1
STEP_S = 0.2  # from one moment to the next: of fast footage half a second later is another picture
SIDE = 32  # of the picture that is hashed
BITS = 64
LEVELS = 16  # parts of a grey level in which means are counted
SCALE = 1 << 20  # of the transform, which is of whole numbers
# grey levels: where half of the frequencies are weaker, a picture is black, blank or a gradient,
# and its signs are noise. The fish of the demo, the palest footage tried, have 1.5 to 2.5
FAINTEST = 1.0
NONE = 0  # the hash of such a frame
DIGITS = BITS // 4
Hashes = NDArray[np.uint64]


def moments(clip: Clip) -> range:
    """The frames of a clip that are hashed."""
    return range(0, clip.num_frames, step_of(clip))


def step_of(clip: Clip) -> int:
    """Frames from one moment to the next."""
    return max(1, round(STEP_S * clip.fps))


def thumbnail(planes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The means of 32 x 32 parts of a frame's brightness, in sixteenths of a grey level. `planes`
    is YUV 4:2:0 as `video.some_frames` gives it.
    """
    luma = planes[: len(planes) * 2 // 3]
    rows, columns = (np.arange(SIDE + 1) * side // SIDE for side in luma.shape)
    sums = np.add.reduceat(luma, rows[:-1], axis=0, dtype=np.int64)
    sums = np.add.reduceat(sums, columns[:-1], axis=1)
    areas = np.maximum(1, np.diff(rows))[:, None] * np.maximum(1, np.diff(columns))
    means: NDArray[np.int64] = sums * LEVELS // areas
    return means


@cache
def _transform() -> NDArray[np.float64]:
    """The 64 lowest frequencies of the windowed cosine transform, `64 1024` whole numbers. Each row
    sums up to nothing: how bright a picture is changes no bit.
    """
    places = np.arange(SIDE) + 0.5
    window = np.sin(np.pi * places / SIDE) ** 2  # Hann's
    waves = np.cos(np.pi * np.outer(np.arange(SIDE), places) / SIDE) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    weights = np.outer(window, window)
    rows = np.array([weights * np.outer(waves[u], waves[v]) for u, v in _frequencies()])
    rows -= weights * (rows.sum((1, 2)) / weights.sum())[:, None, None]
    transform: NDArray[np.float64] = np.rint(rows.reshape(BITS, -1) * SCALE)
    return transform


@cache
def _frequencies() -> tuple[tuple[int, int], ...]:
    """Vertical and horizontal frequency of each bit, the lowest first."""
    pairs = [(u, v) for u in range(SIDE) for v in range(SIDE) if u + v]
    return tuple(sorted(pairs, key=lambda pair: (sum(pair), pair))[:BITS])


@cache
def _flips() -> np.uint64:
    """The bits that another hash has where the picture is mirrored left to right."""
    return np.uint64(
        sum(1 << (BITS - 1 - bit) for bit, (_, v) in enumerate(_frequencies()) if v % 2)
    )


def hashes_of(thumbnails: NDArray[np.int64]) -> Hashes:
    """The hash of each thumbnail (`n 32 32`): its first bit is the lowest frequency. NONE for a
    picture that is black, blank or a gradient.
    """
    # whole numbers below 2**53, so that sums of floats are exact in any order
    strengths = thumbnails.reshape(-1, SIDE * SIDE).astype(np.float64) @ _transform().T
    hashes = np.packbits(strengths > 0, axis=1).view(">u8").astype(np.uint64)[:, 0]
    is_faint = np.median(np.abs(strengths), axis=1) < FAINTEST * LEVELS * SCALE
    hashes[is_faint] = NONE
    return hashes


def mirrored(hashes: Hashes) -> Hashes:
    """The hashes of the pictures mirrored left to right."""
    flipped: Hashes = np.where(hashes == NONE, np.uint64(NONE), hashes ^ _flips())
    return flipped


def text_of(hashes: Hashes) -> str:
    """Hashes as a record holds them: 16 hexadecimal digits for each."""
    return hashes.astype(">u8").tobytes().hex()


def from_text(text: str) -> Hashes:
    """The hashes of a record. Raises ValueError."""
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
