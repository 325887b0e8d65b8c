"""`plan`: what a build would do, why, how long it would take and how much disk. Nothing is run.

The chain is surveyed as far as results are known. Behind a task that is still to do, counts are
estimated by the ratios of the last build (so many scenes a second, so many of them kept). Where
there was none, nothing is said before that stage has run.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.cores import num_cores
from pipeline.core.errors import LongtakeError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Pack, Record, source_of
from pipeline.core.stage import Survey
from pipeline.core.store import Store
from pipeline.dataset import build, lock, rates, raw
from pipeline.dataset.chain import Step, adds_blobs, read_manifest
from pipeline.dataset.rates import Rate
from pipeline.dataset.recipe import Loaded
from pipeline.media.addresses import scheme
from pipeline.plan.sizes import Sizes
from pipeline.stages import NAMES

NEVER = "never built"
LOST = "missing blob: it was made before, and the store no longer has it whole"
OTHER = "changed input"
SPLITTING = ("cut", "filter")  # how much these give, only an earlier build can tell
# Where a recipe says what is a parameter of another stage.
PLACES = {"fps": "[extract] fps", "duplicates": "[duplicates]", "hashes": "[duplicates]"}
SHARD_FILL = 0.7  # of a shard's limit, on average


@dataclass(frozen=True)
class Amount:
    """Records nobody can name yet: how many, and their seconds of video. None is not known."""

    count: float | None = 0
    video_s: float | None = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(_plus(self.count, other.count), _plus(self.video_s, other.video_s))


@dataclass
class Line:
    """What one stage has to do. Records that share a task, as one video at two addresses does,
    count once.
    """

    stage: str
    num_done: int
    num_named: int  # tasks to do whose records are known
    expected: Amount  # to do besides, on what earlier stages will give
    video_s: float | None  # seconds of video of all that is to do
    waits_for: str = ""  # the stage that will tell how many, where nothing else does
    reasons: dict[str, list[str]] = field(default_factory=dict)  # why, and the records' keys
    changes: list[str] = field(default_factory=list)  # of version and parameters since last time
    num_light: int = 0  # named tasks that find all that is costly remembered
    refetched: list[str] = field(default_factory=list)  # videos to be fetched again
    num_bytes: dict[str, float | None] = field(default_factory=dict)  # to be written, by kind
    worker_s: float | None = 0  # seconds of one worker
    is_timed: bool = True  # or nothing of the kind was timed here
    num_threads: int = 0  # if not 0, the workers that it has, however many cores there are
    effort: str = ""  # what asking another machine will take, of the tasks that are named

    def write(self, num_bytes: Mapping[str, float | None]) -> None:
        """Count bytes that will be written, by kind."""
        for kind, count in num_bytes.items():
            if count != 0:
                self.num_bytes[kind] = _plus(self.num_bytes.get(kind, 0), count)

    @property
    def to_do(self) -> float | None:
        return _plus(self.num_named, self.expected.count)

    @property
    def is_idle(self) -> bool:
        return self.to_do == 0

    @property
    def is_exact(self) -> bool:
        return self.expected.count == 0

    @property
    def seconds(self) -> float | None:
        """By the clock, with as many workers as `build` has by default."""
        num_workers = max(1, min(self.num_threads or num_cores(), round(self.to_do or 1)))
        return None if self.worker_s is None else self.worker_s / num_workers


@dataclass(frozen=True)
class Plan:
    """A line per stage, as far as the stages are known, and why no further."""

    lines: Mapping[str, Line]
    unknown: str
    free_bytes: int

    @property
    def is_idle(self) -> bool:
        return not self.unknown and all(line.is_idle for line in self.lines.values())

    @property
    def seconds(self) -> float | None:
        """Of all stages, one after the other; None if one is not known."""
        total: float | None = None if self.unknown else 0
        for line in self.lines.values():
            total = _plus(total, line.seconds)
        return total

    @property
    def num_bytes(self) -> dict[str, float | None]:
        """What is to be written, by kind."""
        total: dict[str, float | None] = {}
        for line in self.lines.values():
            for kind, num_bytes in line.num_bytes.items():
                total[kind] = _plus(total.get(kind, 0), num_bytes)
        return {kind: num_bytes for kind, num_bytes in total.items() if num_bytes != 0}

    def as_json(self) -> dict[str, Any]:
        lines = {
            name: {**dataclasses.asdict(line), "to_do": line.to_do, "seconds": line.seconds}
            for name, line in self.lines.items()
        }
        totals = {"seconds": self.seconds, "num_bytes": self.num_bytes}
        return {**totals, "free_bytes": self.free_bytes, "unknown": self.unknown, "stages": lines}


def plan(loaded: Loaded, data: Path, device: str) -> Plan:
    """Look at what is done and estimate the rest. Raises RecipeError."""
    steps, unknown = build.known(build.look(loaded, data, device))
    lines: dict[str, Line] = {}
    planner = _Planner(loaded, data)
    coming = Amount()
    for step in steps:
        line, coming = planner.line(step, coming)
        lines[line.stage] = line
    existing = next(path for path in (data.absolute(), *data.absolute().parents) if path.is_dir())
    return Plan(lines, unknown, shutil.disk_usage(existing).free)


class _Planner:
    """What is known beside the survey: the last build's manifests, rates and sizes."""

    def __init__(self, loaded: Loaded, data: Path) -> None:
        self._store = Store(data.absolute() / "store")
        self._recipe = loaded.recipe
        self._last = _last_manifests(data / loaded.recipe.name)
        self._rates = rates.read(self._store)
        self._sizes = Sizes(loaded, self._last)
        self._refetched: set[str] = set()  # digests of videos that are counted already
        self._packing = _last_packing(loaded)
        self._unchanged: list[Record] = []  # to do in stages before that give the type they take
        self._origin = ""  # the first stage behind which counts are not known
        download = self._last.get("download")
        past = (*download.records, *download.rejections) if download else ()
        self._past_sources = {record.key for record in past}

    def line(self, step: Step, arriving: Amount) -> tuple[Line, Amount]:
        """A stage's line, and what it will pass on besides the outputs that are known."""
        survey = step.survey
        assert survey is not None
        stage, name = survey.stage, survey.stage.name
        missing = {survey.keys[record.key]: record for record in survey.missing}
        arriving = self._without_remembered(survey, arriving)
        only_adds = [record for record in survey.missing if type(record) is stage.makes]
        self._unchanged = only_adds if adds_blobs(name) else [*self._unchanged, *only_adds]
        is_last = name == NAMES[-1]
        if is_last and arriving.count != 0:
            missing = {}  # packs of the samples that are known are not the packs that will be
        num_tasks = len(set(survey.keys.values()))
        line = Line(name, num_tasks - len(missing), len(missing), arriving, 0)
        line.num_threads = stage.num_threads
        line.changes = self._changes(survey)
        named_s = 0.0
        cost = 0.0
        heavy: list[Record] = []
        for task_key, record in missing.items():
            line.reasons.setdefault(self._reason(survey, record, task_key), []).append(record.key)
            if stage.light(record, self._store):
                line.num_light += 1
                continue
            heavy.append(record)
            named_s += float(getattr(record, "duration_s", 0))
            cost += float(stage.cost(record))
        line.effort = stage.effort(heavy)
        passed_on = self._passed_on(name, Amount(len(missing), named_s).plus(arriving))
        if is_last:
            line.expected = self._packs(survey, arriving)
        elif stage.local and not missing and arriving.count is not None:
            line.expected = Amount()  # it takes no time, whatever arrives
        line.video_s = _plus(named_s, line.expected.video_s)
        line.waits_for = self._origin if line.expected.count is None else ""
        if passed_on.count is None:
            self._origin = self._origin or name
        self._add_bytes(line, survey, list(missing.values()))
        self._add_time(line, survey, cost)
        return line, passed_on

    def _without_remembered(self, survey: Survey, arriving: Amount) -> Amount:
        """What arrives, but for records that a stage before only adds to (a score, say) and whose
        task here is remembered all the same.
        """
        if arriving.count is None or arriving.video_s is None:
            return arriving
        count, video_s = arriving.count, arriving.video_s
        for record in self._unchanged:
            if self._store.recall(survey.stage.task_key(record)) is not None:
                count -= 1
                video_s -= float(getattr(record, "duration_s", 0))
        return Amount(count, video_s)

    def _passed_on(self, name: str, to_do: Amount) -> Amount:
        """What a stage will give for so much that is to do, by the last build's ratios."""
        if to_do.count == 0:
            return Amount()
        before, default = self._last.get(name), None if name in SPLITTING else 1.0
        count, video_s = default, default
        if before is not None and before.num_in:
            count = len(before.records) / before.num_in
            previous = self._last.get(NAMES[NAMES.index(name) - 1])
            taken_s = _seconds(previous) if previous else 0
            video_s = _seconds(before) / taken_s if taken_s and name in SPLITTING else 1.0
        if name == "download":
            return Amount(to_do.count, self._length_of_videos(to_do))
        return Amount(_times(to_do.count, count), _times(to_do.video_s, video_s))

    def _length_of_videos(self, to_do: Amount) -> float | None:
        """Seconds of videos that are not there yet: as long as those of the last build."""
        before = self._last.get("download")
        if before is None or not before.records:
            return None
        return _times(to_do.count, _seconds(before) / len(before.records))

    def _packs(self, survey: Survey, samples: Amount) -> Amount:
        """The shards that new samples are packed into: each changes one, until all are changed."""
        if not samples.count:
            return samples
        per_shard = SHARD_FILL * self._recipe.shard.max_samples
        num_shards = len(survey.records) + samples.count / per_shard
        return Amount(min(samples.count, max(1, round(num_shards))), samples.video_s)

    def _reason(self, survey: Survey, record: Record, task_key: str) -> str:
        """A few words: first what the store says, then what is new, then what has changed."""
        if note := self._store.failure(task_key):
            return f"tried again: {note['cause']}"
        if record.key in survey.suspicions:
            return f"tried again: {survey.suspicions[record.key][0]['bad']}"
        if self._store.remembers(task_key):
            return LOST
        before = self._last.get(survey.stage.name)
        if before is None:
            return NEVER
        is_new = not isinstance(record, Pack) and source_of(record).key not in self._past_sources
        if is_new and survey.stage.name != "expand":
            return "new source"
        return "; ".join(self._changes(survey)) or OTHER

    def _changes(self, survey: Survey) -> list[str]:
        """What of the stage itself is otherwise than in the last build."""
        stage, before = survey.stage, self._last.get(survey.stage.name)
        if before is None:
            return []
        changes = differences(stage.name, before.params, canonical.plain(stage.params))
        if stage.name == "shard":
            changes += differences("shard", self._packing, self._recipe.shard.model_dump())
        if before.version != stage.version:
            changes.insert(0, f"stage version: {before.version} -> {stage.version}")
        return changes

    def _add_bytes(self, line: Line, survey: Survey, missing: list[Record]) -> None:
        """What the stage will write, and videos that are fetched again."""
        stage, expected = survey.stage, line.expected
        for video in raw.needed(stage, missing, self._store).values():
            if video.blob.sha256 not in self._refetched and scheme(video.source.uri) != "file":
                self._refetched.add(video.blob.sha256)
                line.refetched.append(video.key)
                line.write({"raw videos": video.blob.num_bytes})
        for record in missing:
            light = stage.light(record, self._store)
            line.write(self._sizes.of_task(stage, record, light, self._store))
        if expected.count != 0:
            line.write(self._sizes.of_amount(line.stage, expected.count, expected.video_s))

    def _add_time(self, line: Line, survey: Survey, cost: float) -> None:
        stage = survey.stage
        unit = line.expected.count if line.stage == "download" else line.expected.video_s
        total = _plus(cost, unit)
        size, fps = self._recipe.extract.size, self._recipe.extract.fps
        rate: Rate | None = self._rates.get(rates.name_of(stage.name, stage.params, size, fps))
        if stage.local or total == 0:
            return
        line.is_timed = rate is not None
        known = rate is not None and total is not None
        line.worker_s = rate.worker_seconds(total) if rate and known and total else None


def differences(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Parameters that differ, as "changed parameter: [table] name old -> new"; one that only one of
    both has "is new: value" or "is gone".
    """
    if old.get("detector") != new.get("detector"):
        old, new = {"detector": old.get("detector")}, {"detector": new.get("detector")}
    return [f"changed parameter: {words}" for words in _differing(f"[{stage}]", old, new)]


def _differing(table: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        place = PLACES.get(name, f"{table} {name}")
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name not in old:
            yield f"{place} is new{_value(after)}"
        elif name not in new:
            yield f"{place} is gone"
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differing(place, before, after)
        else:
            yield f"{place} {_short(before)} -> {_short(after)}"


def _value(value: object) -> str:
    """What a new parameter is, where that can be read: of a file, only its digest is known."""
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return "" if isinstance(value, Mapping) or is_digest else f": {_short(value)}"


def _last_manifests(folder: Path) -> dict[str, Manifest]:
    """The manifests of the last build, of the stages that have one that can be read."""
    manifests = {}
    for name in NAMES:
        try:
            manifests[name] = read_manifest(folder, name)
        except (OSError, LongtakeError, ValueError, KeyError, TypeError, AssertionError):
            continue
    return manifests


def _last_packing(loaded: Loaded) -> Mapping[str, Any]:
    """The [shard] table of the last finished build, if its lock can be read."""
    try:
        packing: Mapping[str, Any] = lock.read(loaded.path).header["packing"]
    except (LongtakeError, OSError, KeyError):
        return loaded.recipe.shard.model_dump()
    return packing


def _seconds(manifest: Manifest) -> float:
    return float(sum(getattr(record, "duration_s", 0) for record in manifest.records))


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _short(value: object) -> str:
    text = "none" if value is None else str(value).removesuffix("/1")
    return f"{text[:12]}..." if len(text) > 24 else text
