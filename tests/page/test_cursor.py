"""The card on which keys act is the one that one points at, reached, or sees framed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.making import many
from tests.making.browser import Watched, until
from tests.making.dataset import Dataset
from tests.page.conftest import touched_page

IN_SIGHT = """(() => {
    const area = document.querySelector('.grid').getBoundingClientRect();
    const { top, bottom } = document.querySelector('.tile.is-current').getBoundingClientRect();
    const middle = (top + bottom) / 2;
    return middle >= area.top && middle <= area.bottom;
})()"""


@pytest.fixture(scope="module")
def many_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.write(tmp_path_factory.mktemp("some"), 500)


@pytest.fixture
def long(many_clips: Path, watched: Watched) -> Iterator[Any]:
    """A page of 500 clips, whose files are not there to be played."""
    watched.page.goto(many_clips.as_uri())
    watched.page.locator(".tile:visible").first.wait_for()
    yield watched.page
    watched.problems[:] = [text for text in watched.problems if "FILE_NOT_FOUND" not in text]


def name(tile: Any) -> str:
    return str(tile.locator(".name").inner_text())


def framed(page: Any) -> str:
    """The key of the card with the frame; there is one at any time."""
    return name(page.locator(".tile.is-current:visible"))


def point_at(page: Any, tile: Any) -> None:
    """Move the mouse onto a tile, as a hand does."""
    box = tile.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.move(box["x"] + 40, box["y"] + 40)


def test_keys_act_on_the_clip_under_the_mouse(page: Any) -> None:
    third = page.locator(".tile:visible").nth(2)
    point_at(page, third)
    assert framed(page) == name(third)
    page.keyboard.press("k")
    assert page.locator(".tile.is-kept:visible .name").all_inner_texts() == [name(third)]


def test_keys_act_on_the_card_that_has_the_focus(page: Any) -> None:
    third = page.locator(".tile:visible").nth(2)
    third.focus()
    page.keyboard.press("x")
    assert page.locator(".tile.is-rejected:visible .name").all_inner_texts() == [name(third)]


def test_arrow_keys_and_enter_need_no_focus(page: Any) -> None:
    keys = page.locator(".tile:visible .name").all_inner_texts()
    assert framed(page) == keys[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert framed(page) == keys[1]
    page.keyboard.press("Enter")
    assert page.locator(".clip-view h2").inner_text() == keys[1]


def test_keys_act_after_a_box_was_ticked(page: Any) -> None:
    page.evaluate("document.querySelector('.panel').append(document.createElement('input'))")
    page.evaluate("document.querySelector('.panel > input').type = 'checkbox'")
    page.locator(".panel > input").check()
    page.keyboard.press("k")
    assert page.locator(".tile.is-kept:visible").count() == 1
    page.keyboard.press(" ")
    assert not page.locator(".panel > input").is_checked()


def test_what_scrolled_out_of_sight_is_not_picked_and_tab_reaches_what_is_seen(long: Any) -> None:
    first = framed(long)
    long.mouse.move(800, 400)
    long.mouse.wheel(0, 3000)
    until(long, "document.querySelector('.grid').scrollTop > 2000")
    until(long, IN_SIGHT)
    assert framed(long) != first
    long.locator(".play-all").focus()
    long.keyboard.press("Tab")
    reached = long.evaluate("document.activeElement.querySelector('.name').textContent")
    long.keyboard.press("x")
    long.get_by_text(f"{reached} is rejected").wait_for()


def test_a_tile_that_scrolls_under_a_mouse_at_rest_does_not_take_the_cursor(long: Any) -> None:
    point_at(long, long.locator(".tile:visible").nth(2))
    long.keyboard.press("End")
    last = framed(long)
    long.wait_for_timeout(400)
    assert framed(long) == last
    long.mouse.move(700, 300)
    long.mouse.move(705, 305)
    assert framed(long) != last


@pytest.fixture
def hybrid(chromium: Any, shown: Dataset) -> Iterator[Any]:
    """A machine that has a touch screen, and says that nothing hovers."""
    with touched_page(chromium, shown, 800) as page:
        yield page


def test_a_click_of_a_mouse_opens_a_clip_at_once_on_any_machine(hybrid: Any) -> None:
    assert hybrid.evaluate("matchMedia('(hover: none)').matches")
    hybrid.locator(".tile:visible").first.click()
    assert hybrid.get_by_role("dialog", name="Clip").is_visible()
