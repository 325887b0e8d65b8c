"""A dataset with near-duplicates, from recipe to shards, and again from its lock."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import canonical
from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock
from pipeline.dataset import recipe as recipes
from pipeline.media import video
from pipeline.publish import compare, reproduce
from pipeline.stages import encode, keep
from tests.making.command import longtake
from tests.making.dataset import Dataset
from tests.making.films import changed, walk

RECIPE = """
name = "walks"
[filter]
min_frames = 20
[extract]
size = 64
[encode]
preset = "tiny"
image_frames = 0
psnr_share = 0
"""
KEYS = ("film", "other", "small")


def recipe_of(folder: Path, more: str = "", keys: tuple[str, ...] = KEYS) -> Path:
    sources = [f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\n' for key in keys]
    path = folder / "walks.toml"
    path.write_text(RECIPE + more + "".join(sources))
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of three seconds, a smaller copy, and another film."""
    folder = tmp_path_factory.mktemp("walks")
    film = walk(folder / "film.mp4", 1, 0, 30)
    walk(folder / "other.mp4", 2, 0, 30)
    changed(folder / "small.mp4", film, ("scale", {"w": 48, "h": 48}))
    return folder


@pytest.fixture(scope="module")
def walks(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Built without [duplicates]."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(films, folder / "recipe")
    dataset = Dataset(recipe_of(folder / "recipe"), folder / "data")
    dataset.build()
    return dataset


@pytest.fixture
def dataset(walks: Dataset, tmp_path: Path) -> Dataset:
    return walks.copy(tmp_path)


def samples(dataset: Dataset) -> dict[str, str]:
    """The split of every sample, by key."""
    return {
        sample["key"]: shard["split"]
        for shard in dataset.index["shards"]
        for sample in shard["samples"]
    }


def separating_seed(dataset: Dataset) -> int:
    """A seed with which film and small, each drawn by itself, fall into different halves."""
    videos = lock.read(dataset.recipe).videos

    def is_held_out(seed: int, key: str) -> bool:
        return int(canonical.digest([seed, videos[key].sha256])[:8], 16) < 2**31

    return next(
        seed for seed in range(99) if is_held_out(seed, "film") != is_held_out(seed, "small")
    )


def test_with_the_table_a_copy_goes_and_nothing_is_encoded_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert samples(dataset).keys() == {"film-0000", "other-0000", "small-0000"}
    assert "split_group" not in dataset.lock.read_text()  # it has the bytes that it always had
    before = dataset.index["root_digest"]
    recipe_of(dataset.recipe.parent, "[duplicates]\n")
    steps = {step.manifest.stage: step for step in dataset.build()}
    assert samples(dataset).keys() == {"film-0000", "other-0000"}
    assert steps["keep"].manifest.reasons == {"duplicate": 1}
    assert steps["encode"].num_run == 0
    assert (
        "'film-0000' shows the same"
        in longtake("rejections", dataset.recipe, "--data", dataset.data).stdout
    )
    # other options run no decoder and no encoder
    monkeypatch.setattr(video, "some_frames", lambda *_: pytest.fail("a clip was decoded"))
    monkeypatch.setattr(encode, "process", lambda *_: pytest.fail("a clip was encoded"))
    recipe_of(dataset.recipe.parent, "[duplicates]\nmax_bits = 0\n")
    dataset.build()
    assert dataset.index["root_digest"] == before


def test_a_copy_is_not_even_encoded(films: Path, tmp_path: Path) -> None:
    shutil.copytree(films, tmp_path / "recipe")
    dataset = Dataset(recipe_of(tmp_path / "recipe", "[duplicates]\n"), tmp_path / "data")
    steps = {step.manifest.stage: step for step in dataset.build()}
    assert (steps["score"].num_run, steps["encode"].num_run) == (3, 2)


def test_a_dataset_in_which_nothing_is_alike_is_the_same_with_the_table(
    dataset: Dataset,
) -> None:
    recipe_of(dataset.recipe.parent, "", ("film", "other"))
    dataset.build()
    before = dataset.index["root_digest"]
    recipe_of(dataset.recipe.parent, "[duplicates]\n", ("film", "other"))
    dataset.build()
    assert dataset.index["root_digest"] == before


def picking_both(dataset: Dataset) -> str:
    """The tables of a recipe in which both copies stay, by hand, and would be split apart."""
    clips = lock.read(dataset.recipe).clips
    lines = [
        {"clip": clips[key].sha256, "note": "", "pick": "keep", "time": "2026-01-01T00:00:00Z"}
        for key in ("film-0000", "small-0000")
    ]
    path = dataset.recipe.parent / "walks.picks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seed = separating_seed(dataset)
    return (
        f'[keep]\npicks = "{path.name}"\n[duplicates]\n[shard]\nvalidation = 0.5\nseed = {seed}\n'
    )


def test_no_near_duplicates_stand_on_both_sides_of_the_split_also_when_rebuilt(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_of(dataset.recipe.parent, picking_both(dataset))
    dataset.build()
    halves = samples(dataset)
    assert halves["film-0000"] == halves["small-0000"]
    locked = lock.read(dataset.recipe)
    groups = {key: clip.split_group for key, clip in locked.clips.items()}
    shared = min(locked.videos[key].sha256 for key in ("film", "small"))
    assert groups == {"film-0000": shared, "small-0000": shared, "other-0000": None}

    # a rebuild looks for no duplicates: neither files of picks nor hashes are there
    (dataset.recipe.parent / "walks.picks.jsonl").unlink()
    monkeypatch.setattr(
        keep, "near_duplicates", lambda *_: pytest.fail("duplicates were looked for")
    )
    clone = dataset.published(tmp_path)
    report = rebuilt(clone)
    assert report["verdict"] == "identical"
    assert clone.index["root_digest"] == dataset.index["root_digest"]


def rebuilt(clone: Dataset) -> dict[str, Any]:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    assert {step.manifest.stage for step in steps}.isdisjoint({"keep"})
    return compare.judge(locked, steps, [], Store(clone.data.absolute() / "store"))


def test_a_lock_is_rebuilt_without_the_table_too(dataset: Dataset, tmp_path: Path) -> None:
    recipe_of(dataset.recipe.parent, "[duplicates]\n")
    dataset.build()
    recipe_of(dataset.recipe.parent)
    clone = dataset.published(tmp_path)
    assert rebuilt(clone)["verdict"] == "identical"


def test_a_survey_of_what_is_built_in_part_names_the_duplicates_so_far(dataset: Dataset) -> None:
    recipe_of(dataset.recipe.parent, "[duplicates]\n")
    loaded = recipes.load(dataset.recipe)
    list(build.build(loaded, dataset.data, Inline(), "cpu", "extract", Progress()))
    steps = {step.manifest.stage: step for step in build.look(loaded, dataset.data, "cpu")}
    assert steps["score"].num_pending == 3
    assert steps["keep"].manifest.num_in == 0
    list(build.build(loaded, dataset.data, Inline(), "cpu", "score", Progress()))
    steps = {step.manifest.stage: step for step in build.look(loaded, dataset.data, "cpu")}
    assert steps["keep"].manifest.reasons == {"duplicate": 1}


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("[duplicates]\nmax_bits = 21\n", "duplicates.max_bits"),
        ("[duplicates]\nmirored = true\n", "duplicates.mirored"),
        ('[keep]\nduplicate = "motion > 1"\n', "cannot be called 'duplicate'"),
    ],
)
def test_a_wrong_table_is_refused(dataset: Dataset, table: str, complaint: str) -> None:
    recipe_of(dataset.recipe.parent, table)
    result = longtake("check", dataset.recipe)
    assert result.returncode != 0
    assert complaint in result.stdout + result.stderr
