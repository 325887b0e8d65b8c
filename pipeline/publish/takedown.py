"""Take a source down: note it, leave it out of everything that is built, delete what was made of
it.

The note comes first: with it no build takes the source in again. Then the manifests, shards and the
lock are written anew from what is remembered, and what only this source needed is deleted: by the
manifests as far as they know, and beyond them by the memos, which say what they are of, so that
what earlier settings made goes too. The same command finishes what was broken off.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.core import canonical, manifest
from pipeline.core.errors import RecipeError, Stopped, without_credentials
from pipeline.core.executors import Inline
from pipeline.core.records import Blob, Record, Shard, Source
from pipeline.core.stage import Progress, Stage
from pipeline.core.store import Memo, Store, blobs_in, now
from pipeline.dataset import lock, removals
from pipeline.dataset.build import opened
from pipeline.dataset.chain import CHAIN, Step, manifest_path, runner, surveyor, until, walk
from pipeline.dataset.outputs import write_outputs
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.relock import OWN, keep_lock, remove_locks
from pipeline.dataset.removals import Removal
from pipeline.media import fetch
from pipeline.publish import reproduce, sweep
from pipeline.publish.memo_index import MemoIndex, index_memos
from pipeline.publish.sweep import Bin, References, facts_in
from pipeline.stages import NAMES, download
from pipeline.stages import shard as shard_stage

Records = Mapping[str, Sequence[dict[str, Any]]]  # a dataset's manifests, by stage, as plain JSON


@dataclass(frozen=True)
class Target:
    """What is taken down: keys of videos, identities of their sources, and of the videos as far as
    they are known; formats they were fetched in; captions.
    """

    keys: frozenset[str]
    sources: tuple[dict[str, Any], ...]
    videos: Mapping[str, Any]
    formats: frozenset[str]
    captions: frozenset[str]

    @property
    def scene(self) -> re.Pattern[str]:
        """Names of scenes, clips and samples, of any earlier cut too; possibly also of another
        source with such a key.
        """
        names = "|".join(map(re.escape, sorted(self.keys, key=len, reverse=True)))
        return re.compile(rf"(?:{names})-\d{{4,}}(?:-\d{{3,}})?")

    def has(self, sample: dict[str, Any]) -> bool:
        """Whether a sample, as plain JSON, is of one of the videos."""
        return sample["clip"]["scene"]["video"]["key"] in self.videos


@dataclass
class Removed:
    """What was done. `before` and `after` are root digests, "" where there are no shards."""

    since: str  # when it was taken down before; "" if only now
    before: str = ""
    after: str = ""
    num_shards: int = 0
    num_rewritten: int = 0
    num_pending: int = 0
    notes: list[str] = field(default_factory=list)
    bin: Bin = field(default_factory=Bin)


def remove(loaded: Loaded, data: Path, key: str, why: str, device: str) -> Removed:
    """Take a source of the recipe, or one video of a list it names, down. Raises RecipeError for an
    unknown key, Damaged, Stopped.
    """
    if not os.access(loaded.folder, os.W_OK):
        raise Stopped(
            f"cannot write {removals.path_of(loaded.path)}: taking a source down must be noted "
            "beside the recipe"
        )
    folder = data / loaded.recipe.name
    with opened(data) as store:
        sweep.references_in(data, store)  # a damaged manifest stops this before any change
        records = _records(folder)
        index = index_memos(store)
        target = find(loaded, key, folder, records, index)
        before = loaded.removed.get(key)
        removal = before or Removal(now(), why)
        loaded = replace(loaded, removed={**loaded.removed, key: removal})
        steps = rewalk(loaded, folder, list(records), store, device)
        _keep_others(records, steps, target)
        done = _counts(before, _shards_in(folder), steps)
        if before is None:
            removals.note(loaded.path, key, removal, audit(target, records, done))
        for _ in write_outputs(loaded, iter(steps), data, store, device):
            pass
        done.notes += _relock(loaded, steps, folder, store, reproduced="cut" not in records)
        kept = sweep.references_in(data, store)
        for identity in kept.any_reel:
            for memo in index.memos("video", identity.decode()):
                kept.keep_any_reel(memo)
        delete(loaded, target, kept, index, done)
        done.bin.drop("contact sheets", _sheets(folder, target, steps))
    return done


def _records(folder: Path) -> Records:
    paths = {name: manifest_path(folder, name) for name in NAMES}
    return {name: sweep.records_in(path)[1] for name, path in paths.items() if path.is_file()}


def _counts(before: Removal | None, shards: Sequence[Shard], steps: Sequence[Step]) -> Removed:
    packed = [record for step in steps[-1:] for record in step.manifest.records]
    left = [record for record in packed if isinstance(record, Shard)]
    root_before = _root_digest(shards)
    if before and "root_digest" in before.facts:
        root_before = before.facts["root_digest"]["before"]
    return Removed(
        since=before.at if before else "",
        before=root_before,
        after=_root_digest(left),
        num_shards=len(left),
        num_rewritten=len({shard.blob for shard in left} - {shard.blob for shard in shards}),
        num_pending=sum(step.num_pending for step in steps),
    )


def _keep_others(records: Records, steps: Sequence[Step], target: Target) -> None:
    """Raises Stopped if samples of other sources would go too: what is rewritten is only what is
    remembered.
    """
    encoded = [step.manifest for step in steps if step.manifest.stage == "encode"]
    left = {record.key for manifest in encoded for record in manifest.records}
    others = {record["key"] for record in records.get("encode", ()) if not target.has(record)}
    if lost := sorted(others - left):
        raise Stopped(
            f"{len(lost)} samples of other sources ({', '.join(lost[:3])}) are not remembered as "
            "they were built: a moved file, an edited recipe, a damaged memo. Run `build` first; "
            "nothing was changed"
        )


def _shards_in(folder: Path) -> list[Shard]:
    path = manifest_path(folder, "shard")
    records = manifest.read(path, Shard).records if path.is_file() else ()
    return [record for record in records if isinstance(record, Shard)]


def _root_digest(shards: Sequence[Shard]) -> str:
    return shard_stage.root_digest(shards) if shards else ""


def _sheets(folder: Path, target: Target, steps: Sequence[Step]) -> Iterator[Path]:
    left = {record.key for step in steps for record in step.manifest.records}
    for path in (folder / "show").glob("*.png"):
        if target.scene.fullmatch(path.stem) and path.stem not in left:
            yield path


def find(loaded: Loaded, key: str, folder: Path, records: Records, index: MemoIndex) -> Target:
    """What a key stands for. Raises RecipeError with the nearest keys."""
    own = {source.key: source for source in loaded.sources}
    built = {record["key"]: record for record in records.get("download", ())}
    listed = _listed(loaded, key, records, index)
    known = {*own, *listed, *built, *loaded.removed}
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), 3, cutoff=0.3) or sorted(known)[:3]
        raise RecipeError(
            f"no source is called '{key}' in {loaded.path} or {folder}; near it: {', '.join(near)}"
        )
    removal = loaded.removed.get(key)
    in_audit: Mapping[str, Any] = removal.facts.get("videos", {}) if removal else {}
    keys = {key, *in_audit}
    if key in own:  # with all the videos of a list
        keys |= {name for name, (entry, _) in listed.items() if entry == key}
        for name in built:
            source = reproduce.entry_of(name, loaded.sources, built)
            if source is not None and source.key == key:
                keys.add(name)
    entries = [own[name] for name in keys & own.keys()]
    videos = [built[name] for name in keys & built.keys()]
    sources = [canonical.plain(source.identity()) for source in entries]
    sources += [listed[name][1] for name in keys & listed.keys()]
    sources += [sweep.source_identity(video["source"]) for video in videos]
    captions = {caption for source in entries for caption in source.captions}
    captions |= {caption for video in videos for caption in video["source"]["captions"]}
    return Target(
        keys=frozenset(keys),
        sources=tuple(sources),
        videos={**in_audit, **{video["key"]: sweep.video_identity(video) for video in videos}},
        formats=frozenset(video["fetched_as"] for video in videos),
        captions=frozenset(captions),
    )


def _listed(
    loaded: Loaded, key: str, records: Records, index: MemoIndex
) -> dict[str, tuple[str, dict[str, Any]]]:
    """The videos that lists of the recipe (globs, playlists) name or were ever found to name: by
    key, the list's key and the identity of the video's own source.
    """
    listed = {}
    expanded = {record["key"]: record for record in records.get("expand", ())}
    for name, record in expanded.items():
        source = reproduce.entry_of(name, loaded.sources, expanded)
        if source is not None and source.key != name:
            listed[name] = (source.key, sweep.source_identity(record))
    for source in loaded.sources:
        if source.key == key or key.startswith(f"{source.key}-"):
            for memo in index.memos("source", source.identity()):
                for entry in memo.outputs:
                    if "uri" in entry.get("facts", {}):
                        own = replace(source, uri=entry["facts"]["uri"])
                        identity = canonical.plain(own.identity())
                        listed[source.key + entry["suffix"]] = (source.key, identity)
    return listed


def rewalk(
    loaded: Loaded, folder: Path, built: Sequence[str], store: Store, device: str
) -> list[Step]:
    """The chain as far as it was built, from memory alone: only shards are packed. Raises Stopped
    if a model it needs is not here.
    """
    if not built:
        return []
    setup = loaded.setup(device, offline=True)
    look = surveyor(store)
    pack = runner(store, Inline(), Progress(), CHAIN["download"].stage(setup))

    def visit(stage: Stage, records: Sequence[Record]) -> Step:
        return (pack if stage.name == "shard" else look)(stage, records)

    if "extract" in built and "cut" not in built:
        return list(reproduce.walk(loaded, lock.read(loaded.path), visit, device))
    return list(walk(setup, visit, loaded.sources, until(built[-1]), loaded.removed))


def audit(target: Target, records: Records, done: Removed) -> dict[str, Any]:
    """What the audit line says beside who, when and why. No addresses; digests of the videos, by
    which an unfinished removal goes on.
    """
    samples = [record["key"] for record in records.get("encode", ()) if target.has(record)]
    shards = [
        record["key"]
        for record in records.get("shard", ())
        if not set(samples).isdisjoint(record["samples"])
    ]
    return {
        "videos": dict(target.videos),
        "samples": samples,
        "shards": shards,
        "root_digest": {"before": done.before, "after": done.after},
    }


def _relock(
    loaded: Loaded, steps: Sequence[Step], folder: Path, store: Store, reproduced: bool
) -> list[str]:
    """Write the lock of what is left, or remove it if nothing is; returns what is to be said if
    neither can be done.
    """
    path = lock.path_of(loaded.path)
    if steps and steps[-1].manifest.stage == "shard" and not reproduced:
        if steps[-1].manifest.records:
            keep_lock(loaded, [step.manifest for step in steps], folder, store)
        else:
            remove_locks(loaded.path, folder)
        return []
    lock.remove_file(folder / OWN)  # it may name what is taken down
    if path.is_file():
        return [f"{path} is not of a build here and still names it; `reproduce` leaves it out"]
    return []


@dataclass
class Condemned:
    """What is to be deleted: `footage`, the digests of the raw videos, whoever else has them; blobs
    with what they are; keys of memos, in the order in which they go.
    """

    footage: set[str]
    blobs: dict[str, str]
    memos: list[str]


def delete(
    loaded: Loaded, target: Target, kept: References, index: MemoIndex, done: Removed
) -> None:
    """Delete what nothing but the target needed. What manifests of others refer to stays, and is
    noted.
    """
    store = index.store
    condemned = condemn(loaded, target, kept, index)
    for sha256, kind in sorted(condemned.blobs.items()):
        done.bin.drop(kind, [store.path(sha256)])
        store.reclaim(Blob(sha256, 0))
    done.bin.drop("memos", [store.memo_path(key) for key in condemned.memos])
    uris = [source["uri"] for source in target.sources]
    done.bin.drop("notes of failures", _failures(store, uris))
    for path in _partials(loaded, target, condemned.footage, store):
        done.bin.drop("partial downloads", [file for file in path.rglob("*") if file.is_file()])
        shutil.rmtree(path, ignore_errors=True)
    for sha256 in sorted(condemned.footage & kept.users.keys()):
        users = ", ".join(sorted(kept.users[sha256]))
        done.notes.append(
            f"kept: the video {sha256[:12]} and what is made of it are also used by {users}: "
            "`remove` it there too if all of it is to go"
        )


def condemn(loaded: Loaded, target: Target, kept: References, index: MemoIndex) -> Condemned:
    """What of the store only the target needed."""
    others = [source for source in loaded.sources if source.key not in loaded.removed]
    kept_sources = kept.sources | {canonical.encode(source.identity()) for source in others}
    sources = [source for source in target.sources if canonical.encode(source) not in kept_sources]
    footage = {str(identity["video"]) for identity in target.videos.values()}
    for source in sources:
        for memo in index.memos("source", source):
            footage |= {facts["blob"]["sha256"] for facts in facts_in(memo, "container")}
    uris = {source["uri"] for source in target.sources}
    first = chain(
        _memos_of_videos(footage, kept, index),
        chain.from_iterable(index.memos("source", source) for source in sources),
        _memos_of_wheels(uris, index.store),
        _memos_of_old_shards(target, kept, index),
        _memos_of_captions(target, kept, index),
    )
    blobs, clips, first_keys = set(footage), set[str](), []
    for memo in first:
        first_keys.append(memo.key)
        blobs |= {blob.sha256 for blob in blobs_in(memo.outputs)}
        clips |= {facts["blob"]["sha256"] for facts in facts_in(memo, "pictures")}
    clip_keys = []
    for sha256 in sorted(clips - kept.blobs):
        for memo in index.memos("clip", sha256):
            clip_keys.append(memo.key)
            blobs |= {blob.sha256 for blob in blobs_in(memo.outputs)}
    blobs |= index.left_over  # nobody's: of a task that was broken off, or forgotten
    kinds, naming_keys = _kinds_and_memos(blobs - kept.blobs, index.store)
    kinds.update(dict.fromkeys(footage & kinds.keys(), "raw videos"))
    # memos of clips go first: it is by the others that a removal broken off finds them again
    keys = dict.fromkeys([*clip_keys, *naming_keys, *first_keys])
    return Condemned(footage, kinds, list(keys))


def _kinds_and_memos(blobs: set[str], store: Store) -> tuple[dict[str, str], list[str]]:
    """What each of these blobs is, and the keys of all memos that name one of them."""
    kinds = dict.fromkeys(blobs, sweep.LEFT_OVER)
    keys = []
    for memo in sweep.memos_of(store):
        kinds_here = {sha256: kind for sha256, kind in sweep.kinds_in(memo) if sha256 in blobs}
        if kinds_here:
            keys.append(memo.key)
            kinds.update(kinds_here)
    return kinds, keys


def _memos_of_videos(footage: set[str], kept: References, index: MemoIndex) -> Iterator[Memo]:
    for sha256 in footage:
        for identity in index.identities_of(sha256):
            if canonical.encode(identity) not in kept.videos:
                yield from index.memos("video", identity)


def _memos_of_wheels(uris: Iterable[str], store: Store) -> Iterator[Memo]:
    for uri in uris:
        key = fetch.wheel_key(uri)
        if key is not None and (memo := store.memo(key)):
            yield memo


def _memos_of_old_shards(target: Target, kept: References, index: MemoIndex) -> Iterator[Memo]:
    """Shards that no manifest refers to and that hold a sample of the target's names."""
    for memo in index.memos("shards", ""):
        for facts in facts_in(memo, "members"):
            is_old = facts["blob"]["sha256"] not in kept.blobs
            if is_old and any(map(target.scene.fullmatch, facts["samples"])):
                yield memo


def _memos_of_captions(target: Target, kept: References, index: MemoIndex) -> Iterator[Memo]:
    """Embeddings of captions that nobody else's record has."""
    for caption in target.captions:
        for memo in index.memos("caption", caption):
            if all(blob.sha256 not in kept.blobs for blob in blobs_in(memo.outputs)):
                yield memo


def _failures(store: Store, uris: Sequence[str]) -> Iterator[Path]:
    """Notes of failures that mention an address."""
    public = [without_credentials(uri) for uri in uris]  # as notes have them
    for path in (store.root / "failures").glob("*/*"):
        note = store.failure(path.name)
        if note and any(uri in note["detail"] for uri in public):
            yield path


def _partials(loaded: Loaded, target: Target, footage: set[str], store: Store) -> Iterator[Path]:
    """Folders of downloads that were broken off, also of those that wanted certain bytes."""
    selector = loaded.recipe.download.format
    for source in target.sources:
        for sha256 in {source.get("sha256"), *footage}:
            for chosen in {None, source.get("format"), *target.formats}:
                fetched = Source("", source["uri"], sha256=sha256, format=chosen)
                path = store.root / "partial" / download.partial_key(fetched, selector)
                if path.is_dir():
                    yield path
