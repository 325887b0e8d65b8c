"""The only loop: keys -> what is missing -> executor -> read everything back in order -> manifest.

A task is one record passing one stage. Its key is the digest of the stage's name, version and
parameters and of the record's identity; where, how and by whom it runs never enters. Results come
back through the store, in input order, so an executor changes how fast a build is and never what it
is.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol

from pipeline.core import canonical
from pipeline.core.errors import (
    SUSPECTED,
    BadData,
    Bug,
    Damaged,
    LongtakeError,
    Stopped,
    Unavailable,
    printable,
)
from pipeline.core.manifest import Manifest, changes, facts, restore
from pipeline.core.reading import Count, Facts, Text, checked
from pipeline.core.records import Record, Rejection, Video, blobs_read, origins
from pipeline.core.store import Store, now

Outcome = Record | BadData
# System errors that are no bug of ours and no property of a video: they stop the build.
OUTSIDE = (
    errno.EACCES,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOMEM,
    errno.EROFS,
    errno.ESTALE,
)
# In so many builds a task may crash or run out of time before that stands.
MAX_SUSPICIONS = 3
# When small groups are joined into batches, at least so many batches stay to be shared out.
MIN_BATCHES = 16


def own_group(record: Any) -> str:
    return str(record.key)


def no_gpus(cluster: int | None = None) -> int:
    return 0


def no_reach(record: Any) -> float:
    return 0.0


def unit_cost(record: Any) -> float:
    return 1.0


def never_pure(record: Any) -> bool:
    return False


def never_light(record: Any, store: Store) -> bool:
    return False


def no_effort(records: Sequence[Any]) -> str:
    return ""


def opens_none(record: Any, store: Store) -> None:
    return None


@dataclass(frozen=True)
class Stage:
    """What one stage does. `process`, `prepare` and the like must be importable, not lambdas: they
    travel to workers.

    `process(record, store)` yields outputs built from the record, each with the record's key plus a
    suffix, or a BadData for a part that is dropped. `prepare(record, store)` runs one record ahead
    in a thread; its result becomes the third argument of `process`.
    A `pure` record is computed anew each time and never remembered: its outputs follow from the
    record, and from names of files, in less time than a memo takes to read.
    A task is `light` if all that is costly in it is remembered: it counts as no work.
    Records of one `group` go to one worker, in order. Groups are joined up to `join_s` of cost
    where `prepare` gains by it.
    `cost` is in seconds of video, `reach` is what a record may have to decode besides, and
    `timeout` turns the sum of both into seconds. In a stage that `waits_on_world` a time-out is
    unavailable, not bad. A `local` stage runs in this process and never on a cluster.
    What a stage that `must_succeed` takes was all made here. So a worker that dies of it, or runs
    out of time, stops the build: nothing is rejected.
    `num_gpus(cluster)` is how many GPUs it can use, 0 to run without: of this machine, or of a
    cluster that has so many. It is asked only when there is work, because the answer may take an
    import of torch.
    `num_threads`: if not 0, tasks wait for another machine, and so many run at a time in threads of
    this process, on a cluster too. `effort` says, of records that are no light work, what asking
    will take; it is announced before that begins.
    `opens` is the raw video that a task has to read, if any: it must be in the store.
    `gather` turns what the stage before gave into the records of this one.
    `overview` is of all records together, of a stage in which all are pure: it is computed once and
    becomes the argument `overview` of `process`.
    """

    name: str
    version: int
    params: Mapping[str, Any]
    makes: type[Record]
    process: Callable[..., Iterable[Outcome]]
    prepare: Callable[[Any, Store], Any] | None = None
    identity: Callable[[Any], object] = lambda record: record.identity()
    pure: Callable[[Any], bool] = never_pure
    light: Callable[[Any, Store], bool] = never_light
    group: Callable[[Any], str] = own_group
    join_s: float = 0
    cost: Callable[[Any], float] = unit_cost
    timeout: Callable[[float], float] = lambda cost: 600 + 30 * cost
    reach: Callable[[Any], float] = no_reach
    waits_on_world: bool = False
    local: bool = False
    must_succeed: bool = False
    num_gpus: Callable[[int | None], int] = no_gpus
    num_threads: int = 0
    effort: Callable[[Sequence[Any]], str] = no_effort
    opens: Callable[[Any, Store], Video | None] = opens_none
    gather: Callable[[Sequence[Any]], Sequence[Record]] = tuple
    overview: Callable[[Sequence[Any]], object] | None = None

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
    """A worker died or ran out of time: nothing is known of what it did, except in the store."""

    reason: Literal["crashed", "timed-out"]
    detail: str


Troubles = tuple[Rejection, ...]


class Job(Protocol):
    """What an executor carries to a worker and calls there with one batch."""

    @property
    def name(self) -> str: ...

    @property
    def store(self) -> Store: ...

    def num_gpus(self, cluster: int | None, /) -> int: ...

    def __call__(self, batch: Batch) -> Troubles: ...


class Executor(Protocol):
    """Runs batches somewhere; yields each with its troubles, or with Lost, as it ends."""

    def map(
        self, work: Job, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, Troubles | Lost]]: ...


@dataclass(frozen=True)
class Work:
    """The job of a stage: what it does to a record, and the store."""

    name: str
    makes: type[Record]
    process: Callable[..., Iterable[Outcome]]
    prepare: Callable[[Any, Store], Any] | None
    store: Store
    num_gpus: Callable[[int | None], int]

    def __call__(self, batch: Batch) -> Troubles:
        """Do and remember each record of a batch; returns what must not be remembered."""
        troubles: list[Rejection] = []
        for task_key, record, extra in self._prepared(batch):
            try:
                entries = self._entries(record, extra)
                self.store.remember(task_key, entries, origins(record))
            except Unavailable as error:
                troubles.append(unavailable(self.name, record, error))
                self.store.note_failure(task_key, error.cause, printable(error.detail), error.tries)
            except OSError as error:  # from the memo; those of the process are diagnosed already
                raise _diagnosed(error, self.name, record, self.store) from error
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

    def _entries(self, record: Record, extra: tuple[Future[Any], ...]) -> list[dict[str, Any]]:
        def process(record: Record, store: Store) -> Iterable[Outcome]:
            return self.process(record, store, *(future.result() for future in extra))

        entries = entries_of(self.name, self.makes, process, record, self.store)
        if any("bad" in entry for entry in entries):
            # A rejection is for ever. A blob that is gone, cannot be read or has changed is no
            # property of the video, so nothing is called bad before its bytes are seen to be right.
            for blob in blobs_read(record):
                if not self.store.released(blob):
                    self.store.check(blob)
        return entries


def entries_of(
    name: str,
    makes: type[Record],
    process: Callable[..., Iterable[Outcome]],
    record: Record,
    store: Store,
) -> list[dict[str, Any]]:
    """What a memo holds of one task: an entry for each output, with the facts it adds, and for each
    part that is bad. Raises Unavailable, Stopped, or Bug with the record's key.
    """
    entries: list[dict[str, Any]] = []
    try:
        for outcome in process(record, store):
            if isinstance(outcome, BadData):
                entries.append(bad(outcome.reason, outcome.detail))
            else:
                entries.append(_entry(makes, record, outcome))
    except BadData as error:
        return [bad(error.reason, error.detail)]
    except LongtakeError:
        raise
    except Exception as error:
        raise _diagnosed(error, name, record, store) from error
    if not entries:
        detail = f"stage '{name}' gave nothing for '{record.key}', not even a rejection"
        raise Bug(name, record.key, detail)
    return entries


def _entry(makes: type[Record], record: Record, output: Record) -> dict[str, Any]:
    """An output as a memo holds it. Raises TypeError or ValueError for one that the memo would not
    give back: a wrong one must not be remembered.
    """
    if type(output) is not makes:
        raise TypeError(f"got a {type(output).__name__}, the stage makes {makes.__name__}s")
    if not output.key.startswith(record.key):
        raise ValueError(f"the key '{output.key}' does not begin with that of its record")
    same_type = type(output) is type(record)
    news = changes(record, output) if same_type else facts(output)
    entry = {"suffix": output.key.removeprefix(record.key), "facts": news}
    if _output(makes, record, entry) != output:
        raise ValueError(
            "the output holds something that is neither a fact of its own nor the record"
        )
    return entry


def _diagnosed(error: Exception, name: str, record: Record, store: Store) -> Exception:
    """An exception nobody planned for, as what it means: a full disk, this machine, or a bug."""
    if isinstance(error, OSError):
        diagnosis = store.full(error)
        if diagnosis is not error:
            return diagnosis
        if error.errno in OUTSIDE:
            where = f"stage '{name}' on record '{record.key}', in {store.root}"
            return Stopped(f"{error}: {where}")
    return Bug(name, record.key, traceback.format_exc())


def bad(reason: str, detail: str, tries: int = 1) -> dict[str, Any]:
    """A rejection as a memo holds it. When and how often are for people: no manifest has them."""
    return {"bad": reason, "detail": printable(detail), "at": now(), "tries": tries}


def suspicion(lost: Lost, before: Any) -> dict[str, Any]:
    """A crash or a time-out, after the second try of this build, as a memo holds it. `before` are
    the entries of the task's memo so far: those of an earlier suspicion are added to.
    """
    entry = bad(lost.reason, lost.detail, tries=2)
    if not is_suspected(before):
        return {**entry, "builds": 1, "first": entry["at"]}
    earlier = before[0]
    return {
        **entry,
        "tries": earlier["tries"] + 2,
        "builds": num_suspicions(before) + 1,
        "first": earlier.get("first", earlier["at"]),
    }


def is_suspected(entries: Any) -> bool:
    """Whether a memo's entries (None for no memo) say that the task crashed or ran out of time."""
    return bool(entries) and entries[0].get("bad") in SUSPECTED


def num_suspicions(entries: Any) -> int:
    """In how many builds a suspected task has crashed or run out of time."""
    return int(entries[0].get("builds", 1))


def unavailable(stage: str, record: Record, error: Unavailable) -> Rejection:
    """The rejection of a record that the world did not let pass."""
    return Rejection(record.key, stage, "unavailable", error.cause, printable(error.detail))


@dataclass
class Survey:
    """What of a stage is done already, without running anything.

    `keys` are task keys by record key; `memos` entries by record key, None where a task is to do;
    `troubles` are pure records that are unavailable; `suspicions` are the entries of tasks that
    crashed or ran out of time, in fewer than MAX_SUSPICIONS builds: they are to do again;
    `overview` is that of the stage.
    """

    stage: Stage
    records: Sequence[Record]
    keys: dict[str, str]
    memos: dict[str, Any]
    troubles: list[Rejection] = field(default_factory=list)
    num_pure: int = 0
    suspicions: dict[str, Any] = field(default_factory=dict)
    overview: Any = None

    @cached_property
    def missing(self) -> list[Record]:
        refused = {trouble.key for trouble in self.troubles}
        return [
            record
            for record in self.records
            if self.memos[record.key] is None and record.key not in refused
        ]

    @property
    def num_cached(self) -> int:
        """How many records have a memo in the store."""
        return len(self.records) - len(self.missing) - self.num_pure


def survey(stage: Stage, records: Sequence[Record], store: Store) -> Survey:
    """Look up every record's task in the store; compute those that are pure."""
    result = Survey(stage, records, {}, {})
    process = stage.process
    if stage.overview is not None:
        result.overview = stage.overview(records)
        process = partial(process, overview=result.overview)
    for record in records:
        task_key = stage.task_key(record)
        result.keys[record.key] = task_key
        if not stage.pure(record):
            entries = _sound(stage, record, store.recall(task_key))
            if is_suspected(entries) and num_suspicions(entries) < MAX_SUSPICIONS:
                result.suspicions[record.key] = entries
                entries = None
            result.memos[record.key] = entries
            continue
        result.num_pure += 1
        result.memos[record.key] = None
        try:
            result.memos[record.key] = entries_of(stage.name, stage.makes, process, record, store)
        except Unavailable as error:
            result.troubles.append(unavailable(stage.name, record, error))
    return result


class _Bad(Facts):
    """A memo's entry of a part that is bad."""

    bad: Text
    detail: Text
    at: Text
    tries: Count
    builds: Count = 1  # of a suspicion: in how many builds it was tried
    first: Text = ""


class _Good(Facts):
    """A memo's entry of an output."""

    suffix: Text
    facts: dict[Text, Any]


def _sound(stage: Stage, record: Record, entries: Any) -> Any:
    """A memo's entries, or None for those that are none of this stage: they count as not there."""
    try:
        for entry in checked(list[_Bad | _Good], entries, "a memo"):
            if isinstance(entry, _Good):
                _output(stage.makes, record, entry.model_dump())
    except (ValueError, TypeError, Damaged):
        return None
    return entries or None


@dataclass
class Progress:
    """Called as a stage goes, with the stage, records and seconds of video (`cost`). What a
    stage says before it begins is announced. By default nobody listens.
    """

    start: Callable[[str, int, float], None] = field(default=lambda stage, records, cost: None)
    advance: Callable[[str, int, float], None] = field(default=lambda stage, records, cost: None)
    announce: Callable[[str], None] = field(default=lambda line: None)


@dataclass(frozen=True)
class Completion:
    """A stage that has run: its manifest, how many tasks ran, and the cost of those that ran to
    their end and were not light.
    """

    manifest: Manifest
    num_run: int
    cost: float


def run_stage(
    stage: Stage,
    records: Sequence[Record],
    store: Store,
    executor: Executor,
    progress: Progress,
) -> tuple[Manifest, int]:
    """Take every record through a stage; returns the manifest and how many tasks had been done
    before. Raises Stopped or Bug; whatever was finished by then is remembered.
    """
    before = survey(stage, records, store)
    return complete(before, store, executor, progress).manifest, before.num_cached


def complete(
    before: Survey,
    store: Store,
    executor: Executor,
    progress: Progress,
    standing: Collection[Rejection] = (),
) -> Completion:
    """Run what a survey says is missing. `standing` are failures of before that stand this time,
    without another try. Raises Stopped or Bug; whatever was finished by then is remembered.
    """
    stage = before.stage
    skipped = {rejection.key for rejection in standing}
    missing = [record for record in before.missing if record.key not in skipped]
    distinct = {before.keys[record.key]: record for record in missing}
    heavy = {key: record for key, record in distinct.items() if not stage.light(record, store)}
    costs = {
        task_key: float(stage.cost(record)) if task_key in heavy else 0.0
        for task_key, record in distinct.items()
    }
    if heavy and (line := stage.effort(list(heavy.values()))):
        progress.announce(line)
    failures = _run(stage, distinct, store, executor, progress) if distinct else {}
    refused = [trouble for trouble in before.troubles if trouble.key not in skipped]
    for trouble in refused:
        store.note_failure(before.keys[trouble.key], trouble.reason, trouble.detail, 1)
    memos = dict(before.memos)
    memos |= {record.key: store.recall(before.keys[record.key]) for record in missing}
    troubles = [
        replace(failures[before.keys[record.key]], key=record.key)
        for record in missing
        if before.keys[record.key] in failures
    ]
    manifest = collect(stage, before.records, memos, [*troubles, *refused, *standing])
    cost = sum(cost for task_key, cost in costs.items() if task_key not in failures)
    return Completion(manifest, len(missing), cost)


def _run(
    stage: Stage,
    tasks: Mapping[str, Record],
    store: Store,
    executor: Executor,
    progress: Progress,
) -> dict[str, Rejection]:
    """Run each task once, however many records share it; returns those that are unavailable, by
    task key.
    """
    work = Work(stage.name, stage.makes, stage.process, stage.prepare, store, stage.num_gpus)
    batches = _batches(stage, list(tasks.items()))
    progress.start(stage.name, len(tasks), sum(batch.cost for batch in batches))
    failures: dict[str, Rejection] = {}
    suspects: list[Batch] = []
    for batch, result in executor.map(work, batches):
        progress.advance(stage.name, len(batch.tasks), batch.cost)
        if isinstance(result, Lost):
            # A worker may be lost through another record's fault: each gets one try by itself.
            suspects += [
                _batch(stage, [task]) for task in batch.tasks if not _is_done(task[0], store)
            ]
        else:
            task_keys = {record.key: task_key for task_key, record in batch.tasks}
            failures |= {task_keys[trouble.key]: trouble for trouble in result}
    for batch, result in executor.map(work, suspects) if suspects else ():
        [(task_key, record)] = batch.tasks
        if not isinstance(result, Lost):
            for trouble in result:
                failures[task_key] = trouble
        elif result.reason == "timed-out" and stage.waits_on_world:
            store.note_failure(task_key, "timeout", result.detail, 2)
            rejection = Rejection(record.key, stage.name, "unavailable", "timeout", result.detail)
            failures[task_key] = rejection
        elif stage.must_succeed:
            raise Stopped(
                f"stage '{stage.name}' on '{record.key}' was tried twice: {result.detail}. Is "
                "there memory for so many workers (--workers)? The same command goes on"
            )
        else:
            before = _sound(stage, record, store.recall(task_key))
            entries = [suspicion(result, before)]
            store.remember(task_key, entries, origins(record))
    return failures


def _is_done(task_key: str, store: Store) -> bool:
    """Whether a task that was to do is remembered now. Before its last try of a build, what is
    suspected of it is what an earlier build said.
    """
    entries = store.recall(task_key)
    return entries is not None and not is_suspected(entries)


def _batch(stage: Stage, tasks: Sequence[tuple[str, Record]]) -> Batch:
    cost = sum(float(stage.cost(record)) for _, record in tasks)
    reach = max(stage.reach(record) for _, record in tasks)
    return Batch(tuple(tasks), cost, stage.timeout(cost + reach))


def _batches(stage: Stage, tasks: Sequence[tuple[str, Record]]) -> list[Batch]:
    """Tasks of a group together, small groups joined; the most costly batch first, so that the last
    to end is a short one.
    """
    groups: dict[str, list[tuple[str, Record]]] = {}
    for task in tasks:
        groups.setdefault(stage.group(task[1]), []).append(task)
    batches: list[Batch] = []
    total = sum(float(stage.cost(record)) for _, record in tasks)
    limit = min(stage.join_s, total / MIN_BATCHES)
    for group in groups.values():
        batch = _batch(stage, group)
        if batches and batches[-1].cost + batch.cost <= limit:
            batches[-1] = _batch(stage, batches[-1].tasks + batch.tasks)
        else:
            batches.append(batch)
    return sorted(batches, key=lambda batch: -batch.cost)


def collect(
    stage: Stage,
    records: Sequence[Record],
    memos: Mapping[str, Any],
    troubles: Sequence[Rejection],
) -> Manifest:
    """The manifest of what memos and troubles say of the records; a record with neither is an
    error.
    """
    outputs: list[Record] = []
    rejections = list(troubles)
    num_split = 0
    refused = {trouble.key for trouble in troubles}
    for record in records:
        entries = memos[record.key]
        if record.key in refused:
            continue
        if entries is None:
            raise AssertionError(f"stage '{stage.name}' lost the record '{record.key}'")
        num_split += len(entries) - 1
        for entry in entries:
            if "bad" in entry:
                reason, detail = entry["bad"], entry["detail"]
                rejections.append(Rejection(record.key, stage.name, "bad", reason, detail))
            else:
                outputs.append(_output(stage.makes, record, entry))
    outputs.sort(key=lambda record: record.key)
    return Manifest(
        stage.name,
        stage.version,
        stage.params,
        len(records),
        num_split,
        tuple(outputs),
        tuple(rejections),
    )


def _output(makes: type[Record], record: Record, entry: Mapping[str, Any]) -> Record:
    """One output of a task. Where a stage keeps the type, an entry holds only what it changed."""
    key = record.key + entry["suffix"]
    if type(record) is not makes:
        return restore(makes, entry["facts"], key, record)
    values = {**facts(record), **entry["facts"]}
    parent = record if record.parent is None else getattr(record, record.parent)
    return restore(makes, values, key, parent)
