"""The chain of six stages, walked by a build and by a survey of what is done; writes the data folder.

data/NAME/1-download.jsonl ... 6-shard.jsonl    a manifest per stage
data/NAME/clips/KEY.mp4                         the clips, to watch
data/NAME/shards/00000.tar ... index.json       what a trainer reads
data/store/                                     everything by content, for all datasets
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from pipeline import cut, download, encode, encoders, extract, shard
from pipeline import filter as filter_stage
from pipeline.errors import Stopped
from pipeline.executors import Inline
from pipeline.manifest import Manifest
from pipeline.recipe import Loaded
from pipeline.records import Blob, Clip, Record, Sample, Shard, Video
from pipeline.stage import Executor, Progress, Stage, collect, run_stage, survey
from pipeline.store import Store, link_or_copy

NAMES = ("download", "cut", "filter", "extract", "encode", "shard")
LIBRARIES = ("longtake", "torch", "diffusers", "open_clip_torch", "av", "decord2")


@dataclass(frozen=True)
class Step:
    """One stage of a dataset: its manifest, and how many of its tasks were done before, are to do, were run now."""

    manifest: Manifest
    num_cached: int
    num_pending: int
    num_run: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of what the stage stored, each blob once."""
        return sum(blob.num_bytes for blob in {blob for record in self.manifest.records for blob in blobs_of(record)})

    @property
    def hours(self) -> float:
        """Hours of video the records stand for."""
        return sum(float(getattr(record, "duration_s", 0)) for record in self.manifest.records) / 3600


Run = Callable[[Stage, Sequence[Record], bool], Step]


def blobs_of(record: Record) -> list[Blob]:
    """The blobs a record adds to those of its parents."""
    if isinstance(record, Sample):
        return [blob for _, blob in shard.members_of(record)]
    return [record.blob] if isinstance(record, Video | Clip | Shard) else []


def walk(loaded: Loaded, run: Run, device: str, until: str, offline: bool = False) -> Iterator[Step]:
    """Take the sources through the stages in order, as far as `until`. `run`'s last argument says: never on a cluster."""
    recipe, folder = loaded.recipe, loaded.folder
    expanded = run(download.expand_stage(recipe.download, folder), loaded.sources, True)
    step = joined(expanded, run(download.stage(recipe.download, folder), expanded.manifest.records, False))
    yield step
    stages: dict[str, Callable[[], tuple[Stage, bool]]] = {
        "cut": lambda: (cut.stage(recipe.cut, recipe.extract), False),
        "filter": lambda: (filter_stage.stage(recipe.filter, recipe.extract.fps), True),
        "extract": lambda: (extract.stage(recipe.extract), False),
        "encode": lambda: (encode.stage(recipe.encode, encode.find_encoders(recipe.encode, folder, offline), device), False),
        "shard": lambda: (shard.stage(), False),
    }
    for name in NAMES[1 : NAMES.index(until) + 1]:
        records: Sequence[Record] = step.manifest.records
        if name == "shard":
            records = shard.pack([record for record in records if isinstance(record, Sample)], recipe.shard)
        stage, local = stages[name]()
        step = run(stage, records, local)
        yield step


def joined(first: Step, second: Step) -> Step:
    """Expand and download as the one stage people know."""
    a, b = first.manifest, second.manifest
    manifest = Manifest(b.stage, b.version, b.params, a.num_in, a.num_split + b.num_split, b.records, a.rejections + b.rejections)
    return Step(
        manifest, second.num_cached if not first.num_pending else 0, first.num_pending + second.num_pending, first.num_run + second.num_run
    )


def build(loaded: Loaded, data: Path, executor: Executor, device: str, until: str, progress: Progress) -> Iterator[Step]:
    """Do what is missing, stage by stage, and write the outputs. Raises Stopped, Bug or RecipeError."""
    store = Store(data.absolute() / "store")
    folder = data / loaded.recipe.name
    store.root.mkdir(parents=True, exist_ok=True)
    if until in ("encode", "shard"):
        encode.find_encoders(loaded.recipe.encode, loaded.folder)  # hours of decoding should not end at a misspelt model
        if device != "auto":
            encoders.choose_device(device)
    try:
        lock = filelock.FileLock(store.root / "lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise Stopped(f"another build is working in {data}: wait for it, or give this one another folder (--data)") from error

    def run(stage: Stage, records: Sequence[Record], local: bool) -> Step:
        manifest, cached = run_stage(stage, records, store, Inline() if local else executor, progress)
        return Step(manifest, cached, 0, len(records) - cached)

    with lock:
        store.prepare()
        before: Manifest | None = None
        for number, step in enumerate(walk(loaded, run, device, until), 1):
            step.manifest.write(folder / f"{number}-{step.manifest.stage}.jsonl")
            if step.manifest.stage == "extract":
                link_clips(folder / "clips", step.manifest, store)
            if step.manifest.stage == "shard" and before is not None:
                publish(loaded, folder, step.manifest, before, store, device)
            before = step.manifest
            yield step


def look(loaded: Loaded, data: Path, device: str) -> Iterator[Step]:
    """What is done of a dataset and what is pending; nothing is run."""
    store = Store(data.absolute() / "store")

    def run(stage: Stage, records: Sequence[Record], local: bool) -> Step:
        found = survey(stage, records, store)
        missing = {record.key for record in found.missing}
        manifest = collect(stage, [record for record in records if record.key not in missing], found.memos, ())
        return Step(manifest, found.num_cached, len(missing))

    yield from walk(loaded, run, device, NAMES[-1], offline=True)


def link_clips(folder: Path, manifest: Manifest, store: Store) -> None:
    """Give every clip a name a person can open; names of clips that are no more go."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {f"{record.key}.mp4": record.blob for record in manifest.records if isinstance(record, Clip)}
    for path in folder.glob("*.mp4*"):
        blob = clips.get(path.name)
        if blob is None or not os.path.samefile(path, store.path(blob.sha256)):
            path.unlink()
    for name, blob in clips.items():
        if not (folder / name).exists():
            link_or_copy(store.path(blob.sha256), folder / name)


def publish(loaded: Loaded, folder: Path, packed: Manifest, samples: Manifest, store: Store, device: str) -> None:
    """Put the tars and their index where a trainer looks. Raises AssertionError if a sample is in no shard."""
    recipe = loaded.recipe
    shards = [record for record in packed.records if isinstance(record, Shard)]
    if not shards:
        shard.clear(folder / "shards")
        return
    if sorted(key for made in shards for key in made.samples) != sorted(record.key for record in samples.records):
        raise AssertionError("the shards do not hold exactly the samples that were encoded")
    found = encode.find_encoders(recipe.encode, loaded.folder)
    null = store.path(encode.text("", store, recipe.encode, found, device).sha256).read_bytes()
    devices = sorted({record.device for record in samples.records if isinstance(record, Sample)})
    built: dict[str, Any] = {"devices": devices, "versions": {name: metadata.version(name) for name in LIBRARIES}}
    fps, size, params = recipe.extract.fps, recipe.extract.size, recipe.encode
    about = shard.About(recipe.name, fps, size, params.precision, params.chunk_frames)
    index = shard.index_of(about, shards, found, null, built)
    shard.publish(folder / "shards", shards, index, store)
