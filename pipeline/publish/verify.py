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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import canonical, manifest
from pipeline.core.cores import num_cores
from pipeline.core.errors import BadData, Damaged, LongtakeError, RecipeError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Clip, Sample, Shard, captions_of
from pipeline.core.stage import Progress
from pipeline.core.store import Store, blobs_in
from pipeline.dataset import lock, relock
from pipeline.dataset.build import known
from pipeline.dataset.chain import KINDS, adds_blobs, blobs_of, manifest_path
from pipeline.dataset.likeness import Grade, are_near, grade_members, score_distances
from pipeline.dataset.lock import Lock, LockedClip, LockedSample, LockedShard
from pipeline.dataset.recipe import Loaded
from pipeline.media import encoders, fetch, reel, scorers
from pipeline.media.scorers.scorer import Pictures, one_thread
from pipeline.publish import compare, reproduce
from pipeline.stages import NAMES, encode, score
from pipeline.stages import shard as shard_stage

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
    """What was looked at, and what was found wrong.

    `near` is what is not bit-identical to the lock's, but within tolerance; `notes` is what is no
    difference at all.
    """

    findings: list[Finding] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifests: int = 0
    memos: int = 0
    blobs: int = 0
    num_bytes: int = 0
    arrays: int = 0
    decoded: list[float] = field(default_factory=list)
    scored: int = 0  # clips that were measured again
    # by score, how far it is from the build's at most, as a share of what is allowed
    score_distances: dict[str, float] = field(default_factory=dict)
    broken: set[Blob] = field(default_factory=set)  # damaged or missing

    def add(self, kind: str, name: str, problem: str, path: Path | None = None) -> None:
        self.findings.append(Finding(kind, name, problem, path))

    @property
    def grade(self) -> Grade:
        """How near what is on disk is to the lock."""
        if self.findings:
            return "different"
        return "equivalent" if self.near else "identical"


@dataclass(frozen=True)
class Built:
    """What is checked: a dataset's folder, the manifests by stage that are whole, and the lock if
    it is.
    """

    folder: Path
    store: Store
    manifests: Mapping[str, Manifest]
    locked: Lock | None

    def records(self, stage: str) -> Mapping[str, Any]:
        """A stage's records by key; none where there is no manifest."""
        if stage not in self.manifests:
            return {}
        return {record.key: record for record in self.manifests[stage].records}


def verify(loaded: Loaded, data: Path, device: str, progress: Progress) -> Checked:
    """Check a dataset. Raises RecipeError if there is no lock or nothing is built."""
    checked = Checked()
    folder = data / loaded.recipe.name
    locked = _read_lock(loaded, folder, checked)
    manifests = _read_manifests(folder, checked)
    built = Built(folder, Store(data.absolute() / "store"), manifests, locked)
    remembered = _check_memos(loaded, data, built.store, device, checked)
    if locked is not None:
        _check_records(built, locked, checked)
    _check_blobs(built, remembered, progress, checked)
    _check_shards(built, checked)
    samples = _some_samples(built, checked)
    _decode_some(loaded, built, samples, device, checked)
    _score_some(loaded, built, samples, device, checked)
    return checked


def _read_lock(loaded: Loaded, folder: Path, checked: Checked) -> Lock | None:
    """The lock beside the recipe, if it is whole; also checks the one in the dataset's folder."""
    name, locked = lock.path_of(loaded.path).name, None
    try:
        locked = lock.read(loaded.path)
        if locked.header["recipe"] != loaded.digest:
            checked.notes.append(
                "the recipe was edited since the lock was written: `plan` says what a build would "
                "do"
            )
    except Damaged as error:
        hint = "get it where it is published, or delete it and build"
        checked.add("lock", name, f"{str(error).removeprefix(f'{name}: ')}; {hint}")
    own = lock.present_form(folder / relock.OWN)
    try:
        if own.is_file():
            lock.read_file(own)
    except (Damaged, RecipeError) as error:
        checked.add("lock", f"{folder.name}/{own.name}", str(error), own)
    return locked


def _read_manifests(folder: Path, checked: Checked) -> dict[str, Manifest]:
    """Every manifest that is there and whole; what a stage gave must be what the next one took."""
    manifests: dict[str, Manifest] = {}
    for stage, kind in KINDS.items():
        path = manifest_path(folder, stage)
        if not path.is_file():
            continue
        try:
            manifests[stage] = manifest.read(path, kind)
            checked.manifests += 1
        except (Damaged, AssertionError, RecipeError, ValueError) as error:
            checked.add("manifest", path.name, str(error).removeprefix(f"{path.name}: "), path)
    if not manifests and not checked.findings:
        raise RecipeError(f"nothing is built in {folder}: build the dataset first, or reproduce it")
    for stage, next_stage in itertools.pairwise(NAMES[:-1]):
        if stage in manifests and next_stage in manifests:
            num_out, num_in = len(manifests[stage].records), manifests[next_stage].num_in
            if num_out != num_in:
                name = manifest_path(folder, next_stage).name
                problem = f"'{stage}' gave {num_out} records, '{next_stage}' took {num_in}"
                checked.add("manifest", name, problem)
    return manifests


def _check_memos(
    loaded: Loaded, data: Path, store: Store, device: str, checked: Checked
) -> set[Blob]:
    """Every memo and failure note of the store; one that is damaged counts as not there, so it
    costs time and nothing else. Returns the blobs that memos name.
    """
    steps, _ = known(reproduce.look(loaded, data, device))
    names: dict[str, str] = {}
    for step in steps:
        if step.survey is not None:
            stage = step.manifest.stage
            names |= {key: f"{stage} of '{name}'" for name, key in step.survey.keys.items()}
    failures = (store.root / "failures").glob("*/*")
    remembered: set[Blob] = set()
    for path in sorted([*store.memos(), *failures]):
        checked.memos += 1
        try:
            memo = canonical.unseal(path.read_bytes())
            remembered.update(blobs_in(memo.get("outputs")))
        except ValueError as error:
            name = names.get(path.name, path.name[:12])
            checked.add("memo", name, f"{error}; it counts as not there", path)
    return remembered


def _check_records(built: Built, locked: Lock, checked: Checked) -> None:
    """Records against the lock's: the same keys, digests, cuts."""
    for stage, kind in lock.kinds_of(built.manifests).items():
        if stage not in built.manifests and manifest_path(built.folder, stage).is_file():
            continue  # it is damaged: that was said already
        records, recorded = built.records(stage), locked.tables[kind]
        needed = {clip.video for clip in locked.clips.values()}
        if kind != "video":
            needed = set(recorded)
        for key in sorted(needed - records.keys()):
            checked.add(kind, key, "is in the lock and not here")
        for key in sorted(records.keys() - recorded.keys()):
            checked.add(kind, key, "is here and not in the lock")
        for key in sorted(records.keys() & recorded.keys()):
            line, record = recorded[key], records[key]
            if isinstance(line, LockedClip):
                parts = _parts_of_clip(record, line)
            elif isinstance(line, LockedSample):
                parts = _parts_of_sample(record, line, built.store, checked)
            elif isinstance(line, LockedShard):
                parts = _parts_of_shard(record, line, built, checked)
            else:
                parts = [] if record.blob.sha256 == line.sha256 else ["the video's bytes"]
            if parts:
                checked.add(kind, key, f"not what the lock says: {', '.join(parts)}")
    _check_clips_before_the_choice(built, locked, checked)


def _check_clips_before_the_choice(built: Built, locked: Lock, checked: Checked) -> None:
    """What `extract` gave has the lock's clips too, among those that rules dropped."""
    is_damaged = "extract" not in built.manifests and (
        manifest_path(built.folder, "extract").is_file()
    )
    if is_damaged or lock.clip_stage(built.manifests) == "extract":
        return
    kept = built.records(lock.clip_stage(built.manifests))
    for key in sorted((locked.clips.keys() & kept.keys()) - built.records("extract").keys()):
        checked.add("clip", key, "is in the lock and not here")


def _parts_of_clip(clip: Clip, recorded: LockedClip) -> list[str]:
    """What of a clip is not the lock's."""
    here = lock.locked_clip(clip)
    others: dict[str, Any] = {"video": "", "sha256": "", "pictures": "", "scores": ()}
    others["captions"] = None
    cuts = [replace(line, **others) for line in (here, recorded)]
    parts = [] if cuts[0] == cuts[1] else ["cut or crop"]
    # of a rebuild, the captions stand in the samples, whose bytes are compared
    if clip.captions is not None and here.captions != recorded.captions:
        parts.append("captions")
    if not are_near(recorded.scores, here.scores):
        parts.append("scores")
    return parts if here.pictures == recorded.pictures else [*parts, "pictures"]


def _parts_of_sample(
    sample: Sample, recorded: LockedSample, store: Store, checked: Checked
) -> list[str]:
    """Which arrays are further from the lock's than the tolerance. What is missing or damaged
    counts as that; it is said again with the blobs.
    """
    digests = {name: blob.sha256 for name, blob in shard_stage.members_of(sample)}
    arrays = {name: member for name, member in recorded.members.items() if name != "json"}
    grades, _ = grade_members(arrays, digests, compare.probes_in(store, digests))
    for name, grade in grades.items():
        if grade == "equivalent":
            checked.near.append(
                f"{sample.key}.{name} is not bit-identical to the lock's, but within tolerance"
            )
    return [name for name, grade in grades.items() if grade == "different"]


def _parts_of_shard(
    shard: Shard, recorded: LockedShard, built: Built, checked: Checked
) -> list[str]:
    """What of a shard is not the lock's: its samples or split, or the metadata of some."""
    if (shard.samples, shard.split) != (recorded.samples, recorded.split):
        return ["its samples or split"]
    assert built.locked is not None
    samples = built.records("encode")
    parts = []
    for key, members in zip(shard.samples, shard.members, strict=True):
        line = built.locked.samples[key]
        is_same = members[0].sha256 == line.members["json"].sha256
        is_rescored = key in samples and compare.same_but_for_scores(
            samples[key], line, built.locked.clips[key]
        )
        if not is_same and not is_rescored:
            parts.append(members[0].name)
    if not parts and shard.blob.sha256 != recorded.sha256:
        checked.near.append(f"shard '{shard.key}' is not bit-identical to the lock's")
    return parts


def _names_of_blobs(built: Built, remembered: set[Blob]) -> dict[Blob, list[str]]:
    """Every blob of the dataset, and what it is: clips, arrays, videos, reels, wheels, shards. And
    every blob that neither the dataset nor any memo (`remembered`) names: when its task runs again,
    it is named again.
    """
    names: dict[Blob, list[str]] = defaultdict(list)
    for stage, stage_manifest in built.manifests.items():
        kind = KINDS[stage].__name__.lower()
        for record in stage_manifest.records:
            if isinstance(record, Sample):
                for name, blob in shard_stage.members_of(record):
                    names[blob].append(f"{record.key}.{name}")
                continue
            for blob in blobs_of(record) if adds_blobs(stage) else ():
                names[blob].append(f"{kind} '{record.key}'")
    # Blobs that no manifest names, by the tasks they are of. They may be gone, for they would be
    # made again.
    tasks: list[tuple[str | None, str]] = []
    for key, record in built.records("download").items():
        tasks.append((fetch.bundle_key(record.source.uri), f"wheel of '{key}'"))
        if "extract" in built.manifests:
            reel_key = reel.memo_key(record.identity(), built.manifests["extract"].params)
            tasks.append((reel_key, f"reel of '{key}'"))
    if "encode" in built.manifests:
        params = built.manifests["encode"].params
        tasks.append((encode.text_key(params, ""), "the empty caption's text.npy"))
        samples: dict[str, str] = {}  # by caption, one that has it
        for key, sample in built.records("encode").items():
            for caption in captions_of(sample.clip):
                samples.setdefault(caption, key)
        for caption, key in samples.items():
            tasks.append((encode.text_key(params, caption), f"a caption of {key}.text.npy"))
    for task_key, name in tasks:
        memo = built.store.memo(task_key) if task_key else None
        for blob in blobs_in(memo.outputs) if memo else ():
            if built.store.path(blob.sha256).is_file():
                names[blob].append(name)
    digests = {blob.sha256 for blob in names.keys() | remembered}
    for sha256, num_bytes in built.store.blobs().items():
        if sha256 not in digests:
            names[Blob(sha256, num_bytes)].append(f"{sha256[:12]}, left over")
    return names


def _check_blobs(built: Built, remembered: set[Blob], progress: Progress, checked: Checked) -> None:
    """Read every blob to its end, and the copies of clips."""
    names, store = _names_of_blobs(built, remembered), built.store
    released = {blob for blob in names if store.released(blob) and not store.has(blob)}
    if released:
        checked.notes.append(f"{len(released)} raw videos were let go (--keep-raw no)")
    blobs = [blob for blob in names if blob not in released]
    progress.start("verify", len(blobs), sum(blob.num_bytes for blob in blobs))
    with ThreadPoolExecutor(num_cores()) as pool:
        problems = pool.map(lambda blob: _problem_of(blob, names[blob], store), blobs)
        for blob, problem in zip(blobs, problems, strict=True):
            checked.blobs += 1
            checked.num_bytes += blob.num_bytes
            checked.arrays += _is_array(names[blob])
            progress.advance("verify", 1, blob.num_bytes)
            if problem:
                checked.broken.add(blob)
                checked.add("blob", ", ".join(names[blob][:3]), problem, store.path(blob.sha256))
    for key, clip in built.records("extract").items():
        path = built.folder / "clips" / f"{key}.mp4"
        _check_copy(path, clip.blob, f"clip '{key}'", store, checked)


def _is_array(names: Sequence[str]) -> bool:
    return any(name.endswith(".npy") for name in names)


def _problem_of(blob: Blob, names: Sequence[str], store: Store) -> str:
    """What is wrong with one blob; "" if nothing is."""
    path = store.path(blob.sha256)
    try:
        size = path.stat().st_size
        if size != blob.num_bytes:
            return f"has {size} bytes instead of {blob.num_bytes}"
        if canonical.file_digest(path) != blob.sha256:
            return "its bytes have changed"
        if _is_array(names):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return "" if np.isfinite(array).all() else "holds NaN or infinity"
    except FileNotFoundError:
        return "is missing"
    except ValueError as error:
        return f"is no array: {error}"
    return ""


def _check_copy(path: Path, blob: Blob, name: str, store: Store, checked: Checked) -> bool:
    """A file in the dataset's folder that is, or should equal, a blob; whether it does."""
    if not path.is_file():
        checked.add("file", name, f"{path.name} is missing")
        return False
    if store.has(blob) and os.path.samefile(path, store.path(blob.sha256)):
        return blob not in checked.broken
    if path.stat().st_size == blob.num_bytes and canonical.file_digest(path) == blob.sha256:
        return True
    checked.add("file", name, f"{path.name} is not what was built", path)
    return False


def _check_shards(built: Built, checked: Checked) -> None:
    """Tars against their digests, and in a damaged one the member by name; the index against its
    check and the lock.
    """
    folder = built.folder / "shards"
    shards: list[Shard] = list(built.records("shard").values())
    for shard in shards:
        path, name = folder / f"{shard.key}.tar", f"shard '{shard.key}'"
        is_whole = _check_copy(path, shard.blob, name, built.store, checked)
        if not is_whole and path.is_file():
            _name_damaged_members(path, shard, checked)
    if {"encode", "shard"} <= built.manifests.keys():
        packed = sorted(key for shard in shards for key in shard.samples)
        if packed != sorted(built.records("encode")):
            problem = "do not hold exactly the samples that were encoded"
            checked.add("shards", folder.name, problem)
    if shards:
        _check_index(folder / "index.json", shard_stage.root_digest(shards), built.locked, checked)


def _name_damaged_members(path: Path, shard: Shard, checked: Checked) -> None:
    with path.open("rb") as tar:
        for key, members in zip(shard.samples, shard.members, strict=True):
            for member in members:
                tar.seek(member.start)
                if hashlib.sha256(tar.read(member.num_bytes)).hexdigest() != member.sha256:
                    checked.add("sample", key, f"{member.name} in {path.name} has changed")


def _check_index(path: Path, root_digest: str, locked: Lock | None, checked: Checked) -> None:
    try:
        in_index = canonical.unseal(path.read_bytes())["root_digest"]
    except (OSError, ValueError, KeyError) as error:
        checked.add("index", path.name, f"{error}", path)
        return
    if in_index != root_digest:
        problem = f"its root digest is {in_index}, that of the shards {root_digest}"
        checked.add("index", path.name, problem, path)
    elif locked is not None and in_index != locked.root_digest:
        checked.near.append(f"root digest {in_index}, the lock has {locked.root_digest}")


def _some_samples(built: Built, checked: Checked) -> list[Sample]:
    """A few samples whose latents and clip are there and whole."""
    samples: list[Sample] = []
    for sample in built.records("encode").values():
        is_whole = {sample.latents, sample.clip.blob}.isdisjoint(checked.broken)
        if is_whole and built.store.has(sample.clip.blob):
            samples.append(sample)
    return sorted(samples, key=lambda sample: canonical.digest(sample.key))[:DECODED]


def _decode_some(
    loaded: Loaded, built: Built, samples: Sequence[Sample], device: str, checked: Checked
) -> None:
    """Decode a few samples and compare with their clips, and with what the build measured."""
    store = built.store
    if not samples:
        return
    params = built.manifests["encode"].params
    try:
        models = encode.find_encoders(loaded.recipe.encode, loaded.folder, offline=True)
        if models.vae.sha256 != params["vae"]:
            raise RecipeError("the recipe names another VAE than the one these latents are of")
        place = encoders.choose_device(device, params["precision"])
        vae = encoders.load_vae(models.vae_folder, params["precision"], place)
    except LongtakeError as error:
        checked.notes.append(f"no sample was decoded: {error}")
        return
    for sample in samples:
        try:
            frames = encode.pixels_of(sample.clip, store, params["precision"])
            latents = np.load(store.path(sample.latents.sha256), allow_pickle=False)
            psnr = encode.round_trip(vae, latents, frames)
        except (BadData, ValueError) as error:
            checked.add("sample", sample.key, f"cannot be decoded: {error}")
            continue
        checked.decoded.append(psnr)
        measured = sample.round_trip_psnr_db
        if measured is not None and abs(psnr - measured) > PSNR_SLACK_DB:
            problem = f"decodes to {psnr:.2f} dB PSNR, the build measured {measured:.2f}"
            checked.add("sample", sample.key, problem)


def _score_some(
    loaded: Loaded, built: Built, samples: Sequence[Sample], device: str, checked: Checked
) -> None:
    """Measure the clips of a few samples again, with the scorers that measured them and need no
    model, and compare.
    """
    if not samples or "score" not in built.manifests:
        return
    params = built.manifests["score"].params
    setup = loaded.setup(device, offline=True)
    try:
        ready = [scorer.ready(setup) for scorer in setup.table(scorers.Params).chosen]
        chosen = [scorer for scorer in ready if scorer.facts() == params.get(scorer.name)]
    except LongtakeError as error:
        checked.notes.append(f"no clip was scored again: {error}")
        return
    chosen = [scorer for scorer in chosen if not scorer.runs_models]
    for sample in samples if chosen else ():
        clip, path = sample.clip, built.store.path(sample.clip.blob.sha256)
        measured: list[tuple[str, float | None]] = []
        try:
            for scorer in chosen:
                with one_thread():
                    values = score.values_of(scorer, clip, Pictures(path, scorer.frames(clip)))
                measured += zip(scorer.score_names, values, strict=True)
        except BadData as error:
            checked.add("clip", clip.key, f"cannot be scored again: {error}")
            continue
        _compare_scores(clip, dict(measured), checked)


def _compare_scores(clip: Clip, now: Mapping[str, float | None], checked: Checked) -> None:
    """Scores of a clip that were measured again, with those the build measured."""
    before = {name: value for name, value in clip.scores if name in now}
    checked.scored += 1
    for name, value in before.items():
        if not are_near(((name, value),), ((name, now[name]),)):
            words = f"measured again, {name} is {_shown(now[name])}; the build had {_shown(value)}"
            checked.add("clip", clip.key, words)
    distances = score_distances(tuple(before.items()), tuple(now.items())) or {}
    for name, distance in distances.items():
        checked.score_distances[name] = max(checked.score_distances.get(name, 0.0), distance)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def damaged(checked: Checked) -> set[Path]:
    """The files that are damaged and can be made again."""
    paths = {finding.path for finding in checked.findings if finding.path is not None}
    return {path for path in paths if path.is_file()}


def drop(checked: Checked) -> int:
    """Remove them; returns how many went."""
    paths = damaged(checked)
    for path in paths:
        path.unlink()
    return len(paths)
