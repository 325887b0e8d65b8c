"""Where batches run: `inline`, `processes`, `ray`. One method, `map`; results go through the store.

`inline` is for debuggers. `processes` gives every batch a process that may crash or hang without
taking the build along. `ray` does the same on a cluster that shares the data folder. Workers are
spawned, never forked: decoders and CUDA do not survive a fork. A worker whose build dies, dies too.

Time-outs run from the start of a batch, not from when it was queued, on a clock that nobody can set
(`AwakeClock`).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline.core.errors import Stopped
from pipeline.core.stage import Batch, Executor, Job, Lost, Troubles

NAMES = ("inline", "processes", "ray")
DIED = "the worker died"
MAX_BARREN = 3  # pools one after the other that broke before they had done anything
WORKER_INDEX = "LONGTAKE_WORKER"  # which of the workers this process is: picks its GPU
SLOT_TIMEOUT_S = 10
TURN_S = 1.0  # how often the loops below look at what runs
MAX_TURN_S = 5.0  # what one look adds at most to the age of a task


class AwakeClock:
    """Seconds for time-outs: it cannot be set, and stands still while the build does not run.

    A monotonic clock does not move with the date, and on Linux and macOS not while the machine
    sleeps. It does move while the build is stopped (Ctrl-Z, a paused virtual machine), and its
    workers with it. So from one look to the next at most `MAX_TURN_S` count.
    """

    def __init__(self) -> None:
        self._last = monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        moment = monotonic()
        self._seconds += min(moment - self._last, MAX_TURN_S)
        self._last = moment
        return self._seconds


@dataclass(frozen=True)
class Inline:
    """One after the other, in this process."""

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        for batch in batches:
            yield batch, work(batch)


def _start_worker(slots: str, num_slots: int) -> None:
    os.environ[WORKER_INDEX] = str(_take_slot(slots, num_slots))
    # No longer deaf by the mask, which ffmpeg and the like would inherit: see `_start_deaf`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # A pool ends with SIGTERM. Python, when it meets it while it ends, would print a complaint.
    atexit.register(os._exit, 0)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _take_slot(slots: str, num_slots: int) -> int:
    """Take the lowest index that no living worker of the pool has. Raises TimeoutError.

    An index is a locked file. The system unlocks it when the process ends, however it ends, so the
    worker that follows a crashed one takes its index, and with it its GPU.
    """
    deadline = time.monotonic() + SLOT_TIMEOUT_S
    while time.monotonic() < deadline:
        for index in range(num_slots):
            file = os.open(os.path.join(slots, str(index)), os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            else:
                return index  # the file stays open, and so locked, as long as the process lives
        time.sleep(0.05)  # the worker whose place this one takes is about to end
    raise TimeoutError(f"no worker of {num_slots} ended within {SLOT_TIMEOUT_S} s")


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _start_deaf(pool: Any) -> bool:
    """Start a pool whose processes never hear Ctrl-C: it is for the build, which then stops them.

    To be run in a thread of its own. Its signal mask passes to the threads and processes started
    from it, so a worker is deaf before it can say so itself; and Ctrl-C, which Python raises in the
    main thread, cannot come between a worker and the data it waits for.
    """
    resource_tracker.ensure_running()  # before the mask: starting it unblocks SIGINT (Python 3.11)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return bool(pool.active)  # asking starts it


@dataclass(frozen=True)
class Processes:
    """A pool of spawned processes (pebble) with a time-out per batch.

    A worker that dies at its work costs its batch; another takes its place. One that dies without
    any work (killed while it starts, say) breaks the whole pool: then what is left goes to a new
    one, unless pool after pool breaks before anything is done.
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        left = {id(batch): batch for batch in batches}
        num_barren = 0
        while left and num_barren < MAX_BARREN:
            num_before = len(left)
            for batch, result in self._pooled(work, list(left.values())):
                del left[id(batch)]
                yield batch, result
            num_barren = num_barren + 1 if len(left) == num_before else 0
        if left:
            raise Stopped(
                f"the workers of stage '{work.name}' die before they do anything: "
                f"is there memory for {self.workers} (--workers)?"
            )

    def _pooled(
        self, work: Job, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, Troubles | Lost]]:
        """What one pool makes of the batches, until it is done or broken."""
        num_workers = min(self.workers, len(batches))
        if num_gpus := work.num_gpus(None):
            num_workers = min(num_workers, num_gpus)  # one process per GPU
        # in the store: what a killed build leaves there goes when the next one begins
        scratch = work.store.root / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="workers-", dir=scratch) as slots:
            pool = _new_pool(num_workers, slots)
            try:
                with ThreadPoolExecutor(1) as aside:
                    aside.submit(_start_deaf, pool).result()
                yield from _scheduled(pool, 4 * num_workers, work, batches)
            except RuntimeError:  # a broken pool takes nothing more
                if pool.active:
                    raise
            finally:
                pool.stop()
                pool.join()


def _new_pool(num_workers: int, slots: str) -> Any:
    from pebble import ProcessPool

    return ProcessPool(
        max_workers=num_workers,
        initializer=_start_worker,
        initargs=(slots, num_workers),
        context=multiprocessing.get_context("spawn"),
    )


def _scheduled(
    pool: Any, num_ahead: int, work: Job, batches: Sequence[Batch]
) -> Iterator[tuple[Batch, Troubles | Lost]]:
    """Give a pool its batches, at most `num_ahead` at a time; yields results as they come.

    Ends early where the pool is broken. Raises RuntimeError where it broke between two batches.
    """
    waiting = list(reversed(batches))
    pending: dict[Any, Batch] = {}
    clock = AwakeClock()
    starts: dict[Any, float] = {}  # when a worker was first seen at it, by this clock
    while (waiting or pending) and pool.active:
        while waiting and len(pending) < num_ahead:
            batch = waiting.pop()
            # Without a time-out: pebble's run on the clock of the day, which can be set.
            pending[pool.schedule(work, args=(batch,))] = batch
        done = wait(pending, timeout=TURN_S / 4, return_when=FIRST_COMPLETED).done
        for future in done:
            batch = pending.pop(future)
            starts.pop(future, None)
            try:
                yield batch, _result(future, batch)
            except BrokenProcessPool:
                return
        seconds = clock.seconds()
        for future, batch in pending.items():
            if future.running() and seconds - starts.setdefault(future, seconds) > batch.timeout_s:
                future.cancel()  # pebble ends its worker, and only then is the future done


def _result(future: Any, batch: Batch) -> Troubles | Lost:
    from pebble import ProcessExpired

    try:
        troubles: Troubles = future.result()
    except CancelledError:
        return _timed_out(batch)
    except ProcessExpired:
        return Lost("crashed", DIED)
    return troubles


def _timed_out(batch: Batch) -> Lost:
    return Lost("timed-out", f"no result within {batch.timeout_s:.0f} s")


@dataclass(frozen=True)
class Ray:
    """Ray tasks on a cluster (`RAY_ADDRESS`) or, without one, on this machine.

    As many tasks are in flight as the cluster has room for; a stage that fits nowhere is an error,
    because Ray itself would wait for ever. All nodes must see the data folder under the same path.
    What a node does that dies or is taken away is done again, as often as it takes.
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        ray = self._connect()
        try:
            tasks = _RayTasks(ray, work)
            try:
                yield from tasks.results(batches)
            finally:
                tasks.stop()
        except ray.exceptions.RayError as error:  # of asking the cluster itself
            raise Stopped(f"the Ray cluster does not answer: {_last_line(error)}") from error

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise Stopped(
                "the executor 'ray' needs the package: pip install 'longtake[ray]'"
            ) from error
        if ray.is_initialized():
            return ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
                where = f"RAY_ADDRESS={address}"
                raise Stopped(f"no Ray cluster answers at {where}: {_last_line(error)}") from error
        else:
            ray.init(address="local", num_cpus=self.workers, include_dashboard=False, **quiet)
        return ray


MAX_RAY_FAILURES = 3  # of one batch for want of memory, say: then the build stops
MAX_ROOMLESS_S = 600.0  # for so long a cluster that has lost all its nodes is waited for
LOOK_S = 5.0  # how often Ray is asked for its nodes


@dataclass
class _RayTask:
    """A batch that was given to Ray. `node` is where it runs and `start` when that was first seen,
    both None while it still waits for a place.
    """

    batch: Batch
    number: str
    node: str | None = None
    start: float | None = None


@dataclass
class _Nodes:
    """The living nodes of a cluster: by id, the CPUs and GPUs of each."""

    resources: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_cpus(self) -> int:
        return sum(cpus for cpus, _ in self.resources.values())

    @property
    def num_gpus(self) -> int:
        return sum(gpus for _, gpus in self.resources.values())

    def room(self, wants_gpu: bool) -> int:
        """How many tasks they can run at a time, each with one CPU and, if wanted, one GPU."""
        if wants_gpu:
            return sum(min(cpus, gpus) for cpus, gpus in self.resources.values())
        return self.num_cpus


def _nodes(ray: Any) -> _Nodes:
    resources = {}
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            resources[node["NodeID"]] = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    return _Nodes(resources)


class _RayTasks:
    """The tasks of one `Ray.map`, from the batches that wait to the results.

    A task begins by writing the id of its node into a file of the data folder. So its time-out runs
    from there, and one whose node has died is known even where Ray does not report it.
    """

    def __init__(self, ray: Any, work: Job) -> None:
        self._ray = ray
        self._work = work
        self._nodes = _nodes(ray)
        self._own_node: str = ray.get_runtime_context().get_node_id()
        self._wants_gpu = work.num_gpus(self._nodes.num_gpus) > 0
        self._notes = work.store.root / "tmp" / f"ray-{uuid.uuid4().hex}"
        self._remote = ray.remote(_run_quietly).options(
            num_cpus=1, num_gpus=int(self._wants_gpu), max_retries=0
        )
        self._waiting: list[Batch] = []
        self._running: dict[Any, _RayTask] = {}  # by reference
        self._failures: Counter[int] = Counter()  # by the batch's id()
        self._clock = AwakeClock()
        self._last_look = self._had_room = self._clock.seconds()

    def results(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        if not self._nodes.room(self._wants_gpu):
            raise Stopped(self._nothing_fits())
        self._notes.mkdir(parents=True)
        self._waiting = list(reversed(batches))
        while self._waiting or self._running:
            self._submit()
            num_waiting = len(self._waiting)
            for reference in self._done():
                task = self._running.pop(reference)
                result = self._result(reference, task)
                if result is None:
                    self._waiting.append(task.batch)
                else:
                    yield task.batch, result
            if len(self._waiting) > num_waiting:
                time.sleep(TURN_S)  # what failed at once may do so again
            self._look()
            for task in self._overdue():
                yield task.batch, _timed_out(task.batch)

    def stop(self) -> None:
        """End whatever still runs, and remove the files of the tasks."""
        with contextlib.suppress(self._ray.exceptions.RayError):  # it may be what has died
            for reference in self._running:
                self._ray.cancel(reference, force=True)
        shutil.rmtree(self._notes, ignore_errors=True)

    def _submit(self) -> None:
        room = self._nodes.room(self._wants_gpu)
        while self._waiting and len(self._running) < room:
            task = _RayTask(self._waiting.pop(), uuid.uuid4().hex)
            reference = self._remote.remote(self._work, task.batch, self._notes / task.number)
            self._running[reference] = task

    def _done(self) -> Collection[Any]:
        """The tasks that have ended, after a short wait for the first of them."""
        if not self._running:
            time.sleep(TURN_S)
            return ()
        running = list(self._running)
        self._ray.wait(running, num_returns=1, timeout=TURN_S)
        done, _ = self._ray.wait(running, num_returns=len(running), timeout=0)
        return list(done)

    def _result(self, reference: Any, task: _RayTask) -> Troubles | Lost | None:
        """What a task that has ended gave, None where its batch is to be queued again. Raises what
        stopped it.
        """
        errors = self._ray.exceptions
        try:
            outcome: Troubles | Exception = self._ray.get(reference)
        except (errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError):
            self._look(now=True)
            return None
        except errors.WorkerCrashedError:
            self._look(now=True)
            return None if self._has_died(task) else Lost("crashed", DIED)
        except errors.OutOfMemoryError as error:
            advice = (
                "give it nodes with more memory, or start Ray there with fewer CPUs (each runs a "
                "task at a time)"
            )
            self._count_failure(task, "ran out of memory", advice, error)
            return None
        except errors.RaySystemError as error:
            self._count_failure(task, "failed", "see the logs of Ray", error)
            return None
        except errors.RayError as error:
            # It fits nowhere, a node lacks a package or disk space: no property of any record.
            where = f"stage '{self._work.name}' cannot run on the Ray cluster"
            raise Stopped(f"{where}: {_last_line(error)}") from error
        # Errors of ours come back as values.
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _count_failure(self, task: _RayTask, what: str, advice: str, error: Exception) -> None:
        """Count a failure of the cluster. Raises Stopped if its batch has had its share."""
        self._failures[id(task.batch)] += 1
        if self._failures[id(task.batch)] < MAX_RAY_FAILURES:
            return
        keys = [f"'{record.key}'" for _, record in task.batch.tasks]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        records = f"{', '.join(keys[:3])}{more}"
        raise Stopped(
            f"stage '{self._work.name}' on {records} {what} {MAX_RAY_FAILURES} times on the Ray "
            f"cluster: {advice}, and run the same command ({_last_line(error)})"
        )

    def _look(self, now: bool = False) -> None:
        """Ask, now and then, which nodes live; queue again what ran on one that does not. Raises
        Stopped if the build's own node does not, or there has been no room for long.
        """
        seconds = self._clock.seconds()
        if not now and seconds - self._last_look < LOOK_S:
            return
        self._last_look = seconds
        self._nodes = _nodes(self._ray)
        if self._own_node not in self._nodes.resources:
            raise Stopped(
                "the Ray node that this build is connected to has died: start Ray there again, and "
                "run the same command"
            )
        self._read_notes()
        for reference, task in list(self._running.items()):
            if self._has_died(task):
                self._ray.cancel(reference, force=True)
                del self._running[reference]
                self._waiting.append(task.batch)
        if self._nodes.room(self._wants_gpu):
            self._had_room = seconds
        elif seconds - self._had_room > MAX_ROOMLESS_S:
            raise Stopped(self._nothing_fits())

    def _has_died(self, task: _RayTask) -> bool:
        return task.node is not None and task.node not in self._nodes.resources

    def _read_notes(self) -> None:
        """Note which tasks have started, and where."""
        numbers = set(os.listdir(self._notes))
        for task in self._running.values():
            if task.node is None and task.number in numbers:
                task.node = (self._notes / task.number).read_text()
                task.start = self._clock.seconds()

    def _overdue(self) -> list[_RayTask]:
        """The tasks that have run out of time; they are ended."""
        self._read_notes()
        seconds = self._clock.seconds()
        overdue = []
        for reference, task in list(self._running.items()):
            if task.start is not None and seconds - task.start > task.batch.timeout_s:
                self._ray.cancel(reference, force=True)
                del self._running[reference]
                overdue.append(task)
        return overdue

    def _nothing_fits(self) -> str:
        need = "1 CPU and 1 GPU" if self._wants_gpu else "1 CPU"
        cpus, gpus = self._nodes.num_cpus, self._nodes.num_gpus
        return (
            f"stage '{self._work.name}' wants {need} a task and the Ray cluster has {cpus} CPUs "
            f"and {gpus} GPUs, or not on one node: add a node, or choose another --device"
        )


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _run_quietly(work: Job, batch: Batch, note: Path) -> Troubles | Exception:
    """Run a batch on a node of the cluster, after noting which one it is. Hands errors back as
    values: Ray would wrap them in types of its own.
    """
    import ray

    try:
        beside = note.with_name(f"{note.name}.tmp")
        beside.write_text(ray.get_runtime_context().get_node_id())
        beside.rename(note)
    except OSError as error:
        return Stopped(f"{error}: do all nodes of the Ray cluster see {note.parent} as it is here?")
    try:
        return work(batch)
    except Exception as error:
        return error


def device_here(executor: Executor, device: str) -> str:
    """The device for what this process itself computes. On a cluster, `device` is that of the
    workers: here it may not be there.
    """
    return "auto" if isinstance(executor, Ray) else device


def make(name: str, workers: int) -> Executor:
    """The executor of that name; `workers` is ignored by `inline` and by a Ray cluster."""
    if name == "inline":
        return Inline()
    if name == "processes":
        return Processes(workers)
    if name == "ray":
        return Ray(workers)
    raise Stopped(f"no executor is called '{name}': choose one of {', '.join(NAMES)}")
