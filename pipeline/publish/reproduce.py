"""Build from a lock instead of detecting again: the recorded addresses, digests, formats and cuts.

Only videos that gave clips are fetched. Bytes that are not the recorded ones are refused, so a
source that has changed or is gone costs its own samples and nothing else. What comes out lies where
a build puts it and is then judged by `compare`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError, Stopped
from pipeline.core.records import Record, Rejection, Scene, Shard, Source, Video, public
from pipeline.core.stage import Executor, Progress, Stage
from pipeline.core.store import Store
from pipeline.dataset import build, chain, lock
from pipeline.dataset.build import opened
from pipeline.dataset.chain import CHAIN, Step, Visit, manifest_path, runner, surveyor
from pipeline.dataset.lock import Lock, LockedVideo
from pipeline.dataset.outputs import write_outputs
from pipeline.dataset.recipe import Loaded
from pipeline.media import addresses, encoders
from pipeline.stages import NAMES

STAGES = tuple(name for name in NAMES if name not in ("expand", "cut", "filter"))  # not in the lock
FIELDS = ("uri", "captions", "license", "start_s", "end_s")


@dataclass(frozen=True)
class Edit:
    """Something a recipe says otherwise than the lock. `field` is "added" or "missing" for a whole
    source.
    """

    source: str  # or a table of options, in brackets
    field: str
    locked: str = ""
    found: str = ""


def check(loaded: Loaded, lock: Lock) -> None:
    """Refuse a recipe that would give other clips or latents than the lock tells of. Raises
    RecipeError with every difference.
    """
    setup = loaded.setup("auto")
    names = [name for name in STAGES if name not in ("download", "shard")]
    wanted = {name: CHAIN[name].stage(setup).params for name in names}
    wanted["shard"] = loaded.recipe.shard.model_dump()
    if differences := list(_options(lock, wanted)):
        told = "\n".join(
            f"  {one.source} {one.field}: the recipe gives {one.found}, the lock has {one.locked}"
            for one in differences
        )
        raise RecipeError(
            f"{loaded.path} is not the recipe the lock was made of:\n{told}\n"
            "Take the recipe (and models) published with the lock, or make a lock of your own with `build`"
        )


def _options(lock: Lock, wanted: Mapping[str, Any]) -> Iterator[Edit]:
    """Options, by table, that are not the lock's."""
    for table, params in wanted.items():
        locked = lock.header["packing"] if table == "shard" else lock.params(table)
        here = canonical.plain(params)
        for name in sorted(locked.keys() | here.keys()):
            if locked.get(name) != here.get(name):
                yield Edit(f"[{table}]", name, _short(locked.get(name)), _short(here.get(name)))


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def edits(loaded: Loaded, lock: Lock) -> list[Edit]:
    """What the recipe says otherwise than the lock: sources that only one of them has, fields,
    options that a rebuild does not ask for.
    """
    setup = loaded.setup("auto")
    names = ("download", "cut", "filter")
    unused = {name: CHAIN[name].stage(setup).params for name in names}
    made = list(_options(lock, unused))
    used: set[str] = set()
    for video in lock.videos.values():
        entry = entry_of(video.key, loaded.sources, lock.videos)
        if entry is None:
            made.append(Edit(video.key, "missing"))
            continue
        used.add(entry.key)
        here = {"uri": public(entry.uri) if entry.key == video.key else video.uri}
        here |= {name: getattr(entry, name) for name in FIELDS[1:]}
        here["sha256"] = entry.sha256 or video.sha256
        for name in here:
            if here[name] != getattr(video, name):
                made.append(Edit(video.key, name, _said(getattr(video, name)), _said(here[name])))
    stages = lock.header["stages"]
    rejected = {*stages["download"]["rejected"], *stages.get("expand", {}).get("rejected", ())}
    if rejected <= {
        "removed"
    }:  # else it may have been in the recipe and unavailable when the lock was made
        made += [
            Edit(source.key, "added")
            for source in loaded.sources
            if source.key not in {*used, *loaded.removed}
        ]
    return made


def _said(value: object) -> str:
    """A field's value, on one line."""
    if isinstance(value, Fraction):
        return f"{value} s"
    return json.dumps(value, ensure_ascii=False) if value else "nothing"


def entry_of(key: str, sources: Sequence[Source], videos: Collection[str] = ()) -> Source | None:
    """The line of the recipe a video came from: itself, or the glob, playlist or channel whose key
    its own begins with.

    What is one of the lock's `videos` itself is no list of others.
    """
    exact = next((source for source in sources if source.key == key), None)
    if exact is not None:
        return exact
    lists = [
        source
        for source in sources
        if key.startswith(f"{source.key}-") and source.key not in videos
    ]
    return max(lists, key=lambda source: len(source.key), default=None)


def source_of(
    video: LockedVideo, loaded: Loaded, videos: Collection[str] = ()
) -> Source | Rejection:
    """What to fetch for a locked video, and under which captions: the recipe's; or why it is not
    fetched at all.

    An address that only the lock knows (one video of a playlist, one file of a glob) must be of the
    kind the recipe's is.
    """
    entry = entry_of(video.key, loaded.sources, videos)
    removal = loaded.removed.get(video.key) or (loaded.removed.get(entry.key) if entry else None)
    if removal:
        return Rejection(
            video.key, "download", "bad", "removed", removal.why or f"taken down on {removal.at}"
        )
    if entry is None:
        return Rejection(
            video.key,
            "download",
            "unavailable",
            "not-found",
            "the recipe does not name it any more",
        )
    uri = entry.uri
    if entry.key != video.key:
        uri = video.uri
        kinds = {addresses.scheme(entry.uri), addresses.scheme(uri)}
        if kinds == {"file"}:
            paths = [
                path
                for path in addresses.matches(entry.uri, loaded.folder)
                if _named(path, loaded.folder) == video.uri
            ]
            if not paths:
                detail = f"{entry.uri} does not match {uri.removeprefix('file:')} any more"
                return Rejection(video.key, "download", "unavailable", "not-found", detail)
            same = (
                path
                for path in paths
                if len(paths) > 1 and canonical.file_digest(path) == video.sha256
            )
            uri = f"file:{addresses.path_in_recipe(next(same, paths[0]), loaded.folder)}"
        elif not kinds <= {"http", "https"}:
            raise Damaged(
                f"the lock's address of '{video.key}' is of another kind ({uri}) than the recipe's ({entry.uri})"
            )
    chosen = (
        video.fetched_as
        if addresses.scheme(uri) in ("http", "https") and video.fetched_as != "unknown"
        else None
    )
    return replace(
        entry,
        key=video.key,
        uri=uri,
        sha256=video.sha256,
        format=chosen,
        start_s=video.start_s,
        end_s=video.end_s,
    )


def _named(path: Path, folder: Path) -> str:
    """What a lock calls a file of a glob."""
    return public(f"file:{addresses.path_in_recipe(path, folder)}")


def walk(loaded: Loaded, lock: Lock, visit: Visit, device: str) -> Iterator[Step]:
    """Take the lock's videos that gave clips through download, extract, encode and shard."""
    videos = [video for video in lock.videos.values() if lock.clips_of(video.key)]
    sources = [source_of(video, loaded, lock.videos) for video in videos]
    absent = tuple(source for source in sources if isinstance(source, Rejection))

    def scenes(records: Sequence[Record]) -> list[Record]:
        return [scene for record in records for scene in _scenes(record, lock)]

    def visit_and_count(stage: Stage, records: Sequence[Record]) -> Step:
        step = visit(stage, records)
        if stage.name != "download":
            return step
        manifest = step.manifest
        num_in = manifest.num_in + len(absent)
        rejections = manifest.rejections + absent
        return replace(step, manifest=replace(manifest, num_in=num_in, rejections=rejections))

    present = [source for source in sources if isinstance(source, Source)]
    setup = loaded.setup(device)
    yield from chain.walk(setup, visit_and_count, present, STAGES, gather={"extract": scenes})


def is_rebuilt(folder: Path) -> bool:
    """Whether what lies in a dataset's folder came from a lock: nothing was cut there."""
    return manifest_path(folder, "extract").is_file() and not manifest_path(folder, "cut").is_file()


def look(loaded: Loaded, data: Path, device: str) -> Iterator[Step]:
    """What is done and what is pending, of a build or of a rebuild; nothing is run."""
    if not is_rebuilt(data / loaded.recipe.name):
        yield from build.look(loaded, data, device)
        return
    visit = surveyor(Store(data.absolute() / "store"))
    yield from walk(loaded, lock.read(loaded.path), visit, device)


def _scenes(video: Record, lock: Lock) -> Iterator[Scene]:
    assert isinstance(video, Video)
    for clip in lock.clips_of(video.key):
        if clip.time_base != video.container.time_base:
            raise Damaged(
                f"the lock counts '{clip.key}' in {clip.time_base} s, its video in "
                f"{video.container.time_base} s"
            )
        yield Scene(clip.key, video, clip.start_pts, clip.end_pts)


def versions(lock: Lock, steps: Sequence[Step]) -> list[str]:
    """Stages whose version is not the lock's: their bytes may differ by design."""
    told = []
    for step in steps:
        name, here = step.manifest.stage, step.manifest.version
        locked: Any = lock.header["stages"][name]["version"]
        if locked != here:
            told.append(
                f"stage '{name}' is version {here} here and {locked} in the lock: its bytes may differ"
            )
    return told


def reproduce(
    loaded: Loaded, locked: Lock, data: Path, executor: Executor, device: str, progress: Progress
) -> Iterator[Step]:
    """Rebuild, stage by stage, and write the outputs; the lock stays as it is. Raises Stopped, Bug
    or RecipeError.
    """
    check(loaded, locked)
    if device != "auto":
        encoders.choose_device(device)
    if manifest_path(data / loaded.recipe.name, "cut").is_file():
        told = "it would prove nothing, and what cannot be had any more would go from there"
        raise Stopped(
            f"{data / loaded.recipe.name} holds a build of its own: {told}. Choose another folder with --data (make: DATA=)"
        )
    with opened(data) as store, store.unfinished(loaded.recipe.name):
        fetching = CHAIN["download"].stage(loaded.setup(device))
        visit = runner(store, executor, progress, fetching)
        walked = walk(loaded, locked, visit, device)
        for step in write_outputs(loaded, walked, data, store, device):
            _read_back(step, store)
            yield step


def _read_back(step: Step, store: Store) -> None:
    """Shards that were remembered are read again before anybody calls them identical."""
    for record in step.manifest.records:
        if (
            isinstance(record, Shard)
            and canonical.file_digest(store.path(record.blob.sha256)) != record.blob.sha256
        ):
            raise Damaged(
                f"the shard '{record.key}' is not on disk as it was written: `verify --drop`, then the same command again"
            )
