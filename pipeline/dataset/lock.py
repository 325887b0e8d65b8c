"""`manifests/NAME.lock.jsonl`: the facts that pin a build, and none of its footage. With the
recipe, it is the dataset.

A header, then one line per video, clip, sample and shard, each with a check of its own: addresses,
digests, cuts in exact time stamps, and a few values of every array, by which a rebuild on another
machine can be judged. The same build writes the same bytes. `reproduce` builds from it, `verify`
checks a data folder against it, `card` describes it. docs/lock.md is the contract.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import replace_file
from pipeline.core.manifest import Manifest, lines_of
from pipeline.core.records import Clip, Container, Crop, Sample, Shard, Split, Video, public
from pipeline.core.store import Store
from pipeline.media import reel
from pipeline.stages import shard

FORMAT = 1
LIBRARIES = ("longtake", "torch", "diffusers", "open_clip_torch", "av", "decord2", "numpy")
SUFFIX = ".lock.jsonl"
LARGE = 20_000_000  # bytes from which on a lock is compressed
MOST = 2 << 30  # bytes of one that is unpacked: a million samples
PROBES = 32  # values kept of every array

Key = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=250)
]  # it becomes file names
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class LockedVideo:
    """A source as it was fetched. An absolute local address is cut down to the file's name."""

    key: Key
    uri: str
    captions: tuple[str, ...]
    license: str | None
    start_s: Fraction | None
    end_s: Fraction | None
    sha256: Digest
    num_bytes: int
    fetched_as: str
    container: Container


@dataclass(frozen=True, slots=True)
class LockedClip:
    """A scene in its video's own time stamps, and the clip it gave."""

    key: Key
    video: Key
    start_pts: int
    end_pts: int
    time_base: Fraction
    crop: Crop
    num_frames: int
    sha256: Digest
    pictures: Digest


@dataclass(frozen=True, slots=True)
class LockedMember:
    """One file of a sample: its digest and, of an array, `PROBES` float16 values (base64) at the
    places `probe_places` names.
    """

    sha256: Digest
    probe: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")] | None


@dataclass(frozen=True, slots=True)
class LockedSample:
    """What a shard holds under one key."""

    key: Key
    members: dict[str, LockedMember]
    round_trip_psnr_db: float | None
    device: str


@dataclass(frozen=True, slots=True)
class LockedShard:
    """One tar, and the samples in it, in order."""

    key: Key
    split: Split
    sha256: Digest
    num_bytes: int
    samples: tuple[Key, ...]


class _Stage(BaseModel):
    version: int
    params: dict[str, Any]
    num_in: int = Field(alias="in")
    split: int
    out: int
    rejected: dict[str, int]


class _Header(BaseModel):
    """What the first line must say; it is used as the plain JSON it is."""

    name: str
    recipe: Digest
    packing: dict[str, Any]
    stages: dict[Literal["download", "cut", "filter", "extract", "encode", "shard"], _Stage] = (
        Field(min_length=6)
    )
    hours: dict[str, float]
    root_digest: Digest
    environment: dict[Literal["versions", "machine", "devices", "threads"], Any] = Field(
        min_length=4
    )


Line = LockedVideo | LockedClip | LockedSample | LockedShard
KINDS: dict[str, type[Line]] = {
    "video": LockedVideo,
    "clip": LockedClip,
    "sample": LockedSample,
    "shard": LockedShard,
}


@dataclass(frozen=True)
class Lock:
    """A lock, read or made. `header` is plain JSON: name, recipe digest, stages with their counts,
    environment, root digest.
    """

    header: dict[str, Any]
    videos: dict[str, LockedVideo]
    clips: dict[str, LockedClip]
    samples: dict[str, LockedSample]
    shards: dict[str, LockedShard]

    def encode(self) -> bytes:
        tables: tuple[Mapping[str, Line], ...] = (
            self.videos,
            self.clips,
            self.samples,
            self.shards,
        )
        lines: list[dict[str, object]] = [{"lock": self.header}]
        lines += [
            {kind: table[key]}
            for kind, table in zip(KINDS, tables, strict=True)
            for key in sorted(table)
        ]
        return b"".join(canonical.seal(line) + b"\n" for line in lines)

    @property
    def root_digest(self) -> str:
        return str(self.header["root_digest"])

    def params(self, stage: str) -> dict[str, Any]:
        """A stage's parameters, as its manifest had them."""
        return dict(self.header["stages"][stage]["params"])

    @cached_property
    def _by_video(self) -> dict[str, list[LockedClip]]:
        found: dict[str, list[LockedClip]] = {}
        for key in sorted(self.clips):
            found.setdefault(self.clips[key].video, []).append(self.clips[key])
        return found

    def clips_of(self, video: str) -> list[LockedClip]:
        return self._by_video.get(video, [])


def of(
    name: str,
    recipe_digest: str,
    packing: Mapping[str, Any],
    manifests: Sequence[Manifest],
    store: Store,
) -> Lock:
    """The lock of a finished build, from its six manifests and the arrays in the store. `packing`
    is the recipe's [shard].
    """
    by_stage = {made.stage: made for made in manifests}
    videos = cast(Sequence[Video], by_stage["download"].records)
    clips = cast(Sequence[Clip], by_stage["extract"].records)
    samples = cast(Sequence[Sample], by_stage["encode"].records)
    shards = cast(Sequence[Shard], by_stage["shard"].records)
    json_digests = {
        key: members[0].sha256
        for made in shards
        for key, members in zip(made.samples, made.members, strict=True)
    }
    header = {
        "format": FORMAT,
        "name": name,
        "recipe": recipe_digest,
        "packing": dict(packing),
        "stages": {made.stage: _stage(made) for made in manifests},
        "hours": {
            made.stage: round(_hours(made), 4)
            for made in manifests
            if made.stage in ("download", "extract", "encode")
        },
        "root_digest": shard.root_digest(shards),
        "environment": environment(sorted({sample.device for sample in samples})),
    }
    return Lock(
        header,
        {video.key: _video(video) for video in videos},
        {clip.key: _clip(clip) for clip in clips},
        {sample.key: _sample(sample, json_digests[sample.key], store) for sample in samples},
        {
            made.key: LockedShard(
                made.key, made.split, made.blob.sha256, made.blob.num_bytes, made.samples
            )
            for made in shards
        },
    )


def _stage(made: Manifest) -> dict[str, Any]:
    counts = {
        "in": made.num_in,
        "split": made.num_split,
        "out": len(made.records),
        "rejected": dict(made.reasons),
    }
    return {"version": made.version, "params": canonical.plain(made.params), **counts}


def _hours(made: Manifest) -> float:
    return sum(float(getattr(record, "duration_s", 0)) for record in made.records) / 3600


def environment(devices: list[str]) -> dict[str, Any]:
    """With what a dataset was made. It explains differences and enters no digest."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "versions": {**versions, "ffmpeg": reel.ffmpeg_version()},
        "machine": platform.machine(),
        "devices": devices,
        "threads": 1,
    }


def _video(video: Video) -> LockedVideo:
    source = video.source
    facts = (source.captions, source.license, source.start_s, source.end_s)
    return LockedVideo(
        video.key,
        public(source.uri),
        *facts,
        video.blob.sha256,
        video.blob.num_bytes,
        video.fetched_as,
        video.container,
    )


def _clip(clip: Clip) -> LockedClip:
    scene = clip.scene
    span = (scene.start_pts, scene.end_pts, scene.time_base)
    return LockedClip(
        clip.key,
        scene.video.key,
        *span,
        clip.crop,
        clip.num_frames,
        clip.blob.sha256,
        clip.pictures,
    )


def _sample(sample: Sample, json_digest: str, store: Store) -> LockedSample:
    arrays = {
        name: LockedMember(blob.sha256, probe(store.path(blob.sha256)))
        for name, blob in shard.members_of(sample)
    }
    return LockedSample(
        sample.key,
        {"json": LockedMember(json_digest, None), **arrays},
        sample.round_trip_psnr_db,
        sample.device,
    )


def probe_places(size: int) -> NDArray[np.int64]:
    """Which values of an array of so many are kept: `PROBES` places drawn from its size alone."""
    drawn = np.frombuffer(
        hashlib.shake_256(f"longtake probe {size}".encode()).digest(8 * PROBES), "<u8"
    )
    return (drawn % max(1, size)).astype(np.int64)


def probe(path: Path) -> str:
    """The kept values of a .npy file, float16, little-endian, base64."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    values = array.reshape(-1)[probe_places(array.size)].astype("<f2")
    return base64.b64encode(values.tobytes()).decode()


def probed(text: str) -> NDArray[np.float32]:
    """The values `probe` kept."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def path_of(recipe: Path) -> Path:
    """Where a recipe's lock is, or would be: beside it; compressed if there is such a one."""
    plain = recipe.with_name(recipe.stem + SUFFIX)
    packed = plain.with_name(plain.name + ".zst")
    return packed if packed.is_file() and not plain.is_file() else plain


def write(lock: Lock, recipe: Path) -> tuple[Path, bool]:
    """Write beside, then rename; returns where, and whether anything changed. Above `LARGE` bytes
    it is compressed.
    """
    content = lock.encode()
    plain = recipe.with_name(recipe.stem + SUFFIX)
    packed = plain.with_name(plain.name + ".zst")
    target, other = (packed, plain) if len(content) > LARGE else (plain, packed)
    if len(content) > LARGE:
        import zstandard

        content = zstandard.ZstdCompressor(level=10, write_checksum=True).compress(content)
    changed = not target.is_file() or target.read_bytes() != content
    if changed:
        replace_file(target, content)
    other.unlink(missing_ok=True)  # only now: a crash before would have left no lock at all
    return target, changed


def read(recipe: Path) -> Lock:
    """The lock beside a recipe. Raises RecipeError if there is none or it is of another format,
    Damaged if bytes have changed.
    """
    path = path_of(recipe)
    if not path.is_file():
        raise RecipeError(
            f"there is no lock {path}: a finished build writes it, or get it from whoever published the recipe"
        )
    header, *lines = lines_of(path.name, _unpacked(path))
    about = header.get("lock")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise RecipeError(
            f"{path} is no lock of format {FORMAT} but of {found!r}: take the longtake that wrote it, or `build` one anew"
        )
    try:
        _Header.model_validate(about)
    except ValidationError as error:
        raise Damaged(f"{path.name}: line 1: lock.{_first(error)}") from error
    tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for number, (kind, line) in enumerate(parsed(path.name, lines), 2):
        if line.key in tables[kind]:
            raise Damaged(f"{path.name}: line {number}: the {kind} '{line.key}' stands there twice")
        tables[kind][line.key] = line
    lock = Lock(about, tables["video"], tables["clip"], tables["sample"], tables["shard"])
    if trouble := next(_contradictions(lock), None):
        raise Damaged(f"{path.name}: {trouble}")
    return lock


def _unpacked(path: Path) -> bytes:
    if path.suffix != ".zst":
        return path.read_bytes()
    import zstandard

    content = bytearray()
    try:
        with zstandard.open(path) as packed:
            while part := packed.read(LARGE):
                content += part
                if len(content) > MOST:
                    raise Damaged(
                        f"{path.name} unpacks to more than {MOST >> 20} MiB: that is no lock"
                    )
    except zstandard.ZstdError as error:
        raise Damaged(f"{path.name} is damaged: {error}") from error
    return bytes(content)


def parsed(name: str, lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Line]]:
    """Every line but the header, checked for its kind, and its kind. Raises Damaged with line and
    field.
    """
    adapters: dict[str, TypeAdapter[Line]] = {
        kind: TypeAdapter(made) for kind, made in KINDS.items()
    }
    for number, line in enumerate(lines, 2):
        kind = next(iter(line), "")
        if kind not in KINDS:
            raise Damaged(
                f"{name}: line {number}: got '{kind}', wanted is one of {', '.join(KINDS)}"
            )
        try:
            yield kind, adapters[kind].validate_python(line[kind])
        except ValidationError as error:
            raise Damaged(f"{name}: line {number}: {kind}.{_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first field that is wrong, and how."""
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _contradictions(lock: Lock) -> Iterator[str]:
    """What no build could have written: a line lost, a line too many."""
    counts: dict[str, dict[str, Any]] = {
        "download": lock.videos,
        "extract": lock.clips,
        "encode": lock.samples,
        "shard": lock.shards,
    }
    for stage, told in lock.header["stages"].items():
        if stage in counts and told["out"] != len(counts[stage]):
            yield f"the header tells of {told['out']} records of stage '{stage}', there are {len(counts[stage])}"
        if told["in"] + told["split"] != told["out"] + sum(told["rejected"].values()):
            yield f"the header's counts of stage '{stage}' do not add up: in + split is not out + rejected"
    for clip in lock.clips.values():
        if clip.video not in lock.videos:
            yield f"the clip '{clip.key}' is of a video '{clip.video}' that is not there"
        elif not clip.num_frames > 0 or not clip.start_pts < clip.end_pts:
            yield f"the clip '{clip.key}' has no length"
    packed = sorted(key for made in lock.shards.values() for key in made.samples)
    if packed != sorted(lock.samples) or not lock.samples.keys() <= lock.clips.keys():
        yield "the shards do not hold exactly the samples"
    if lock.root_digest != root_of(lock.shards.values()):
        yield "the root digest is not that of the shards"


def root_of(shards: Any) -> str:
    """The root digest of locked shards (see `shard.root_digest`)."""
    ordered = sorted(shards, key=lambda made: made.key)
    return hashlib.sha256("".join(f"{made.sha256}\n" for made in ordered).encode()).hexdigest()
