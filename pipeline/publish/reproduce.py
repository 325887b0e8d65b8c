"""Build from a lock instead of detecting again: the recorded addresses, digests, formats and cuts.

Only videos that gave clips are fetched. Bytes that are not the recorded ones are refused, so a
source that has changed or is gone costs its own samples and nothing else. What comes out lies where
a build puts it and is then judged by `compare`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError, Stopped, Unavailable
from pipeline.core.executors import device_here
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Record, Rejection, Scene, Shard, Source, Video, public
from pipeline.core.stage import Executor, Progress
from pipeline.core.store import Store
from pipeline.dataset import build, chain, lock
from pipeline.dataset.build import opened
from pipeline.dataset.chain import CHAIN, Gather, Step, Visit, manifest_path, runner, surveyor
from pipeline.dataset.lock import Lock, LockedVideo
from pipeline.dataset.outputs import write_outputs
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.relock import check_removals
from pipeline.media import addresses, archives, encoders
from pipeline.media.duplicates import Params as Duplicates
from pipeline.stages import NAMES, encode, score

# what these gave is in the lock: a rebuild takes it from there
DECIDED = ("expand", "cut", "filter", "keep", "caption")
STAGES = tuple(name for name in NAMES if name not in DECIDED)
# stages whose options a rebuild does not ask for
UNUSED = ("download", "cut", "filter", "keep", "caption")
SPAN = ("start_s", "end_s")
FIELDS = ("captions", "license", *SPAN)


@dataclass(frozen=True)
class Edit:
    """Something a recipe says otherwise than the lock. `field` is "added" or "missing" for a whole
    source.
    """

    source: str  # or a table of options, in brackets
    field: str
    locked: str = ""
    recipe: str = ""


def check(loaded: Loaded, locked: Lock) -> None:
    """Refuse a recipe that would give other clips or latents than the lock tells of. Raises
    RecipeError with every difference.
    """
    setup = _setup(loaded, "auto")
    names = [name for name in STAGES if name not in ("download", "shard")]
    options = {name: CHAIN[name].stage(setup).params for name in names}
    options["shard"] = loaded.recipe.shard.model_dump()
    lines = ""
    for edit in _edited_options(locked, options):
        values = f"the recipe gives {edit.recipe}, the lock has {edit.locked}"
        lines += f"  {edit.source} {edit.field}: {values}\n"
    if lines:
        raise RecipeError(
            f"{loaded.path} is not the recipe the lock was made of:\n{lines}"
            "Take the recipe (and models) published with the lock, or make a lock of your own with "
            "`build`"
        )


def _edited_options(locked: Lock, options: Mapping[str, Any]) -> Iterator[Edit]:
    """Options, by table, that are not the lock's."""
    for table, params in options.items():
        before = dict(locked.header["packing"] if table == "shard" else locked.params(table))
        before.pop(score.HASHES, None)  # a rebuild hashes no frame
        here = canonical.plain(params)
        for name, locked_value, value in _differences(before, here):
            yield Edit(f"[{table}]", name, _short(locked_value), _short(value))


def _differences(
    before: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Values that differ, by name; of tables in both, those in them."""
    for name in sorted(before.keys() | here.keys()):
        locked_value, value = before.get(name), here.get(name)
        if isinstance(locked_value, Mapping) and isinstance(value, Mapping):
            for inner, *pair in _differences(locked_value, value):
                yield (f"{name}.{inner}", *pair)
        elif locked_value != value:
            yield (name, locked_value, value)


def _setup(loaded: Loaded, device: str) -> Setup:
    """What the stages of a rebuild are made from. Which clips are near-duplicates is in the lock,
    so nothing is hashed.
    """
    setup = loaded.setup(device)
    tables = tuple(table for table in setup.tables if not isinstance(table, Duplicates))
    return replace(setup, tables=tables)


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def edits(loaded: Loaded, locked: Lock) -> list[Edit]:
    """What the recipe says otherwise than the lock: sources that only one of them has, fields,
    options that a rebuild does not ask for.
    """
    setup = loaded.setup("auto")
    options = {name: CHAIN[name].stage(setup).params for name in UNUSED}
    result = list(_edited_options(locked, options))
    used: set[str] = set()
    for video in locked.videos.values():
        entry = entry_of(video.key, loaded.by_key, locked.videos)
        if entry is None:
            result.append(Edit(video.key, "missing"))
        else:
            used.add(entry.key)
            result += _edited_fields(video, entry)
    # where one was rejected, it may have been in the recipe when the lock was made
    if _rejected_sources(locked) <= {"removed"}:
        passed = {*used, *loaded.removed}
        new = [source.key for source in loaded.sources if source.key not in passed]
        result += [Edit(key, "added") for key in new]
    return result


def _edited_fields(video: LockedVideo, entry: Source) -> list[Edit]:
    """Fields in which a locked video and its line of the recipe differ."""
    is_list = entry.key != video.key  # a glob, a playlist: its own address is another
    values: dict[str, Any] = {"uri": video.uri if is_list else public(entry.uri)}
    in_archive = is_list and addresses.scheme(entry.uri) in addresses.ARCHIVES
    fields = SPAN if in_archive else FIELDS  # captions and licence stand in the archive
    values |= {name: getattr(entry, name) for name in fields}
    values["sha256"] = entry.sha256 or video.sha256
    return [
        Edit(video.key, name, _in_one_line(getattr(video, name)), _in_one_line(value))
        for name, value in values.items()
        if value != getattr(video, name)
    ]


def _rejected_sources(locked: Lock) -> set[str]:
    """For which reasons sources were rejected when the lock was made."""
    stages = locked.header["stages"]
    names = [name for name in ("expand", "download") if name in stages]
    return {reason for name in names for reason in stages[name]["rejected"]}


def _in_one_line(value: object) -> str:
    if isinstance(value, Fraction):
        return f"{value} s"
    return json.dumps(value, ensure_ascii=False) if value else "nothing"


def entry_of(
    key: str, sources: Mapping[str, Source], videos: Collection[str] = ()
) -> Source | None:
    """The line of the recipe a video came from: itself, or the glob, playlist or channel whose key
    its own begins with, up to a dash.

    What is one of the lock's `videos` itself is no list of others.
    """
    if key in sources:
        return sources[key]
    name, dash, _ = key.rpartition("-")
    while dash:
        if name in sources and name not in videos:
            return sources[name]
        name, dash, _ = name.rpartition("-")
    return None


def source_of(
    video: LockedVideo, loaded: Loaded, videos: Collection[str] = ()
) -> Source | Rejection:
    """What to fetch for a locked video, and under which captions: the recipe's; or why it is not
    fetched at all.

    An address that only the lock knows (one video of a playlist, one file of a glob) must be of the
    kind the recipe's is: else Damaged is raised.
    """
    entry = entry_of(video.key, loaded.by_key, videos)
    removal = loaded.removed.get(video.key) or (loaded.removed.get(entry.key) if entry else None)
    if removal:
        detail = removal.why or f"taken down on {removal.at}"
        return Rejection(video.key, "download", "bad", "removed", detail)
    span = (video.start_s, video.end_s)
    part = loaded.footage.removal_of_part(video.key, video.sha256, span)
    if part:
        detail = f"the footage of '{part[0]}', taken down on {part[1].at}"
        return Rejection(video.key, "download", "bad", "removed", detail)
    if entry is None:
        return _not_found(video, "the recipe does not name it any more")
    uri = entry.uri
    if entry.key != video.key:
        kinds = {addresses.scheme(entry.uri), addresses.scheme(video.uri)}
        if kinds == {"file"}:
            path = _file_of_glob(video, entry, loaded.folder)
            if path is None:
                name = video.uri.removeprefix("file:")
                return _not_found(video, f"{entry.uri} does not match {name} any more")
            uri = f"file:{addresses.path_in_recipe(path, loaded.folder)}"
        elif kinds in ({"tar"}, {"zip"}):
            member = _member_of(video, entry, loaded.folder)
            if member is None:
                return _not_found(video, f"{entry.uri} does not name the archive of {video.uri}")
            uri = member
        elif kinds <= {"http", "https"}:
            uri = video.uri
        else:
            raise Damaged(
                f"the lock's address of '{video.key}' is of another kind ({video.uri}) than the "
                f"recipe's ({entry.uri})"
            )
    is_page = addresses.scheme(uri) in ("http", "https")
    format_ = video.fetched_as if is_page and video.fetched_as != "unknown" else None
    if addresses.scheme(uri) in addresses.ARCHIVES and entry.key != video.key:
        # they may stand beside the video, in the archive
        entry = replace(entry, captions=video.captions, license=video.license)
    return replace(
        entry,
        key=video.key,
        uri=uri,
        sha256=video.sha256,
        format=format_,
        start_s=video.start_s,
        end_s=video.end_s,
    )


def _not_found(video: LockedVideo, detail: str) -> Rejection:
    return Rejection(video.key, "download", "unavailable", "not-found", detail)


def _file_of_glob(video: LockedVideo, entry: Source, folder: Path) -> Path | None:
    """The file of a recipe's glob that a lock means; of several with its name the one with its
    bytes.
    """
    paths = [
        path
        for path in addresses.matches(entry.uri, folder)
        if _public_name(path, folder) == addresses.plain_form(video.uri)
    ]
    if len(paths) > 1:
        for path in paths:
            if canonical.file_digest(path) == video.sha256:
                return path
    return paths[0] if paths else None


def _member_of(video: LockedVideo, entry: Source, folder: Path) -> str | None:
    """The address of the member of a recipe's archives that a lock means: the one with its key."""
    kind, name = addresses.scheme(entry.uri), addresses.archive_of(video.uri).member
    if name is None:
        return None
    with contextlib.suppress(Unavailable):
        for place, archive in archives.places(entry.uri, folder):
            if video.key == f"{entry.key}-{addresses.key_of_member(archive, name)}":
                return addresses.Archive(kind, place, name).uri
    return None


def _public_name(path: Path, folder: Path) -> str:
    """A file as a lock names it, whatever Unicode form this disk has."""
    return addresses.plain_form(public(f"file:{addresses.path_in_recipe(path, folder)}"))


def walk(loaded: Loaded, locked: Lock, visit: Visit, device: str) -> Iterator[Step]:
    """Take the lock's videos that gave clips through download, extract, encode and shard."""
    present: list[Source] = []
    absent: list[Rejection] = []
    for video in locked.videos.values():
        if video.key in locked.clips_by_video:
            source = source_of(video, loaded, locked.videos)
            if isinstance(source, Source):
                present.append(source)
            else:
                absent.append(source)

    def scenes(records: Sequence[Record]) -> list[Record]:
        return [scene for record in records for scene in _scenes(record, locked)]

    def clips(records: Sequence[Record]) -> list[Record]:
        return [_as_locked(record, locked) for record in records]

    gather: dict[str, Gather] = {"extract": scenes, "encode": clips}
    for step in chain.walk(_setup(loaded, device), visit, present, STAGES, gather=gather):
        if step.manifest.stage == "download":
            num_in = step.manifest.num_in + len(absent)
            rejections = (*step.manifest.rejections, *absent)
            manifest = replace(step.manifest, num_in=num_in, rejections=rejections)
            step = replace(step, manifest=manifest)
        yield step


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


def _scenes(video: Record, locked: Lock) -> Iterator[Scene]:
    assert isinstance(video, Video)
    covers_faces = "faces" in locked.params("extract")
    for clip in locked.clips_by_video[video.key]:
        if clip.time_base != video.container.time_base:
            raise Damaged(
                f"the lock counts '{clip.key}' in {clip.time_base} s, its video in "
                f"{video.container.time_base} s"
            )
        covers = clip.covers if covers_faces else None
        yield Scene(clip.key, video, clip.start_pts, clip.end_pts, None, clip.picture, covers)


def _as_locked(clip: Record, locked: Lock) -> Clip:
    """A clip with its own captions, and what its split was drawn by, as the lock has them."""
    assert isinstance(clip, Clip)
    recorded = locked.clips[clip.key]
    return replace(clip, captions=recorded.captions, split_group=recorded.split_group)


def versions(locked: Lock, steps: Sequence[Step]) -> list[str]:
    """Stages whose version is not the lock's, in words: their bytes may differ by design."""
    lines = []
    for step in steps:
        name, version = step.manifest.stage, step.manifest.version
        before = locked.header["stages"].get(name, {}).get("version", version)
        if before != version:
            lines.append(
                f"stage '{name}' is version {version} here and {before} in the lock: its bytes may "
                "differ"
            )
    return lines


def reproduce(
    loaded: Loaded, locked: Lock, data: Path, executor: Executor, device: str, progress: Progress
) -> Iterator[Step]:
    """Rebuild, stage by stage, and write the outputs; the lock stays as it is. Raises Stopped, Bug
    or RecipeError.
    """
    check(loaded, locked)
    here = device_here(executor, device)
    if here != "auto":
        encoders.choose_device(here)
    folder = data / loaded.recipe.name
    if manifest_path(folder, "cut").is_file():
        raise Stopped(
            f"{folder} holds a build of its own: it would prove nothing, and what cannot be had "
            "any more would go from there. Choose another folder with --data (make: DATA=)"
        )
    check_removals(loaded, folder)
    with opened(data) as store, store.unfinished(loaded.recipe.name):
        encode.check_models(loaded.setup(device), store)
        fetching = CHAIN["download"].stage(loaded.setup(device))
        visit = runner(store, executor, progress, fetching)
        walked = walk(loaded, locked, visit, device)
        for step in write_outputs(loaded, walked, data, store, here):
            _read_back(step, store)
            yield step


def _read_back(step: Step, store: Store) -> None:
    """Shards that were remembered are read again before anybody calls them identical. Raises
    Damaged.
    """
    for record in step.manifest.records:
        if isinstance(record, Shard):
            sha256 = record.blob.sha256
            if canonical.file_digest(store.path(sha256)) != sha256:
                raise Damaged(
                    f"the shard '{record.key}' is not on disk as it was written: `verify --drop`, "
                    "then the same command again"
                )
