"""Where batches run: `inline`, `processes`, `ray`. One method, `map`; results go through the store.

`inline` is for debuggers. `processes` gives every batch a process that may crash or hang without
taking the build along. `ray` does the same on a cluster that shares the data folder. Workers are
spawned, never forked: decoders and CUDA do not survive a fork. A worker whose build dies, dies too.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

from pipeline.core.errors import Stopped
from pipeline.core.stage import Batch, Executor, Job, Lost, Troubles

NAMES = ("inline", "processes", "ray")
DIED = "the worker died"
MAX_BARREN = 3  # pools one after the other that broke before they had done anything
WORKER_INDEX = "LONGTAKE_WORKER"  # which of the workers this process is: picks its GPU
SLOT_TIMEOUT_S = 10


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
    """A pool of spawned processes with a time-out per batch (pebble).

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
        if work.num_gpus:
            num_workers = min(num_workers, work.num_gpus)  # one process per GPU
        with tempfile.TemporaryDirectory(prefix="longtake-workers-") as slots:
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
    while (waiting or pending) and pool.active:
        while waiting and len(pending) < num_ahead:
            batch = waiting.pop()
            future = pool.schedule(work, args=(batch,), timeout=batch.timeout_s)
            pending[future] = batch
        for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
            batch = pending.pop(future)
            try:
                yield batch, _result(future, batch)
            except BrokenProcessPool:
                return


def _result(future: Any, batch: Batch) -> Troubles | Lost:
    from pebble import ProcessExpired

    try:
        troubles: Troubles = future.result()
    except TimeoutError:
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
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        ray = self._connect()
        room = _room(ray.cluster_resources(), work)
        remote = ray.remote(_run_quietly)
        remote = remote.options(num_cpus=1, num_gpus=min(1, work.num_gpus), max_retries=0)
        waiting = list(reversed(batches))
        running: dict[Any, tuple[Batch, float]] = {}  # by reference: the batch, when it began
        try:
            while waiting or running:
                while waiting and len(running) < room:
                    batch = waiting.pop()
                    running[remote.remote(work, batch)] = (batch, time.monotonic())
                done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in done:
                    batch, _ = running.pop(reference)
                    yield batch, _ray_result(ray, reference)
                for reference, (batch, since) in list(running.items()):
                    if time.monotonic() - since > batch.timeout_s:
                        ray.cancel(reference, force=True)
                        del running[reference]
                        yield batch, _timed_out(batch)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

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
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", num_cpus=self.workers, include_dashboard=False, **quiet)
        return ray


def _room(resources: dict[str, float], work: Job) -> int:
    """How many tasks the cluster can run at a time. Raises Stopped if it is none."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    room = min(cpus, gpus) if work.num_gpus else cpus
    if room < 1:
        need = "1 CPU and 1 GPU" if work.num_gpus else "1 CPU"
        raise Stopped(
            f"stage '{work.name}' wants {need} a task and the Ray cluster has "
            f"{cpus} CPUs and {gpus} GPUs: add a node, or choose another --device"
        )
    return room


def _ray_result(ray: Any, reference: Any) -> Troubles | Lost:
    try:
        outcome: Troubles | Exception = ray.get(reference)
    except ray.exceptions.RayError:
        # A worker, a node or its memory is gone. Errors of ours come back as values.
        return Lost("crashed", DIED)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _run_quietly(work: Job, batch: Batch) -> Troubles | Exception:
    """Hand errors back as values: Ray would wrap them in types of its own."""
    try:
        return work(batch)
    except Exception as error:
        return error


def make(name: str, workers: int) -> Executor:
    """The executor of that name; `workers` is ignored by `inline` and by a Ray cluster."""
    if name == "inline":
        return Inline()
    if name == "processes":
        return Processes(workers)
    if name == "ray":
        return Ray(workers)
    raise Stopped(f"no executor is called '{name}': choose one of {', '.join(NAMES)}")
