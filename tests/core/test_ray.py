"""What goes wrong on a Ray cluster is told apart: only a worker that dies at work is a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import executors
from pipeline.core.errors import Stopped
from pipeline.core.executors import Inline, Ray, device_here
from pipeline.core.manifest import Manifest
from pipeline.core.records import Source
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.media import encoders
from tests.making import footage
from tests.making.behave import STAGE, sleep

MEMORY = 80 << 20  # bytes of a node's object store: the least that Ray takes
CPU_EACH = {"num_cpus": 1, "object_store_memory": MEMORY}
RECIPE = """
[filter]
min_frames = 20
max_frames = 60
[extract]
size = 64
[encode]
preset = "tiny"
[shard]
max_samples = 2
"""


@dataclass
class Cluster:
    """Two nodes of one CPU each; the build is connected to the first."""

    cluster: Any
    second: Any = None

    def add_second(self) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(**CPU_EACH)

    def kill_second(self) -> None:
        """Kill the second node's raylet, as if its machine had gone."""
        self.second.kill_raylet(check_alive=False)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as RayCluster

    head = {**CPU_EACH, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield Cluster(cluster)
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def cluster(two_nodes: Cluster) -> Cluster:
    two_nodes.add_second()
    return two_nodes


def run(records: Sequence[Source], store: Store, stage: Any = STAGE) -> Manifest:
    return run_stage(stage, records, store, Ray(2), Progress())[0]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def num_tasks_begun(store: Store) -> int:
    """How many tasks have written where they run."""
    return len([path for path in store.root.glob("tmp/ray-*/*") if path.suffix != ".tmp"])


def test_what_ran_on_a_node_that_died_is_done_on_another_as_often_as_it_takes(
    store: Store, cluster: Cluster
) -> None:
    records = [Source("a1", "hold:a1"), Source("b1", "hold:b1")]
    with ThreadPoolExecutor(1) as aside:  # a node can be added by the main thread only
        running = aside.submit(run, records, store)
        try:
            wait_until(lambda: num_tasks_begun(store) == 2)
            cluster.kill_second()
            cluster.add_second()
            wait_until(lambda: num_tasks_begun(store) == 3)
            cluster.kill_second()
        finally:
            (store.root / "go").touch()
        manifest = running.result()
    assert [record.key for record in manifest.records] == ["a1", "b1"]
    assert manifest.rejections == ()
    assert list(store.root.glob("tmp/ray-*")) == []


def test_a_raylet_killed_in_the_middle_of_a_build_costs_nothing_but_time(
    tmp_path: Path, film: Callable[..., Path], cluster: Cluster
) -> None:
    videos = [film(footage.plain, 2 + number, size="160x120") for number in range(4)]
    sources = [f'[[source]]\nid = "v{n}"\nuri = "file:{path}"\n' for n, path in enumerate(videos)]
    (tmp_path / "small.toml").write_text("".join([*sources, RECIPE]))
    loaded = recipes.load(tmp_path / "small.toml")

    def kill_at_the_first(stage: str, records: int, cost: float) -> None:
        if stage == "cut" and cluster.second is not None:
            cluster.kill_second()

    def built(data: Path, executor: Any, progress: Progress) -> list[bytes]:
        steps = list(build.build(loaded, data, executor, "cpu", "shard", progress, relock=True))
        assert [rejection for step in steps for rejection in step.manifest.rejections] == []
        return [step.manifest.encode() for step in steps]

    expected = built(tmp_path / "inline", Inline(), Progress())
    progress = Progress(advance=kill_at_the_first)
    assert built(tmp_path / "ray", Ray(2), progress) == expected
    assert cluster.second is None


def test_a_batch_that_waits_for_its_place_does_not_run_out_of_time(
    store: Store, cluster: Cluster
) -> None:
    import ray

    others = [ray.remote(num_cpus=1)(sleep).remote(5) for _ in range(2)]
    records = [Source("a1", "pass:a1"), Source("b1", "pass:b1")]
    manifest = run(records, store, replace(STAGE, timeout=lambda cost: 3.0))
    assert [record.key for record in manifest.records] == ["a1", "b1"]
    ray.get(others)


def test_records_that_were_lost_with_a_worker_are_tried_side_by_side(
    store: Store, cluster: Cluster
) -> None:
    records = [Source("a1", "crash:a1"), Source("a2", "join:a2"), Source("a3", "join:a3")]
    manifest = run(records, store)
    assert [record.key for record in manifest.records] == ["a2", "a3"]
    assert [rejection.reason for rejection in manifest.rejections] == ["crashed"]


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> None:
    """Let Ray answer with an error so many times."""
    import ray

    real, errors = ray.get, [error] * times

    def get(reference: object) -> Any:
        if errors:
            raise errors.pop()
        return real(reference)

    monkeypatch.setattr(ray, "get", get)


def ray_error(name: str) -> Exception:
    import ray.exceptions

    errors = {
        "memory": ray.exceptions.OutOfMemoryError("Task was killed: 98% of 4 GB\nare taken"),
        "unschedulable": ray.exceptions.TaskUnschedulableError("no such node"),
        "system": ray.exceptions.RaySystemError("Broken pipe"),
        "environment": ray.exceptions.RuntimeEnvSetupError("no package longtake"),
    }
    return errors[name]


@pytest.mark.parametrize("name", ["memory", "system"])
def test_a_cluster_that_fails_twice_is_asked_again(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fail(monkeypatch, ray_error(name), 2)
    manifest = run([Source("a1", "pass:a1")], store)
    assert [record.key for record in manifest.records] == ["a1"]


STOPS = {
    "memory": r"stage 'behave' on 'a1' ran out of memory 3 times on the Ray cluster: give it nodes "
    r"with more memory, .* and run the same command",
    "system": "stage 'behave' on 'a1' failed 3 times on the Ray cluster: .*Broken pipe",
    "unschedulable": "stage 'behave' cannot run on the Ray cluster: .*no such node",
    "environment": "stage 'behave' cannot run on the Ray cluster: .*no package longtake",
}


@pytest.mark.parametrize("name", STOPS)
def test_a_cluster_that_cannot_stops_the_build_with_a_sentence_and_rejects_nothing(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patched:
        fail(patched, ray_error(name), 3)
        with pytest.raises(Stopped, match=STOPS[name]):
            run([Source("a1", "pass:a1")], store)
    assert run([Source("a1", "pass:a1")], store).rejections == ()


def test_the_gpus_are_those_of_the_cluster() -> None:
    assert encoders.num_gpus("auto", 3) == encoders.num_gpus("cuda", 3) == 3
    assert encoders.num_gpus("cpu", 3) == encoders.num_gpus("auto", 0) == 0
    assert encoders.num_gpus("cuda", 0) == 1  # refused by the executor: it fits nowhere
    with pytest.raises(Stopped, match="cuda:1 is a GPU of one machine"):
        encoders.num_gpus("cuda:1", 3)


def test_what_the_build_computes_itself_it_computes_on_what_is_here() -> None:
    assert device_here(Ray(2), "cuda") == "auto"
    assert device_here(Inline(), "cuda") == "cuda"


def test_a_task_needs_its_cpu_and_its_gpu_on_one_node() -> None:
    nodes = executors._Nodes({"a": (8, 0), "b": (0, 4), "c": (4, 2)})
    assert (nodes.room(wants_gpu=False), nodes.room(wants_gpu=True)) == (12, 2)
