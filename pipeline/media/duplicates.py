"""Which clips of a dataset are near-duplicates, which of them is the best, and what may not be
split. All of it follows from the hashes of frames: no clip is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipeline.core.params import Table
from pipeline.core.records import Clip
from pipeline.media.frame_hashes import Hashes, from_text, step_of
from pipeline.media.matching import Limits, Pair, pair_of, pairs_of

VERSION = 1


class Params(Table):
    """`[duplicates]`: of clips that show the same, the best stays. Without the table, all stay."""

    max_bits: float = Field(
        default=12,
        ge=0,
        le=20,
        description="How many of 64 bits the hashes of two clips' frames may differ by, in the "
        "mean: a copy that was coded again differs by 3, one with a logo, subtitles or a cropped "
        "edge by 4 to 12.",
    )
    mirrored: bool = Field(
        default=True, description="Whether a copy mirrored left to right is one too."
    )


@dataclass(frozen=True)
class Likeness:
    """What a clip is a near-duplicate of. The other one (its key) shows `later_s` seconds later
    what the clip does; their frames are `bits` of 64 apart. `is_better`: it comes before the clip.
    """

    other: str
    later_s: float
    bits: float
    is_mirrored: bool
    is_better: bool

    def __str__(self) -> str:
        """Why a clip goes, in words."""
        shift = f"{abs(self.later_s):.1f} s {'later' if self.later_s > 0 else 'earlier'}"
        when = f", {shift}" if self.later_s else ""
        how = ", mirrored" if self.is_mirrored else ""
        return f"'{self.other}' shows the same{when}{how} ({self.bits:.1f} of 64 bits apart)"


@dataclass(frozen=True)
class Overview:
    """The near-duplicates of a dataset, by key of a clip: all that it is like (`likes`), and that
    which stays instead of it (`losers`); the best come first. `split_groups` has for a video, by
    digest, the first of all those whose split is drawn together with its own.
    """

    likes: Mapping[str, Sequence[Likeness]]
    losers: Mapping[str, Likeness]
    split_groups: Mapping[str, str]


NOTHING = Overview({}, {}, {})


def overview_of(clips: Sequence[Clip], picked: Collection[str], params: Params) -> Overview:
    """The near-duplicates among hashed clips. One goes if a better one that stays shows the same,
    so nothing goes that is not shown any more; those of the keys `picked` never go.

    Better is what has more of a picture: the pixels its source has in a frame (as many as the clip
    has, at most) times its frames; then that of the file with more bits a second; then the one
    whose key comes first.
    """
    ordered = sorted(clips, key=lambda clip: (clip.key not in picked, *_rank(clip)))
    limits = Limits(params.max_bits, params.mirrored)
    hashes = [from_text(clip.hashes) for clip in ordered]
    pairs = {(pair.first, pair.second): pair for pair in pairs_of(hashes, limits)}
    pairs |= {(pair.first, pair.second): pair for pair in _same(ordered)}
    winners = _winners(hashes, limits, pairs, {i for i, c in enumerate(ordered) if c.key in picked})
    likes: dict[int, dict[int, Likeness]] = {}
    for pair in pairs.values():
        for place, other in ((pair.first, pair.second), (pair.second, pair.first)):
            likes.setdefault(place, {})[other] = _likeness(pair, place, ordered)
    digests = [clip.scene.video.blob.sha256 for clip in ordered]
    return Overview(
        {
            ordered[place].key: [likes[place][other] for other in sorted(likes[place])]
            for place in sorted(likes)
        },
        {ordered[place].key: likes[place][winner] for place, winner in winners.items()},
        _split_groups([(digests[first], digests[second]) for first, second in pairs]),
    )


def _same(clips: Sequence[Clip]) -> Iterator[Pair]:
    """Clips of the very same pictures, each with the first that has them: also stills, which hashes
    cannot tell from other stills.
    """
    first: dict[str, int] = {}
    for place, clip in enumerate(clips):
        if first.setdefault(clip.pictures, place) != place:
            yield Pair(first[clip.pictures], place, 0, 0.0, is_mirrored=False)


def _rank(clip: Clip) -> tuple[float, float, str]:
    """What sorts a better clip before another one; see `overview_of`."""
    side = min(clip.crop.width, clip.crop.height, clip.size)
    video = clip.scene.video
    bits_per_s = video.blob.num_bytes / max(1.0, float(video.container.duration_s))
    return -(side**2) * clip.num_frames, -bits_per_s, clip.key


def _winners(
    hashes: Sequence[Hashes],
    limits: Limits,
    pairs: dict[tuple[int, int], Pair],
    picked: Collection[int],
) -> dict[int, int]:
    """By place of a clip that goes: the place of the one that stays. Clips are sorted, the best
    first. A clip whose likes all went is held against what they went for, too: an index does not
    name every pair of many copies. Pairs that come up so are added.
    """
    better: dict[int, list[int]] = {}
    for first, second in pairs:
        better.setdefault(second, []).append(first)
    winners: dict[int, int] = {}
    for place in sorted(better):
        if place in picked:
            continue
        for winner in sorted({winners.get(other, other) for other in better[place]}):
            if (winner, place) not in pairs:
                pair = pair_of(hashes, winner, place, limits)
                if pair is None:
                    continue
                pairs[winner, place] = pair
            winners[place] = winner
            break
    return winners


def _likeness(pair: Pair, place: int, clips: Sequence[Clip]) -> Likeness:
    """A pair as the clip at that place, one of the two, sees it."""
    is_first = place == pair.first
    other = clips[pair.second if is_first else pair.first]
    seconds = float(pair.shift * step_of(other) / other.fps)
    later_s = round(seconds if is_first else -seconds, 2)
    return Likeness(other.key, later_s, round(pair.bits, 2), pair.is_mirrored, not is_first)


def _split_groups(pairs: Collection[tuple[str, str]]) -> dict[str, str]:
    """For each video that shares near-duplicates with others, directly or by way of them: the first
    of all these.
    """
    before: dict[str, str] = {}  # by name: one of its group that comes before it, or itself

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
