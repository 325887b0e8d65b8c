"""`clean`: one dataset goes, and of the store what it alone refers to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.core.store import Store
from pipeline.dataset.build import opened
from pipeline.publish import clean, sweep
from tests.making.command import longtake
from tests.making.dataset import OPTIONS, Dataset


@pytest.fixture
def pair(small_dataset: Dataset, tmp_path: Path) -> tuple[Dataset, Dataset]:
    """Two datasets in one data folder: `small` of five videos, and `other` of one of these and at
    another size.
    """
    small = small_dataset.copy(tmp_path)
    small.build()  # copied files are other files: their names and times are remembered anew
    recipe = small.recipe.with_name("other.toml")
    text = '[[source]]\nid = "c"\nuri = "file:c.mp4"\ncaption = "the film c"\n'
    recipe.write_text(text + OPTIONS.replace("size = 64", "size = 72"))
    other = Dataset(recipe, small.data)
    other.build()
    return small, other


def blobs_of(dataset: Dataset) -> set[str]:
    store = Store(dataset.data / "store")
    return sweep.references_of([dataset.folder], store).blobs


def test_what_only_the_dataset_had_goes_and_what_is_shared_stays(
    pair: tuple[Dataset, Dataset],
) -> None:
    small, other = pair
    store = Store(small.data / "store")
    own, shared = blobs_of(other), blobs_of(other) & blobs_of(small)
    assert 0 < len(shared) < len(own)
    lock = other.lock.read_bytes()
    output = longtake("clean", other.recipe, "--data", other.data)
    assert output.returncode == 0
    assert "clips" in output.stdout
    assert not other.folder.exists()
    assert {sha256 for sha256 in own if store.path(sha256).exists()} == shared
    assert other.lock.read_bytes() == lock
    assert longtake("verify", small.recipe, "--data", small.data).returncode == 0
    assert not any(step.num_run for step in small.build())


def test_what_was_cleaned_is_built_again_to_the_same_bytes(
    pair: tuple[Dataset, Dataset],
) -> None:
    small, _ = pair
    before = small.index["root_digest"]
    swept = clean.clean("small", small.data)
    assert swept.counts["raw videos"] == 4  # of five, one is the other dataset's too
    assert any(step.num_run for step in small.build())
    assert small.index["root_digest"] == before


def test_clips_and_shards_are_counted_once(pair: tuple[Dataset, Dataset]) -> None:
    _, other = pair
    links = [*other.folder.glob("clips/*.mp4"), *other.folder.glob("shards/*.tar")]
    assert all(path.stat().st_nlink == 2 for path in links)
    swept = clean.clean("other", other.data)
    assert (swept.counts["clips"], swept.counts["shards"]) == (1, 1)
    assert swept.counts["files"] == 12  # ten manifests, the lock, the index
    assert swept.linked_bytes == 0


def test_a_dataset_alone_leaves_an_empty_store(small_dataset: Dataset, tmp_path: Path) -> None:
    small = small_dataset.copy(tmp_path)
    clean.clean("small", small.data)
    assert Store(small.data / "store").blobs() == {}


def test_nothing_is_deleted_while_a_build_is_at_work(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    small = small_dataset.copy(tmp_path)
    with opened(small.data):
        output = longtake("clean", small.recipe, "--data", small.data)
    assert output.returncode == 4
    assert "another build is working" in output.stderr
    assert longtake("verify", small.recipe, "--data", small.data).returncode == 0


def test_the_store_of_an_unfinished_build_of_another_dataset_stays(
    pair: tuple[Dataset, Dataset],
) -> None:
    small, other = pair
    own = blobs_of(other)
    note = small.data / "store" / "unfinished" / "third"
    note.parent.mkdir(exist_ok=True)
    note.touch()
    (small.data / "store" / "unfinished" / "other").touch()
    assert clean.clean("other", other.data).counts["files"] > 0
    assert [path.name for path in note.parent.iterdir()] == ["third"]
    assert own - set(Store(small.data / "store").blobs())


def test_nothing_was_built_and_nothing_goes(tmp_path: Path) -> None:
    recipe = shutil.copy(Path(__file__).parents[2] / "manifests" / "demo.toml", tmp_path)
    output = longtake("clean", recipe, "--data", tmp_path / "data")
    assert (output.returncode, output.stderr) == (0, "")
    assert "there is nothing in" in output.stdout
