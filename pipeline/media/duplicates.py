"""Which clips show the same, although their bytes differ: by the hashes of their frames alone.

Two clips are near-duplicates if there is a shift in time at which their frames agree, over half of
the shorter clip and at least 8 moments, and at which they agree much better than a second earlier
or later. So a trimmed copy is found at its shift, and footage in which nothing moves is tied to
nothing. Pairs are looked for in an index: two hashes that are near have two of six blocks of bits
in common more often than not, and of 50 moments of a copy a few do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.params import Table
from pipeline.core.records import Clip
from pipeline.media.frame_hashes import BITS, NONE, Hashes, from_text, mirrored, step_of

VERSION = 1
MIN_MOMENTS = 8  # that two clips must have in common
LATER = 5  # moments in a second
ROWS = 256  # moments of a clip that are compared at a time: the memory it takes
# Elsewhere in time, frames must be further apart: by so much of what they are, and so many bits.
SHARE, MARGIN = 0.75, 1.5
BLOCKS = 6  # of a hash's bits; those with two of them in common are compared
NEAR = 10  # bits: of an index's two hashes
NEAREST = 100  # of equal blocks, a hash is compared with so many neighbours


class Params(Table):
    """`[duplicates]`: of clips that show the same, the best stays. Without the table, all stay."""

    max_bits: float = Field(
        default=12,
        ge=0,
        le=20,
        description="How many of 64 bits the hashes of two clips' frames may differ by, in the "
        "mean: 3 for copies coded again, 12 with a logo, subtitles or a crop of 15 %.",
    )
    mirrored: bool = Field(
        default=True, description="Whether a copy mirrored left to right is one too."
    )


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates, by position. `shift` is how many moments later the second shows what the
    first does, `bits` how far apart their frames are in the mean.
    """

    first: int
    second: int
    shift: int
    bits: float
    is_mirrored: bool


@dataclass(frozen=True)
class Likeness:
    """What a clip is a near-duplicate of. The other one (its key) shows `later_s` seconds later
    what the clip does.
    """

    other: str
    later_s: float
    bits: float
    is_mirrored: bool

    def __str__(self) -> str:
        when = f" {abs(self.later_s):.1f} s {'later' if self.later_s > 0 else 'earlier'}"
        how = ", mirrored" if self.is_mirrored else ""
        return f"'{self.other}' shows the same{when if self.later_s else ''}{how}"


@dataclass(frozen=True)
class Overview:
    """The near-duplicates of a dataset, by key of the clip: all it is like, the best first; which
    of them stays instead of it. `split_groups` are by digest of the video.
    """

    likes: Mapping[str, Sequence[Likeness]]
    losers: Mapping[str, Likeness]
    split_groups: Mapping[str, str]


NOTHING = Overview({}, {}, {})


def overview_of(clips: Sequence[Clip], picked: Collection[str], params: Params) -> Overview:
    """The near-duplicates among hashed clips. One goes if a better one that stays shows the same;
    those of the keys `picked` never go. A clip is better than another one with less of a picture:
    pixels of its source in a frame (as many as the clip has at most), times its frames; of equal
    ones, the one of the file with more bits a second, then the one whose key comes first.
    """
    ordered = sorted(clips, key=lambda clip: (clip.key not in picked, *_rank(clip)))
    pairs = pairs_of([from_text(clip.hashes) for clip in ordered], params)
    # by position, so the best first
    likes: dict[int, dict[int, Likeness]] = {}
    digests: list[tuple[str, str]] = []
    for pair in pairs:
        first, second = ordered[pair.first], ordered[pair.second]
        later_s = round(float(pair.shift * step_of(first) / first.fps), 2)
        bits = round(pair.bits, 2)
        for one, other, sign in ((pair.first, pair.second, 1), (pair.second, pair.first, -1)):
            like = Likeness(ordered[other].key, sign * later_s, bits, pair.is_mirrored)
            likes.setdefault(one, {})[other] = like
        digests.append((first.scene.video.blob.sha256, second.scene.video.blob.sha256))
    losers: dict[str, Likeness] = {}
    for place, clip in enumerate(ordered):
        others = sorted(likes.get(place, {}))
        better = [other for other in others if other < place and ordered[other].key not in losers]
        if better and clip.key not in picked:
            losers[clip.key] = likes[place][better[0]]
    return Overview(
        {
            ordered[place].key: [others[p] for p in sorted(others)]
            for place, others in likes.items()
        },
        losers,
        _split_groups(digests),
    )


def _rank(clip: Clip) -> tuple[float, float, str]:
    """What sorts a better clip before another one; see `overview_of`."""
    side = min(clip.crop.width, clip.crop.height, clip.size)
    video = clip.scene.video
    bits_per_s = video.blob.num_bytes / max(1.0, float(video.container.duration_s))
    return -(side**2) * clip.num_frames, -bits_per_s, clip.key


def _split_groups(pairs: Collection[tuple[str, str]]) -> dict[str, str]:
    """For each video that shares near-duplicates with others, directly or by way of them: the first
    of all these. So no two that show the same fall into different splits.
    """
    before: dict[str, str] = {}  # by name: one of its group that comes before, or itself

    def first_of(name: str) -> str:
        while before.setdefault(name, name) != name:
            before[name] = before[before[name]]
            name = before[name]
        return name

    for pair in pairs:
        first, second = sorted(map(first_of, pair))
        before[second] = first
    groups = {name: first_of(name) for name in before}
    sizes = Counter(groups.values())
    return {name: group for name, group in groups.items() if sizes[group] > 1}


def pairs_of(clips: Sequence[Hashes], params: Params) -> list[Pair]:
    """Every two clips that are near-duplicates, in order. No clip is one of itself."""
    pairs: dict[tuple[int, int], Pair] = {}
    for first, second, is_mirrored in _candidates(clips, params.mirrored):
        other = mirrored(clips[second]) if is_mirrored else clips[second]
        agreement = best_shift(clips[first], other)
        if agreement is None or not agreement.is_one(params.max_bits):
            continue
        pair = Pair(first, second, agreement.shift, agreement.bits, is_mirrored)
        known = pairs.get((first, second))
        if known is None or pair.bits < known.bits:
            pairs[first, second] = pair
    return [pairs[key] for key in sorted(pairs)]


@dataclass(frozen=True)
class Agreement:
    """How well two clips agree at one shift, in bits, and the better of a second earlier and a
    second later.
    """

    shift: int
    bits: float
    elsewhere: float

    def is_one(self, max_bits: float) -> bool:
        """Whether they are near-duplicates."""
        limit = min(max_bits, SHARE * self.elsewhere, self.elsewhere - MARGIN)
        return self.bits <= limit


def best_shift(first: Hashes, second: Hashes) -> Agreement | None:
    """The shift at which two clips agree best; None if they have too few moments in common.
    Moments without a hash count for nothing.
    """
    num_shifts = len(first) + len(second) - 1
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
    enough = counts >= max(MIN_MOMENTS, (shorter + 1) // 2)
    if not enough.any():
        return None
    best = int(np.argmin(np.where(enough, means, BITS)))
    beside = [place for place in (best - LATER, best + LATER) if 0 <= place < num_shifts]
    elsewhere = min((means[place] for place in beside if counts[place] >= 3), default=0.0)
    return Agreement(best - len(first) + 1, float(means[best]), float(elsewhere))


def _sums_of_diagonals(matrix: NDArray[Any]) -> NDArray[np.int64]:
    """The sum of each diagonal of a matrix, from its lower left corner to its upper right one."""
    rows, columns = matrix.shape
    # rows one place longer than they are read: each starts a place further to the right
    padded = np.zeros((rows, columns + rows), np.int64)
    padded[:, :columns] = matrix[::-1]
    width = columns + rows - 1
    sums: NDArray[np.int64] = padded.ravel()[: rows * width].reshape(rows, width).sum(axis=0)
    return sums


def _candidates(clips: Sequence[Hashes], with_mirrored: bool) -> Iterator[tuple[int, int, bool]]:
    """Pairs of clips of which some frames have hashes that are near: first, second, whether the
    second is mirrored. In order; the first is before the second.
    """
    num_clips = len(clips)
    versions = [list(clips), [mirrored(clip) for clip in clips]] if with_mirrored else [clips]
    hashes, owners = _entries([clip for version in versions for clip in version])
    tables = [_neighbours(hashes, owners, mask, num_clips) for mask in _masks()]
    for pair in np.unique(np.concatenate(tables)):
        first, second = divmod(int(pair), 2 * num_clips)
        yield first, second % num_clips, second >= num_clips


def _entries(clips: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.int64]]:
    """What the index holds: every hash that is another than that of the moment before, and the
    number of its clip, sorted by hash.
    """
    owners = np.repeat(np.arange(len(clips)), [len(clip) for clip in clips])
    hashes = np.concatenate([*clips, np.zeros(0, np.uint64)])
    is_same = np.zeros(len(hashes), bool)
    is_same[1:] = (hashes[1:] == hashes[:-1]) & (owners[1:] == owners[:-1])
    chosen = ~is_same & (hashes != NONE)
    hashes, owners = hashes[chosen], owners[chosen]
    order = np.lexsort((owners, hashes))
    return hashes[order], owners[order]


def _masks() -> list[np.uint64]:
    """The bits of two of the six blocks, for each two of them."""
    edges = [BITS * block // BLOCKS for block in range(BLOCKS + 1)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [np.uint64(one | other) for one, other in combinations(blocks, 2)]


def _neighbours(
    hashes: Hashes, owners: NDArray[np.int64], mask: np.uint64, num_clips: int
) -> NDArray[np.int64]:
    """Pairs of clips, each as one number, that have near hashes which are the same under a mask."""
    keys = hashes & mask
    order = np.argsort(keys, kind="stable")
    keys, hashes, owners = keys[order], hashes[order], owners[order]
    pairs = [np.zeros(0, np.int64)]
    left = np.arange(len(keys))
    for distance in range(1, NEAREST + 1):
        left = left[left + distance < len(keys)]
        left = left[keys[left] == keys[left + distance]]
        if not len(left):
            break
        is_near = np.bitwise_count(hashes[left] ^ hashes[left + distance]) <= NEAR
        pairs.append(_pairs(owners[left[is_near]], owners[left[is_near] + distance], num_clips))
    return np.unique(np.concatenate(pairs))


def _pairs(some: NDArray[np.int64], others: NDArray[np.int64], num_clips: int) -> NDArray[np.int64]:
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
    pairs: NDArray[np.int64] = first * (2 * num_clips) + second
    return pairs
