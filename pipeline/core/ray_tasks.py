"""The tasks of a Ray cluster: where they run, since when, and what it means if they end badly.

Ray is imported by whoever connects, in `executors`; here it is a parameter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.clock import DIED, TURN_S, AwakeClock, timed_out
from pipeline.core.errors import Stopped
from pipeline.core.stage import Batch, Job, Lost, Troubles

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
class Nodes:
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


def nodes_of(ray: Any) -> Nodes:
    resources = {}
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            resources[node["NodeID"]] = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    return Nodes(resources)


class RayTasks:
    """The tasks of one `Ray.map`, from the batches that wait to the results.

    A task begins by writing the id of its node into a file of the data folder. So its time-out runs
    from there, and one whose node has died is known even where Ray does not report it.
    """

    def __init__(self, ray: Any, work: Job) -> None:
        self._ray = ray
        self._work = work
        self._nodes = nodes_of(ray)
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
                yield task.batch, timed_out(task.batch)

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
            raise Stopped(f"{where}: {last_line(error)}") from error
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
            f"cluster: {advice}, and run the same command ({last_line(error)})"
        )

    def _look(self, now: bool = False) -> None:
        """Ask, now and then, which nodes live; queue again what ran on one that does not. Raises
        Stopped if the build's own node does not, or there has been no room for long.
        """
        seconds = self._clock.seconds()
        if not now and seconds - self._last_look < LOOK_S:
            return
        self._last_look = seconds
        self._nodes = nodes_of(self._ray)
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


def last_line(error: Exception) -> str:
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
