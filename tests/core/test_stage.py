import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest

from pipeline.core.errors import BadData, Bug, Stopped, Unavailable
from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest
from pipeline.core.records import Scene, Source
from pipeline.core.stage import (
    MAX_SUSPICIONS,
    Batch,
    Lost,
    Outcome,
    Progress,
    Stage,
    Troubles,
    Work,
    run_stage,
    survey,
)
from pipeline.core.store import Store
from tests.making.deadly import Deadly


def log(store: Store, line: str) -> None:
    with (store.root / "log").open("a") as file:
        file.write(line + "\n")


def logged(store: Store) -> list[str]:
    """What ran since the last call."""
    path = store.root / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def licensed(source: Source, store: Store) -> Iterator[Outcome]:
    """Does what the address says."""
    log(store, source.key)
    match source.uri.partition(":")[0]:
        case "bad":
            raise BadData("truncated", "half of it is there")
        case "gone":
            raise Unavailable("gone", "404")
        case "nothing":
            return
        case "bug":
            raise ZeroDivisionError("one of ours")
        case "full":
            raise OSError(28, "no space left on device")
        case "stop":
            raise Stopped("the lock is held")
        case "many":
            yield replace(source, key=f"{source.key}-b", license="B")
            yield BadData("too-few-frames", "3 frames")
            yield replace(source, key=f"{source.key}-a", license="A")
        case _:
            yield replace(source, license="CC0-1.0")


def halves(scene: Scene, store: Store) -> Iterator[Scene]:
    middle = (scene.start_pts + scene.end_pts) // 2
    yield replace(scene, key=f"{scene.key}-0", end_pts=middle)
    yield replace(scene, key=f"{scene.key}-1", start_pts=middle)


STAGE = Stage("license", 1, {"to": "CC0-1.0"}, Source, licensed)


def source(key: str, does: str = "pass") -> Source:
    return Source(key, f"{does}:{key}")


def run(stage: Stage, records: Sequence[Any], store: Store) -> tuple[Manifest, int]:
    return run_stage(stage, records, store, Inline(), Progress())


def test_a_second_run_does_only_what_is_missing(store: Store) -> None:
    first, cached = run(STAGE, [source("a"), source("b")], store)
    assert (logged(store), cached) == (["a", "b"], 0)
    again, cached = run(STAGE, [source("a"), source("b")], store)
    assert (logged(store), cached) == ([], 2)
    assert again.encode() == first.encode()
    more, cached = run(STAGE, [source("a"), source("c"), source("b")], store)
    assert (logged(store), cached) == (["c"], 2)
    assert [record.key for record in more.records] == ["a", "b", "c"]
    assert {record.license for record in more.records} == {"CC0-1.0"}


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"params": {"to": "CC-BY-4.0"}}, {"name": "other"}]
)
def test_another_name_version_or_parameter_runs_everything_again(
    store: Store, changes: dict[str, Any]
) -> None:
    run(STAGE, [source("a")], store)
    _, cached = run(replace(STAGE, **changes), [source("a")], store)
    assert (logged(store), cached) == (["a", "a"], 0)


def test_how_and_where_it_runs_is_no_part_of_the_key(store: Store) -> None:
    run(STAGE, [source("a")], store)
    moved = replace(
        STAGE,
        num_gpus=lambda cluster: 1,
        group=lambda record: "one",
        cost=lambda record: 9.0,
        timeout=lambda cost: 1.0,
    )
    assert survey(moved, [source("a")], store).num_cached == 1


def test_outputs_are_in_key_order_whatever_the_order_of_the_input(
    store: Store, tmp_path: Any
) -> None:
    records = [
        source(f"{index:02d}", ("pass", "many", "bad", "gone")[index % 4]) for index in range(12)
    ]
    wanted, _ = run(STAGE, records, store)
    assert [record.key for record in wanted.records] == sorted(
        record.key for record in wanted.records
    )
    for seed in range(3):
        other = Store(tmp_path / f"other-{seed}")
        other.prepare()
        mixed, _ = run(STAGE, random.Random(seed).sample(records, len(records)), other)
        assert mixed.encode() == wanted.encode()


def test_a_record_may_become_several_and_all_are_counted(store: Store) -> None:
    made, _ = run(STAGE, [source("x", "many"), source("y")], store)
    assert [(record.key, record.license) for record in made.records] == [
        ("x-a", "A"),
        ("x-b", "B"),
        ("y", "CC0-1.0"),
    ]
    assert [(each.key, each.reason) for each in made.rejections] == [("x", "too-few-frames")]
    assert (made.num_in, made.num_split) == (2, 2)


def test_twins_run_once_and_each_gets_its_own_records(store: Store) -> None:
    twins = [
        Source("a", "pass:same", captions=("one",)),
        Source("b", "pass:same", captions=("two",)),
        Source("c", "gone:same"),
        Source("d", "gone:same"),
    ]
    made, _ = run(STAGE, twins, store)
    assert len(logged(store)) == 2
    assert [record.key for record in made.records] == ["a", "b"]
    assert [(each.key, each.fate, each.reason) for each in made.rejections] == [
        ("c", "unavailable", "gone"),
        ("d", "unavailable", "gone"),
    ]


def test_bad_data_is_a_rejection_and_is_remembered(store: Store) -> None:
    made, _ = run(STAGE, [source("a", "bad"), source("b")], store)
    assert logged(store) == ["a", "b"]
    rejection = made.rejections[0]
    assert (rejection.key, rejection.stage, rejection.fate) == ("a", "license", "bad")
    assert (rejection.reason, rejection.detail) == ("truncated", "half of it is there")
    again, cached = run(STAGE, [source("a", "bad"), source("b")], store)
    assert (logged(store), cached) == ([], 2)
    assert again.encode() == made.encode()


def test_what_is_unavailable_is_counted_and_tried_again(store: Store) -> None:
    records = [source("a", "gone"), source("b")]
    for ran in (["a", "b"], ["a"]):
        made, _ = run(STAGE, records, store)
        assert logged(store) == ran
        assert [record.key for record in made.records] == ["b"]
        assert [(each.key, each.fate, each.reason, each.detail) for each in made.rejections] == [
            ("a", "unavailable", "gone", "404")
        ]


def test_a_process_that_gives_nothing_is_a_bug_that_names_the_record(store: Store) -> None:
    with pytest.raises(
        Bug, match="stage 'license' gave nothing for 'b', not even a rejection"
    ) as caught:
        run(STAGE, [source("a"), source("b", "nothing")], store)
    assert (caught.value.stage, caught.value.key) == ("license", "b")


def test_an_unexpected_exception_is_a_bug_with_key_and_trace_and_keeps_what_is_done(
    store: Store,
) -> None:
    with pytest.raises(Bug, match="a bug in stage 'license' on record 'b'") as caught:
        run(STAGE, [source("a"), source("b", "bug"), source("c")], store)
    assert caught.value.key == "b"
    assert "ZeroDivisionError: one of ours" in caught.value.trace
    assert "in licensed" in caught.value.trace
    assert survey(STAGE, [source("a"), source("b", "bug"), source("c")], store).num_cached == 1


def test_a_full_disk_inside_a_process_stops_the_build(store: Store) -> None:
    with pytest.raises(Stopped, match="disk full"):
        run(STAGE, [source("a", "full")], store)


def test_a_stop_inside_a_process_stays_a_stop(store: Store) -> None:
    with pytest.raises(Stopped, match="the lock is held"):
        run(STAGE, [source("a", "stop")], store)


def test_a_deleted_memo_is_made_again(store: Store) -> None:
    records = [source("a"), source("b")]
    first, _ = run(STAGE, records, store)
    logged(store)
    (store.root / "memos" / STAGE.task_key(records[1])[:2] / STAGE.task_key(records[1])).unlink()
    again, cached = run(STAGE, records, store)
    assert (logged(store), cached) == (["b"], 1)
    assert again.encode() == first.encode()


def test_a_stage_that_keeps_the_type_keeps_the_parent(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    scene = new_scene(0, 400)
    made, _ = run(Stage("halve", 1, {}, Scene, halves), [scene], store)
    assert [(each.key, each.start_pts, each.end_pts) for each in made.records] == [
        ("film-0000-0", 0, 200),
        ("film-0000-1", 200, 400),
    ]
    assert all(each.video == scene.video for each in made.records)


def test_an_empty_stage_is_an_empty_manifest(store: Store) -> None:
    made, cached = run(STAGE, [], store)
    assert (made.num_in, made.num_split, made.records, made.rejections, cached) == (0, 0, (), (), 0)


def test_records_of_a_group_travel_together_and_the_most_costly_group_goes_first(
    store: Store,
) -> None:
    seen: list[tuple[list[str], float, float]] = []

    class Spy:
        def map(
            self, work: Work, batches: Sequence[Batch]
        ) -> Iterator[tuple[Batch, Troubles | Lost]]:
            for batch in batches:
                seen.append(
                    ([record.key for _, record in batch.tasks], batch.cost, batch.timeout_s)
                )
                yield batch, work(batch)

    stage = replace(
        STAGE,
        group=lambda record: record.key[0],
        cost=lambda record: float(record.key[1:]),
        timeout=lambda cost: 10 + cost,
    )
    told: list[tuple[str, int, float]] = []
    progress = Progress(
        start=lambda *args: told.append(args), advance=lambda *args: told.append(args)
    )
    run_stage(stage, [source(key) for key in ("a1", "b5", "a2", "c4")], store, Spy(), progress)
    assert seen == [(["b5"], 5, 15), (["c4"], 4, 14), (["a1", "a2"], 3, 13)]
    assert told == [("license", 4, 12), ("license", 1, 5), ("license", 1, 4), ("license", 2, 3)]


class Ahead:
    """A `prepare` and a `process` of so many records that watch each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.started: list[str] = []
        self.seen_ahead: dict[str, list[str]] = {}
        self.moved = threading.Condition()

    def prepare(self, record: Source, store: Store) -> str:
        with self.moved:
            self.started.append(record.key)
            self.moved.notify_all()
        if record.uri.startswith("bad"):
            raise BadData("decode-error", "in prepare")
        if record.uri.startswith("bug"):
            raise ZeroDivisionError("in prepare")
        return f"ready {record.key}"

    def process(self, record: Source, store: Store, ready: str) -> Iterator[Outcome]:
        with self.moved:
            self.moved.wait_for(
                lambda: len(self.started) >= min(int(record.key) + 2, self.count), timeout=20
            )
            self.moved.wait_for(
                lambda: len(self.started) > int(record.key) + 2, timeout=0.1
            )  # time to run too far ahead
            self.seen_ahead[record.key] = list(self.started)
        yield replace(record, license=ready)


def test_prepare_runs_one_record_ahead_and_no_further(store: Store) -> None:
    ahead = Ahead(4)
    stage = Stage("encode", 1, {}, Source, ahead.process, ahead.prepare, group=lambda record: "all")
    made, _ = run(stage, [source("0"), source("1"), source("2"), source("3")], store)
    assert ahead.seen_ahead == {
        "0": ["0", "1"],
        "1": ["0", "1", "2"],
        "2": ["0", "1", "2", "3"],
        "3": ["0", "1", "2", "3"],
    }
    assert [record.license for record in made.records] == [
        "ready 0",
        "ready 1",
        "ready 2",
        "ready 3",
    ]


def test_bad_data_found_while_preparing_costs_only_its_own_record(store: Store) -> None:
    ahead = Ahead(3)
    stage = Stage("encode", 1, {}, Source, ahead.process, ahead.prepare, group=lambda record: "all")
    made, _ = run(stage, [source("0"), source("1", "bad"), source("2")], store)
    assert [record.key for record in made.records] == ["0", "2"]
    assert [(each.key, each.reason, each.detail) for each in made.rejections] == [
        ("1", "decode-error", "in prepare")
    ]


def test_an_exception_while_preparing_is_a_bug_of_that_record(store: Store) -> None:
    ahead = Ahead(3)
    stage = Stage("encode", 1, {}, Source, ahead.process, ahead.prepare, group=lambda record: "all")
    with pytest.raises(Bug, match="'1'"):
        run(stage, [source("0"), source("1", "bug"), source("2")], store)
    assert survey(stage, [source("0")], store).num_cached == 1


def test_one_lost_batch_is_tried_record_by_record_and_only_the_guilty_one_is_rejected(
    store: Store,
) -> None:
    class Fragile:
        """Loses every batch that holds the record 'b', after it has done what comes before."""

        def map(
            self, work: Work, batches: Sequence[Batch]
        ) -> Iterator[tuple[Batch, Troubles | Lost]]:
            for batch in batches:
                keys = [record.key for _, record in batch.tasks]
                done = batch.tasks[: keys.index("b")] if "b" in keys else batch.tasks
                troubles = work(replace(batch, tasks=done))
                yield batch, Lost("crashed", "killed") if "b" in keys else troubles

    records = [source("a"), source("b"), source("c"), source("d", "gone")]
    stage = replace(STAGE, group=lambda record: "all")
    made, _ = run_stage(stage, records, store, Fragile(), Progress())
    assert logged(store) == ["a", "c", "d"]
    assert [record.key for record in made.records] == ["a", "c"]
    assert [(each.key, each.fate, each.reason) for each in made.rejections] == [
        ("d", "unavailable", "gone"),
        ("b", "bad", "crashed"),
    ]
    again, cached = run_stage(stage, records, store, Fragile(), Progress())
    assert (logged(store), cached) == (["d"], 2)  # `b` is tried again too, and kills its worker
    assert again.encode() == made.encode()
    run_stage(stage, records, store, Fragile(), Progress())
    again, cached = run_stage(stage, records, store, Inline(), Progress())
    assert (logged(store), cached) == (["d", "d"], 3)  # now `b` is remembered
    assert again.encode() == made.encode()


@pytest.mark.parametrize("reason", ["crashed", "timed-out"])
def test_a_suspicion_is_tried_in_so_many_builds_and_then_stands(
    store: Store, reason: Literal["crashed", "timed-out"]
) -> None:
    deadly = Deadly(reason)
    encoded = set()
    for number in range(1, MAX_SUSPICIONS + 3):
        manifest, cached = run_stage(STAGE, [source("a")], store, deadly, Progress())
        assert [(each.fate, each.reason) for each in manifest.rejections] == [("bad", reason)]
        assert deadly.num_tried == 2 * min(number, MAX_SUSPICIONS)
        assert cached == (number > MAX_SUSPICIONS)
        encoded.add(manifest.encode())
    assert len(encoded) == 1  # how often it was tried is in no manifest


@pytest.mark.parametrize("reason", ["crashed", "timed-out"])
def test_a_fault_of_the_machine_leaves_no_trace_once_it_has_passed(
    store: Store, tmp_path: Any, reason: Literal["crashed", "timed-out"]
) -> None:
    records = [source("a"), source("b", "bad"), source("c", "gone")]
    deadly = Deadly(reason)
    run_stage(STAGE, records, store, deadly, Progress())
    deadly.is_out_of_order = False
    manifest, _ = run_stage(STAGE, records, store, deadly, Progress())
    undisturbed = Store(tmp_path / "undisturbed")
    undisturbed.prepare()
    assert manifest.encode() == run(STAGE, records, undisturbed)[0].encode()


def test_what_was_suspected_and_is_now_out_of_reach_is_one_rejection(store: Store) -> None:
    deadly = Deadly("crashed")
    run_stage(STAGE, [source("a", "gone")], store, deadly, Progress())
    deadly.is_out_of_order = False
    for _ in range(2):
        manifest, _ = run_stage(STAGE, [source("a", "gone")], store, deadly, Progress())
        assert [each.reason for each in manifest.rejections] == ["gone"]
    deadly.is_out_of_order = True
    manifest, _ = run_stage(STAGE, [source("a", "gone")], store, deadly, Progress())
    assert [each.reason for each in manifest.rejections] == ["crashed"]
    assert store.recall(STAGE.task_key(source("a", "gone")))[0]["builds"] == 2


def test_memos_of_before_count_as_one_build(store: Store) -> None:
    entry = {"bad": "timed-out", "detail": "no result", "at": "2026-01-01T00:00:00Z", "tries": 2}
    store.remember(STAGE.task_key(source("a")), [entry])
    manifest, cached = run(STAGE, [source("a")], store)
    assert ([record.key for record in manifest.records], cached) == (["a"], 0)


@pytest.mark.parametrize(
    ("count", "join_s", "sizes"),
    [(40, 0, {1}), (40, 1e9, {2}), (40, 1.5, {1}), (320, 5, {5}), (8, 1e9, {1})],
)
def test_small_groups_travel_together_but_leave_enough_batches_to_share_out(
    store: Store, count: int, join_s: float, sizes: set[int]
) -> None:
    seen: list[Batch] = []

    class Watching(Inline):
        def map(
            self, work: Work, batches: Sequence[Batch]
        ) -> Iterator[tuple[Batch, Troubles | Lost]]:
            seen.extend(batches)
            return super().map(work, batches)

    sources = [Source(f"s{number:03d}", f"ok:{number}") for number in range(count)]
    run_stage(replace(STAGE, join_s=join_s), sources, store, Watching(), Progress())
    assert {len(batch.tasks) for batch in seen} == sizes
    assert sorted(record.key for batch in seen for _, record in batch.tasks) == [
        source.key for source in sources
    ]


def wrong(source: Source, store: Store) -> Iterator[Outcome]:
    """Gives what no memo must hold."""
    match source.uri.partition(":")[0]:
        case "type":
            yield Scene(source.key, None, 0, 1)  # type: ignore[arg-type]
        case "key":
            yield replace(source, key="x")
        case "value":
            yield replace(source, license=3)  # type: ignore[arg-type]
        case "reason":
            raise BadData("too-blurry", "no such class")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("does", "problem"),
    [
        ("type", "got a Scene, the stage makes Sources"),
        ("key", "the key 'x' does not begin with that of its record"),
        ("value", "license\n"),
        ("reason", "no reason is called 'too-blurry'"),
    ],
)
def test_a_wrong_output_is_a_bug_and_is_not_remembered(
    store: Store, does: str, problem: str
) -> None:
    stage = Stage("license", 1, {}, Source, wrong)
    with pytest.raises(Bug, match="on record 'a'") as caught:
        run(stage, [source("a", does)], store)
    assert problem in caught.value.trace
    assert survey(stage, [source("a", does)], store).num_cached == 0
