"""The page shows and searches the captions that clips have of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.publish.page import report
from tests.making.browser import Watched
from tests.making.dataset import Dataset
from tests.page.conftest import address_of

HOSTILE = "<img src=x onerror=alert(1)> & a\u202egull"


@pytest.fixture
def page(small_dataset: Dataset, watched: Watched, tmp_path: Path) -> Any:
    dataset = small_dataset.copy(tmp_path)
    line = {"clip": "a-0000", "caption": [HOSTILE, "a bird by the sea"]}
    (dataset.recipe.parent / "mine.jsonl").write_text(json.dumps(line))
    table = '[caption]\ncaptions = "mine.jsonl"\n'
    dataset.recipe.write_text(dataset.recipe.read_text() + table)
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    watched.page.goto(address_of(dataset))
    return watched.page


def test_a_clip_has_its_own_captions_before_its_sources(page: Any) -> None:
    tile = page.locator(".tile:visible", has=page.get_by_text("a-0000", exact=True))
    tile.press("Enter")
    shown = page.get_by_role("dialog", name="Clip").locator("span.caption")
    assert shown.all_inner_texts() == [
        "<img src=x onerror=alert(1)> & a gull",
        "a bird by the sea",
        "the film a",
    ]


def test_its_captions_are_searched(page: Any) -> None:
    page.locator(".search").fill("bird BY the")
    page.wait_for_timeout(150)
    assert page.locator(".tile:visible .name").all_inner_texts() == ["a-0000"]
