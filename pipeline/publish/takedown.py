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
from pathlib import Path
from typing import Any

from pipeline.core import canonical, manifest
from pipeline.core.errors import RecipeError, Stopped, without_credentials
from pipeline.core.executors import Inline
from pipeline.core.records import Blob, Record, Shard, Source
from pipeline.core.stage import Progress, Stage
from pipeline.core.store import Memo, Store, blobs_in, now
from pipeline.dataset import lock, removals
from pipeline.dataset.build import (
    NAMES,
    Step,
    lock_of,
    manifest_path,
    opened,
    runner,
    surveyor,
    walk,
    written,
)
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.removals import Removal
from pipeline.media import fetch
from pipeline.publish import reproduce, sweep
from pipeline.publish.sweep import Bin, Held
from pipeline.stages import download, shard


@dataclass(frozen=True)
class Target:
    """What is taken down: keys of videos, identities of their sources, and of the videos as far as
    they are known; captions.
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
            f"cannot write {removals.path_of(loaded.path)}: taking a source down must be noted beside the recipe"
        )
    folder = data / loaded.recipe.name
    with opened(data) as store:
        memos = list(sweep.read(store))
        sweep.held(data, store, memos)  # a damaged manifest stops this before anything has changed
        records = {
            name: sweep.records_in(path)[1]
            for name in NAMES
            if (path := manifest_path(folder, name)).is_file()
        }
        target = find(loaded, key, folder, records, memos)
        shards = _shards(folder)
        before = loaded.removed.get(key)
        removal = before or Removal(now(), why)
        loaded = replace(loaded, removed={**loaded.removed, key: removal})
        steps = rewalk(loaded, folder, list(records), store, device)
        made = (
            [record for record in steps[-1].manifest.records if isinstance(record, Shard)]
            if steps
            else []
        )
        was = (
            before.facts["root_digest"]["before"]
            if before and "root_digest" in before.facts
            else _root(shards)
        )
        _keep_others(records, steps, target)
        done = Removed(before.at if before else "", was, _root(made), len(made))
        done.num_rewritten = len({one.blob for one in made} - {one.blob for one in shards})
        done.num_pending = sum(step.num_pending for step in steps)
        if before is None:
            removals.note(loaded.path, key, removal, audit(target, records, done))
        for _ in written(loaded, iter(steps), data, store, device):
            pass
        done.notes += _relock(loaded, steps, store, reproduced="cut" not in records)
        kept = sweep.held(data, store, memos)
        delete(loaded, target, kept, memos, store, done)
        left = {record.key for step in steps for record in step.manifest.records}
        sheets = [
            path
            for path in (folder / "show").glob("*.png")
            if target.scene.fullmatch(path.stem) and path.stem not in left
        ]
        done.bin.drop("contact sheets", sheets)
    return done


def _keep_others(
    records: Mapping[str, Sequence[dict[str, Any]]], steps: Sequence[Step], target: Target
) -> None:
    """Raises Stopped if samples of other sources would go too: what is rewritten is only what is
    remembered.
    """
    left = {
        record.key
        for step in steps
        if step.manifest.stage == "encode"
        for record in step.manifest.records
    }
    others = [
        record["key"]
        for record in records.get("encode", ())
        if record["clip"]["scene"]["video"]["key"] not in target.videos
    ]
    if lost := sorted(set(others) - left):
        raise Stopped(
            f"{len(lost)} samples of other sources ({', '.join(lost[:3])}) are not remembered as they were built: a moved file, an edited "
            "recipe, a damaged memo. Run `build` first; nothing was changed"
        )


def _shards(folder: Path) -> list[Shard]:
    path = manifest_path(folder, "shard")
    found = manifest.read(path, Shard).records if path.is_file() else ()
    return [record for record in found if isinstance(record, Shard)]


def _root(shards: Sequence[Shard]) -> str:
    return shard.root_digest(shards) if shards else ""


def find(
    loaded: Loaded,
    key: str,
    folder: Path,
    records: Mapping[str, Sequence[dict[str, Any]]],
    memos: Sequence[Memo],
) -> Target:
    """What a key stands for. Raises RecipeError with the nearest keys."""
    listed = dict(_listed(loaded, memos))
    built = {record["key"]: record for record in records.get("download", ())}
    told: Mapping[str, Any] = (
        loaded.removed[key].facts.get("videos", {}) if key in loaded.removed else {}
    )
    own = {source.key: source for source in loaded.sources}
    known = {*own, *listed, *built, *loaded.removed}
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), 3, cutoff=0.3) or sorted(known)[:3]
        raise RecipeError(
            f"no source is called '{key}' in {loaded.path} or {folder}; near it: {', '.join(near)}"
        )
    keys = {key, *told}
    if key in own:
        keys |= {name for name, (entry, _) in listed.items() if entry == key}
        keys |= {
            name
            for name in built
            if (entry := reproduce.entry_of(name, loaded.sources, built)) and entry.key == key
        }
    sources = [canonical.plain(own[name].identity()) for name in keys & own.keys()]
    sources += [listed[name][1] for name in keys & listed.keys()]
    sources += [sweep.source_identity(built[name]["source"]) for name in keys & built.keys()]
    videos = {name: sweep.video_identity(built[name]) for name in keys & built.keys()}
    formats = {built[name]["fetched_as"] for name in keys & built.keys()}
    captions = {caption for name in keys & own.keys() for caption in own[name].captions}
    captions |= {
        caption for name in keys & built.keys() for caption in built[name]["source"]["captions"]
    }
    return Target(
        frozenset(keys), tuple(sources), {**told, **videos}, frozenset(formats), frozenset(captions)
    )


def _listed(
    loaded: Loaded, memos: Sequence[Memo]
) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Every video a source of the recipe was ever found to name: its key, the source's key, its own
    source's identity.
    """
    entries: dict[bytes, list[str]] = {}
    for source in loaded.sources:
        entries.setdefault(canonical.encode([source.identity()]), []).append(source.key)
    for memo in memos:
        for entry in entries.get(canonical.encode(memo.of), ()):
            for output in memo.outputs:
                if "uri" in output.get("facts", {}):
                    yield entry + output["suffix"], (entry, sweep.source_identity(output["facts"]))


def rewalk(
    loaded: Loaded, folder: Path, built: Sequence[str], store: Store, device: str
) -> list[Step]:
    """The chain as far as it was built, from memory alone: only shards are packed. Raises Stopped
    if a model it needs is not here.
    """
    if not built:
        return []
    look, pack = surveyor(store), runner(store, Inline(), Progress())

    def run(stage: Stage, records: Sequence[Record], local: bool) -> Step:
        return (pack if stage.name == "shard" else look)(stage, records, local)

    if "extract" in built and "cut" not in built:
        return list(reproduce.walk(loaded, lock.read(loaded.path), run, device))
    return list(walk(loaded, run, device, built[-1], offline=True))


def audit(
    target: Target, records: Mapping[str, Sequence[dict[str, Any]]], done: Removed
) -> dict[str, Any]:
    """What the audit line says beside who, when and why. No addresses; digests of the videos, by
    which an unfinished removal goes on.
    """
    samples = [
        record["key"]
        for record in records.get("encode", ())
        if record["clip"]["scene"]["video"]["key"] in target.videos
    ]
    shards = [
        record["key"]
        for record in records.get("shard", ())
        if set(samples) & set(record["samples"])
    ]
    roots = {"before": done.before, "after": done.after}
    return {
        "videos": dict(target.videos),
        "samples": samples,
        "shards": shards,
        "root_digest": roots,
    }


def _relock(loaded: Loaded, steps: Sequence[Step], store: Store, reproduced: bool) -> list[str]:
    """Write the lock of what is left, or remove it if nothing is; returns what is to be said if
    neither can be done.
    """
    path = lock.path_of(loaded.path)
    if steps and steps[-1].manifest.stage == "shard" and not reproduced:
        if steps[-1].manifest.records:
            lock.write(lock_of(loaded, [step.manifest for step in steps], store), loaded.path)
        else:
            for suffix in ("", ".zst"):
                path.with_name(loaded.path.stem + lock.SUFFIX + suffix).unlink(missing_ok=True)
    elif path.is_file():
        return [f"{path} is not of a build here and still names it; `reproduce` leaves it out"]
    return []


def delete(
    loaded: Loaded, target: Target, kept: Held, memos: Sequence[Memo], store: Store, done: Removed
) -> None:
    """Delete what nothing but the target needed. What manifests of others refer to stays, and is
    noted.
    """
    found = Condemned(loaded, target, kept, memos)
    kinds = {**sweep.kinds_of(memos), **dict.fromkeys(found.footage, "raw videos")}
    known = {
        blob.sha256 for memo in memos if memo.of is not None for blob in blobs_in(memo.outputs)
    } | kept.blobs
    left_over = (
        store.blobs().keys() - known
    )  # nobody's: of a task that was broken off, or forgotten
    blobs = found.blobs | left_over
    for sha256 in sorted(blobs):
        done.bin.drop(kinds.get(sha256, sweep.LEFT_OVER), [store.path(sha256)])
        store.reclaim(Blob(sha256, 0))
    doomed = {memo.key: memo for memo in [*found.memos, *sweep.naming(memos, blobs)]}
    of_clips_first = sorted(
        doomed.values(), key=lambda memo: not any(name == "clip" for name, _ in mentions(memo.of))
    )
    done.bin.drop("memos", [store.memo_path(memo.key) for memo in of_clips_first])
    done.bin.drop(
        "notes of failures", _failures(store, [source["uri"] for source in target.sources])
    )
    for path in _partials(loaded, target, found.footage, store):
        done.bin.drop("partial downloads", [file for file in path.rglob("*") if file.is_file()])
        shutil.rmtree(path, ignore_errors=True)
    for sha256 in sorted(found.footage & kept.users.keys()):
        users = ", ".join(sorted(kept.users[sha256]))
        told = f"kept: the video {sha256[:12]} and what is made of it are also used by {users}"
        done.notes.append(f"{told}: `remove` it there too if all of it is to go")


class Condemned:
    """What is to be deleted: `footage` (digests of the raw videos, whoever else has them), `blobs`
    and `memos`.
    """

    def __init__(self, loaded: Loaded, target: Target, kept: Held, memos: Sequence[Memo]) -> None:
        others = [
            source.identity() for source in loaded.sources if source.key not in loaded.removed
        ]
        self._kept, self._kept_sources = (
            kept,
            kept.sources | {canonical.encode(identity) for identity in others},
        )
        self._sources = {
            canonical.encode(identity) for identity in target.sources
        } - self._kept_sources
        kept_uris = {source.uri for source in loaded.sources if source.key not in loaded.removed}
        uris = {source["uri"] for source in target.sources}
        self._listings = [["listing", uri] for uri in uris - kept_uris]
        self._wheels = {fetch.wheel_key(uri) for uri in uris}
        self._scene, self._captions = target.scene, target.captions
        self.footage = {str(identity["video"]) for identity in target.videos.values()} | set(
            self._fetched(memos)
        )
        first = [memo for memo in memos if self._is_doomed(memo)]
        clips = {
            made["blob"]["sha256"] for memo in first for made in _facts(memo, "pictures")
        } - kept.blobs
        second = [
            memo
            for memo in memos
            if any(name == "clip" and value in clips for name, value in mentions(memo.of))
        ]
        self.memos = [*first, *second]
        named = {blob.sha256 for memo in self.memos for blob in blobs_in(memo.outputs)}
        self.blobs = (named | self.footage) - kept.blobs

    def _fetched(self, memos: Sequence[Memo]) -> Iterator[str]:
        for memo in memos:
            if any(
                name == "source" and canonical.encode(value) in self._sources
                for name, value in mentions(memo.of)
            ):
                yield from (made["blob"]["sha256"] for made in _facts(memo, "container"))

    def _is_doomed(self, memo: Memo) -> bool:
        for name, value in mentions(memo.of):
            if name == "source" and canonical.encode(value) in self._sources:
                return True
            if (
                name == "video"
                and value["video"] in self.footage
                and canonical.encode(value) not in self._kept.videos
            ):
                return True
        return (
            memo.of in self._listings
            or memo.key in self._wheels
            or self._is_old_shard(memo)
            or self._is_caption(memo)
        )

    def _is_caption(self, memo: Memo) -> bool:
        """The embedding of a caption that nobody else's record has."""
        is_text = (
            isinstance(memo.of, list) and memo.of[:1] == ["text"] and memo.of[-1] in self._captions
        )
        return is_text and all(
            blob.sha256 not in self._kept.blobs for blob in blobs_in(memo.outputs)
        )

    def _is_old_shard(self, memo: Memo) -> bool:
        """A shard that no manifest refers to and that holds a sample of this name."""
        packed = _facts(memo, "members")
        return any(
            made["blob"]["sha256"] not in self._kept.blobs
            and any(map(self._scene.fullmatch, made["samples"]))
            for made in packed
        )


def _facts(memo: Memo, name: str) -> Iterator[dict[str, Any]]:
    """What a stage's memo says of each output, if it says that."""
    for output in memo.outputs if isinstance(memo.outputs, list) else ():
        if name in output.get("facts", {}):
            yield output["facts"]


def mentions(of: Any) -> Iterator[tuple[str, Any]]:
    """The identities in what a memo is of: ("source", ...), ("video", ...), ("clip", its
    digest).
    """
    if isinstance(of, list):
        for one in of:
            yield from mentions(one)
    elif isinstance(of, dict):
        if "video" in of and "span" in of:
            yield "video", of
        elif of.keys() == {"clip"}:
            yield "clip", of["clip"]
        elif "uri" in of:
            yield "source", of


def _failures(store: Store, uris: Sequence[str]) -> list[Path]:
    """Notes of failures that mention an address."""
    notes = ((path, store.failure(path.name)) for path in (store.root / "failures").glob("*/*"))
    public = [without_credentials(uri) for uri in uris]  # as notes have them
    return [path for path, note in notes if note and any(uri in note["detail"] for uri in public)]


def _partials(loaded: Loaded, target: Target, footage: set[str], store: Store) -> Iterator[Path]:
    """Folders of downloads that were broken off, also of those that wanted certain bytes."""
    selector = loaded.recipe.download.format
    for source in target.sources:
        for sha256 in {source.get("sha256"), *footage}:
            for chosen in {None, source.get("format"), *target.formats}:
                record = Source("", source["uri"], sha256=sha256, format=chosen)
                path = store.root / "partial" / download.partial_key(record, selector)
                if path.is_dir():
                    yield path
