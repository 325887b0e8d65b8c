"""The page of clips that a head scores: which to pick next. And fingers instead of a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.core.records import Clip
from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import read_manifest
from pipeline.media import encoders
from pipeline.media.scorers import head
from pipeline.publish.page import report
from tests.making.browser import Watched, until
from tests.making.dataset import Dataset
from tests.page.conftest import address_of, touched_page

HEADED = '\n[score]\nscorers = ["head"]\n[score.head]\nliked = "liked.safetensors"\n'


@pytest.fixture(scope="module")
def tasted(shown: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small dataset, scored by a head, with its page."""
    dataset = shown.copy(tmp_path_factory.mktemp("tasted"))
    folder = dataset.recipe.parent
    _, clip = encoders.find_weights(
        str(encoders.TINY / "clip"), None, "", encoders.CLIP_LAYOUTS, folder
    )
    width = encoders.clip_facts(encoders.TINY / "clip")["image_width"]
    weight = 20 * np.random.default_rng(1).normal(size=width)
    dataset.recipe.write_text(dataset.recipe.read_text() + HEADED)
    for bias in (0.0, -median_logit(dataset, weight, clip.sha256)):  # so that some are on each side
        (folder / "liked.safetensors").write_bytes(head.encoded(weight, bias, clip.sha256))
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    return dataset


def median_logit(dataset: Dataset, weight: Any, clip: str) -> float:
    """What the head says of the clip in the middle, without its bias."""
    rows = []
    for sample in read_manifest(dataset.folder, "encode").records:
        blob = sample.image.sha256  # type: ignore[union-attr]
        path = dataset.data / "store" / "blobs" / blob[:2] / blob
        rows.append(float(np.dot(weight, head.mean_of(np.load(path)))))
    return float(np.median(rows))


def scores_of(dataset: Dataset) -> dict[str, float]:
    records = read_manifest(dataset.folder, "score").records
    return {clip.key: dict(clip.scores)["liked"] or 0 for clip in records if isinstance(clip, Clip)}


def names(page: Any) -> list[str]:
    """The keys of the clips on the page, in order."""
    tiles = page.locator(".tile:visible")
    rows = [
        (
            int(tiles.nth(at).get_attribute("data-index")),
            tiles.nth(at).locator(".name").inner_text(),
        )
        for at in range(tiles.count())
    ]
    return [name for _, name in sorted(rows)]


def test_clips_that_a_head_is_least_certain_of_come_first_and_picked_ones_last(
    watched: Watched, tasted: Dataset
) -> None:
    page = watched.page
    page.goto(address_of(tasted))
    page.get_by_label("Sort by").select_option(label="Least certain liked")
    scores = scores_of(tasted)
    expected = sorted(scores, key=lambda key: abs(scores[key] - 0.5))
    assert len({abs(score - 0.5) for score in scores.values()}) > 3
    assert names(page) == expected
    assert "sort=unsure%3Aliked" in page.url
    assert page.locator(".tile:visible .value").first.inner_text().startswith("liked 0.")
    page.locator(".tile:visible").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("k")
    until(page, "document.querySelector('.tile.is-kept')")
    assert names(page) == [*expected[1:], expected[0]]
    page.keyboard.press("u")
    until(page, "!document.querySelector('.tile.is-kept')")
    assert names(page) == expected
    page.get_by_label("Ascending").click()
    assert names(page)[0] == expected[-1]


def test_without_a_probability_there_is_no_such_order(page: Any) -> None:
    labels = page.get_by_label("Sort by").locator("option").all_inner_texts()
    assert "By frames" in labels
    assert not [label for label in labels if "ertain" in label]


@pytest.fixture
def touched(chromium: Any, shown: Dataset) -> Iterator[Any]:
    """The page on a telephone."""
    with touched_page(chromium, shown, 390) as page:
        yield page


def test_a_tap_plays_a_clip_another_ends_it_and_the_second_opens(touched: Any) -> None:
    first, second = (touched.locator(".tile:visible").nth(at) for at in (0, 1))
    first.tap()
    until(touched, "document.querySelector('.tile .picture.is-playing video')?.currentTime > 0.2")
    assert not touched.locator("dialog[open]").count()
    second.tap()
    until(touched, "document.querySelectorAll('.tile video').length === 1")
    assert second.locator("video").count() == 1
    second.tap()
    until(touched, "document.querySelector('dialog[open]')")
    assert "clip=" in touched.url
