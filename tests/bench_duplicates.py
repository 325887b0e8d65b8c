"""What finding near-duplicates costs: made-up hashes that drift as those of footage do, a tenth of
the clips being copies.

    python -m tests.bench_duplicates 1_000_000
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from pipeline.media.frame_hashes import BITS, Hashes
from pipeline.media.matching import Limits, pairs_of

MOMENTS = 50  # of a clip: ten seconds
CALM, BUSY = 0.3, 8.0  # bits that change from moment to moment
NOISE = 2.0  # bits in which a copy's frame differs
LATER = 15  # moments that a copy lacks at most
LIMITS = Limits(max_bits=12, mirrored=True)


def made_up(num_hashes: int, seed: int = 0) -> tuple[list[Hashes], int]:
    """The hashes of clips, and how many of them, the last ones, are copies of the first ones."""
    random = np.random.default_rng(seed)
    num_clips = num_hashes // MOMENTS
    starts = random.integers(0, 2**64, num_clips, np.uint64)
    rates = np.exp(random.uniform(np.log(CALM), np.log(BUSY), num_clips))
    clips = []
    for start, rate in zip(starts, rates, strict=True):
        steps = flips(random, MOMENTS, float(rate))
        clips.append(np.bitwise_xor.accumulate(steps) ^ start)
    num_copies = num_clips // 10
    for number in range(num_copies):
        part = clips[number][int(random.integers(0, LATER)) :]
        clips[num_clips - num_copies + number] = part ^ flips(random, len(part), NOISE)
    return clips, num_copies


def flips(random: np.random.Generator, count: int, rate: float) -> Hashes:
    """Masks with `rate` bits in the mean."""
    is_set = random.random((count, BITS)) < rate / BITS
    masks: Hashes = np.packbits(is_set, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return masks


def main() -> None:
    clips, num_copies = made_up(int(sys.argv[1]))
    num_hashes = sum(len(clip) for clip in clips)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    start = time.process_time()
    pairs = pairs_of(clips, LIMITS)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    first_copy = len(clips) - num_copies
    found = sum(pair.second - first_copy == pair.first for pair in pairs)
    print(
        f"{num_hashes:,} hashes of {len(clips):,} clips: {seconds:.1f} CPU seconds, {peak} MiB "
        f"at most ({before} before); {found} of {num_copies} copies found, "
        f"{len(pairs) - found} other pairs"
    )


if __name__ == "__main__":
    main()
