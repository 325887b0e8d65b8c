"""Check what is on disk against the lock, without rebuilding anything: every digest, count, number,
and a look at some pictures.

Finds one flipped byte in any file of a dataset and names the clip, sample or record it belongs to.
Files whose content is fixed by a digest are read to the end; lines and memos carry checks; arrays
are searched for NaN; some latents are decoded.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import canonical, manifest
from pipeline.core.errors import BadData, Damaged, LongtakeError, RecipeError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Clip, Member, Record, Sample, Scene, Shard, Video
from pipeline.core.stage import Progress
from pipeline.core.store import Store, blobs_in
from pipeline.dataset import lock, raw
from pipeline.dataset.build import NAMES, blobs_of, manifest_path
from pipeline.dataset.lock import Lock
from pipeline.dataset.recipe import Loaded
from pipeline.media import encoders, video
from pipeline.publish import compare
from pipeline.publish.reproduce import looked
from pipeline.stages import encode, shard

KINDS: dict[str, type[Record]] = {
    "download": Video,
    "cut": Scene,
    "filter": Scene,
    "extract": Clip,
    "encode": Sample,
    "shard": Shard,
}
DECODED = 4  # samples looked at
PSNR_SLACK_DB = 0.5  # how far a decoded sample may be from what the build measured


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `path` is what to drop so that the next build makes it
    again, if anything.
    """

    kind: str
    name: str
    problem: str
    path: Path | None = None


@dataclass
class Checked:
    """What was looked at, and what was found wrong."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifests: int = 0
    memos: int = 0
    blobs: int = 0
    num_bytes: int = 0
    arrays: int = 0
    decoded: list[float] = field(default_factory=list)

    def found(self, kind: str, name: str, problem: str, path: Path | None = None) -> None:
        self.findings.append(Finding(kind, name, problem, path))


def verify(loaded: Loaded, data: Path, device: str, progress: Progress) -> Checked:
    """Check a dataset. Raises RecipeError if there is no lock or nothing is built."""
    store, folder = Store(data.absolute() / "store"), data / loaded.recipe.name
    checked = Checked()
    locked = _lock(loaded, checked)
    manifests = _manifests(folder, checked)
    _memos(loaded, data, store, device, checked)
    if locked is not None:
        _against_lock(locked, manifests, store, checked)
    broken = _blobs(folder, manifests, store, progress, checked)
    _shards(folder / "shards", locked, manifests, broken, store, checked)
    _decode(loaded, manifests, broken, store, device, checked)
    return checked


def _lock(loaded: Loaded, checked: Checked) -> Lock | None:
    try:
        locked = lock.read(loaded.path)
    except Damaged as error:
        name = lock.path_of(loaded.path).name
        checked.found(
            "lock",
            name,
            f"{str(error).removeprefix(f'{name}: ')}; get it where it is published, or delete it and build",
        )
        return None
    if locked.header["recipe"] != loaded.digest:
        checked.notes.append(
            "the recipe was edited since the lock was written: `plan` says what a build would do"
        )
    return locked


def _manifests(folder: Path, checked: Checked) -> dict[str, Manifest]:
    """Every manifest that is there and whole; what a stage gave must be what the next one took."""
    found: dict[str, Manifest] = {}
    for stage, kind in KINDS.items():
        path = manifest_path(folder, stage)
        if not path.is_file():
            continue
        try:
            found[stage] = manifest.read(path, kind)
            checked.manifests += 1
        except (Damaged, AssertionError, RecipeError, ValueError) as error:
            checked.found("manifest", path.name, str(error).removeprefix(f"{path.name}: "), path)
    if not found and not checked.findings:
        raise RecipeError(f"nothing is built in {folder}: build the dataset first, or reproduce it")
    for stage, next_stage in itertools.pairwise(NAMES[:-1]):
        if (
            stage in found
            and next_stage in found
            and len(found[stage].records) != found[next_stage].num_in
        ):
            given, taken = len(found[stage].records), found[next_stage].num_in
            checked.found(
                "manifest",
                manifest_path(folder, next_stage).name,
                f"'{stage}' gave {given} records, '{next_stage}' took {taken}",
            )
    return found


def _memos(loaded: Loaded, data: Path, store: Store, device: str, checked: Checked) -> None:
    """Every memo and failure note of the store; one that is damaged counts as not there, so it
    costs time and nothing else.
    """
    steps, _ = looked(loaded, data, device)
    names = {
        key: f"{step.manifest.stage} of '{name}'"
        for step in steps
        if step.found
        for name, key in step.found.keys.items()
    }
    for path in sorted(
        [*(store.root / "memos").glob("*/*"), *(store.root / "failures").glob("*/*")]
    ):
        checked.memos += 1
        try:
            canonical.unseal(path.read_bytes())
        except ValueError as error:
            checked.found(
                "memo",
                names.get(path.name, path.name[:12]),
                f"{error}; it counts as not there",
                path,
            )


def _against_lock(
    locked: Lock, manifests: Mapping[str, Manifest], store: Store, checked: Checked
) -> None:
    """Records against the lock's: the same keys, digests, cuts."""
    tables: dict[str, tuple[Mapping[str, Any], Callable[[Any, Any], list[str]]]] = {
        "download": (
            locked.videos,
            lambda made, wanted: [] if made.blob.sha256 == wanted.sha256 else ["the video's bytes"],
        ),
        "extract": (locked.clips, _clip_apart),
        "encode": (
            locked.samples,
            lambda made, wanted: _sample_apart(made, wanted, store, checked),
        ),
        "shard": (
            locked.shards,
            lambda made, wanted: _shard_apart(made, wanted, locked, manifests, checked),
        ),
    }
    for stage, (wanted, apart) in tables.items():
        if stage not in manifests and any(
            finding.kind == "manifest" and f"-{stage}." in finding.name
            for finding in checked.findings
        ):
            continue  # it is there, and damaged: that was told
        records = {record.key: record for record in _of(manifests, stage)}
        needed = (
            wanted.keys() if stage != "download" else {clip.video for clip in locked.clips.values()}
        )
        kind = KINDS[stage].__name__.lower()
        for key in sorted(needed - records.keys()):
            checked.found(kind, key, "is in the lock and not here")
        for key in sorted(records.keys() - wanted.keys()):
            checked.found(kind, key, "is here and not in the lock")
        for key in sorted(records.keys() & wanted.keys()):
            if different := apart(records[key], wanted[key]):
                checked.found(kind, key, f"not what the lock says: {', '.join(different)}")


def _clip_apart(made: Clip, wanted: lock.LockedClip) -> list[str]:
    scene = made.scene
    cut = (scene.start_pts, scene.end_pts, scene.time_base, made.num_frames, made.crop)
    told = (
        []
        if cut
        == (wanted.start_pts, wanted.end_pts, wanted.time_base, wanted.num_frames, wanted.crop)
        else ["cut or crop"]
    )
    return told if made.pictures == wanted.pictures else [*told, "pictures"]


def _sample_apart(
    made: Sample, wanted: lock.LockedSample, store: Store, checked: Checked
) -> list[str]:
    here = {name: blob.sha256 for name, blob in shard.members_of(made)}
    apart = []
    for name, member in wanted.members.items():
        if name == "json" or here.get(name) == member.sha256:
            continue
        try:
            near = compare.grade_array(member, here.get(name), store)[0] == "equivalent"
        except (OSError, ValueError):
            near = False  # the array is missing or damaged: found again, and told, with the blobs
        if near:
            checked.notes.append(
                f"{made.key}.{name} is not bit-identical to the lock's, but within tolerance"
            )
        else:
            apart.append(name)
    return [*apart, *(here.keys() - wanted.members.keys())]


def _shard_apart(
    made: Shard,
    wanted: lock.LockedShard,
    locked: Lock,
    manifests: Mapping[str, Manifest],
    checked: Checked,
) -> list[str]:
    if (made.samples, made.split) != (wanted.samples, wanted.split):
        return ["its samples or split"]
    samples = {
        record.key: record for record in _of(manifests, "encode") if isinstance(record, Sample)
    }
    apart = []
    for key, members in zip(made.samples, made.members, strict=True):
        other = key not in samples or not compare.same_but_for_scores(
            samples[key], locked.samples[key]
        )
        if members[0].sha256 != locked.samples[key].members["json"].sha256 and other:
            apart.append(members[0].name)
    if not apart and made.blob.sha256 != wanted.sha256:
        checked.notes.append(f"shard '{made.key}' is not bit-identical to the lock's")
    return apart


def _named(manifests: Mapping[str, Manifest], store: Store) -> dict[Blob, list[str]]:
    """Every blob of the dataset, and what it is: clips, arrays, videos, reels, wheels, shards."""
    names: dict[Blob, list[str]] = defaultdict(list)

    def add(task_key: str, name: str) -> None:
        """What no manifest names; it may be gone, for it would be made again."""
        memo = store.memo(task_key)
        for blob in blobs_in(memo.outputs) if memo else ():
            if store.path(blob.sha256).is_file():
                names[blob].append(name)

    for stage, made in manifests.items():
        for record in made.records:
            if isinstance(record, Sample):
                for name, blob in shard.members_of(record):
                    names[blob].append(f"{record.key}.{name}")
            else:
                for blob in blobs_of(record):
                    names[blob].append(f"{KINDS[stage].__name__.lower()} '{record.key}'")
            if isinstance(record, Video) and "extract" in manifests:
                add(
                    raw.reel_key(record.identity(), manifests["extract"].params),
                    f"reel of '{record.key}'",
                )
            if isinstance(record, Video) and (wheel := raw.wheel_key(raw.bundle_of(record.source))):
                add(wheel, f"wheel of '{record.key}'")
    if "encode" in manifests:
        add(
            canonical.digest([*manifests["encode"].params["text"], ""]),
            "the empty caption's text.npy",
        )
    return names


def _blobs(
    folder: Path,
    manifests: Mapping[str, Manifest],
    store: Store,
    progress: Progress,
    checked: Checked,
) -> set[Blob]:
    """Read every blob to its end; returns those that are damaged or missing."""
    names = _named(manifests, store)
    here = {
        blob: told
        for blob, told in names.items()
        if not (store.released(blob) and not store.has(blob))
    }
    if gone := len(names) - len(here):
        checked.notes.append(f"{gone} raw videos were let go (--keep-raw no)")
    progress.start("verify", len(here), sum(blob.num_bytes for blob in here))
    broken: set[Blob] = set()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for blob, problem in zip(
            here, pool.map(lambda blob: _problem(blob, here[blob], store), here), strict=True
        ):
            checked.blobs, checked.num_bytes = checked.blobs + 1, checked.num_bytes + blob.num_bytes
            checked.arrays += any(name.endswith(".npy") for name in here[blob])
            progress.advance("verify", 1, blob.num_bytes)
            if problem:
                broken.add(blob)
                checked.found("blob", ", ".join(here[blob][:3]), problem, store.path(blob.sha256))
    clips = {
        record.key: record.blob for record in _of(manifests, "extract") if isinstance(record, Clip)
    }
    for key, blob in clips.items():
        _linked(folder / "clips" / f"{key}.mp4", blob, f"clip '{key}'", broken, store, checked)
    return broken


def _of(manifests: Mapping[str, Manifest], stage: str) -> Sequence[Record]:
    return manifests[stage].records if stage in manifests else ()


def _problem(blob: Blob, names: Sequence[str], store: Store) -> str:
    """What is wrong with one blob; "" if nothing is."""
    path = store.path(blob.sha256)
    try:
        size = path.stat().st_size
        if size != blob.num_bytes:
            return f"has {size} bytes instead of {blob.num_bytes}"
        if canonical.file_digest(path) != blob.sha256:
            return "its bytes have changed"
        if (
            any(name.endswith(".npy") for name in names)
            and not np.isfinite(np.load(path, mmap_mode="r", allow_pickle=False)).all()
        ):
            return "holds NaN or infinity"
    except FileNotFoundError:
        return "is missing"
    except ValueError as error:
        return f"is no array: {error}"
    return ""


def _linked(
    path: Path, blob: Blob, name: str, broken: set[Blob], store: Store, checked: Checked
) -> bool:
    """A file in the dataset's folder that is, or should equal, a blob; whether it does."""
    if not path.is_file():
        checked.found("file", name, f"{path.name} is missing")
        return False
    if store.has(blob) and os.path.samefile(path, store.path(blob.sha256)):
        return blob not in broken
    if path.stat().st_size == blob.num_bytes and canonical.file_digest(path) == blob.sha256:
        return True
    checked.found("file", name, f"{path.name} is not what was built", path)
    return False


def _shards(
    folder: Path,
    locked: Lock | None,
    manifests: Mapping[str, Manifest],
    broken: set[Blob],
    store: Store,
    checked: Checked,
) -> None:
    """Tars against their digests, and in a damaged one the member by name; the index against its
    check and the lock.
    """
    shards = [record for record in _of(manifests, "shard") if isinstance(record, Shard)]
    for made in shards:
        path = folder / f"{made.key}.tar"
        if (
            not _linked(path, made.blob, f"shard '{made.key}'", broken, store, checked)
            and path.is_file()
        ):
            for sample, member in _damaged_members(path, made):
                checked.found("sample", sample, f"{member.name} in {path.name} has changed")
    packed = sorted(key for made in shards for key in made.samples)
    if (
        "encode" in manifests
        and "shard" in manifests
        and packed != [record.key for record in manifests["encode"].records]
    ):
        checked.found("shards", folder.name, "do not hold exactly the samples that were encoded")
    path = folder / "index.json"
    if not shards:
        return
    try:
        index = canonical.unseal(path.read_bytes())
    except (OSError, ValueError) as error:
        checked.found("index", path.name, f"{error}", path)
        return
    wanted = locked.root_digest if locked else shard.root_digest(shards)
    if index["root_digest"] != shard.root_digest(shards):
        checked.found(
            "index",
            path.name,
            f"its root digest is {index['root_digest']}, that of the shards {shard.root_digest(shards)}",
            path,
        )
    elif index["root_digest"] != wanted:
        checked.notes.append(f"root digest {index['root_digest']}, the lock has {wanted}")


def _damaged_members(path: Path, made: Shard) -> Iterator[tuple[str, Member]]:
    with path.open("rb") as tar:
        for key, members in zip(made.samples, made.members, strict=True):
            for member in members:
                tar.seek(member.start)
                if hashlib.sha256(tar.read(member.num_bytes)).hexdigest() != member.sha256:
                    yield key, member


def _decode(
    loaded: Loaded,
    manifests: Mapping[str, Manifest],
    broken: set[Blob],
    store: Store,
    device: str,
    checked: Checked,
) -> None:
    """Decode a few samples and compare with their clips, and with what the build measured."""
    samples = [record for record in _of(manifests, "encode") if isinstance(record, Sample)]
    whole = [
        one
        for one in samples
        if not {one.latents, one.clip.blob} & broken and store.has(one.clip.blob)
    ]
    chosen = sorted(whole, key=lambda sample: canonical.digest(sample.key))[:DECODED]
    if not chosen:
        return
    try:
        models = encode.find_encoders(loaded.recipe.encode, loaded.folder, offline=True)
        if models.vae.sha256 != manifests["encode"].params["vae"]:
            raise RecipeError("the recipe names another VAE than the one these latents are of")
        vae = encoders.load_vae(
            models.vae_folder,
            manifests["encode"].params["precision"],
            encoders.choose_device(device),
        )
    except LongtakeError as error:
        checked.notes.append(f"no sample was decoded: {error}")
        return
    for sample in chosen:
        try:
            frames = video.read_clip(store.path(sample.clip.blob.sha256))
            stored = np.load(store.path(sample.latents.sha256), allow_pickle=False)
            psnr = encode.round_trip(vae, stored, frames)
        except (BadData, ValueError) as error:
            checked.found("sample", sample.key, f"cannot be decoded: {error}")
            continue
        checked.decoded.append(psnr)
        if (
            sample.round_trip_psnr_db is not None
            and abs(psnr - sample.round_trip_psnr_db) > PSNR_SLACK_DB
        ):
            told = (
                f"decodes to {psnr:.2f} dB PSNR, the build measured {sample.round_trip_psnr_db:.2f}"
            )
            checked.found("sample", sample.key, told)


def damaged(checked: Checked) -> set[Path]:
    """The files that are damaged and can be made again."""
    return {
        finding.path
        for finding in checked.findings
        if finding.path is not None and finding.path.is_file()
    }


def drop(checked: Checked) -> int:
    """Remove them; returns how many went."""
    paths = damaged(checked)
    for path in paths:
        path.unlink()
    return len(paths)
