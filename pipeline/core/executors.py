"""Where batches run: `inline`, `processes`, `ray`. One method, `map`; results go through the store.

`inline` is for debuggers. `processes` gives every batch a process that may crash or hang without
taking the build along. `ray` does the same on a cluster that shares the data folder. Workers are
spawned, never forked: decoders and CUDA do not survive a fork. A worker whose build dies, dies too.
Stages whose work another machine does run in `Threads`, whatever the executor.

Time-outs run from the start of a batch, not from when it was queued, on a clock that nobody can set
(`AwakeClock`).
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

from pipeline.core.clock import DIED, TURN_S, AwakeClock, timed_out
from pipeline.core.errors import Stopped
from pipeline.core.ray_tasks import RayTasks, last_line
from pipeline.core.stage import Batch, Executor, Job, Lost, Troubles

NAMES = ("inline", "processes", "ray")
MAX_BARREN = 3  # pools one after the other that broke before they had done anything
WORKER_INDEX = "LONGTAKE_WORKER"  # which of the workers this process is: picks its GPU
SLOT_TIMEOUT_S = 10
PARTING_S = 10.0


@dataclass(frozen=True)
class Inline:
    """One after the other, in this process."""

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        for batch in batches:
            yield batch, work(batch)


@dataclass(frozen=True)
class Threads:
    """So many at a time in this process: for tasks that ask another machine, and wait.

    The threads are daemons, so that Ctrl-C does not wait for answers. After an error, what was
    asked already may still be answered and remembered, for `PARTING_S` at most.
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[Batch, Troubles | Exception]] = queue.SimpleQueue()
        for batch in batches:
            waiting.put(batch)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                try:
                    batch = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results.put((batch, work(batch)))
                except Exception as error:
                    is_over.set()
                    results.put((batch, error))

        count = min(self.workers, len(batches))
        threads = [threading.Thread(target=serve, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in batches:
                batch, result = results.get()
                if isinstance(result, Exception):
                    _part(threads)
                    raise result
                yield batch, result
        finally:
            is_over.set()


def _part(threads: Sequence[threading.Thread]) -> None:
    """Wait a while for threads that end on their own."""
    deadline = time.monotonic() + PARTING_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


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
        return timed_out(batch)
    except ProcessExpired:
        return Lost("crashed", DIED)
    return troubles


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
            tasks = RayTasks(ray, work)
            try:
                yield from tasks.results(batches)
            finally:
                tasks.stop()
        except ray.exceptions.RayError as error:  # of asking the cluster itself
            raise Stopped(f"the Ray cluster does not answer: {last_line(error)}") from error

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
                raise Stopped(f"no Ray cluster answers at {where}: {last_line(error)}") from error
        else:
            ray.init(address="local", num_cpus=self.workers, include_dashboard=False, **quiet)
        return ray


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
