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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core import canonical, manifest
from pipeline.core.errors import RecipeError, Stopped, without_credentials
from pipeline.core.executors import Inline
from pipeline.core.files import sync
from pipeline.core.records import Blob, Record, Shard, Source
from pipeline.core.stage import Progress, Stage
from pipeline.core.store import Memo, Store, blobs_in, now
from pipeline.dataset import lock, relock, removals
from pipeline.dataset.build import opened
from pipeline.dataset.chain import CHAIN, Step, manifest_path, runner, surveyor, until, walk
from pipeline.dataset.outputs import write_outputs
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.removals import Removal
from pipeline.media import fetch
from pipeline.publish import reproduce, sweep
from pipeline.publish.sweep import Bin, References, facts_in
from pipeline.stages import NAMES, download
from pipeline.stages import shard as shard_stage

Records = Mapping[str, Sequence[dict[str, Any]]]  # a dataset's manifests, by stage, as plain JSON


@dataclass(frozen=True)
class Target:
    """What is taken down: keys of videos, their sources as plain JSON, and the videos' identities
    as far as they are known.
    """

    keys: frozenset[str]
    sources: Sequence[dict[str, Any]]
    videos: Mapping[str, Any]
    formats: frozenset[str]  # in which the videos were fetched
    of_clips: frozenset[str] = frozenset()  # captions that clips of these videos have of their own

    @cached_property
    def identities(self) -> set[bytes]:
        """The sources' identities as canonical JSON."""
        return {canonical.encode(sweep.source_identity(source)) for source in self.sources}

    @cached_property
    def uris(self) -> set[str]:
        return {source["uri"] for source in self.sources}

    @cached_property
    def captions(self) -> set[str]:
        of_sources = {caption for source in self.sources for caption in source["captions"]}
        return of_sources | self.of_clips

    @cached_property
    def scene(self) -> re.Pattern[str]:
        """Names of scenes, clips and samples, of any earlier cut too; possibly also of another
        source with such a key.
        """
        names = "|".join(map(re.escape, sorted(self.keys, key=len, reverse=True)))
        return re.compile(rf"(?:{names})-\d{{4,}}(?:-\d{{3,}})?")

    @cached_property
    def wheels(self) -> set[str | None]:
        """Keys of the memos of wheels in which sources lie."""
        return {fetch.bundle_key(source["uri"]) for source in self.sources}


@dataclass
class Removed:
    """What was done. `before` and `after` are root digests, "" where there are no shards."""

    since: str  # when it was taken down before; "" if only now
    before: str
    after: str
    num_shards: int
    num_rewritten: int
    num_pending: int
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
        relock.check_removals(loaded, folder)
        sweep.references_in(data, store)  # a damaged manifest stops this before any change
        paths = {name: manifest_path(folder, name) for name in NAMES}
        records = {
            name: sweep.records_in(path)[1] for name, path in paths.items() if path.is_file()
        }
        target = find(loaded, key, folder, records, store)
        before = loaded.removed.get(key)
        removal = before or Removal(now(), why)
        loaded = replace(loaded, removed={**loaded.removed, key: removal})
        steps = rewalk(loaded, folder, list(records), store, device)
        _check_others(records, steps, target)
        done = _counts(before, paths["shard"], steps)
        if before is None:
            removal = removals.note(loaded.path, key, removal, audit(target, records, done))
            loaded = replace(loaded, removed={**loaded.removed, key: removal})
        # also where it was noted before: a command that was killed may have left it in memory only
        sync(removals.path_of(loaded.path))
        list(write_outputs(loaded, iter(steps), data, store, device))
        done.notes += _relock(loaded, steps, folder, store)
        _delete(loaded, target, sweep.references_in(data, store), store, done)
        left = {record.key for step in steps for record in step.manifest.records}
        sheets = [path for path in (folder / "show").glob("*.png") if path.stem not in left]
        done.bin.drop("contact sheets", [p for p in sheets if target.scene.fullmatch(p.stem)])
        # the page shows what is taken down; `report` makes another of what is left
        shown = [path for path in (folder / "report").rglob("*") if path.is_file()]
        done.bin.drop("pages and their pictures", shown)
        done.bin.settle()
    return done


def find(loaded: Loaded, key: str, folder: Path, records: Records, store: Store) -> Target:
    """What a key stands for. Raises RecipeError with the nearest keys."""
    videos = {video["key"]: video for video in records.get("download", ())}
    built = [*records.get("expand", ()), *(video["source"] for video in videos.values())]
    sources = [*canonical.plain(loaded.sources), *built]
    removal = loaded.removed.get(key)
    identities = dict(removal.facts.get("videos", {})) if removal else {}
    keys = {key, *identities}
    expand, look = CHAIN["expand"].stage(loaded.setup("auto", offline=True)), surveyor(store)
    for source in loaded.sources:
        # what lists name today: of what was taken down before, no manifest tells
        if source.key == key or key.startswith(f"{source.key}-"):
            listed = look(expand, [source]).manifest.records
            sources += canonical.plain(listed)
            if source.key == key:
                keys |= {video.key for video in listed}
    names = {source["key"] for source in built}
    for name in names:
        if name.startswith(f"{key}-"):  # perhaps of the list with this key
            entry = reproduce.entry_of(name, loaded.by_key, names)
            if entry is not None and entry.key == key:
                keys.add(name)
    known = {source["key"] for source in sources} | loaded.removed.keys()
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), 3, cutoff=0.3) or sorted(known)[:3]
        raise RecipeError(
            f"no source is called '{key}' in {loaded.path} or {folder}; near it: {', '.join(near)}"
        )
    taken = [videos[name] for name in keys & videos.keys()]
    identities |= {video["key"]: sweep.video_identity(video) for video in taken}
    return Target(
        keys=frozenset(keys),
        sources=[source for source in sources if source["key"] in keys],
        videos=identities,
        formats=frozenset(video["fetched_as"] for video in taken),
        of_clips=frozenset(
            caption
            for sample in records.get("encode", ())
            if sample["clip"]["scene"]["video"]["key"] in identities
            for caption in sample["clip"].get("captions") or ()
        ),
    )


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

    if reproduce.is_rebuilt(folder):
        return list(reproduce.walk(loaded, lock.read(loaded.path), visit, device))
    return list(walk(setup, visit, loaded.sources, until(built[-1]), loaded.removed))


def _samples(records: Records, target: Target) -> list[str]:
    """Keys of the target's samples."""
    return [
        sample["key"]
        for sample in records.get("encode", ())
        if sample["clip"]["scene"]["video"]["key"] in target.videos
    ]


def _check_others(records: Records, steps: Sequence[Step], target: Target) -> None:
    """Raises Stopped if samples of other sources would go too: what is rewritten is only what is
    remembered.
    """
    encoded = [step.manifest for step in steps if step.manifest.stage == "encode"]
    left = {record.key for manifest in encoded for record in manifest.records}
    left.update(_samples(records, target))
    if lost := sorted({record["key"] for record in records.get("encode", ())} - left):
        raise Stopped(
            f"{len(lost)} samples of other sources ({', '.join(lost[:3])}) are not remembered as "
            "they were built: a moved file, an edited recipe, a damaged memo. Run `build` first; "
            "nothing was changed"
        )


def _counts(removal: Removal | None, path: Path, steps: Sequence[Step]) -> Removed:
    """What changes, `path` being the manifest of the shards as they are."""
    before = _shards_of(manifest.read(path, Shard).records if path.is_file() else ())
    after = _shards_of(steps[-1].manifest.records if steps else ())
    digests = removal.facts.get("root_digest", {}) if removal else {}
    return Removed(
        since=removal.at if removal else "",
        before=digests.get("before", _root_digest(before)),
        after=_root_digest(after),
        num_shards=len(after),
        num_rewritten=len({shard.blob for shard in after} - {shard.blob for shard in before}),
        num_pending=sum(step.num_pending for step in steps),
    )


def _shards_of(records: Sequence[Record]) -> list[Shard]:
    return [record for record in records if isinstance(record, Shard)]


def _root_digest(shards: Sequence[Shard]) -> str:
    return shard_stage.root_digest(shards) if shards else ""


def audit(target: Target, records: Records, done: Removed) -> dict[str, Any]:
    """What the audit line says beside who, when and why. No addresses; digests of the videos, by
    which an unfinished removal goes on and no new name brings one back; keys of others that have
    the same footage and keep it.
    """
    samples = _samples(records, target)
    shards = records.get("shard", ())
    footage = removals.footage_of({"": Removal("", "", {"videos": target.videos})})
    others = {
        video["key"]
        for video in records.get("download", ())
        if video["key"] not in target.keys and _has(footage, video)
    }
    return {
        "videos": dict(target.videos),
        "samples": samples,
        "others": sorted(others),
        "shards": [
            shard["key"] for shard in shards if not set(samples).isdisjoint(shard["samples"])
        ],
        "root_digest": {"before": done.before, "after": done.after},
    }


def _has(footage: removals.Footage, video: Mapping[str, Any]) -> bool:
    """Whether a video, as plain JSON, is some of that footage."""
    source = video["source"]
    start, end = (
        None if time is None else Fraction(time) for time in (source["start_s"], source["end_s"])
    )
    part = footage.removal_of_part(video["key"], video["blob"]["sha256"], (start, end))
    return part is not None


def _relock(loaded: Loaded, steps: Sequence[Step], folder: Path, store: Store) -> list[str]:
    """Write the lock of what is left, or remove it if nothing is; returns what is to be said if
    neither can be done.
    """
    path = lock.path_of(loaded.path)
    manifests = [step.manifest for step in steps]
    is_whole = bool(manifests) and manifests[-1].stage == "shard"
    if is_whole and not reproduce.is_rebuilt(folder):
        if manifests[-1].records:
            relock.write_lock(loaded, manifests, folder, store, force=True)
        else:
            relock.remove_locks(loaded.path, folder)
        return []
    lock.remove_file(folder / relock.OWN)  # it may name what is taken down
    if path.is_file():
        return [f"{path} is not of a build here and still names it; `reproduce` leaves it out"]
    return []


def _delete(loaded: Loaded, target: Target, kept: References, store: Store, done: Removed) -> None:
    """Delete what nothing but the target needed. What manifests of others refer to stays, and is
    noted.
    """
    others = [source for source in loaded.sources if source.key not in loaded.removed]
    kept.sources |= {canonical.encode(source.identity()) for source in others}
    kept.uris |= {source.uri for source in others}
    footage, left_over = _footage(target, kept, store)
    kinds, further, own = _condemned(target, footage, left_over, kept, store)
    for sha256, kind in sorted(kinds.items()):
        done.bin.drop(kind, [store.path(sha256)])
        store.reclaim(Blob(sha256, 0))
    done.bin.settle()
    # Last go the memos by which a removal that was broken off finds all others again.
    for keys in (further, own):
        done.bin.drop("memos", map(store.memo_path, keys))
        done.bin.settle()
    done.bin.drop("notes of failures", _failures(target, store))
    for path in _partials(loaded, target, footage, store):
        done.bin.drop("partial downloads", [file for file in path.rglob("*") if file.is_file()])
        shutil.rmtree(path, ignore_errors=True)
    for sha256 in sorted(footage & kept.users.keys()):
        users = ", ".join(sorted(kept.users[sha256]))
        done.notes.append(
            f"kept: the video {sha256[:12]} and what is made of it are also used by {users}: "
            "`remove` it there too if all of it is to go"
        )


def _footage(target: Target, kept: References, store: Store) -> tuple[set[str], set[str]]:
    """The target's raw videos, whoever else has them, and the blobs that no memo names."""
    footage = {str(identity["video"]) for identity in target.videos.values()}
    left_over = set(store.blobs())
    for memo in sweep.memos_of(store):
        kept.keep_any_reel(memo)
        kept.keep_pictures(memo)
        # a memo that is of nothing is none of this version's: its blobs are nobody's
        if memo.of is not None:
            left_over -= _digests(memo.outputs)
        if _is_of(memo, target, footage, kept):
            footage |= _digests(list(facts_in(memo, "container")))
    return footage, left_over


def _condemned(
    target: Target, footage: set[str], left_over: set[str], kept: References, store: Store
) -> tuple[dict[str, str], list[str], list[str]]:
    """The blobs that go, each with what it is, and the keys of the memos that go: first those found
    by the blobs and clips that go, then the target's own.
    """
    own: set[str] = set()  # keys of memos
    captions: set[str] = set()  # that clips had, also under earlier settings
    blobs, clips = footage | left_over, set[str]()
    for memo in sweep.memos_of(store):
        if _is_of(memo, target, footage, kept):
            own.add(memo.key)
            blobs |= _digests(memo.outputs)
            clips |= _digests(list(facts_in(memo, "pictures")))
            captions |= set(_captions_in(memo))
    blobs, clips = blobs - kept.blobs, clips - kept.blobs

    kinds = dict.fromkeys(blobs, sweep.LEFT_OVER)
    further = []  # keys of memos that are of a clip, or name a blob that goes
    for memo in sweep.memos_of(store):
        is_of_clip = any(
            origin in clips for kind, origin in sweep.mentions(memo.of) if kind == "clip"
        )
        is_text = isinstance(memo.of, list) and memo.of[:1] == ["text"]
        is_of_caption = is_text and isinstance(memo.of[-1], str) and memo.of[-1] in captions
        if is_of_clip or is_of_caption:
            blobs |= _digests(memo.outputs) - kept.blobs
        kinds_here = {sha256: kind for sha256, kind in sweep.kinds_in(memo) if sha256 in blobs}
        kinds |= kinds_here
        if memo.key not in own and (is_of_clip or kinds_here):
            further.append(memo.key)
    kinds |= dict.fromkeys(footage & blobs, "raw videos")
    return kinds, further, sorted(own)


def _captions_in(memo: Memo) -> Iterator[str]:
    """The captions that a memo says clips have of their own."""
    for facts in facts_in(memo, "captions"):
        captions = facts["captions"]
        for caption in captions if isinstance(captions, list) else ():
            if isinstance(caption, str):
                yield caption


def _digests(value: object) -> set[str]:
    return {blob.sha256 for blob in blobs_in(value)}


def _is_of(memo: Memo, target: Target, footage: set[str], kept: References) -> bool:
    """Whether a memo is of the target, and nothing that stays has use for it."""
    for kind, origin in sweep.mentions(memo.of):
        if kept.has(kind, origin):
            continue
        if kind == "source" and canonical.encode(origin) in target.identities:
            return True
        if kind == "video" and origin["video"] in footage:
            return True
        if kind == "list" and origin in target.uris:
            return True
    if memo.key in target.wheels:
        return True
    if not kept.blobs.isdisjoint(_digests(memo.outputs)):
        return False
    if isinstance(memo.of, list) and memo.of[:1] == ["text"]:
        return isinstance(memo.of[-1], str) and memo.of[-1] in target.captions
    shards = facts_in(memo, "members")
    keys = [key for facts in shards for key in facts.get("samples") or ()]
    return any(isinstance(key, str) and target.scene.fullmatch(key) for key in keys)


def _failures(target: Target, store: Store) -> Iterator[Path]:
    """Notes of failures that mention an address."""
    uris = [without_credentials(source["uri"]) for source in target.sources]  # as notes have them
    for path in (store.root / "failures").glob("*/*"):
        note = store.failure(path.name)
        if note and any(uri in note["detail"] for uri in uris):
            yield path


def _partials(loaded: Loaded, target: Target, footage: set[str], store: Store) -> Iterator[Path]:
    """Folders of downloads that were broken off, also of those that wanted certain bytes."""
    selector = loaded.recipe.download.format
    for source in target.sources:
        for sha256 in {source["sha256"], None, *footage}:
            for chosen in {source["format"], None, *target.formats}:
                fetched = Source("", source["uri"], sha256=sha256, format=chosen)
                path = store.root / "partial" / download.partial_key(fetched, selector)
                if path.is_dir():
                    yield path
