"""A small dataset with its page, and a browser to look at it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.publish.page import report
from tests.making.browser import Watched, browser
from tests.making.dataset import Dataset


@pytest.fixture(scope="session")
def shown(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small dataset with its page. Not to be changed."""
    dataset = small_dataset.copy(tmp_path_factory.mktemp("shown"))
    dataset.build()  # the copied videos have other times, so they are looked at again
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 120, Progress())
    return dataset


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser a file of tests: while it lives, no event loop can be run in this process."""
    with browser() as running:
        yield running


@contextmanager
def watching(chromium: Any, width: int, **options: Any) -> Iterator[Watched]:
    """A page in a fresh profile, 800 pixels high; at the end nothing may have gone wrong in it."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
    context.set_default_timeout(20_000)
    watched = Watched(context)
    yield watched
    context.close()
    assert watched.problems == []


@contextmanager
def touched_page(chromium: Any, dataset: Dataset, width: int) -> Iterator[Any]:
    """The page of a dataset on a machine with a touch screen."""
    with watching(chromium, width, has_touch=True, is_mobile=True) as watched:
        watched.page.goto(address_of(dataset))
        yield watched.page


@pytest.fixture
def watched(chromium: Any) -> Iterator[Watched]:
    """A page of 1280 x 800."""
    with watching(chromium, 1280, accept_downloads=True) as watched:
        yield watched


@pytest.fixture
def page(watched: Watched, shown: Dataset) -> Any:
    """The page of the small dataset, opened as a file."""
    watched.page.goto(address_of(shown))
    return watched.page


def address_of(dataset: Dataset, state: str = "") -> str:
    path: Path = dataset.folder / "report" / "index.html"
    return f"{path.absolute().as_uri()}{state}"


def staying(page: Any) -> int:
    return int(page.locator(".tally-clips b").get_attribute("data-count"))


def drag(page: Any, measure: str, side: str, share: float) -> None:
    """Drag a handle of a histogram to a place on its axis, 0 to 1."""
    track = page.locator(f'[data-measure="{measure}"] .track')
    box = track.bounding_box()
    handle = track.locator(f".handle.{side}").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share / 2, box["y"] + 20)
    page.mouse.move(box["x"] + box["width"] * share, box["y"] + 20)
    page.mouse.up()
    page.wait_for_timeout(100)
