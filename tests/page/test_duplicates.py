"""Near-duplicates on the page: side by side at the same moment, and counted as the build does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.publish.page import report
from tests.making.browser import until
from tests.making.dataset import Dataset
from tests.making.films import changed, walk
from tests.page.conftest import address_of, staying

RECIPE = """
name = "walks"
[filter]
min_frames = 20
[extract]
size = 64
[duplicates]
[encode]
preset = "tiny"
image_frames = 0
psnr_share = 0
"""


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A film of four seconds, a part of it that begins a second later, a mirrored copy with a
    hostile name, another film; with their page.
    """
    folder = tmp_path_factory.mktemp("walks")
    film = walk(folder / "film.mp4", 1, 0, 40)
    walk(folder / "part.mp4", 1, 10, 30)
    changed(folder / "mirror.mp4", film, ("hflip", {}), ("scale", {"w": 48, "h": 48}))
    walk(folder / "other.mp4", 2, 0, 30)
    sources = [
        f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = "<b>{key}</b>"\n'
        for key in ("film", "part", "mirror", "other")
    ]
    (folder / "walks.toml").write_text(RECIPE + "".join(sources))
    dataset = Dataset(folder / "walks.toml", folder / "data")
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    return dataset


@pytest.fixture
def page(watched: Any, walks: Dataset) -> Any:
    watched.page.goto(address_of(walks))
    return watched.page


def go_to(page: Any, dataset: Dataset, state: str) -> None:
    page.goto("about:blank")
    page.goto(address_of(dataset, state))


def test_a_clip_is_shown_beside_its_near_duplicates_and_what_became_of_each(
    page: Any, walks: Dataset
) -> None:
    go_to(page, walks, "#clip=film-0000")
    copies = page.locator(".duplicates .copy")
    copies.first.wait_for()
    words = copies.all_inner_texts()
    assert len(words) == 3
    assert words[0].split("\n")[:2] == ["film-0000", "this one"]
    assert "in the dataset" in words[0]
    [part] = [text for text in words if text.startswith("part-0000")]
    assert "1.0 s earlier" in part
    assert "rejected: duplicate" in part
    [mirror] = [text for text in words if text.startswith("mirror-0000")]
    assert "mirrored" in mirror
    assert "of 64 bits apart" in mirror
    copies.locator("a", has_text="part-0000").click()
    page.locator(".clip-view h2", has_text="part-0000").wait_for()
    assert "1.0 s later" in page.locator(".duplicates").inner_text()


def test_copies_show_the_moment_that_the_clip_shows(page: Any, walks: Dataset) -> None:
    go_to(page, walks, "#clip=film-0000&frame=20")
    place = "[...document.querySelectorAll('.copy')].find(copy => copy.innerText.startsWith('{}'))"
    times = {"film": 2.05, "part": 1.05, "mirror": 2.05}
    for name, time in times.items():
        video = place.format(name) + "?.querySelector('video')"
        until(page, f"Math.abs(({video})?.currentTime - {time}) < 0.03")
    for _ in range(15):  # before the part begins
        page.keyboard.press("ArrowLeft")
    until(page, f"({place.format('part')}).classList.contains('is-elsewhere')")
    assert not page.evaluate(f"({place.format('mirror')}).classList.contains('is-elsewhere')")


def test_a_clip_that_is_like_no_other_has_no_such_part(page: Any, walks: Dataset) -> None:
    go_to(page, walks, "#clip=other-0000")
    page.locator(".clip-facts").wait_for()
    assert page.locator(".duplicates").count() == 0


def test_what_stays_is_counted_as_the_build_does_also_after_a_pick(
    page: Any, walks: Dataset, tmp_path: Path
) -> None:
    assert staying(page) == 2
    tile = page.locator(".tile:visible", has=page.get_by_text("film-0000", exact=True))
    tile.focus()
    page.keyboard.press("x")
    assert staying(page) == 2  # the next best stays in its place
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picks").click()
    dataset = walks.copy(tmp_path)
    download.value.save_as(dataset.recipe.parent / "walks.picks.jsonl")
    text = dataset.recipe.read_text()
    picks = '[keep]\npicks = "walks.picks.jsonl"\n[duplicates]'
    dataset.recipe.write_text(text.replace("[duplicates]", picks))
    steps = {step.manifest.stage: step for step in dataset.build()}
    kept = {record.key for record in steps["keep"].manifest.records}
    shown = {
        name
        for name in page.locator(".tile:visible:not(.goes) .name").all_inner_texts()
        if name in {"film-0000", "part-0000", "mirror-0000", "other-0000"}
    }
    assert shown == kept
    assert len(kept) == 2


def test_the_side_by_side_fits_a_narrow_window(chromium: Any, walks: Dataset) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(address_of(walks, "#clip=film-0000"))
    page.locator(".duplicates .copy").first.wait_for()
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.copy')].map(copy => copy"
        ".getBoundingClientRect().right))"
    )
    assert right <= 390
    page.context.close()
