"""`manifests/NAME.lock.jsonl`: the facts that pin a finished build, beside its recipe.

With the recipe it is the dataset: addresses, digests, formats and cuts; of every array a few
values. A header, then one line for each video, clip, sample and shard, each with a check of its
own. No footage, no folder of anybody's machine. Format 1, in docs/lock.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import platform
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import FailFast, Field, field_validator

from pipeline.core import canonical
from pipeline.core.errors import SUSPECTED, Damaged, LongtakeError, RecipeError
from pipeline.core.files import replace_file, sync, sync_folder
from pipeline.core.manifest import Manifest
from pipeline.core.reading import (
    Bounded,
    Count,
    Digest,
    EndlessError,
    Facts,
    Key,
    Number,
    Positive,
    Rational,
    Text,
    Texts,
    Whole,
    checked,
    sealed_lines,
    shown_value,
    unsealed,
)
from pipeline.core.records import (
    Clip,
    Container,
    Cover,
    Crop,
    Sample,
    Scores,
    Shard,
    Split,
    Video,
    public,
)
from pipeline.core.store import Store
from pipeline.dataset.naming import NAME
from pipeline.dataset.probe import probe_of
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.removals import Head, head_of
from pipeline.media import machine, reel
from pipeline.stages import NAMES
from pipeline.stages import shard as shard_stage

FORMAT = 1
LIBRARIES = ("longtake", "torch", "diffusers", "open_clip_torch", "av", "decord2", "numpy")
SUFFIX = ".lock.jsonl"
LARGE = 20_000_000  # bytes from which on a lock is compressed
LATER = ("expand", "score", "keep", "caption")  # stages that older locks do not tell of
MOST = 2 << 30  # bytes of one that is unpacked: a million samples
DENSEST = 40  # times the size of its file: digests and kept values do not shrink to a third

Probe = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9+/]{86}==$")]  # dataset/probe.py


@dataclass(frozen=True, slots=True)
class LockedVideo:
    """A source as it was fetched. An absolute local address is cut down to the file's name."""

    key: Key
    uri: Text
    captions: Texts
    license: Text | None
    start_s: Rational | None
    end_s: Rational | None
    sha256: Digest
    num_bytes: Count
    fetched_as: Text
    container: Container


@dataclass(frozen=True, slots=True)
class LockedClip:
    """A scene in its video's own time stamps, and the clip it gave, which was kept."""

    key: Key
    video: Key
    start_pts: Whole
    end_pts: Whole
    time_base: Positive
    crop: Crop
    num_frames: Count
    sha256: Digest
    pictures: Digest
    scores: Scores = ()
    picture: Crop | None = None  # inside the scene's black bars; older locks do not tell
    covers: tuple[Cover, ...] = ()  # over faces
    captions: tuple[Text, ...] | None = None  # the clip's; None: those of its video
    split_group: Digest | None = None  # of videos that share near-duplicates


@dataclass(frozen=True, slots=True)
class LockedMember:
    """One file of a sample: its digest and, of an array, a few of its values."""

    sha256: Digest
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class LockedSample:
    """What a shard holds under one key."""

    key: Key
    members: dict[Text, LockedMember]
    round_trip_psnr_db: Number | None
    device: Text


@dataclass(frozen=True, slots=True)
class LockedShard:
    """One tar, and the samples in it, in order."""

    key: Key
    split: Split
    sha256: Digest
    num_bytes: Count
    samples: Annotated[tuple[Key, ...], FailFast()]


class _Stage(Facts):
    version: Count
    params: dict[Text, Any]
    num_in: Count = Field(alias="in")
    split: Whole
    out: Count
    rejected: dict[Text, Count]


class _Environment(Facts):
    versions: dict[Text, Text]
    machine: Text
    devices: Texts
    threads: Count
    cpu: dict[Text, Text] = Field(default_factory=dict)  # older locks do not tell
    restrictions: dict[Text, Text] = Field(default_factory=dict)


class _Header(Facts):
    """What the first line must say; it is used as the plain JSON it is."""

    format: Literal[1]
    name: Annotated[str, Field(strict=True, pattern=NAME)]
    recipe: Digest
    packing: dict[Text, Any]
    stages: dict[Text, _Stage]
    hours: dict[Text, Number]
    root_digest: Digest
    environment: _Environment
    removals: Head | None = None
    suspected: Count = 0

    @field_validator("stages")
    @classmethod
    def _has_the_chain(cls, stages: dict[str, _Stage]) -> dict[str, _Stage]:
        missing = [name for name in NAMES if name not in stages and name not in LATER]
        if missing:
            raise ValueError(f"the stage '{missing[0]}' is missing")
        return stages


Line = LockedVideo | LockedClip | LockedSample | LockedShard
KINDS: dict[str, type[Line]] = {
    "video": LockedVideo,
    "clip": LockedClip,
    "sample": LockedSample,
    "shard": LockedShard,
}
# the last of these stages that ran gave the clips of a dataset; older locks know the last alone
CLIP_STAGES = ("caption", "keep", "score", "extract")
TIMED = ("download", "extract", "encode")  # stages whose hours of video the header has


@dataclass(frozen=True)
class Lock:
    """A lock, read or just made. `header` is plain JSON: name, recipe digest, stages with their
    counts, environment, root digest.
    """

    header: dict[str, Any]
    videos: dict[str, LockedVideo]
    clips: dict[str, LockedClip]
    samples: dict[str, LockedSample]
    shards: dict[str, LockedShard]

    @property
    def tables(self) -> dict[str, Mapping[str, Line]]:
        """The lines by kind and key, in the order of `KINDS`."""
        tables = (self.videos, self.clips, self.samples, self.shards)
        return dict(zip(KINDS, tables, strict=True))

    def encode(self) -> bytes:
        """The bytes of the file, before any compression."""
        lines: list[dict[str, object]] = [{"lock": self.header}]
        for kind, table in self.tables.items():
            lines += [{kind: _facts(table[key])} for key in sorted(table)]
        return b"".join(canonical.seal(line) + b"\n" for line in lines)

    @property
    def root_digest(self) -> str:
        return str(self.header["root_digest"])

    def params(self, stage: str) -> dict[str, Any]:
        """A stage's parameters, as its manifest had them; none if the lock is older than it."""
        return dict(self.header["stages"].get(stage, {}).get("params", {}))

    @cached_property
    def clips_by_video(self) -> Mapping[str, list[LockedClip]]:
        """The clips of every video that has some, in key order."""
        clips: dict[str, list[LockedClip]] = {}
        for _, clip in sorted(self.clips.items()):
            clips.setdefault(clip.video, []).append(clip)
        return clips

    @cached_property
    def probes(self) -> dict[str, str]:
        """The kept values of every array, by the array's digest."""
        members = [member for sample in self.samples.values() for member in sample.members.values()]
        return {member.sha256: member.probe for member in members if member.probe is not None}


def _facts(line: Line) -> dict[str, Any]:
    """A line as JSON. Where no near-duplicates are, it says what it did before they were known."""
    facts: dict[str, Any] = canonical.plain(line)
    if isinstance(line, LockedClip) and line.split_group is None:
        del facts["split_group"]
    return facts


def lock_of(
    loaded: Loaded, manifests: Sequence[Manifest], store: Store, probes: Mapping[str, str]
) -> Lock:
    """The lock of a recipe's finished build, from its manifests and the arrays in the store.

    `probes` are `Lock.probes` of an earlier lock of this very data folder: an array with one of
    these digests is not opened again.
    """
    by_stage = {manifest.stage: manifest for manifest in manifests}
    videos = cast(Sequence[Video], by_stage["download"].records)
    clips = cast(Sequence[Clip], by_stage[clip_stage(by_stage)].records)
    samples = cast(Sequence[Sample], by_stage["encode"].records)
    shards = cast(Sequence[Shard], by_stage["shard"].records)
    stages = {}
    for manifest in manifests:
        stages[manifest.stage] = {
            "version": manifest.version,
            "params": canonical.plain(manifest.params),
            "in": manifest.num_in,
            "split": manifest.num_split,
            "out": len(manifest.records),
            "rejected": dict(manifest.reasons),
        }
    hours = {}
    for stage in TIMED:
        durations = [float(getattr(record, "duration_s", 0)) for record in by_stage[stage].records]
        hours[stage] = round(sum(durations) / 3600, 4)
    header: dict[str, Any] = {
        "format": FORMAT,
        "name": loaded.recipe.name,
        "recipe": loaded.digest,
        "packing": loaded.recipe.shard.model_dump(),
        "stages": stages,
        "hours": hours,
        "root_digest": shard_stage.root_digest(shards),
        "environment": environment(sorted({sample.device for sample in samples})),
    }
    if suspected := num_suspected(header):
        header["suspected"] = suspected
    if head := head_of(loaded.removed):
        header["removals"] = head.model_dump()
    json_digests = json_digests_of(shards)
    locked_samples = {}
    for sample in samples:
        members = {"json": LockedMember(json_digests[sample.key], None)}
        for member, blob in shard_stage.members_of(sample):
            probe = probes.get(blob.sha256) or probe_of(store.path(blob.sha256))
            members[member] = LockedMember(blob.sha256, probe)
        psnr = sample.round_trip_psnr_db
        locked_samples[sample.key] = LockedSample(sample.key, members, psnr, sample.device)
    return Lock(
        header,
        {video.key: locked_video(video) for video in videos},
        {clip.key: locked_clip(clip) for clip in clips},
        locked_samples,
        {shard.key: locked_shard(shard) for shard in shards},
    )


def clip_stage(stages: Collection[str]) -> str:
    """The stage that gave the clips, of the stages that ran."""
    return next((name for name in CLIP_STAGES if name in stages), "extract")


def kinds_of(stages: Collection[str]) -> dict[str, str]:
    """The stages whose records have a line in a lock, and its kind, of the stages that ran."""
    return {"download": "video", clip_stage(stages): "clip", "encode": "sample", "shard": "shard"}


def num_suspected(header: Mapping[str, Any]) -> int:
    """How many records of all stages were rejected on suspicion: they crashed or timed out."""
    stages = header["stages"].values()
    return sum(int(stage["rejected"].get(reason, 0)) for stage in stages for reason in SUSPECTED)


def json_digests_of(shards: Iterable[Shard]) -> dict[str, str]:
    """The digest of every sample's metadata, which is the first member of a sample, by key."""
    return {
        key: members[0].sha256
        for shard in shards
        for key, members in zip(shard.samples, shard.members, strict=True)
    }


def environment(devices: list[str]) -> dict[str, Any]:
    """With what a dataset was made, and on what the lock was written. It explains differences and
    enters no digest.
    """
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "versions": {**versions, "ffmpeg": reel.ffmpeg_version()},
        "machine": platform.machine(),
        "cpu": machine.cpu(),
        "restrictions": machine.restrictions(),
        "devices": devices,
        "threads": 1,
    }


def locked_video(video: Video) -> LockedVideo:
    source = video.source
    return LockedVideo(
        key=video.key,
        uri=public(source.uri),
        captions=source.captions,
        license=source.license,
        start_s=source.start_s,
        end_s=source.end_s,
        sha256=video.blob.sha256,
        num_bytes=video.blob.num_bytes,
        fetched_as=video.fetched_as,
        container=video.container,
    )


def locked_clip(clip: Clip) -> LockedClip:
    scene = clip.scene
    return LockedClip(
        key=clip.key,
        video=scene.video.key,
        start_pts=scene.start_pts,
        end_pts=scene.end_pts,
        time_base=scene.time_base,
        crop=clip.crop,
        num_frames=clip.num_frames,
        sha256=clip.blob.sha256,
        pictures=clip.pictures,
        scores=clip.scores,
        picture=scene.picture,
        covers=clip.covers,
        captions=clip.captions,
        split_group=clip.split_group,
    )


def locked_shard(shard: Shard) -> LockedShard:
    blob = shard.blob
    return LockedShard(shard.key, shard.split, blob.sha256, blob.num_bytes, shard.samples)


def plain_path(recipe: Path) -> Path:
    """Where a recipe's lock lies when it is not compressed: beside it."""
    return recipe.with_name(recipe.stem + SUFFIX)


def packed_form(plain: Path) -> Path:
    return plain.with_name(f"{plain.name}.zst")


def present_form(plain: Path) -> Path:
    """A lock's path, or that of its compressed form where there is only that."""
    packed = packed_form(plain)
    return packed if packed.is_file() and not plain.is_file() else plain


def path_of(recipe: Path) -> Path:
    """Where a recipe's lock is, or would be."""
    return present_form(plain_path(recipe))


def write(lock: Lock, recipe: Path) -> tuple[Path, bool]:
    """Write the lock beside its recipe; see `write_file`."""
    return write_file(lock, plain_path(recipe))


def write_file(lock: Lock, plain: Path) -> tuple[Path, bool]:
    """Write a lock to the path `plain`, or compressed beside it if it is large. Returns where it
    is, and whether anything changed.
    """
    content = lock.encode()
    target, other = plain, packed_form(plain)
    if len(content) > LARGE:
        import zstandard

        target, other = other, target
        content = zstandard.ZstdCompressor(level=10, write_checksum=True).compress(content)
    changed = not target.is_file() or target.read_bytes() != content
    if changed:
        replace_file(target, content)
    if other.is_file():
        sync(target)  # or a power cut could leave no lock at all
        other.unlink()
        sync_folder(other.parent)
    return target, changed


def remove_file(plain: Path) -> None:
    """Remove a lock, in both of its forms."""
    for path in (plain, packed_form(plain)):
        path.unlink(missing_ok=True)
    if plain.parent.is_dir():
        sync_folder(plain.parent)


def read(recipe: Path) -> Lock:
    """The lock beside a recipe; see `read_file`."""
    return read_file(path_of(recipe))


def read_file(path: Path) -> Lock:
    """A lock. Raises RecipeError if there is none or it is of another format, Damaged if bytes have
    changed or a line is none of a lock.
    """
    if not path.is_file():
        raise RecipeError(
            f"there is no lock {path}: a finished build writes it, or get it from whoever "
            "published the recipe"
        )
    tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    with contextlib.closing(_lines_of(path)) as lines:
        _, first = next(lines)
        header = _header_of(first, path)
        for number, plain_line in lines:
            place = f"{path.name}: line {number}"
            kind, line = parsed(place, plain_line)
            if line.key in tables[kind]:
                raise Damaged(f"{place}: the {kind} '{line.key}' stands there twice")
            tables[kind][line.key] = line
    lock = Lock(header, *tables.values())
    for contradiction in _contradictions(lock):
        raise Damaged(f"{path.name}: {contradiction}")
    return lock


def removals_known(path: Path) -> Head | None:
    """What a lock's first line says of sources that were taken down before it was written; None if
    there were none, or if it cannot be read.
    """
    try:
        with contextlib.closing(_lines_of(path)) as lines:
            _, first = next(lines)
        header = _header_of(first, path)
    except (OSError, LongtakeError):
        return None
    if "removals" in header:
        return Head.model_validate(header["removals"])
    rejected = [stage["rejected"].get("removed", 0) for stage in header["stages"].values()]
    return Head(lines=sum(rejected), last=None) if sum(rejected) else None


def _header_of(line: Mapping[str, Any], path: Path) -> dict[str, Any]:
    header = line.get("lock")
    file_format = header.get("format") if isinstance(header, dict) else None
    if not isinstance(header, dict) or file_format != FORMAT:
        raise RecipeError(
            f"{path} is no lock of format {FORMAT} but of {shown_value(file_format)}: take the "
            "longtake that wrote it, or `build` one anew"
        )
    checked(_Header, header, f"{path.name}: line 1", "lock")
    return header


def _lines_of(path: Path) -> Generator[tuple[int, dict[str, Any]]]:
    """The lines of a lock, each checked, unpacked as they are read. Raises Damaged."""
    if path.suffix != ".zst":
        yield from sealed_lines(path)
        return
    import zstandard

    most = min(MOST, LARGE + DENSEST * path.stat().st_size)
    try:
        with zstandard.open(path) as packed, io.BufferedReader(Bounded(packed, most)) as file:
            yield from unsealed(path.name, file)
    except EndlessError:
        raise Damaged(
            f"{path.name} unpacks to more than {most >> 20} MiB: that is no lock"
        ) from None
    except zstandard.ZstdError as error:
        raise Damaged(f"{path.name} is damaged: {error}") from error


def parsed(place: str, line: Mapping[str, Any]) -> tuple[str, Line]:
    """A line that is not the header, checked for its kind, and its kind. Raises Damaged with the
    place and the field.
    """
    kind = next(iter(line), "")
    if kind not in KINDS or len(line) != 1:
        got = shown_value(kind)
        raise Damaged(f"{place}: got {got}, wanted is one of {', '.join(KINDS)}")
    return kind, checked(KINDS[kind], line[kind], place, kind)


def _contradictions(lock: Lock) -> Iterator[str]:
    """What no build could have written: a line lost, a line too many."""
    kinds = kinds_of(lock.header["stages"])
    for stage, counts in lock.header["stages"].items():
        num_out = counts["out"]
        num_lines = len(lock.tables[kinds[stage]]) if stage in kinds else num_out
        if num_out != num_lines:
            yield f"the header tells of {num_out} records of stage '{stage}', there are {num_lines}"
        num_rejected = sum(counts["rejected"].values())
        if counts["in"] + counts["split"] != counts["out"] + num_rejected:
            yield (
                f"the header's counts of stage '{stage}' do not add up: in + split is not out + "
                "rejected"
            )
    if lock.header.get("suspected") not in (None, num_suspected(lock.header)):
        yield "the header counts other suspicions than its stages do"
    for clip in lock.clips.values():
        if clip.video not in lock.videos:
            yield f"the clip '{clip.key}' is of a video '{clip.video}' that is not there"
        elif not clip.num_frames > 0 or not clip.start_pts < clip.end_pts:
            yield f"the clip '{clip.key}' has no length"
    packed = sorted(key for shard in lock.shards.values() for key in shard.samples)
    if packed != sorted(lock.samples) or not lock.samples.keys() <= lock.clips.keys():
        yield "the shards do not hold exactly the samples"
    if lock.root_digest != root_of(lock.shards.values()):
        yield "the root digest is not that of the shards"


def root_of(shards: Iterable[LockedShard]) -> str:
    """The root digest of locked shards (see `shard.root_digest`)."""
    ordered = sorted(shards, key=lambda shard: shard.key)
    return hashlib.sha256("".join(f"{shard.sha256}\n" for shard in ordered).encode()).hexdigest()
