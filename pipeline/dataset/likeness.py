"""How alike two arrays, and two locks, are: identical, equivalent (within tolerance) or different.

Two machines rarely round alike, so an array that is not bit-identical is judged by the values the
lock kept of it. Within tolerance means that it differs by less than storing the clip as video does
(docs/lock.md). Two locks are compared without any array at hand: digests and kept values are in
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.core.records import Scores
from pipeline.dataset.lock import Lock, LockedMember
from pipeline.dataset.probe import values_of

# shares of the standard deviation of the recorded values; 1 % is 40 dB, storing the clip costs 34
MEAN_TOLERANCE = 0.01
MAX_TOLERANCE = 0.1
# of a score measured again, as a share of the larger value, or absolute
SCORE_SHARE = 0.05
SCORE_SLACK = 0.005

Grade = Literal["identical", "equivalent", "different"]


@dataclass(frozen=True)
class Distance:
    """The absolute difference of two arrays' kept values, and the recorded ones' deviation."""

    mean: float
    largest: float
    deviation: float

    @property
    def is_within_tolerance(self) -> bool:
        mean_limit, limit = MEAN_TOLERANCE * self.deviation, MAX_TOLERANCE * self.deviation
        return self.mean <= mean_limit and self.largest <= limit


def distance_of(recorded: str, here: str) -> Distance | None:
    """How far apart the kept values (`probe_of`) of two arrays are; None if they cannot be
    compared.
    """
    ours, theirs = values_of(here), values_of(recorded)
    if ours.shape != theirs.shape:
        return None
    difference = np.abs(ours - theirs)
    deviation = float(theirs.std()) or 1.0
    return Distance(float(difference.mean()), float(difference.max()), deviation)


def grade_members(
    recorded: Mapping[str, LockedMember],
    digests: Mapping[str, str],
    probe: Callable[[str], str | None],
) -> tuple[dict[str, Grade], dict[str, Distance]]:
    """The grade of every member of a sample, by name, and how far apart arrays are that are not
    identical.

    `digests` are of the members that are here. `probe` gives the kept values of one, by its name;
    it is only asked where the digest is another.
    """
    grades: dict[str, Grade] = dict.fromkeys(digests.keys() | recorded.keys(), "different")
    distances = {}
    for name, member in recorded.items():
        if digests.get(name) == member.sha256:
            grades[name] = "identical"
            continue
        kept = probe(name) if name in digests and member.probe is not None else None
        distance = distance_of(member.probe, kept) if member.probe and kept else None
        if distance is not None:
            distances[name] = distance
            grades[name] = "equivalent" if distance.is_within_tolerance else "different"
    return grades, distances


def score_distances(recorded: Scores, here: Scores) -> dict[str, float] | None:
    """By score, how far it is from the recorded one, as a share of what is allowed; None if other
    scores were measured, or one could not be measured both times.
    """
    if [name for name, _ in recorded] != [name for name, _ in here]:
        return None
    distances = {}
    for (name, before), (_, now) in zip(recorded, here, strict=True):
        if (before is None) != (now is None):
            return None
        if before is not None and now is not None:
            allowed = max(SCORE_SLACK, SCORE_SHARE * max(abs(before), abs(now)))
            distances[name] = abs(now - before) / allowed
    return distances


def are_near(recorded: Scores, here: Scores) -> bool:
    """Whether scores are the recorded ones, within tolerance."""
    distances = score_distances(recorded, here)
    return distances is not None and all(distance <= 1 for distance in distances.values())


@dataclass
class Likeness:
    """What of one lock's samples another lock has. Lists hold keys."""

    num_identical: int = 0
    equivalent: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    is_same_root: bool = False
    largest_mean: float = 0.0  # of all arrays not identical, as a share of the deviation

    @property
    def grade(self) -> Grade:
        if [*self.different, *self.lost, *self.more]:
            return "different"
        return "identical" if self.is_same_root and not self.equivalent else "equivalent"


def compare_locks(locked: Lock, new: Lock) -> Likeness:
    """How alike the datasets are that two locks pin. No array is opened."""
    likeness = Likeness(is_same_root=locked.root_digest == new.root_digest)
    likeness.more = sorted(new.samples.keys() - locked.samples.keys())
    likeness.lost = sorted(locked.samples.keys() - new.samples.keys())
    for key in sorted(locked.samples.keys() & new.samples.keys()):
        probes = {name: member.probe for name, member in new.samples[key].members.items()}
        digests = {name: member.sha256 for name, member in new.samples[key].members.items()}
        grades, distances = grade_members(locked.samples[key].members, digests, probes.get)
        for distance in distances.values():
            share = distance.mean / distance.deviation
            likeness.largest_mean = max(likeness.largest_mean, share)
        if grades.get("json") == "different" and _is_only_rescored(locked, new, key):
            grades["json"] = "equivalent"
        if "different" in grades.values():
            likeness.different.append(key)
        elif "equivalent" in grades.values():
            likeness.equivalent.append(key)
        else:
            likeness.num_identical += 1
    return likeness


def _is_only_rescored(locked: Lock, new: Lock, key: str) -> bool:
    """Whether all that a sample's metadata says is the same, but for what was measured: the PSNR,
    and scores within tolerance.
    """
    before, now = locked.clips[key].scores, new.clips[key].scores
    is_same_psnr = locked.samples[key].round_trip_psnr_db == new.samples[key].round_trip_psnr_db
    if (is_same_psnr and before == now) or not are_near(before, now):
        return False
    return _told_of(locked, key) == _told_of(new, key)


def _told_of(lock: Lock, key: str) -> list[Any]:
    """What `shard.metadata` writes of a sample, from the lock."""
    clip = lock.clips[key]
    video, extract = lock.videos[clip.video], lock.params("extract")
    captions = video.captions if clip.captions is None else clip.captions
    source = (video.key, video.uri, captions, video.license, video.sha256)
    scene = (clip.start_pts, clip.end_pts, clip.time_base, clip.crop, clip.num_frames)
    return [*source, *scene, extract["fps"], extract["size"]]


def sentence_of(likeness: Likeness) -> str:
    """The likeness in words, such as "equivalent (3 within tolerance)"."""
    counts = {
        "identical": likeness.num_identical,
        "within tolerance": len(likeness.equivalent),
        "different": len(likeness.different),
        "missing": len(likeness.lost),
        "more": len(likeness.more),
    }
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if likeness.largest_mean:
        words += f"; arrays differ by up to {likeness.largest_mean:.2%} of their deviation"
    return f"{likeness.grade} ({words})"
