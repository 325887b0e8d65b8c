"""The chain of stages, as data, and the one walk along it.

A build, a survey, a rebuild from a lock and a takedown all walk the chain. They differ in how they
visit a stage: `runner` runs what is missing, `surveyor` only looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pipeline.core import ledger
from pipeline.core.errors import RecipeError
from pipeline.core.executors import Inline, Threads
from pipeline.core.manifest import Manifest, read
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Record, Rejection, Sample, Shard, Video
from pipeline.core.stage import Executor, Progress, Stage, Survey, collect, complete, survey
from pipeline.core.store import Store
from pipeline.dataset import rates, raw
from pipeline.dataset.removals import Removal, footage_of
from pipeline.stages import NAMES, shard

CHAIN: Mapping[str, ModuleType] = {name: import_module(f"pipeline.stages.{name}") for name in NAMES}
KINDS: Mapping[str, type[Record]] = {name: module.MAKES for name, module in CHAIN.items()}


@dataclass(frozen=True)
class Step:
    """One stage of a dataset: its manifest, and how many of its tasks were done before, are to do,
    were run now. `failures` (of a survey) are the rejections with their history; `released` are raw
    videos that are no longer there, `removed` those that were taken down by their bytes.
    """

    manifest: Manifest
    num_cached: int
    num_pending: int
    num_run: int = 0
    failures: tuple[ledger.Failure, ...] = ()
    survey: Survey | None = None
    released: frozenset[Blob] = frozenset()
    removed: tuple[Video, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of what the stage stored, each blob once. A stage that takes clips and gives clips
        stores none.
        """
        if not adds_blobs(self.manifest.stage):
            return 0
        blobs = {blob for record in self.manifest.records for blob in blobs_of(record)}
        return sum(blob.num_bytes for blob in blobs - self.released)

    @property
    def hours(self) -> float:
        """Hours of video the records stand for."""
        durations = [getattr(record, "duration_s", 0) for record in self.manifest.records]
        return float(sum(durations)) / 3600


Visit = Callable[[Stage, Sequence[Record]], Step]
Gather = Callable[[Sequence[Record]], Sequence[Record]]


def blobs_of(record: Record) -> list[Blob]:
    """The blobs a record adds to those of its parents."""
    if isinstance(record, Sample):
        return [blob for _, blob in shard.members_of(record)]
    return [record.blob] if isinstance(record, Video | Clip | Shard) else []


def adds_blobs(name: str) -> bool:
    """Whether the blobs of a stage's records are its own, not those of the stage before."""
    before = NAMES[: NAMES.index(name)][-1:]
    return not before or KINDS[name] is not KINDS[before[0]]


def stage_of(name: str, setup: Setup) -> Stage:
    """The stage of that name. Raises Stopped or RecipeError where its models cannot be had."""
    stage: Stage = CHAIN[name].stage(setup)
    if stage.name != name:
        raise AssertionError(f"pipeline/stages/{name}.py makes a stage called '{stage.name}'")
    return stage


def until(name: str) -> tuple[str, ...]:
    """The stages of the chain up to and with this one."""
    return NAMES[: NAMES.index(name) + 1]


def walk(
    setup: Setup,
    visit: Visit,
    records: Sequence[Record],
    names: Sequence[str] = NAMES,
    removed: Mapping[str, Removal] | None = None,
    gather: Mapping[str, Gather] | None = None,
) -> Iterator[Step]:
    """Take records through stages in order; yields a step for each.

    Sources of `removed`, by key, become rejections of `expand`, and by their bytes of `download`.
    `gather` replaces, by stage, how a
    stage's records come from the outputs of the one before.
    """
    for name in names:
        stage = stage_of(name, setup)
        gather_records: Gather = stage.gather
        if gather is not None and name in gather:
            gather_records = gather[name]
        gathered = gather_records(records)
        if name == "expand" and removed:
            step = _expand_without(removed, stage, gathered, visit)
        else:
            step = visit(stage, gathered)
        if name == "download" and removed:
            step = _without_footage(removed, step)
        yield step
        records = step.manifest.records


def _expand_without(
    removed: Mapping[str, Removal], stage: Stage, sources: Sequence[Record], visit: Visit
) -> Step:
    """Leave out what was taken down. A source that the recipe names is not even asked for its
    list.
    """
    step = visit(stage, [source for source in sources if source.key not in removed])
    manifest = step.manifest
    keys = {record.key for record in (*sources, *manifest.records)} & removed.keys()
    rejections = tuple(
        Rejection(key, stage.name, "bad", "removed", removed[key].why) for key in sorted(keys)
    )
    failures = tuple(
        ledger.Failure(rejection, removed[rejection.key].at, removed[rejection.key].at, 1)
        for rejection in rejections
    )
    num_unasked = sum(source.key in removed for source in sources)
    manifest = replace(
        manifest,
        num_in=manifest.num_in + num_unasked,
        records=tuple(record for record in manifest.records if record.key not in removed),
        rejections=manifest.rejections + rejections,
    )
    return replace(step, manifest=manifest, failures=step.failures + failures)


def _without_footage(removed: Mapping[str, Removal], step: Step) -> Step:
    """Leave out videos whose bytes were taken down under another key."""
    footage = footage_of(removed)
    kept: list[Record] = []
    videos: list[Video] = []
    failures: list[ledger.Failure] = []
    for record in step.manifest.records:
        removal = footage.removal_of(record) if isinstance(record, Video) else None
        if removal is None or not isinstance(record, Video):
            kept.append(record)
            continue
        source, facts = removal
        detail = f"the footage of '{source}', taken down on {facts.at}"
        rejection = Rejection(record.key, step.manifest.stage, "bad", "removed", detail)
        failures.append(ledger.Failure(rejection, facts.at, facts.at, 1))
        videos.append(record)
    rejections = (*step.manifest.rejections, *(failure.rejection for failure in failures))
    manifest = replace(step.manifest, records=tuple(kept), rejections=rejections)
    return replace(
        step, manifest=manifest, failures=(*step.failures, *failures), removed=tuple(videos)
    )


def runner(
    store: Store,
    executor: Executor,
    progress: Progress,
    fetching: Stage,
    classes: Collection[str] | None = None,
    tries_suspicions: bool | None = None,
) -> Visit:
    """A visit that runs what is missing of a stage; with `classes`, of what failed before only
    those are tried again.

    `tries_suspicions`: whether what crashed or ran out of time in an earlier build is tried again.
    By default it is unless there are `classes`, or no worker would die in the place of the build.

    Raw videos that were released and are needed are fetched first, by the stage `fetching`.
    """

    def visit(stage: Stage, records: Sequence[Record]) -> Step:
        before = survey(stage, records, store)
        chosen = Inline() if stage.local else executor
        if stage.num_threads:
            chosen = Threads(stage.num_threads)
        tries = tries_suspicions
        if tries is None:
            tries = classes is None and not isinstance(chosen, Inline)
        if classes is not None and ledger.forget(before, store, classes):
            before = survey(stage, records, store)
        standing = ledger.standing(before, store, classes, tries)
        standing += raw.fetch_again(fetching, before, store, executor, progress, standing)
        start = time.monotonic()
        completion = complete(before, store, chosen, progress, standing)
        seconds = time.monotonic() - start
        manifest = completion.manifest
        rates.note_stage(store, stage, completion, seconds, chosen, records)
        return Step(
            manifest,
            before.num_cached,
            num_pending=0,
            num_run=completion.num_run,
            survey=before,
            released=raw.released(manifest, store),
        )

    return visit


def surveyor(store: Store) -> Visit:
    """A visit that says what is done of a stage, what failed and what is pending; it runs
    nothing.
    """

    def visit(stage: Stage, records: Sequence[Record]) -> Step:
        before = survey(stage, records, store)
        failed = ledger.passing(before, store)
        refused = {failure.rejection.key for failure in failed}
        pending = {record.key for record in before.missing} - refused
        known = [record for record in records if record.key not in pending]
        rejections = [failure.rejection for failure in failed]
        manifest = collect(stage, known, before.memos, rejections)
        return Step(
            manifest,
            before.num_cached,
            num_pending=len(pending),
            failures=(*ledger.bad(before), *failed),
            survey=before,
            released=raw.released(manifest, store),
        )

    return visit


def manifest_path(folder: Path, name: str) -> Path:
    """Where a dataset's folder holds the manifest of a stage."""
    return folder / f"{NAMES.index(name)}-{name}.jsonl"


def read_manifest(folder: Path, name: str) -> Manifest:
    """The manifest of a stage in a dataset's folder. Raises RecipeError where there is none."""
    path = manifest_path(folder, name)
    if not path.is_file():
        raise RecipeError(f"there is no {path}: build the dataset first, as far as '{name}'")
    return read(path, KINDS[name])


def manifest_paths(folder: Path) -> list[Path]:
    """Every manifest in a dataset's folder, of stages that the chain no longer has too."""
    return sorted(folder.glob("[0-9]*-*.jsonl"))
