"""100,000 clips on one page: how soon it is there, and how it scrolls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import RecipeError
from pipeline.dataset import recipe as recipes
from pipeline.publish.page import report
from pipeline.publish.page.contents import Survey
from tests.making import many
from tests.making.browser import Watched

NUM_CLIPS = 100_000
OPEN_S = 3.0
FRAME_MS = 20.0  # 50 a second
TRIES = 4  # the best counts: others use this machine too
SCROLL = """async (step) => {
    const grid = document.querySelector('.grid');
    const pauses = [];
    let last = await new Promise(requestAnimationFrame);
    for (let frame = 0; frame < 120; frame++) {
        grid.scrollTop += step;
        const now = await new Promise(requestAnimationFrame);
        pauses.push(now - last);
        last = now;
    }
    return pauses.sort((a, b) => a - b)[60];
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.write(tmp_path_factory.mktemp("many"), NUM_CLIPS)


def test_it_is_there_in_three_seconds_and_scrolls_at_50_frames_a_second(
    path: Path, watched: Watched
) -> None:
    page = watched.page
    seconds = min(opened(page, path) for _ in range(TRIES))
    assert page.locator(".tile").count() < 100  # only what is seen exists
    pauses = {step: min(page.evaluate(SCROLL, step) for _ in range(TRIES)) for step in (30, 300)}
    megabytes = path.stat().st_size / 1e6
    print(f"\n{megabytes:.1f} MB, there in {seconds:.2f} s, median ms a frame: {pauses}")
    assert megabytes < 30
    assert seconds < OPEN_S
    assert max(pauses.values()) < FRAME_MS


def opened(page: Any, path: Path) -> float:
    page.goto("about:blank")
    start = time.monotonic()
    page.goto(path.as_uri())
    page.locator(".tile:visible").first.wait_for()
    return time.monotonic() - start


def test_a_threshold_of_one_in_20_scores_counts_exactly(path: Path, watched: Watched) -> None:
    page = watched.page
    page.goto(path.as_uri())
    handle = page.locator('[data-measure="score_3"] .handle.low')
    handle.focus()
    for _ in range(4):
        page.keyboard.press("PageUp")
    page.wait_for_timeout(300)
    readout = page.locator('[data-measure="score_3"] .readout').inner_text()
    least = float(readout.removeprefix("at least "))
    clips = many.survey(path.parent, NUM_CLIPS).clips
    values = [dict(clip.scores)["score_3"] for clip in clips]
    shown = int(page.locator(".tally-clips b").get_attribute("data-count"))
    assert 0 < shown < NUM_CLIPS
    assert shown == sum(value is None or value >= least for value in values)


def test_more_clips_than_a_page_holds_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = many.survey(tmp_path, 100, 0)
    monkeypatch.setattr(report, "MOST_CLIPS", 60)
    monkeypatch.setattr(report, "look", lambda *_: iter(survey.steps))
    loaded = recipes.load(tmp_path / "many.toml")
    with pytest.raises(RecipeError, match=r"100 clips are more than one page holds .* --source"):
        report.survey_of(loaded, tmp_path, "cpu")
    part = report.survey_of(loaded, tmp_path, "cpu", "walk-00001")
    assert len(part.clips) == 50
    assert {d.rejection.key[:10] for d in part.dropped} == {"walk-00001"}
    assert isinstance(part, Survey)
