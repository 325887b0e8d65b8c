"""The last build of a dataset, as the manifests in its folder tell it, and what may be expected of
the next one by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.core import manifest
from pipeline.core.errors import LongtakeError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Clip, Record, Sample, Scene, Shard, Source, Video
from pipeline.dataset.build import NAMES, manifest_path

KINDS: Mapping[str, type[Record]] = dict(
    zip(NAMES, (Video, Scene, Scene, Clip, Sample, Shard), strict=True)
)
FRAME_BYTES = (
    56_500 / 512**2
)  # of a reel or clip, a pixel, where none is there to be measured: docs/decisions.md 2


@dataclass(frozen=True)
class Amount:
    """Records nobody can name yet. None is an unknown number."""

    count: float | None = 0
    video_s: float | None = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(plus(self.count, other.count), plus(self.video_s, other.video_s))

    def __bool__(self) -> bool:
        return self.count != 0


def plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def times(a: float | None, b: float | None) -> float | None:
    return 0 if a == 0 else None if a is None or b is None else a * b


@dataclass(frozen=True)
class Past:
    """Manifests by stage. Of a stage that has none, or one that cannot be read, nothing is
    known.
    """

    manifests: Mapping[str, Manifest]

    @staticmethod
    def read(folder: Path) -> Past:
        found = {}
        for name in NAMES:
            try:
                found[name] = manifest.read(manifest_path(folder, name), KINDS[name])
            except (OSError, LongtakeError, ValueError, KeyError, TypeError, AssertionError):
                continue
        return Past(found)

    @cached_property
    def records(self) -> Mapping[str, Mapping[str, Record]]:
        """By stage and key."""
        return {
            name: {record.key: record for record in made.records}
            for name, made in self.manifests.items()
        }

    def record(self, stage: str, key: str) -> Record | None:
        return self.records.get(stage, {}).get(key)

    @cached_property
    def _sources(self) -> frozenset[str]:
        made = self.manifests.get("download")
        return (
            frozenset(one.key for one in (*made.records, *made.rejections)) if made else frozenset()
        )

    @cached_property
    def _lists(self) -> frozenset[str]:
        """All that keys begin with, up to a dash: a list gives its name to what it holds."""
        return frozenset(
            "-".join(key.split("-")[:end])
            for key in self._sources
            for end in range(1, key.count("-") + 2)
        )

    def had(self, source: str, in_part: bool = False) -> bool:
        """Whether there was such a source, be it that it failed; `in_part`: or such a list of
        sources.
        """
        return source in (self._lists if in_part else self._sources)

    def videos(self, source: Source) -> Amount:
        """What a source that is not there will be: one video, as long as its time range says, or as
        others are.
        """
        if source.end_s is not None:
            return Amount(1, float(source.end_s - (source.start_s or 0)))
        return Amount(1, self._ratio(self._seconds("download"), self._count("download")))

    def scenes(self, video_s: float | None) -> Amount:
        """The scenes in so much video."""
        return Amount(
            times(video_s, self._ratio(self._count("cut"), self._seconds("download"))), video_s
        )

    def kept(self, scenes: Amount) -> Amount:
        """What the filter leaves of them."""
        count = times(scenes.count, self._ratio(self._count("filter"), self._count("cut")))
        return Amount(
            count, times(scenes.video_s, self._ratio(self._seconds("filter"), self._seconds("cut")))
        )

    def packed(self, samples: Amount, num_done: int) -> Amount:
        """The shards they fill, and those of `num_done` that are packed again: a new sample,
        anywhere in the order, moves all behind it.
        """
        share = self._ratio(self._count("encode"), self._count("shard"))  # samples of a shard
        if not samples.count or share is None:
            return samples if samples.count == 0 else Amount(None, samples.video_s)
        moved = num_done * samples.count / (samples.count + 1)
        of_a_sample = self._ratio(self._seconds("encode"), self._count("encode"))
        return Amount(
            samples.count / share + moved, plus(samples.video_s, times(moved * share, of_a_sample))
        )

    @property
    def video_bytes(self) -> float | None:
        """Of one raw video."""
        videos = [
            record
            for record in self.records.get("download", {}).values()
            if isinstance(record, Video)
        ]
        return self._ratio(sum(video.blob.num_bytes for video in videos), len(videos))

    def frame_bytes(self, size: int) -> float:
        """Of one frame of a reel or clip of this size."""
        clips = [
            record
            for record in self.records.get("extract", {}).values()
            if isinstance(record, Clip)
        ]
        pixels = sum(clip.num_frames * clip.size**2 for clip in clips)
        return size**2 * (
            self._ratio(sum(clip.blob.num_bytes for clip in clips), pixels) or FRAME_BYTES
        )

    def _count(self, stage: str) -> int:
        return len(self.records.get(stage, {}))

    def _seconds(self, stage: str) -> float:
        return sum(
            float(getattr(record, "duration_s", 0))
            for record in self.records.get(stage, {}).values()
        )

    @staticmethod
    def _ratio(a: float, b: float) -> float | None:
        return a / b if b else None
