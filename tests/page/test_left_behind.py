"""What a page is made of goes with what it shows, and stays while that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import RecipeError
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import recipe as recipes
from pipeline.publish import clean, sweep, takedown, verify
from pipeline.publish.page import report
from tests.making.command import longtake
from tests.making.dataset import Dataset, kinds_in

PAGE = {"pictures", "decoded clips"}


@pytest.fixture
def dataset(shown: Dataset, tmp_path: Path) -> Dataset:
    copy = shown.copy(tmp_path)
    copy.build()
    return copy


def blobs(dataset: Dataset) -> set[str]:
    """Pictures and decoded clips in the store."""
    store = Store(dataset.data.absolute() / "store")
    kinds = kinds_in(store)
    return {sha256 for sha256 in store.blobs() if kinds.get(sha256) in PAGE}


def write(dataset: Dataset) -> report.Report:
    return report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())


def test_a_page_changes_no_manifest_and_no_digest(shown: Dataset, small_dataset: Dataset) -> None:
    for path in small_dataset.folder.glob("*.jsonl"):
        if path.name != "lock.jsonl":  # has the times of the files
            assert (shown.folder / path.name).read_bytes() == path.read_bytes()
    checked = verify.verify(recipes.load(shown.recipe), shown.data, "cpu", Progress())
    assert (checked.findings, checked.grade) == ([], "identical")


def test_gc_keeps_what_the_page_shows_and_sweeps_it_when_its_clips_are_gone(
    dataset: Dataset,
) -> None:
    before = blobs(dataset)
    assert len(before) > 10
    sweep.gc(dataset.data, dry=False)
    assert blobs(dataset) == before
    text = dataset.recipe.read_text()
    text = text.replace("min_frames = 20", "min_frames = 39").replace("= 60", "= 79")
    dataset.recipe.write_text(text)
    dataset.build()
    sweep.gc(dataset.data, dry=False)
    assert blobs(dataset) < before
    assert write(dataset).num_decoded > 0


def test_of_a_source_that_is_taken_down_no_picture_is_left(dataset: Dataset) -> None:
    loaded = recipes.load(dataset.recipe)
    folder = dataset.folder / "report"
    whole = blobs(dataset)
    takedown.remove(loaded, dataset.data, "a", "", "cpu")
    assert not [path for path in folder.rglob("*") if path.is_file()]
    left = blobs(dataset)
    assert left < whole
    write(dataset)
    page = (folder / "index.html").read_text()
    assert "the film a" not in page.partition('"sources":')[2] or '"removed"' in page
    names = {path.stem for path in (folder / "pictures").iterdir()}
    gone = takedown.remove(recipes.load(dataset.recipe), dataset.data, "a", "", "cpu")
    assert gone.since
    assert names
    assert blobs(dataset) == left


def test_clean_leaves_nothing(dataset: Dataset) -> None:
    clean.clean("small", dataset.data)
    assert blobs(dataset) == set()
    assert not dataset.folder.exists()
    assert Store(dataset.data.absolute() / "store").blobs() == {}


def test_of_nothing_a_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text('[[source]]\nuri = "file:nowhere.mp4"\n')
    empty = Dataset(tmp_path / "empty.toml", tmp_path / "data")
    made = write(empty)
    assert made.num_clips == 0
    assert made.path.is_file()


def test_a_page_of_an_unknown_source_is_refused(shown: Dataset) -> None:
    with pytest.raises(RecipeError, match="no source is called 'z'"):
        report.survey_of(recipes.load(shown.recipe), shown.data, "cpu", "z")


def test_a_page_without_clips_says_what_to_do(dataset: Dataset, tmp_path: Path) -> None:
    output = longtake("report", dataset.recipe, "--data", tmp_path / "elsewhere")
    assert output.returncode == 0
    assert "no clip is there yet: `longtake build` goes on" in output.stdout
    output = longtake("report", dataset.recipe, "--data", dataset.data, "--decode", "0")
    assert "no clip is there" not in output.stdout
