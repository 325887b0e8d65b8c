import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import clock, executors
from pipeline.core import stage as stage_module
from pipeline.core.errors import Bug, Stopped
from pipeline.core.executors import Inline, Processes, Ray, Threads
from pipeline.core.manifest import Manifest
from pipeline.core.records import Source
from pipeline.core.stage import Executor, Progress, run_stage, survey
from pipeline.core.store import Store
from tests.making.behave import STAGE

ROOT = Path(__file__).parents[2]
Start = Callable[[str, int], Executor]


def crashes_first(source: Source) -> float:
    return 200.0 if source.uri.startswith("crash") else 100.0


def on_gpu(cluster: int | None) -> int:
    return 1


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray for the module, on two CPUs. Its own warnings are not ours to fix."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest) -> Start:
    def make(name: str, workers: int) -> Executor:
        if name == "ray":
            request.getfixturevalue("ray_session")
        return Threads(workers) if name == "threads" else executors.make(name, workers)

    return make


def sources(*lines: str) -> list[Source]:
    """`sources("a1 pass", "a2 bad")`."""
    return [
        Source(key, f"{does}:{key}") for key, _, does in (line.partition(" ") for line in lines)
    ]


def new_store(path: Path) -> Store:
    store = Store(path)
    store.prepare()
    return store


def run(records: Sequence[Source], store: Store, executor: Executor) -> Manifest:
    return run_stage(STAGE, records, store, executor, Progress())[0]


def outcome(manifest: Manifest) -> tuple[list[str], list[tuple[str, str, str]]]:
    return [record.key for record in manifest.records], sorted(
        (each.key, each.fate, each.reason) for each in manifest.rejections
    )


DOES = ("pass", "pass", "many", "bad", "gone", "pass", "pass")
MIXED = sources(*[f"{'abcde'[index % 5]}{index} {DOES[index % 7]}" for index in range(21)])


@pytest.mark.parametrize(
    ("name", "workers"),
    [("processes", 1), ("processes", 2), ("threads", 1), ("threads", 8), ("ray", 1), ("ray", 2)],
)
def test_every_executor_gives_the_same_manifest(
    store: Store, tmp_path: Path, start: Start, name: str, workers: int
) -> None:
    expected = run(MIXED, new_store(tmp_path / "inline"), Inline())
    assert (len(expected.records), len(expected.rejections)) == (18, 6)
    assert run(MIXED, store, start(name, workers)).encode() == expected.encode()
    assert survey(STAGE, MIXED, store).num_cached == 18


@pytest.mark.parametrize("name", ["inline", "processes", "threads", "ray"])
def test_an_exception_in_a_worker_is_a_bug_with_the_key_of_its_record(
    store: Store, start: Start, name: str
) -> None:
    records = sources("a1 pass", "a2 bug", "a3 pass")
    with pytest.raises(Bug, match="a bug in stage 'behave' on record 'a2'") as caught:
        run(records, store, start(name, 1))
    assert (caught.value.stage, caught.value.key) == ("behave", "a2")
    assert "ZeroDivisionError: one of ours" in caught.value.trace
    assert survey(STAGE, records, store).num_cached == 1


@pytest.mark.parametrize("name", ["inline", "processes", "threads"])
def test_a_full_disk_in_a_worker_stops_the_build(store: Store, start: Start, name: str) -> None:
    with pytest.raises(Stopped, match="disk full"):
        run(sources("a1 full"), store, start(name, 1))


@pytest.mark.parametrize("name", ["inline", "processes", "threads"])
def test_a_disk_that_does_not_do_as_asked_stops_the_build_and_is_no_bug(
    store: Store, start: Start, name: str
) -> None:
    problem = "Read-only file system: 'store/tmp/1'"
    where = f"stage 'behave' on record 'a1', in {store.root}"
    with pytest.raises(Stopped, match=f"{problem}: {where}"):
        run(sources("a1 read-only"), store, start(name, 1))


def test_what_threads_have_begun_when_another_stops_the_build_is_remembered(store: Store) -> None:
    records = sources("a1 nap", "a2 bug", "a3 pass")
    with pytest.raises(Bug, match="record 'a2'"):
        run(records, store, Threads(2))
    assert survey(STAGE, records, store).missing == records[1:]


def test_a_build_that_was_stopped_goes_on_with_another_executor(
    store: Store, tmp_path: Path, start: Start
) -> None:
    run(MIXED[:9], store, start("processes", 2))
    expected = run(MIXED, new_store(tmp_path / "at-once"), Inline())
    assert run(MIXED, store, Inline()).encode() == expected.encode()


def test_ray_refuses_a_stage_that_fits_nowhere_instead_of_waiting(
    store: Store, start: Start
) -> None:
    stage = replace(STAGE, num_gpus=on_gpu)
    need = "stage 'behave' wants 1 CPU and 1 GPU a task"
    with pytest.raises(Stopped, match=f"{need} and the Ray cluster has 2 CPUs and 0 GPUs"):
        run_stage(stage, sources("a1 pass"), store, start("ray", 2), Progress())


def test_an_executor_nobody_knows_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        Stopped, match="no executor is called 'threads': choose one of inline, processes, ray"
    ):
        executors.make("threads", 2)
    by_name: dict[str, Any] = {name: executors.make(name, 2) for name in executors.NAMES}
    assert by_name == {"inline": Inline(), "processes": Processes(2), "ray": Ray(2)}


LOST = sources("a1 pass", "a2 crash", "a3 pass", "b1 pass", "b2 sleep", "b3 pass")


@pytest.fixture(scope="module")
def after_losses(
    tmp_path_factory: pytest.TempPathFactory, start: Start
) -> Callable[[str], tuple[Manifest, Store]]:
    """What an executor made of LOST, and where; run once for each."""

    @cache
    def lose(name: str) -> tuple[Manifest, Store]:
        store = new_store(tmp_path_factory.mktemp(name))
        return run(LOST, store, start(name, 2)), store

    return lose


@pytest.mark.parametrize("name", ["processes", "ray"])
def test_a_worker_that_dies_and_one_that_hangs_cost_one_rejection_each(
    after_losses: Callable[[str], tuple[Manifest, Store]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, store = after_losses(name)
    expected = ["a1", "a3", "b1", "b3"], [("a2", "bad", "crashed"), ("b2", "bad", "timed-out")]
    assert outcome(manifest) == expected
    monkeypatch.setattr(stage_module, "MAX_SUSPICIONS", 1)
    # Remembered: a second crash would end this process.
    assert outcome(run(LOST, store, Inline())) == expected


def test_what_a_lost_worker_leaves_in_the_manifest_does_not_depend_on_the_executor(
    after_losses: Callable[[str], tuple[Manifest, Store]],
) -> None:
    assert after_losses("processes")[0].encode() == after_losses("ray")[0].encode()


def test_a_crashed_worker_s_index_is_taken_by_the_one_that_follows(store: Store) -> None:
    """The index picks the GPU: a third index on a machine with two puts two workers on one GPU."""
    records = sources("a1 meet", "b1 meet", "c1 crash", "d1 crash")
    stage = replace(STAGE, cost=crashes_first)
    met = run_stage(stage, records, store, Processes(2), Progress())[0]
    assert sorted(str(record.license) for record in met.records) == ["0", "1"]  # type: ignore[attr-defined]
    assert [rejection.reason for rejection in met.rejections] == ["crashed", "crashed"]


def test_records_that_were_lost_with_a_worker_share_one_pool(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    new_pool = executors._new_pool

    def counted(num_workers: int, slots: str) -> Any:
        pools.append(num_workers)
        return new_pool(num_workers, slots)

    monkeypatch.setattr(executors, "_new_pool", counted)
    records = sources("a1 crash", *[f"a{number} pass" for number in range(2, 7)])
    assert outcome(run(records, store, Processes(2)))[1] == [("a1", "bad", "crashed")]
    assert pools == [1, 2]  # one for the batch that was lost, one for its records


def test_a_clock_that_is_set_forward_times_nothing_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hours = time.time, count()
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))
    records = sources("a1 pass", "b1 pass", "c1 nap", "d1 bad")
    manifest = run(records, store, Processes(2))
    assert outcome(manifest) == (["a1", "b1", "c1"], [("d1", "bad", "truncated")])


def test_a_clock_that_is_set_back_does_not_keep_a_worker_that_hangs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hours = time.time, count()
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(hours))
    manifest = run(sources("b2 sleep"), store, Processes(1))
    assert outcome(manifest) == ([], [("b2", "bad", "timed-out")])


def test_a_build_that_was_stopped_for_long_times_nothing_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-Z, or in a virtual machine that was put aside: its workers stood still too."""
    hours = count()
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + 3600 * next(hours))
    stage = replace(STAGE, timeout=lambda cost: 100 * clock.MAX_TURN_S)
    manifest = run_stage(stage, sources("a1 nap"), store, Processes(1), Progress())[0]
    assert outcome(manifest) == (["a1"], [])


def test_a_batch_that_waits_for_a_worker_does_not_run_out_of_time(store: Store) -> None:
    stage = replace(STAGE, timeout=lambda cost: 3.0)
    records = sources(*[f"{letter}1 nap" for letter in "abcdef"])
    manifest = run_stage(stage, records, store, Processes(1), Progress())[0]
    assert outcome(manifest) == (["a1", "b1", "c1", "d1", "e1", "f1"], [])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_workers_are_as_many_as_the_cores_the_process_may_use() -> None:
    script = (
        "import os\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from pipeline.core.cores import num_cores\n"
        "from pipeline.commands.command import CORES\n"
        "print(num_cores(), CORES)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 1\n"


STRUCK_WHILE_SPAWNING = """
import os, signal, sys, time
from multiprocessing import util
from pathlib import Path
from pipeline.core.executors import Processes
from pipeline.core.stage import Batch, Work, no_gpus
from pipeline.core.store import Store

def spawn_and_strike(path, words, fds):
    pid = spawn(path, words, fds)
    if "--multiprocessing-fork" in words:
        STRIKE
    return pid

spawn, util.spawnv_passfds = util.spawnv_passfds, spawn_and_strike
try:
    work = Work("print", str, print, None, Store(Path("nowhere")), no_gpus)
    list(Processes(2).map(work, [Batch((), 1.0, 60.0)] * 4))
except KeyboardInterrupt:
    sys.exit("stopped")
"""


@pytest.mark.parametrize(
    "strike",
    ["os.kill(os.getpid(), signal.SIGINT)", "time.sleep(0.5); os.killpg(0, signal.SIGINT)"],
)
def test_ctrl_c_while_a_worker_is_just_being_spawned_is_quiet(strike: str) -> None:
    """The build must still hand the worker what it waits for; the worker, by then awake, must not
    hear the signal itself.
    """
    done = subprocess.run(
        [sys.executable, "-c", STRUCK_WHILE_SPAWNING.replace("STRIKE", strike)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (1, "stopped\n")


ENDS = """
import sys
from pipeline.core import executors
class Late:
    def __del__(self): print("taken apart")
late = Late()
if START: executors._start_worker(sys.argv[1], 1)
"""


@pytest.mark.parametrize(("starts", "said"), [("False", "taken apart\n"), ("True", "")])
def test_a_worker_ends_at_once_and_meets_no_signal_on_the_way_out(
    starts: str, said: str, tmp_path: Path
) -> None:
    """Python forgets its signal handlers while it takes itself apart, and complains of the pool's
    SIGTERM.
    """
    done = subprocess.run(
        [sys.executable, "-c", ENDS.replace("START", starts), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (said, "")


def dies_at_birth(slots: str, num_slots: int) -> None:
    """As many workers as the file in the environment has bytes die before they have begun."""
    path = Path(os.environ["DIES_AT_BIRTH"])
    if left := path.read_bytes():
        beside = path.with_name(f"left-{os.getpid()}")  # another worker must not read half of it
        beside.write_bytes(left[1:])
        beside.replace(path)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("deaths", "workers"), [(1, 1), (2, 2)])
def test_a_worker_that_dies_before_it_has_begun_costs_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, workers: int
) -> None:
    (tmp_path / "left").write_bytes(b"x" * deaths)
    monkeypatch.setenv("DIES_AT_BIRTH", str(tmp_path / "left"))
    monkeypatch.setattr(executors, "_start_worker", dies_at_birth)
    manifest = run(sources("a1 pass", "b2 pass", "c3 bad"), store, Processes(workers))
    assert outcome(manifest) == (["a1", "b2"], [("c3", "bad", "truncated")])
    assert (tmp_path / "left").read_bytes() == b""


def test_workers_that_always_die_before_they_begin_stop_the_build(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left").write_bytes(b"x" * 10_000)
    monkeypatch.setenv("DIES_AT_BIRTH", str(tmp_path / "left"))
    monkeypatch.setattr(executors, "_start_worker", dies_at_birth)
    with pytest.raises(
        Stopped,
        match="the workers of stage 'behave' die before they do anything: is there memory for 2",
    ):
        run(sources("a1 pass", "b2 pass"), store, Processes(2))
