"""Which clips show the same: pairs among many lists of frame hashes, and the shift in time.

Two clips match if there is a shift at which their frames agree, over half of the shorter clip and
at least 8 moments, and at which they agree much better than a second earlier or later. So a trimmed
copy is found at its shift, and footage in which nothing moves is tied to nothing.

Pairs are looked for in an index. Two hashes that are near often have two of six blocks of bits in
common; of the 50 moments of a copy of ten seconds a few do. What is common to a whole dataset (one
stage, one fish tank) would make every clip a candidate of every other one: of equal hashes
neighbours alone are compared, and of a clip's candidates those with most hashes in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media.frame_hashes import BITS, NONE, Hashes, mirrored

MIN_MOMENTS = 8  # that two clips must have in common
LATER = 5  # moments in a second
ROWS = 256  # moments of a clip that are compared at a time: the memory it takes
# Elsewhere in time, frames must be further apart: by so much of what they are, and so many bits.
SHARE, MARGIN = 0.75, 1.5
BLOCKS = 6  # of a hash's bits; those with two of them in common are compared
NEAR = 12  # bits: of an index's two hashes
NEAREST = 16  # of equal blocks, a hash is compared with so many neighbours
MOST = 32  # candidates of a clip
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two clips that match, by position, the first before the second. `shift` is how many moments
    later the second shows what the first does, `bits` how far apart their frames are in the mean.
    """

    first: int
    second: int
    shift: int
    bits: float
    is_mirrored: bool


@dataclass(frozen=True)
class Limits:
    """How far apart matching clips may be, and whether a mirrored copy is one."""

    max_bits: float
    mirrored: bool


@dataclass(frozen=True)
class Agreement:
    """How far apart two clips are at one shift, in bits, and at least a second earlier or later."""

    shift: int
    bits: float
    elsewhere: float

    def is_match(self, max_bits: float) -> bool:
        limit = min(max_bits, SHARE * self.elsewhere, self.elsewhere - MARGIN)
        return self.bits <= limit


def pairs_of(clips: Sequence[Hashes], limits: Limits) -> list[Pair]:
    """The pairs that match among the candidates of an index, in order."""
    pairs: dict[tuple[int, int], Pair] = {}
    for first, second, is_mirrored in candidates(clips, limits.mirrored):
        pair = _pair_at(clips, first, second, is_mirrored, limits)
        known = pairs.get((first, second))
        if pair is not None and (known is None or pair.bits < known.bits):
            pairs[first, second] = pair
    return [pairs[places] for places in sorted(pairs)]


def pair_of(clips: Sequence[Hashes], first: int, second: int, limits: Limits) -> Pair | None:
    """Two clips as a pair; None if they do not match."""
    versions = (False, True) if limits.mirrored else (False,)
    pairs = [_pair_at(clips, first, second, is_mirrored, limits) for is_mirrored in versions]
    return min(
        (pair for pair in pairs if pair is not None), key=lambda pair: pair.bits, default=None
    )


def _pair_at(
    clips: Sequence[Hashes], first: int, second: int, is_mirrored: bool, limits: Limits
) -> Pair | None:
    other = mirrored(clips[second]) if is_mirrored else clips[second]
    agreement = best_agreement(clips[first], other)
    if agreement is None or not agreement.is_match(limits.max_bits):
        return None
    return Pair(first, second, agreement.shift, agreement.bits, is_mirrored)


def best_agreement(first: Hashes, second: Hashes) -> Agreement | None:
    """The shift at which two clips are least apart; None if they have too few moments in common.
    Moments without a hash count for nothing.
    """
    num_shifts = max(0, len(first) + len(second) - 1)
    counts, sums = np.zeros(num_shifts, np.int64), np.zeros(num_shifts, np.int64)
    for start in range(0, len(first), ROWS):
        part = first[start : start + ROWS, None]
        is_known = (part != NONE) & (second != NONE)
        distances = np.bitwise_count(part ^ second) * is_known
        # the least shift is that of the first's last moment against the second's first
        least = len(first) - start - len(part)
        at = slice(least, least + len(part) + len(second) - 1)
        counts[at] += _sums_of_diagonals(is_known)
        sums[at] += _sums_of_diagonals(distances)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), BITS)
    shorter = min(int(np.count_nonzero(hashes != NONE)) for hashes in (first, second))
    is_enough = counts >= max(MIN_MOMENTS, (shorter + 1) // 2)
    if not is_enough.any():
        return None
    best = int(np.argmin(np.where(is_enough, means, BITS)))
    beside = [place for place in (best - LATER, best + LATER) if 0 <= place < num_shifts]
    elsewhere = min((means[place] for place in beside if counts[place] >= 3), default=0.0)
    return Agreement(best - len(first) + 1, float(means[best]), float(elsewhere))


def _sums_of_diagonals(matrix: NDArray[Any]) -> Numbers:
    """The sum of each diagonal of a matrix, from its lower left corner to its upper right one."""
    rows, columns = matrix.shape
    # rows are one place longer than they are read, so each begins a place further to the right
    padded = np.zeros((rows, columns + rows), np.int64)
    padded[:, :columns] = matrix[::-1]
    width = columns + rows - 1
    sums: Numbers = padded.ravel()[: rows * width].reshape(rows, width).sum(axis=0)
    return sums


def candidates(clips: Sequence[Hashes], with_mirrored: bool) -> Iterator[tuple[int, int, bool]]:
    """Pairs of clips that have near hashes: first, second, whether the second is mirrored. In
    order; the first is before the second. Where clips have many candidates, those with most
    hashes in common.
    """
    num_clips = len(clips)
    versions = [list(clips), [mirrored(clip) for clip in clips]] if with_mirrored else [clips]
    hashes, owners = _entries([clip for version in versions for clip in version])
    pairs = counts = np.zeros(0, np.int64)
    for mask in _masks():
        near = _neighbours(hashes, owners, mask, num_clips)
        further, times = _counted(near, np.ones(len(near), np.int64))
        pairs, counts = _counted(np.concatenate([pairs, further]), np.concatenate([counts, times]))
    first, second = np.divmod(pairs, 2 * num_clips) if num_clips else (pairs, pairs)
    is_chosen = _are_first(first, counts) | _are_first(second % max(1, num_clips), counts)
    for one, other in zip(first[is_chosen].tolist(), second[is_chosen].tolist(), strict=True):
        yield one, other % num_clips, other >= num_clips


def _counted(pairs: Numbers, counts: Numbers) -> tuple[Numbers, Numbers]:
    """Each pair once, with the sum of its counts."""
    distinct, places = np.unique(pairs, return_inverse=True)
    sums = np.bincount(places, weights=counts, minlength=len(distinct))
    return distinct, sums.astype(np.int64)


def _are_first(clips: Numbers, counts: Numbers) -> NDArray[np.bool_]:
    """Whether each pair is among those of its clip that count most; of equal ones, the first."""
    order = np.lexsort((-counts, clips))
    ordered = clips[order]
    starts = np.searchsorted(ordered, ordered)
    result = np.zeros(len(clips), bool)
    result[order] = np.arange(len(clips)) - starts < MOST
    return result


def _entries(clips: Sequence[Hashes]) -> tuple[Hashes, Numbers]:
    """What the index holds: every hash that is another than that of the moment before, and the
    number of its clip, sorted by hash.
    """
    lengths = np.array([len(clip) for clip in clips], np.int64)
    owners = np.repeat(np.arange(len(clips)), lengths)
    hashes = np.concatenate([*clips, np.zeros(0, np.uint64)])
    is_same = np.zeros(len(hashes), bool)
    is_same[1:] = (hashes[1:] == hashes[:-1]) & (owners[1:] == owners[:-1])
    is_entry = ~is_same & (hashes != NONE)
    hashes, owners = hashes[is_entry], owners[is_entry]
    order = np.lexsort((owners, hashes))
    return hashes[order], owners[order]


def _masks() -> list[np.uint64]:
    """The bits of two of the six blocks, for each two of them."""
    edges = [BITS * block // BLOCKS for block in range(BLOCKS + 1)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [np.uint64(one | other) for one, other in combinations(blocks, 2)]


def _neighbours(hashes: Hashes, owners: Numbers, mask: np.uint64, num_clips: int) -> Numbers:
    """For every two near hashes that are the same under a mask, the pair of their clips."""
    keys = hashes & mask
    order = np.argsort(keys, kind="stable")
    keys, hashes, owners = keys[order], hashes[order], owners[order]
    pairs = [np.zeros(0, np.int64)]
    left = np.arange(len(keys))
    for distance in range(1, NEAREST + 1):
        left = left[left + distance < len(keys)]
        left = left[keys[left] == keys[left + distance]]
        is_near = np.bitwise_count(hashes[left] ^ hashes[left + distance]) <= NEAR
        near = left[is_near]
        pairs.append(_pairs(owners[near], owners[near + distance], num_clips))
    return np.concatenate(pairs)


def _pairs(some: Numbers, others: Numbers, num_clips: int) -> Numbers:
    """Pairs of clips as numbers, `first * 2 n + second`, where a second from n on is mirrored. Of
    two mirrored clips, and of a clip and itself, there is none.
    """
    low, high = np.minimum(some, others), np.maximum(some, others)
    is_pair = (low < num_clips) & (low != high % num_clips)
    low, high = low[is_pair], high[is_pair]
    # a mirrored second before the first: the first mirrored is to the second as well
    is_swapped = (high >= num_clips) & (high - num_clips < low)
    first = np.where(is_swapped, high - num_clips, low)
    second = np.where(is_swapped, low + num_clips, high)
    pairs: Numbers = first * (2 * num_clips) + second
    return pairs
