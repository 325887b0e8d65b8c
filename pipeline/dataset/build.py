"""The chain of six stages, walked by a build and by a survey of what is done; writes the data
folder.

manifests/NAME.lock.jsonl                       the facts that pin a finished build, beside its recipe
data/NAME/1-download.jsonl ... 6-shard.jsonl    a manifest per stage
data/NAME/clips/KEY.mp4                         the clips, to watch
data/NAME/shards/00000.tar ... index.json       what a trainer reads
data/store/                                     everything by content, for all datasets
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from pipeline.core import ledger
from pipeline.core.errors import Stopped
from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Clip, Record, Rejection, Sample, Shard, Source, Video
from pipeline.core.stage import Executor, Progress, Stage, Survey, collect, run_stage, survey
from pipeline.core.store import Store, blobs_in, link_or_copy
from pipeline.dataset import rates, raw
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.relock import write_lock
from pipeline.media import encoders
from pipeline.plan import foresee
from pipeline.stages import cut, download, encode, extract, shard
from pipeline.stages import filter as filter_stage

NAMES = ("download", "cut", "filter", "extract", "encode", "shard")
LIBRARIES = ("longtake", "torch", "diffusers", "open_clip_torch", "av", "decord2")


@dataclass(frozen=True)
class Step:
    """One stage of a dataset: its manifest, and how many of its tasks were done before, are to do,
    were run now.
    """

    manifest: Manifest
    num_cached: int
    num_pending: int
    num_run: int = 0
    seconds: float = 0
    failures: tuple[ledger.Failure, ...] = ()  # of a survey: rejections with their history
    found: Survey | None = None
    let_go: frozenset[Blob] = frozenset()  # raw videos that are no longer there

    @property
    def num_bytes(self) -> int:
        """Bytes of what the stage stored, each blob once."""
        return sum(
            blob.num_bytes
            for blob in {blob for record in self.manifest.records for blob in blobs_of(record)}
            - self.let_go
        )

    @property
    def hours(self) -> float:
        """Hours of video the records stand for."""
        return (
            sum(float(getattr(record, "duration_s", 0)) for record in self.manifest.records) / 3600
        )


Run = Callable[[Stage, Sequence[Record], bool], Step]


def blobs_of(record: Record) -> list[Blob]:
    """The blobs a record adds to those of its parents."""
    if isinstance(record, Sample):
        return [blob for _, blob in shard.members_of(record)]
    return [record.blob] if isinstance(record, Video | Clip | Shard) else []


def walk(
    loaded: Loaded, run: Run, device: str, until: str, offline: bool = False
) -> Iterator[Step]:
    """Take the sources through the stages in order, as far as `until`. `run`'s last argument says:
    never on a cluster.
    """
    yield from onward(loaded, expanded(loaded, run), run, device, until, offline)


def onward(
    loaded: Loaded, sources: Step, run: Run, device: str, until: str, offline: bool = False
) -> Iterator[Step]:
    """Take sources, each of one video, through the stages."""
    recipe, folder = loaded.recipe, loaded.folder
    step = joined(
        sources, run(download.stage(recipe.download, folder), sources.manifest.records, False)
    )
    yield step
    stages: dict[str, Callable[[], tuple[Stage, bool]]] = {
        "cut": lambda: (cut.stage(recipe.cut, recipe.extract), False),
        "filter": lambda: (filter_stage.stage(recipe.filter, recipe.extract.fps), True),
        "extract": lambda: (extract.stage(recipe.extract), False),
        "encode": lambda: (
            encode.stage(
                recipe.encode, encode.find_encoders(recipe.encode, folder, offline), device
            ),
            False,
        ),
        "shard": lambda: (shard.stage(), False),
    }
    for name in NAMES[1 : NAMES.index(until) + 1]:
        records: Sequence[Record] = step.manifest.records
        if name == "shard":
            records = shard.pack(
                [record for record in records if isinstance(record, Sample)], recipe.shard
            )
        stage, local = stages[name]()
        step = run(stage, records, local)
        yield step


def expanded(loaded: Loaded, run: Run) -> Step:
    """One source per video. Those that were taken down become rejections: one the recipe names is
    not even asked for its list.
    """
    removed = loaded.removed
    asked = [source for source in loaded.sources if source.key not in removed]
    step = run(download.expand_stage(loaded.recipe.download, loaded.folder), asked, True)
    made = step.manifest
    left = tuple(record for record in made.records if record.key not in removed)
    down = sorted({one.key for one in (*loaded.sources, *made.records)} & removed.keys())
    taken = tuple(Rejection(key, "download", "bad", "removed", removed[key].why) for key in down)
    failures = tuple(
        ledger.Failure(one, removed[one.key].at, removed[one.key].at, 1) for one in taken
    )
    num_in = made.num_in + len(loaded.sources) - len(asked)
    counted = replace(made, num_in=num_in, records=left, rejections=made.rejections + taken)
    return replace(step, manifest=counted, failures=step.failures + failures)


def joined(first: Step, second: Step) -> Step:
    """Expand and download as the one stage people know."""
    a, b = first.manifest, second.manifest
    num_in, num_split = a.num_in - second.num_pending, a.num_split + b.num_split
    manifest = Manifest(
        b.stage, b.version, b.params, num_in, num_split, b.records, a.rejections + b.rejections
    )
    return replace(
        second,
        manifest=manifest,
        num_cached=second.num_cached if not first.num_pending else 0,
        num_pending=first.num_pending + second.num_pending,
        num_run=first.num_run + second.num_run,
        seconds=first.seconds + second.seconds,
        failures=first.failures + second.failures,
    )


@contextlib.contextmanager
def opened(data: Path) -> Iterator[Store]:
    """The store of a data folder, for one process at a time. Raises Stopped if another one is at
    work in it.
    """
    store = Store(data.absolute() / "store")
    store.root.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(store.root / "lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise Stopped(
            f"another build is working in {data}: wait for it, or give this one another folder (--data)"
        ) from error
    with held:
        store.prepare()
        yield store


def runner(
    store: Store, executor: Executor, progress: Progress, classes: Collection[str] | None = None
) -> Run:
    """Runs what is missing of a stage; with `classes`, of what failed before only those are tried
    again.

    Raw videos that were let go and are needed are fetched first, by the download stage that ran
    before.
    """
    fetching: list[Stage] = []

    def run(stage: Stage, records: Sequence[Record], local: bool) -> Step:
        held = [] if classes is None else ledger.hold(stage, records, store, classes)
        to_run = len(records) - len(held)
        if stage.name == "download":
            fetching[:] = [stage]
        elif fetching:
            held += raw.fetch_again(
                fetching[0], stage, records, store, executor, progress, {one.key for one in held}
            )
        watch, chosen, start = (
            rates.Watch(stage, store),
            Inline() if local else executor,
            time.monotonic(),
        )
        manifest, cached = run_stage(watch.stage, records, store, chosen, progress, held)
        watch.note(time.monotonic() - start, chosen, records, manifest)
        return Step(
            manifest,
            cached,
            0,
            to_run - cached,
            seconds=time.monotonic() - start,
            let_go=raw.let_go(manifest, store),
        )

    return run


def build(
    loaded: Loaded,
    data: Path,
    executor: Executor,
    device: str,
    until: str,
    progress: Progress,
    classes: Collection[str] | None = None,
    raws: raw.Raws | None = None,
    relock: bool = False,
) -> Iterator[Step]:
    """Do what is missing, stage by stage, and write the outputs and the lock. Raises Stopped, Bug
    or RecipeError.

    With `raws`, raw videos go as soon as their clips are there and verified. Which lock is left
    alone without `relock`: `relock.decide`.
    """
    if until == "shard" and not os.access(loaded.folder, os.W_OK):
        raise Stopped(
            f"cannot write a lock beside {loaded.path}: copy the recipe to a folder you may write to"
        )
    if until in ("encode", "shard"):
        ready(loaded, device)
    with opened(data) as store, store.unfinished(loaded.recipe.name):
        steps, run = [], runner(store, executor, progress, classes)
        done: list[Step] = []
        if raws is not None and until in NAMES[NAMES.index("extract") :]:
            done = in_waves(loaded, run, device, raws, data, store)
            run = runner(
                store, executor, progress, ()
            )  # what failed a moment ago is not tried again
        for step in written(loaded, walk(loaded, run, device, until), data, store, device):
            steps.append(credited(step, done))
            yield steps[-1]
        incomplete = any(
            one.fate == "unavailable" for step in steps for one in step.manifest.rejections
        )
        if until == "shard" and steps[-1].manifest.records:
            manifests, folder = [step.manifest for step in steps], data / loaded.recipe.name
            write_lock(loaded, manifests, folder, store, incomplete, relock)


def in_waves(
    loaded: Loaded, run: Run, device: str, raws: raw.Raws, data: Path, store: Store
) -> list[Step]:
    """Take a few sources at a time as far as clips, and let their raw videos go; returns every step
    that was done.
    """
    sources = expanded(loaded, run)
    done = [sources]
    parts = raw.waves(
        [source for source in sources.manifest.records if isinstance(source, Source)],
        raws.at_a_time,
    )
    known = survey(
        download.stage(loaded.recipe.download, loaded.folder), sources.manifest.records, store
    )
    raws.begin(blobs_in(list(known.memos.values())), data, loaded.recipe.name, store)
    for number, part in enumerate(parts):
        asked = Manifest("expand", sources.manifest.version, {}, len(part), 0, tuple(part), ())
        steps = list(onward(loaded, Step(asked, len(part), 0), run, device, "extract"))
        done += steps
        raws.let_go(steps[0].manifest, steps[-1].manifest, part, parts[number + 1 :], store)
    return done


def credited(step: Step, done: Sequence[Step]) -> Step:
    """A step of the walk after the waves, with what they did of it: that was no work of before."""
    same = [
        one
        for one in done
        if one.manifest.stage
        in (step.manifest.stage, *(("expand",) if step.manifest.stage == "download" else ()))
    ]
    num_run = sum(one.num_run for one in same)
    seconds = step.seconds + sum(one.seconds for one in same)
    return replace(
        step,
        num_cached=max(0, step.num_cached - num_run),
        num_run=step.num_run + num_run,
        seconds=seconds,
    )


def ready(loaded: Loaded, device: str) -> None:
    """Stop now, not after hours of decoding, if a model or the device is not there."""
    encode.find_encoders(loaded.recipe.encode, loaded.folder)
    if device != "auto":
        encoders.choose_device(device)


def written(
    loaded: Loaded, steps: Iterator[Step], data: Path, store: Store, device: str
) -> Iterator[Step]:
    """Write each step's manifest and outputs into the dataset's folder as it comes; manifests of
    stages that did not run go.
    """
    folder = data / loaded.recipe.name
    before: Manifest | None = None
    for step in steps:
        name = step.manifest.stage
        skipped = NAMES[NAMES.index(before.stage) + 1 if before else 0 : NAMES.index(name)]
        for other in skipped:
            manifest_path(folder, other).unlink(missing_ok=True)
        step.manifest.write(manifest_path(folder, name))
        if name == "extract":
            link_clips(folder / "clips", step.manifest, store)
        if name == "shard" and before is not None:
            publish(loaded, folder, step.manifest, before, store, device)
        before = step.manifest
        yield step


def manifest_path(folder: Path, stage: str) -> Path:
    """Where a dataset's folder holds the manifest of a stage."""
    return folder / f"{NAMES.index(stage) + 1}-{stage}.jsonl"


def look(loaded: Loaded, data: Path, device: str) -> Iterator[Step]:
    """What is done of a dataset, what failed and what is pending; nothing is run."""
    yield from walk(
        loaded, surveyor(Store(data.absolute() / "store")), device, NAMES[-1], offline=True
    )


def surveyor(store: Store) -> Run:
    """Tells what is done of a stage, what failed and what is pending, and runs nothing."""

    def run(stage: Stage, records: Sequence[Record], local: bool) -> Step:
        if (
            stage.name == "expand"
        ):  # where nobody needs to be asked, an edited caption is no list to be read
            records, foreseen = _foreseen(stage, records, store)
        found = survey(stage, records, store)
        failed = ledger.unavailable(found, store)
        missing = {record.key for record in found.missing} - {one.rejection.key for one in failed}
        known = [record for record in records if record.key not in missing]
        made = collect(stage, known, found.memos, [one.rejection for one in failed])
        if stage.name == "expand":
            made = _with(made, foreseen)
        failures = (*ledger.bad(found), *failed)
        return Step(
            made,
            found.num_cached,
            len(missing),
            failures=failures,
            found=found,
            let_go=raw.let_go(made, store),
        )

    return run


def _foreseen(
    stage: Stage, records: Sequence[Record], store: Store
) -> tuple[list[Record], list[list[Record]]]:
    """Records whose outcome only running them would tell, or is a failure; and what the others
    give.
    """
    unknown: list[Record] = []
    known: list[list[Record]] = []
    for record in records:
        outcome = foresee.exact(stage, record, store)
        given = [one for one in outcome or () if not isinstance(one, Rejection)]
        if outcome is None or len(given) < len(outcome):
            unknown.append(record)
        else:
            known.append(given)
    return unknown, known


def _with(made: Manifest, foreseen: Sequence[Sequence[Record]]) -> Manifest:
    """A manifest with more records in, and what they gave."""
    more = [record for given in foreseen for record in given]
    records = tuple(sorted([*made.records, *more], key=lambda record: record.key))
    return replace(
        made,
        num_in=made.num_in + len(foreseen),
        num_split=made.num_split + len(more) - len(foreseen),
        records=records,
    )


def looked(loaded: Loaded, data: Path, device: str) -> tuple[list[Step], str]:
    """`look` as far as it goes, and why it goes no further: "" or a model that is not on this
    machine yet.
    """
    steps: list[Step] = []
    try:
        for step in look(loaded, data, device):
            steps.append(step)
    except Stopped as error:
        return steps, str(error)
    return steps, ""


def link_clips(folder: Path, manifest: Manifest, store: Store) -> None:
    """Give every clip a name a person can open; names of clips that are no more go."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {
        f"{record.key}.mp4": record.blob for record in manifest.records if isinstance(record, Clip)
    }
    for path in folder.glob("*.mp4*"):
        blob = clips.get(path.name)
        if blob is None or not os.path.samefile(path, store.path(blob.sha256)):
            path.unlink()
    for name, blob in clips.items():
        if not (folder / name).exists():
            link_or_copy(store.path(blob.sha256), folder / name)


def publish(
    loaded: Loaded, folder: Path, packed: Manifest, samples: Manifest, store: Store, device: str
) -> None:
    """Put the tars and their index where a trainer looks. Raises AssertionError if a sample is in
    no shard.
    """
    recipe = loaded.recipe
    shards = [record for record in packed.records if isinstance(record, Shard)]
    if not shards:
        shard.clear(folder / "shards")
        return
    if sorted(key for made in shards for key in made.samples) != sorted(
        record.key for record in samples.records
    ):
        raise AssertionError("the shards do not hold exactly the samples that were encoded")
    found = encode.find_encoders(recipe.encode, loaded.folder)
    null = store.path(encode.text("", store, recipe.encode, found, device).sha256).read_bytes()
    devices = sorted({record.device for record in samples.records if isinstance(record, Sample)})
    built: dict[str, Any] = {
        "devices": devices,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    fps, size, params = recipe.extract.fps, recipe.extract.size, recipe.encode
    about = shard.About(recipe.name, fps, size, params.precision, params.chunk_frames)
    index = shard.index_of(about, shards, found, null, built)
    shard.publish(folder / "shards", shards, index, store)
