"""A head fitted to picks: good where the embeddings carry what was picked by, refused where not."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import picks
from pipeline.core.executors import Inline
from pipeline.core.picks import Pick
from pipeline.core.stage import Progress
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import Step
from pipeline.media import encoders
from pipeline.media.scorers import head
from pipeline.publish.taste import Fit, clips_of, fit_head, path_of
from tests.making import footage
from tests.making.command import longtake
from tests.making.dataset import Dataset

RECIPE = """
[[source]]
id = "warm"
uri = "file:warm.mp4"
[[source]]
id = "cold"
uri = "file:cold.mp4"
[cut]
detector = "none"
[filter]
min_frames = 5
max_frames = 10
[extract]
size = 64
[encode]
preset = "tiny"
"""


def coloured(path: Path, seconds: float, hue: float) -> Path:
    """A moving test picture whose colours are turned by so many degrees."""
    stream = footage.source("testsrc2", seconds, 10, "96x96").filter("hue", h=hue)
    return footage.make(path, stream, vcodec="libx264", pix_fmt="yuv420p", g=10)


@pytest.fixture(scope="module")
def extracted(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty clips of two films of other colours; nothing is encoded yet."""
    folder = tmp_path_factory.mktemp("picked")
    (folder / "recipe").mkdir()
    for name, hue in (("warm", 0), ("cold", 150)):
        (folder / "recipe" / f"{name}.mp4").write_bytes(film(coloured, 31, hue).read_bytes())
    dataset = Dataset(folder / "recipe" / "picked.toml", folder / "data")
    dataset.recipe.write_text(RECIPE)
    built(dataset, "extract")
    return dataset


def built(dataset: Dataset, last: str) -> dict[str, Step]:
    """Build as far as a stage; the steps by stage."""
    loaded = recipes.load(dataset.recipe)
    steps = build.build(loaded, dataset.data, Inline(), "cpu", last, Progress())
    return {step.manifest.stage: step for step in steps}


@pytest.fixture
def own(extracted: Dataset, tmp_path: Path) -> Dataset:
    return extracted.copy(tmp_path)


def pick(dataset: Dataset, liked: Callable[[str], bool], most: int = 1000) -> int:
    """Pick clips by their key; returns how many."""
    clips = clips_of(recipes.load(dataset.recipe), dataset.data)[:most]
    time = "2026-11-29T16:40:12Z"
    rows = [
        Pick(clip=clip.blob.sha256, pick="keep" if liked(clip.key) else "reject", time=time)
        for clip in clips
    ]
    picks.append(picks.path_of(dataset.recipe), rows)
    return len(rows)


def test_a_taste_that_clip_sees_becomes_a_score_that_a_recipe_chooses_by(own: Dataset) -> None:
    num_picks = pick(own, lambda key: key.startswith("warm"))
    assert num_picks >= 60
    output = longtake("taste", own.recipe, "--data", own.data)
    assert output.returncode == 0, output.stderr
    assert "held out clip by clip, for there are few films" in output.stdout
    assert "is right about 5" in output.stdout  # per cent: the chance
    lines = output.stdout.partition("the recipe needs\n")[2]
    assert 'taste = "picked.taste.safetensors"' in lines
    own.recipe.write_text(own.recipe.read_text() + lines)
    steps = built(own, "keep")
    kept = [record.key for record in steps["keep"].manifest.records]
    assert len(kept) > 25
    assert {key.partition("-")[0] for key in kept} == {"warm"}
    assert steps["keep"].manifest.reasons == {"taste": num_picks - len(kept)}
    output = longtake("taste", own.recipe, "--data", own.data)
    assert "the recipe names it, and the next build scores by it" in output.stdout


def test_the_same_picks_give_the_same_head(own: Dataset) -> None:
    pick(own, lambda key: key.startswith("warm"))
    first = longtake("taste", own.recipe, "--data", own.data, "--json")
    content = path_of(own.recipe).read_bytes()
    second = longtake("taste", own.recipe, "--data", own.data, "--json")
    assert path_of(own.recipe).read_bytes() == content
    results = json.loads(first.stdout)
    assert results == json.loads(second.stdout)
    assert results["accuracy"] > 0.9 > 0.6 > results["chance"]
    clip = encoders.find_weights(
        str(encoders.TINY / "clip"), None, "", encoders.CLIP_LAYOUTS, own.recipe.parent
    )[1]
    assert head.read(path_of(own.recipe)).clip == clip.sha256


def test_picks_that_clip_does_not_see_are_refused_with_their_figures(own: Dataset) -> None:
    shuffled = np.random.default_rng(5).permutation(1000)
    numbers = iter(shuffled.tolist())
    pick(own, lambda _: next(numbers) % 2 == 0)
    output = longtake("taste", own.recipe, "--data", own.data)
    assert output.returncode == 5
    assert "no better than chance, so nothing was written" in output.stdout
    assert "% of picks it has not seen" in output.stdout
    assert not path_of(own.recipe).exists()


@pytest.mark.parametrize(
    ("most", "liked", "words"),
    [
        (49, lambda key: int(key[-1]) % 2 == 0, "a taste takes 50 picks"),
        (1000, lambda key: True, "keeps 62 and rejects 0"),
        (0, lambda key: True, "keeps 0 and rejects 0"),
    ],
)
def test_too_few_picks_are_refused_in_a_sentence(
    own: Dataset, most: int, liked: Callable[[str], bool], words: str
) -> None:
    pick(own, liked, most)
    output = longtake("taste", own.recipe, "--data", own.data)
    assert output.returncode == 2
    assert words in output.stderr
    assert "picked.picks.jsonl" in output.stderr


def test_a_dataset_that_is_not_built_yet_has_no_taste(own: Dataset, tmp_path: Path) -> None:
    output = longtake("taste", own.recipe, "--data", tmp_path / "empty")
    assert output.returncode == 2
    assert "build the dataset first, as far as 'extract'" in output.stderr


@functools.cache
def fitted(signal: float, share: float = 0.5) -> Fit:
    """A head of 100 picks of 40 numbers, of which the first tells so much."""
    random = np.random.default_rng(3)
    liked = np.arange(100) < 100 * share
    embeddings = random.normal(size=(100, 40))
    embeddings[:, 0] += signal * liked
    return fit_head(embeddings, liked, [str(number) for number in range(100)])


def test_a_fit_says_how_it_does_beside_the_more_frequent_answer() -> None:
    good, none, rare = fitted(4), fitted(0), fitted(0, share=0.2)
    assert good.accuracy > 0.8
    assert good.is_better_than_chance
    assert good.by_film
    assert (good.chance, rare.chance) == (0.5, 0.8)
    assert not none.is_better_than_chance
    assert not rare.is_better_than_chance  # though it may be right about eight of ten
    assert 0 < good.spread < 0.2


def test_a_head_gives_what_its_regression_gave() -> None:
    fit = fitted(4)
    random = np.random.default_rng(3)
    logits = random.normal(size=(100, 40)) @ fit.weight + fit.bias
    # without the signal all are of those that were rejected
    assert (logits < 0).mean() > 0.9


def test_clips_of_a_film_that_look_alike_do_not_prove_a_taste() -> None:
    """Each film has a look of its own and one verdict: by clip that would be no secret."""
    random = np.random.default_rng(1)
    looks = np.repeat(random.normal(size=(30, 40)), 5, axis=0)
    embeddings = looks + 0.01 * random.normal(size=looks.shape)
    liked = np.repeat(np.arange(30) % 2 == 0, 5)
    films = [f"film {number // 5}" for number in range(150)]
    assert not fit_head(embeddings, liked, films).is_better_than_chance
    by_clip = fit_head(embeddings, liked, ["one"] * 150)
    assert by_clip.is_better_than_chance
    assert not by_clip.by_film
