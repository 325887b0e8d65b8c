"""The page in a real browser, opened as a file."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import picks
from pipeline.core.executors import Inline
from pipeline.core.records import Clip, Scene
from pipeline.core.stage import Progress
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import read_manifest
from pipeline.publish.page import report
from tests.making.browser import Watched, until
from tests.making.dataset import Dataset
from tests.page.conftest import address_of, drag, staying
from training.frames import Window


def clips_of(dataset: Dataset) -> list[Clip]:
    records = read_manifest(dataset.folder, "extract").records
    return [record for record in records if isinstance(record, Clip)]


def tile(page: Any, key: str) -> Any:
    return page.locator(".tile:visible", has=page.get_by_text(key, exact=True))


def test_it_opens_and_asks_nothing_of_the_network(
    page: Any, watched: Watched, shown: Dataset
) -> None:
    assert page.title().startswith("small")
    assert page.locator(".tile:visible").count() == len(clips_of(shown))
    assert all(re.match("(file|data|blob):", address) for address in watched.requests)


def test_pictures_are_there(page: Any) -> None:
    until(
        page,
        "[...document.querySelectorAll('.tile:not([hidden]) .strip')]"
        ".every(image => image.complete && image.naturalWidth === 6 * 192)",
    )


def test_a_dragged_threshold_counts_what_python_counts(page: Any, shown: Dataset) -> None:
    frames = [clip.num_frames for clip in clips_of(shown)]
    for share in (0.3, 0.55, 0.9):
        drag(page, "frames", "low", share)
        readout = page.locator('[data-measure="frames"] .readout').inner_text()
        least = int(re.fullmatch(r"at least (\d+)", readout)[1])  # type: ignore[index]
        assert staying(page) == sum(count >= least for count in frames)
        assert page.locator(".tile.goes:visible").count() == sum(count < least for count in frames)
    seconds = sum(count for count in frames if count >= least) / 10
    assert (
        f"{seconds:.1f} s of {sum(frames) / 10:.1f} s" in page.locator(".tally-hours").inner_text()
    )


@pytest.mark.parametrize("measure", ["psnr", "clip bits"])
def test_both_ends_of_any_measure_count_what_python_counts(
    page: Any, shown: Dataset, measure: str
) -> None:
    samples = read_manifest(shown.folder, "encode").records
    values: list[float] = [
        sample.round_trip_psnr_db  # type: ignore[union-attr,misc]
        if measure == "psnr"
        else float(f"{sample.clip.blob.num_bytes * 8 / sample.clip.num_frames / 64**2:.4g}")  # type: ignore[union-attr]
        for sample in samples
    ]
    drag(page, measure, "low", 0.3)
    drag(page, measure, "high", 0.8)
    readout = page.locator(f'[data-measure="{measure}"] .readout').inner_text()
    low, high = map(float, readout.split(" to "))
    assert low < high
    assert staying(page) == sum(low <= value <= high for value in values)


def test_a_clip_that_lies_on_a_threshold_stays_unless_the_rule_is_strict(
    page: Any, shown: Dataset
) -> None:
    frames = [clip.num_frames for clip in clips_of(shown)]
    limit = sorted(frames)[len(frames) // 2]
    counts = {}
    for words in (f"{limit}~", f"!{limit}~", f"~{limit}", f"~!{limit}"):
        page.goto("about:blank")
        page.goto(address_of(shown, f"#rules=edited&t.frames={words}"))
        counts[words] = staying(page)
    assert list(counts.values()) == [
        sum(count >= limit for count in frames),
        sum(count > limit for count in frames),
        sum(count <= limit for count in frames),
        sum(count < limit for count in frames),
    ]


def test_arrow_keys_move_a_threshold_and_reset_takes_it_back(page: Any) -> None:
    everything = staying(page)
    page.get_by_role("slider", name="frames, at least").focus()
    page.keyboard.press("PageUp")
    page.wait_for_timeout(100)
    assert staying(page) < everything
    page.locator('[data-measure="frames"] .reset').click()
    page.wait_for_timeout(100)
    assert staying(page) == everything


def test_a_clip_plays_where_the_mouse_rests_and_ends_where_it_leaves(page: Any) -> None:
    first = page.locator(".tile:visible").first
    first.hover()
    until(page, "document.querySelector('.tile .picture.is-playing video')?.currentTime > 0.2")
    page.mouse.move(5, 5)
    until(page, "!document.querySelector('.tile video')")


def test_all_that_are_seen_play_at_once(page: Any, shown: Dataset) -> None:
    page.keyboard.press("a")
    until(
        page,
        "document.querySelectorAll('.tile .picture.is-playing video').length >= "
        f"{len(clips_of(shown))}",
    )
    page.keyboard.press("a")
    until(page, "!document.querySelector('.tile video')")


def test_keys_pick_a_reload_keeps_and_the_download_is_a_picks_file(
    page: Any, shown: Dataset, tmp_path: Path
) -> None:
    clips = clips_of(shown)
    page.locator(".tile:visible").first.focus()
    page.keyboard.press("k")
    page.keyboard.press("n")
    page.keyboard.press("x")
    page.keyboard.press("n")
    page.keyboard.press("x")
    page.keyboard.press("u")
    assert staying(page) == len(clips) - 1
    page.reload()
    assert tile(page, clips[0].key).get_attribute("class").split().count("is-kept") == 1
    assert "is-rejected" in tile(page, clips[1].key).get_attribute("class")
    assert staying(page) == len(clips) - 1
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picks").click()
    assert download.value.suggested_filename == "small.picks.jsonl"
    download.value.save_as(tmp_path / "small.picks.jsonl")
    latest = picks.last_of_each(picks.read(tmp_path / "small.picks.jsonl"))
    assert {clip: pick.pick for clip, pick in latest.items()} == {
        clips[0].blob.sha256: "keep",
        clips[1].blob.sha256: "reject",
    }


def test_pressing_a_key_again_takes_the_pick_back(page: Any) -> None:
    everything = staying(page)
    page.locator(".tile:visible").first.focus()
    page.keyboard.press("x")
    assert staying(page) == everything - 1
    page.keyboard.press("x")
    assert staying(page) == everything


def test_the_copied_lines_build_that_very_selection(
    watched: Watched, shown: Dataset, tmp_path: Path
) -> None:
    dataset, page = shown.copy(tmp_path), watched.page
    text = dataset.recipe.read_text().replace("max_frames = 60", "max_frames = 100")
    dataset.recipe.write_text(text)
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    page.goto(address_of(dataset))
    drag(page, "frames", "low", 0.3)
    page.locator(".recipe-box summary").click()
    lines = page.locator("textarea.recipe").input_value()
    table, setting = lines.strip().split("\n")
    assert table == "[filter]"
    kept = set(page.locator(".tile:visible:not(.goes) .name").all_inner_texts())
    assert 0 < len(kept) < len(clips_of(dataset))
    dataset.recipe.write_text(re.sub(r"\nmin_frames = \d+", f"\n{setting}", text))
    loaded = recipes.load(dataset.recipe)
    list(build.build(loaded, dataset.data, Inline(), "cpu", "extract", Progress()))
    assert {clip.key for clip in clips_of(dataset)} == kept


def test_a_number_of_frames_that_splits_long_clips_otherwise_says_so(page: Any) -> None:
    drag(page, "frames", "low", 0.9)
    page.locator(".recipe-box summary").click()
    assert "needs max_frames" in page.locator("textarea.recipe").input_value()


def test_the_funnel_leads_to_what_was_rejected_and_why(page: Any, shown: Dataset) -> None:
    rejections = read_manifest(shown.folder, "filter").rejections
    page.keyboard.press("f")
    chip = page.get_by_role("button", name=f"{len(rejections)} too-few-frames")
    chip.click()
    assert "class=filter%3Atoo-few-frames" in page.url
    assert page.locator(".rejected-tile:visible").count() == len(rejections)
    tile(page, rejections[0].key).click()
    card = page.get_by_role("dialog", name="Rejected record")
    text = card.inner_text()
    assert rejections[0].detail in text
    assert "file:" in text
    assert re.search(r"20\d\d-\d\d-\d\dT", text)
    until(page, "document.querySelector('.rejected-card img').naturalWidth === 6 * 192")


def test_a_clip_is_seen_frame_by_frame_beside_its_latents(page: Any, shown: Dataset) -> None:
    clip = clips_of(shown)[0]
    page.locator(".tile:visible").first.press("Enter")
    view = page.get_by_role("dialog", name="Clip")
    assert clip.key in view.inner_text()
    until(page, "document.querySelector('canvas.difference').dataset.frame === '0'")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('canvas.difference').dataset.frame === '18'")
    times = page.evaluate(
        "['original', 'decoded'].map(c => document.querySelector('video.' + c).currentTime)"
    )
    assert times == pytest.approx([1.85, 1.85], abs=0.01)
    assert f"frame 18 of {clip.num_frames}" in view.inner_text()
    page.keyboard.press(" ")
    until(page, "Number(document.querySelector('canvas.difference').dataset.frame) > 22")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog[open]')")


def test_next_and_previous_walk_through_the_grid(page: Any, shown: Dataset) -> None:
    clips = clips_of(shown)
    page.locator(".tile:visible").first.press("Enter")
    heading = page.locator(".clip-view h2")
    page.keyboard.press("n")
    assert heading.inner_text() == clips[1].key
    page.keyboard.press("p")
    assert heading.inner_text() == clips[0].key


@pytest.mark.parametrize("name", ["5@16", "17@4", "65@1"])
def test_training_windows_are_those_of_training(page: Any, shown: Dataset, name: str) -> None:
    window = Window(*map(int, name.split("@")))
    for clip in clips_of(shown):
        page.goto(address_of(shown, f"#clip={clip.key}&frame=3"))
        marks = page.locator(f'[data-window="{name}"] rect')
        latest = clip.num_frames - window.span
        if latest < 0:
            page.get_by_text(f"needs {window.span} frames").first.wait_for()
            continue
        marks.first.wait_for(state="attached")
        frames = marks.evaluate_all("marks => marks.map(mark => Number(mark.getAttribute('x')))")
        assert frames == list(window.indices(min(3, latest)))


def test_the_address_shows_another_person_the_same(
    page: Any, shown: Dataset, chromium: Any
) -> None:
    drag(page, "frames", "low", 0.5)
    page.get_by_label("Sort by").select_option("psnr")
    page.get_by_role("button", name="Staying").click()
    page.locator(".search").fill("film a")
    page.wait_for_timeout(200)
    other = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    other.goto(page.url)
    for seen in (page, other):
        seen.locator(".tile:visible").first.wait_for()
    names = [seen.locator(".tile:visible .name").all_inner_texts() for seen in (page, other)]
    assert names[0] == names[1] != []
    assert staying(page) == staying(other)
    other.locator(".tile:visible").first.press("Enter")
    other.keyboard.press("ArrowRight")
    other.wait_for_timeout(500)
    page.goto(other.url)
    page.reload()
    page.get_by_role("dialog", name="Clip").wait_for()
    assert "frame 1 of" in page.get_by_role("dialog", name="Clip").inner_text()
    other.context.close()


def test_a_source_has_its_timeline_with_what_became_of_each_scene(
    page: Any, shown: Dataset
) -> None:
    scenes = read_manifest(shown.folder, "cut").records
    of_a = [s for s in scenes if isinstance(s, Scene) and s.video.key == "a"]
    page.keyboard.press("s")
    page.get_by_role("button", name="a", exact=True).click()
    body = page.locator(".source-page")
    kept = [clip for clip in clips_of(shown) if clip.scene.video.key == "a"]
    assert body.locator(".span.kept").count() == len(kept)
    assert body.locator(".timeline .cut").count() == len(of_a) - 1
    assert body.locator(".span.dropped").count() >= 1
    body.locator(".span-row", has_text="is in the dataset").first.click()
    assert page.get_by_role("dialog", name="Clip").is_visible()


def test_search_and_filters_narrow_the_grid(page: Any, shown: Dataset) -> None:
    page.keyboard.press("/")
    page.keyboard.type("FILM B")
    page.wait_for_timeout(150)
    names = page.locator(".tile:visible .name").all_inner_texts()
    assert sorted(names) == [c.key for c in clips_of(shown) if c.scene.video.key == "b"]
    page.locator(".search").fill("nothing is called so")
    assert page.get_by_text("No clip is like that").is_visible()
    page.get_by_role("button", name="Show all clips").click()
    assert page.locator(".search").input_value() == ""
    assert page.locator(".tile:visible").count() == len(clips_of(shown))
    page.get_by_label("Source", exact=True).select_option("c")
    names = page.locator(".tile:visible .name").all_inner_texts()
    assert sorted(names) == [c.key for c in clips_of(shown) if c.scene.video.key == "c"]


@pytest.mark.parametrize("view", ["clips", "funnel", "sources"])
def test_two_keys_lead_past_head_and_panel(page: Any, view: str) -> None:
    page.get_by_role("tab", name=view.capitalize()).click()
    page.reload()
    page.keyboard.press("Tab")
    skip = page.get_by_role("button", name="Skip to the view")
    assert skip.bounding_box()["height"] > 20
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    assert skip.bounding_box()["height"] < 10
    if view == "clips":
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('aria-posinset')") == "2"


def test_everything_is_reached_without_a_mouse(page: Any) -> None:
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        label = page.evaluate(
            "(at => at.getAttribute('aria-label') || at.textContent.trim())(document.activeElement)"
        )
        seen.add(label)
    wanted = ("Clips", "Funnel", "Sources", "Copy as recipe", "frames, at least", "Sort by")
    assert all(any(name in label for label in seen) for name in wanted)
    page.keyboard.press("?")
    assert "undo the last pick" in page.get_by_role("dialog", name="Keys").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.locator(".tile[tabindex='0']").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog", name="Clip").is_visible()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("view", ["clips", "funnel", "sources", "sources&page=a"])
def test_nothing_is_wider_than_the_window(
    chromium: Any, shown: Dataset, width: int, view: str
) -> None:
    page = chromium.new_context(viewport={"width": width, "height": 844}).new_page()
    page.goto(address_of(shown, f"#view={view}"))
    page.wait_for_timeout(200)
    wider = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(node => node.checkVisibility() && "
        "!node.closest('.picture') && node.getBoundingClientRect().right > innerWidth + 1)"
        ".map(node => node.className || node.tagName)"
    )
    assert wider == []
    page.context.close()


def test_the_threshold_panel_opens_on_a_narrow_window(chromium: Any, shown: Dataset) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(address_of(shown))
    assert not page.locator(".panel").is_visible()
    page.get_by_role("button", name="Thresholds").click()
    drag(page, "frames", "low", 0.5)
    page.get_by_role("button", name="Done").click()
    assert page.locator(".tile.goes:visible").count() > 0
    page.context.close()


def test_a_second_report_makes_nothing_again(shown: Dataset) -> None:
    begin = time.monotonic()
    made = report.write(recipes.load(shown.recipe), shown.data, "cpu", 0, Progress())
    assert made.num_decoded == made.num_to_decode
    assert time.monotonic() - begin < 10


def test_a_search_without_clips_leads_to_what_was_rejected(page: Any, shown: Dataset) -> None:
    rejected = {r.key for r in read_manifest(shown.folder, "filter").rejections}
    key = sorted(rejected - {clip.key for clip in clips_of(shown)})[0]
    page.locator(".search").fill(key)
    page.get_by_role("button", name=f"See 1 rejected record with \u201c{key}\u201d").click()
    assert page.locator(".rejected-tile:visible .name").all_inner_texts() == [key]
    assert f"1 rejected record with \u201c{key}\u201d" in page.locator(".list-title").inner_text()


def test_a_source_that_was_looked_at_is_no_filter_of_the_clips(page: Any, shown: Dataset) -> None:
    page.get_by_label("Source", exact=True).select_option("c")
    page.get_by_role("tab", name="Sources").click()
    page.get_by_role("button", name="a", exact=True).click()
    page.get_by_role("tab", name="Clips").click()
    names = page.locator(".tile:visible .name").all_inner_texts()
    assert sorted(names) == [c.key for c in clips_of(shown) if c.scene.video.key == "c"]
    page.get_by_role("tab", name="Sources").click()
    assert page.locator(".source-row").count() > 1


def test_only_a_source_with_clips_offers_them(page: Any, shown: Dataset) -> None:
    with_clips = {clip.scene.video.key for clip in clips_of(shown)}
    videos = {record.key for record in read_manifest(shown.folder, "download").records}
    for key in (min(with_clips), min(videos - with_clips)):
        page.goto(address_of(shown, f"#view=sources&page={key}"))
        offered = page.get_by_role("button", name="Its clips in the grid").count()
        assert offered == (key in with_clips)


def test_a_clip_that_would_go_says_why(page: Any, shown: Dataset) -> None:
    drag(page, "frames", "low", 0.6)
    least = page.locator('[data-measure="frames"] .readout').inner_text().split()[-1]
    gone = page.locator(".tile.goes:visible").first
    assert f"would go: not frames >= {least}" in gone.get_attribute("title")
    gone.press("Enter")
    verdict = page.locator(".verdict")
    assert verdict.inner_text() == f"would go: not frames >= {least}"
    page.keyboard.press("k")
    assert verdict.inner_text() == "stays: by hand"


def test_the_page_says_where_the_lines_and_the_picks_go(page: Any, shown: Dataset) -> None:
    picks_box, box = page.locator(".picks"), page.locator(".recipe-box")
    assert "K keeps and X rejects" in picks_box.inner_text()
    page.keyboard.press("x")
    assert "0 kept, 1 rejected, in this browser only" in picks_box.inner_text()
    below = page.locator('[data-measure="frames"]').bounding_box()
    assert picks_box.bounding_box()["y"] < below["y"]
    page.get_by_role("button", name="Copy as recipe").click()
    page.get_by_text("The lines are").wait_for()
    steps = box.inner_text()
    assert f"In {shown.recipe.name}, [keep] takes the place" in steps
    assert "The downloaded picks belong beside it, as small.picks.jsonl" in steps


def test_a_note_stays_with_its_pick_and_enter_gives_the_keys_back(page: Any) -> None:
    page.keyboard.press("Enter")
    page.locator(".note").fill("shaky")
    page.keyboard.press("Enter")
    page.keyboard.press("x")
    assert page.locator(".pick.reject").get_attribute("aria-pressed") == "true"
    assert page.locator(".note").input_value() == "shaky"
    page.locator(".note").fill("shaky, and dark")
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    assert page.locator(".note").input_value() == ""
    page.reload()
    page.keyboard.press("p")
    assert page.locator(".note").input_value() == "shaky, and dark"
    lines = page.evaluate("JSON.parse(Object.values(localStorage)[0])")
    assert [(line["pick"], line["note"]) for line in lines] == [
        ("reject", "shaky"),
        ("reject", "shaky, and dark"),
    ]


def test_what_the_list_shows_stands_above_it_on_a_narrow_window(
    chromium: Any, shown: Dataset
) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(address_of(shown, "#view=funnel"))
    title = page.locator(".list-title").bounding_box()
    first = page.locator(".rejected-tile:visible").first.bounding_box()
    funnel = page.locator(".funnel-top").bounding_box()
    assert funnel["y"] + funnel["height"] <= title["y"]
    assert title["y"] + title["height"] <= first["y"]
    page.context.close()


def test_names_of_scores_are_not_broken_on_a_narrow_window(chromium: Any, shown: Dataset) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(address_of(shown, f"#clip={clips_of(shown)[0].key}"))
    lines = page.evaluate(
        """[...document.querySelectorAll('.scores tr')].map((row) => {
            const name = row.querySelector('th bdi');
            name.textContent = 'bits_per_pixel';
            row.querySelector('.figure').textContent = 'not measured';
            row.querySelector('.unit').textContent = 'side/s';
            return name.getClientRects().length;
        })"""
    )
    assert lines
    assert set(lines) == {1}
    page.context.close()
