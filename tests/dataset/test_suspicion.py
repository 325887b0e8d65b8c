"""What a build, its lock and its card say of records that crashed or ran out of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import Damaged, Stopped
from pipeline.core.executors import Inline
from pipeline.core.records import origins
from pipeline.core.stage import Executor, Lost, Progress, suspicion
from pipeline.core.store import Store
from pipeline.dataset import build, lock
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import Step
from pipeline.plan.plan import plan
from pipeline.publish import card
from tests.making.dataset import Dataset
from tests.making.deadly import Deadly
from tests.making.steps import step_of


@pytest.fixture
def dataset(small_dataset: Dataset, tmp_path: Path) -> Dataset:
    dataset = small_dataset.copy(tmp_path)
    dataset.build()  # its videos are other files now
    return dataset


def suspect(dataset: Dataset) -> str:
    """Let a worker have died at one clip, as far as the store knows; returns the scene's key."""
    loaded = recipes.load(dataset.recipe)
    survey = step_of("extract", build.look(loaded, dataset.data, "cpu")).survey
    assert survey is not None
    scene = survey.records[0]
    store = Store(dataset.data / "store")
    entry = suspicion(Lost("crashed", "the worker died"), None)
    store.remember(survey.keys[scene.key], [entry], origins(scene))
    return scene.key


def built(dataset: Dataset, executor: Executor, relock: bool = False) -> list[Step]:
    loaded = recipes.load(dataset.recipe)
    return list(
        build.build(loaded, dataset.data, executor, "cpu", "shard", Progress(), relock=relock)
    )


def test_the_lock_and_the_card_say_how_many_records_rest_on_suspicion(dataset: Dataset) -> None:
    loaded = recipes.load(dataset.recipe)
    before = lock.read(dataset.recipe)
    assert "suspected" not in before.header
    assert "on suspicion" not in card.markdown(loaded, before)
    suspect(dataset)
    built(dataset, Inline())
    assert lock.read(dataset.recipe) == before  # it has a sample more
    built(dataset, Inline(), relock=True)
    locked = lock.read(dataset.recipe)
    assert locked.header["suspected"] == 1
    assert len(locked.samples) == len(before.samples) - 1
    assert "1 record was rejected on suspicion" in card.markdown(loaded, locked)


def test_the_next_build_tries_again_and_has_the_same_lock_as_if_nothing_had_been(
    dataset: Dataset,
) -> None:
    content = dataset.lock.read_bytes()
    suspect(dataset)
    deadly = Deadly("crashed", "extract")
    built(dataset, deadly, relock=True)
    deadly.is_out_of_order = False
    steps = built(dataset, deadly)
    assert all(step.manifest.reasons.keys() <= {"too-few-frames"} for step in steps)
    assert dataset.lock.read_bytes() == content


def test_how_often_it_was_tried_is_in_no_byte_of_the_lock(dataset: Dataset) -> None:
    suspect(dataset)
    deadly = Deadly("crashed", "extract")
    locks = set()
    for _ in range(4):
        built(dataset, deadly, relock=True)
        locks.add(dataset.lock.read_bytes())
    assert len(locks) == 1
    assert deadly.num_tried == 4  # twice in the second build of it, twice in the third


def test_plan_says_that_it_is_tried_again(dataset: Dataset) -> None:
    key = suspect(dataset)
    planned = plan(recipes.load(dataset.recipe), dataset.data, "cpu")
    assert planned.lines["extract"].reasons == {"tried again: crashed": [key]}


def test_a_worker_that_dies_while_it_packs_stops_the_build_and_rejects_nothing(
    dataset: Dataset,
) -> None:
    """What it packs was made here: it is no fault of any video."""
    content = dataset.lock.read_bytes()
    loaded = recipes.load(dataset.recipe)
    survey = step_of("shard", build.look(loaded, dataset.data, "cpu")).survey
    assert survey is not None
    Store(dataset.data / "store").forget(survey.keys[survey.records[0].key])
    deadly = Deadly("crashed", "shard")
    with pytest.raises(Stopped, match=r"stage 'shard' on '.*' was tried twice: no word of it"):
        built(dataset, deadly)
    deadly.is_out_of_order = False
    built(dataset, deadly)
    assert dataset.lock.read_bytes() == content


def test_a_lock_that_counts_other_suspicions_than_its_stages_is_damaged(
    dataset: Dataset,
) -> None:
    locked = lock.read(dataset.recipe)
    lock.write(replace(locked, header={**locked.header, "suspected": 3}), dataset.recipe)
    with pytest.raises(Damaged, match="counts other suspicions than its stages do"):
        lock.read(dataset.recipe)
