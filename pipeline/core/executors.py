"""Where batches run: `inline`, `processes`, `ray`. One method, `map`; results go through the store.

`inline` is for debuggers. `processes` gives every batch a process that may crash or hang without
taking the build along. `ray` does the same on a cluster that shares the data folder. Workers are
spawned, never forked: decoders and CUDA do not survive a fork. A worker whose build dies, dies too.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
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


@dataclass(frozen=True)
class Inline:
    """One after the other, in this process."""

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        for batch in batches:
            yield batch, work(batch)


def _start_worker(counter: Any) -> None:
    with counter.get_lock():
        os.environ[WORKER_INDEX] = str(counter.value)
        counter.value += 1
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # and no longer by the mask, which ffmpeg and the like would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    atexit.register(
        os._exit, 0
    )  # a pool's last SIGTERM, met by Python as it ends, would be a complaint on the screen
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


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

    A worker that dies at its work costs its batch. One that dies without any (killed while it
    starts, say) breaks the whole pool: then what is left goes to a new one, unless pool after pool
    breaks before anything is done.
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        left, barren = {id(batch): batch for batch in batches}, 0
        while left and barren < MAX_BARREN:
            before = len(left)
            for batch, result in self._pooled(work, list(left.values())):
                del left[id(batch)]
                yield batch, result
            barren = barren + 1 if len(left) == before else 0
        if left:
            raise Stopped(
                f"the workers of stage '{work.name}' die before they do anything: is there memory for {self.workers} (--workers)?"
            )

    def _pooled(
        self, work: Job, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, Troubles | Lost]]:
        """What one pool makes of the batches, until it is done or broken."""
        from pebble import ProcessExpired, ProcessPool

        context = multiprocessing.get_context("spawn")
        workers = min(
            self.workers, len(batches), work.num_gpus or len(batches)
        )  # one process per GPU
        pool: Any = ProcessPool(
            max_workers=workers,
            initializer=_start_worker,
            initargs=(context.Value("i", 0),),
            context=context,
        )
        try:
            with ThreadPoolExecutor(1) as aside:
                aside.submit(_start_deaf, pool).result()
            waiting, pending = list(reversed(batches)), dict[Any, Batch]()
            while (waiting or pending) and pool.active:
                while waiting and len(pending) < 4 * workers:
                    batch = waiting.pop()
                    pending[pool.schedule(work, args=(batch,), timeout=batch.timeout_s)] = batch
                for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
                    batch = pending.pop(future)
                    try:
                        result: Troubles | Lost = future.result()
                    except TimeoutError:
                        result = Lost("timed-out", f"no result within {batch.timeout_s:.0f} s")
                    except ProcessExpired:
                        result = Lost("crashed", DIED)
                    except BrokenProcessPool:
                        return
                    yield batch, result
        except RuntimeError:  # a broken pool takes nothing more
            if pool.active:
                raise
        finally:
            pool.stop()
            pool.join()


@dataclass(frozen=True)
class Ray:
    """Ray tasks on a cluster (`RAY_ADDRESS`) or, without one, on this machine.

    As many tasks are in flight as the cluster has room for; a stage that fits nowhere is an error,
    because Ray itself would wait for ever. All nodes must see the data folder under the same path.
    """

    workers: int

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        ray = self._connect()
        room = self._room(ray.cluster_resources(), work)
        run = ray.remote(_run_quietly).options(
            num_cpus=1, num_gpus=min(1, work.num_gpus), max_retries=0
        )
        waiting, running = list(reversed(batches)), dict[Any, tuple[Batch, float]]()
        try:
            while waiting or running:
                while waiting and len(running) < room:
                    batch = waiting.pop()
                    running[run.remote(work, batch)] = (batch, time.monotonic())
                done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in done:
                    yield running.pop(reference)[0], self._result(ray, reference)
                for reference, (batch, since) in list(running.items()):
                    if time.monotonic() - since > batch.timeout_s:
                        ray.cancel(reference, force=True)
                        del running[reference]
                        yield batch, Lost("timed-out", f"no result within {batch.timeout_s:.0f} s")
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
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            local: dict[str, Any] = (
                {} if address else {"num_cpus": self.workers, "include_dashboard": False}
            )
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
        return ray

    def _room(self, resources: dict[str, float], work: Job) -> int:
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        room = min(cpus, gpus) if work.num_gpus else cpus
        if room < 1:
            wants = "1 CPU and 1 GPU" if work.num_gpus else "1 CPU"
            raise Stopped(
                f"stage '{work.name}' wants {wants} a task and the Ray cluster has {cpus} CPUs and {gpus} GPUs: "
                "add a node, or choose another --device"
            )
        return room

    def _result(self, ray: Any, reference: Any) -> Troubles | Lost:
        try:
            outcome: Troubles | Exception = ray.get(reference)
        except (
            ray.exceptions.RayError
        ):  # a worker, a node or its memory: our own errors come back as values
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
