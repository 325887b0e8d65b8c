"""The only loop: keys -> what is missing -> executor -> read everything back in order -> manifest.

A task is one record passing one stage. Its key is the digest of the stage's name, version and
parameters and of the record's identity; where, how and by whom it runs never enters. Results come
back through the store, in input order, so an executor changes how fast a build is and never what it
is.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from pipeline.core import canonical
from pipeline.core.errors import BadData, Bug, LongtakeError, Stopped, Unavailable
from pipeline.core.manifest import Manifest, facts, restore
from pipeline.core.records import Record, Rejection, origins
from pipeline.core.store import Store, now

Outcome = Record | BadData
OUTSIDE = (
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
)  # no bug of ours, and no property of a video
MIN_BATCHES = 16  # so many at least are left to share out when small groups are joined


def own_group(record: Any) -> str:
    return str(record.key)


def no_gpus() -> int:
    return 0


def no_reach(record: Any) -> float:
    return 0.0


def unit_cost(record: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Stage:
    """What one stage does. `process`, `prepare` and friends must be importable, not lambdas: they
    travel to workers.

    `process(record, store)` yields outputs built from the record; an output's key is the record's
    plus a suffix. `prepare(record, store)` runs one record ahead in a thread; its result is
    `process`'s third argument. Records of one `group` go to one worker, in order; groups are joined
    up to `join_s` where `prepare` gains by it. `cost` is in seconds of video, and `reach` what a
    record may have to decode beyond it; `timeout` of both in seconds. A time-out is unavailable
    instead of bad where the stage `waits_on_world`. `num_gpus` (on this machine, 0 to run without)
    is asked only when there is work: the answer takes an import of torch.
    """

    name: str
    version: int
    params: Mapping[str, Any]
    makes: type[Record]
    process: Callable[..., Iterable[Outcome]]
    prepare: Callable[[Any, Store], Any] | None = None
    identity: Callable[[Any], object] = lambda record: record.identity()
    group: Callable[[Any], str] = own_group
    join_s: float = 0
    cost: Callable[[Any], float] = unit_cost
    timeout: Callable[[float], float] = lambda cost: 600 + 30 * cost
    reach: Callable[[Any], float] = no_reach
    waits_on_world: bool = False
    num_gpus: Callable[[], int] = no_gpus

    def task_key(self, record: Record) -> str:
        return canonical.digest([self.name, self.version, self.params, self.identity(record)])


@dataclass(frozen=True)
class Batch:
    """Records that travel together to one worker, each with its task key."""

    tasks: tuple[tuple[str, Record], ...]
    cost: float
    timeout_s: float


@dataclass(frozen=True)
class Lost:
    """A worker died or ran out of time: no word of what it did, except in the store."""

    reason: Literal["crashed", "timed-out"]
    detail: str


Troubles = tuple[Rejection, ...]


class Executor(Protocol):
    """Runs batches somewhere; yields each with its troubles, or with Lost, as it ends."""

    def map(
        self, work: Work, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, Troubles | Lost]]: ...


@dataclass(frozen=True)
class Work:
    """What an executor carries to a worker: what a stage does, and the store, applied to a
    batch.
    """

    name: str
    process: Callable[..., Iterable[Outcome]]
    prepare: Callable[[Any, Store], Any] | None
    store: Store
    num_gpus: int

    def __call__(self, batch: Batch) -> Troubles:
        """Do and remember each record of a batch; returns what must not be remembered."""
        troubles: list[Rejection] = []
        for task_key, record, extra in self._prepared(batch):
            try:
                outputs = self._outputs(record, extra)
                self.store.remember(task_key, outputs, origins(record))
            except Unavailable as error:
                self.store.note_failure(task_key, error.cause, printable(error.detail), error.tries)
                troubles.append(
                    Rejection(
                        record.key, self.name, "unavailable", error.cause, printable(error.detail)
                    )
                )
            except LongtakeError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and (stopped := self.store.full(error)) is not error:
                    raise stopped from error
                if isinstance(error, OSError) and error.errno in OUTSIDE:
                    raise Stopped(
                        f"{error}: stage '{self.name}' on record '{record.key}', in {self.store.root}"
                    ) from error
                raise Bug(self.name, record.key, traceback.format_exc()) from error
        return tuple(troubles)

    def _prepared(self, batch: Batch) -> Iterator[tuple[str, Record, tuple[Future[Any], ...]]]:
        if self.prepare is None:
            yield from ((task_key, record, ()) for task_key, record in batch.tasks)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            ahead = pool.submit(self.prepare, batch.tasks[0][1], self.store)
            for index, (task_key, record) in enumerate(batch.tasks):
                ready = ahead
                if index + 1 < len(batch.tasks):
                    ahead = pool.submit(self.prepare, batch.tasks[index + 1][1], self.store)
                yield task_key, record, (ready,)

    def _outputs(self, record: Record, extra: tuple[Future[Any], ...]) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = []
        try:
            for outcome in self.process(record, self.store, *(future.result() for future in extra)):
                if isinstance(outcome, BadData):
                    outputs.append(bad(outcome.reason, outcome.detail))
                else:
                    outputs.append(
                        {"suffix": outcome.key.removeprefix(record.key), "facts": facts(outcome)}
                    )
        except BadData as error:
            return [bad(error.reason, error.detail)]
        if not outputs:
            raise AssertionError(
                f"stage '{self.name}' gave nothing for '{record.key}', not even a rejection"
            )
        return outputs


def bad(reason: str, detail: str, tries: int = 1) -> dict[str, Any]:
    """A rejection as a memo holds it. When and how often are for people: no manifest repeats
    them.
    """
    return {"bad": reason, "detail": printable(detail), "at": now(), "tries": tries}


def printable(detail: str) -> str:
    """What somebody else said, for people's screens: no control characters, which a terminal would
    obey, no half characters.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", detail)


@dataclass
class Survey:
    """What of a stage is done already: nothing is run to find out."""

    stage: Stage
    keys: dict[str, str]
    memos: dict[str, Any]
    missing: list[Record]

    @property
    def num_cached(self) -> int:
        return len(self.keys) - len(self.missing)


def survey(stage: Stage, records: Sequence[Record], store: Store) -> Survey:
    """Look up every record's task in the store."""
    keys = {record.key: stage.task_key(record) for record in records}
    memos = {record.key: store.recall(keys[record.key]) for record in records}
    return Survey(stage, keys, memos, [record for record in records if memos[record.key] is None])


@dataclass
class Progress:
    """Told as a stage goes: seconds of video (`cost`) and records done. The default tells
    nobody.
    """

    start: Callable[[str, int, float], None] = field(default=lambda stage, records, cost: None)
    advance: Callable[[str, int, float], None] = field(default=lambda stage, records, cost: None)


def run_stage(
    stage: Stage,
    records: Sequence[Record],
    store: Store,
    executor: Executor,
    progress: Progress,
    held: Collection[Rejection] = (),
) -> tuple[Manifest, int]:
    """Take every record through a stage; returns the manifest and how many tasks had been done
    before.

    `held` are failures of before that stand this time, without another try.
    Raises Stopped or Bug; whatever was finished by then is remembered.
    """
    found = survey(stage, records, store)
    num_cached, kept = found.num_cached, {one.key for one in held}
    found.missing = [record for record in found.missing if record.key not in kept]
    troubles = _run_missing(found, store, executor, progress) if found.missing else []
    fresh = {record.key: store.recall(found.keys[record.key]) for record in found.missing}
    return collect(stage, records, {**found.memos, **fresh}, [*troubles, *held]), num_cached


def _run_missing(
    found: Survey, store: Store, executor: Executor, progress: Progress
) -> list[Rejection]:
    """Run each missing task once, however many records share it; returns the records that are
    unavailable.
    """
    stage, keys = found.stage, found.keys
    distinct = {keys[record.key]: record for record in found.missing}
    work = Work(stage.name, stage.process, stage.prepare, store, stage.num_gpus())
    batches = _batches(stage, list(distinct.items()))
    progress.start(stage.name, len(distinct), sum(batch.cost for batch in batches))
    told: dict[str, Rejection] = {}
    alone: list[Batch] = []
    for batch, result in executor.map(work, batches):
        progress.advance(stage.name, len(batch.tasks), batch.cost)
        if isinstance(result, Lost):
            alone += [
                _batch(stage, [task]) for task in batch.tasks if store.recall(task[0]) is None
            ]
        else:
            told.update((keys[trouble.key], trouble) for trouble in result)
    # A worker may be lost through another record's fault: each gets one try by itself.
    for single, result in executor.map(work, alone) if alone else ():
        task_key, record = single.tasks[0]
        if isinstance(result, Lost) and result.reason == "timed-out" and stage.waits_on_world:
            store.note_failure(task_key, "timeout", result.detail, 2)
            told[task_key] = Rejection(
                record.key, stage.name, "unavailable", "timeout", result.detail
            )
        elif isinstance(result, Lost):
            store.remember(task_key, [bad(result.reason, result.detail, 2)], origins(record))
        else:
            told.update((task_key, trouble) for trouble in result)
    return [
        replace(told[keys[record.key]], key=record.key)
        for record in found.missing
        if keys[record.key] in told
    ]


def _batch(stage: Stage, tasks: Sequence[tuple[str, Record]]) -> Batch:
    cost = sum(float(stage.cost(record)) for _, record in tasks)
    return Batch(
        tuple(tasks), cost, stage.timeout(cost + max(stage.reach(record) for _, record in tasks))
    )


def _batches(stage: Stage, tasks: Sequence[tuple[str, Record]]) -> list[Batch]:
    """Tasks of a group together, small groups joined; the most costly batch first, so that the last
    to end is a short one.
    """
    groups: dict[str, list[tuple[str, Record]]] = {}
    for task in tasks:
        groups.setdefault(stage.group(task[1]), []).append(task)
    made = [_batch(stage, group) for group in groups.values()]
    limit = min(stage.join_s, sum(batch.cost for batch in made) / MIN_BATCHES)
    joined: list[Batch] = []
    for batch in made:
        if joined and joined[-1].cost + batch.cost <= limit:
            joined[-1] = _batch(stage, joined[-1].tasks + batch.tasks)
        else:
            joined.append(batch)
    return sorted(joined, key=lambda batch: -batch.cost)


def collect(
    stage: Stage, records: Sequence[Record], memos: Mapping[str, Any], troubles: Sequence[Rejection]
) -> Manifest:
    """The manifest of what memos and troubles say of the records; a record with neither is an
    error.
    """
    outputs: list[Record] = []
    rejections = list(troubles)
    split = 0
    told = {trouble.key for trouble in troubles}
    for record in records:
        memo = memos[record.key]
        if record.key in told:
            continue
        if memo is None:
            raise AssertionError(f"stage '{stage.name}' lost the record '{record.key}'")
        split += len(memo) - 1
        for entry in memo:
            if "bad" in entry:
                rejections.append(
                    Rejection(record.key, stage.name, "bad", entry["bad"], entry["detail"])
                )
            else:
                outputs.append(
                    restore(
                        stage.makes,
                        entry["facts"],
                        record.key + entry["suffix"],
                        _parent(stage, record),
                    )
                )
    outputs.sort(key=lambda record: record.key)
    return Manifest(
        stage.name,
        stage.version,
        stage.params,
        len(records),
        split,
        tuple(outputs),
        tuple(rejections),
    )


def _parent(stage: Stage, record: Record) -> Record:
    """What an output hangs from: the input, or the input's own parent where a stage keeps the
    type.
    """
    if type(record) is not stage.makes or record.parent is None:
        return record
    parent: Record = getattr(record, record.parent)
    return parent
