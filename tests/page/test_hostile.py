"""Whatever strangers write is text on the page, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.publish.page import bundle, report
from pipeline.publish.page.contents import contents
from tests.making import many
from tests.making.browser import Watched, until
from tests.making.dataset import Dataset
from tests.page.conftest import address_of

CAPTION = (
    '</script><script>document.title = \\"broken\\"</script>'
    "<img src=x onerror=alert(1)> \\\" ' & {{data}} \\u202Eevil\\u202C \\u2028 ${alert(1)} %s"
)
WRITTEN = "</script><script>"


def test_a_hostile_caption_licence_and_address_are_shown_as_text(
    watched: Watched, small_dataset: Dataset, tmp_path: Path
) -> None:
    dataset = small_dataset.copy(tmp_path)
    text = dataset.recipe.read_text()
    text = text.replace('"the film a"', f'"{CAPTION}"').replace(
        'license = "CC0-1.0"', 'license = "<b onclick=alert(1)>\\u202E\\"CC\\"</b>"'
    )
    nowhere = '[[source]]\nid = "gone"\nuri = "file:<svg onload=alert(1)>.mp4"\n'
    dataset.recipe.write_text(text.replace("[filter]", f"{nowhere}[filter]"))
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    page = watched.page
    for state in ("", "#view=sources&page=a", "#view=funnel", "#view=sources&page=gone"):
        page.goto("about:blank")
        page.goto(address_of(dataset, state))
        page.locator(".tabs").wait_for()
        assert page.title().startswith("small")
        assert page.evaluate("document.scripts.length") == 0
        assert (
            page.evaluate(
                "document.querySelectorAll('img[onerror], svg[onload], b[onclick]').length"
            )
            == 0
        )
    page.goto(address_of(dataset, "#view=sources&page=a"))
    shown = page.locator(".source-page").inner_text()
    assert WRITTEN in shown
    assert "<img src=x onerror=alert(1)>" in shown
    assert "\u27e8U+202E\u27e9evil\u27e8U+202C\u27e9" in shown
    assert "\u202e" not in shown
    page.goto(address_of(dataset, "#view=funnel"))
    page.locator(".rejected-tile", has_text="gone").first.click()
    assert (
        "<svg onload=alert(1)>" in page.get_by_role("dialog", name="Rejected record").inner_text()
    )


def test_hostile_names_of_scores_and_values_that_are_none(watched: Watched, tmp_path: Path) -> None:
    survey = many.survey(tmp_path, 50)
    data: dict[str, Any] = contents(survey, [], {}, [], {})
    name = '"><script>alert(1)</script>\u202e'
    for measure in data["measures"]:
        if measure["name"] == "score_3":
            measure |= {"name": name, "unit": "<b>", "meaning": '"\u202e<i>'}
    data["clips"]["keys"][0] = "<script>alert(2)</script>"
    data |= {"places": report.PLACES, "picks_file": "a.jsonl", "served": None}
    path = tmp_path / "index.html"
    path.write_text(bundle.page(data), "utf-8")
    page = watched.page
    page.goto(path.as_uri())
    assert page.locator(".tile:visible").count() > 10
    assert page.get_by_text("<script>alert(2)</script>").count() == 1
    page.locator(".histogram .title", has_text="alert(1)").click()
    until(
        page,
        "[...document.querySelectorAll('.value')].some(v => v.textContent.includes('alert(1)'))",
    )
    page.get_by_role("slider").last.scroll_into_view_if_needed()
    assert page.evaluate("document.scripts.length") == 0


def test_an_address_that_somebody_made_up_breaks_nothing(watched: Watched, shown: Dataset) -> None:
    state = (
        "#view=<b>&clip=../../x&sort=__proto__&t.frames=NaN~1e999&t.nothing=1~2&source=%00&off=x"
        "&frame=-5&order=%22&class=a:b&q=%F0"
    )
    page = watched.page
    page.goto(address_of(shown, state))
    page.locator(".tabs").wait_for()
    page.goto(address_of(shown, "#clip=__proto__&view=funnel&class=constructor"))
    page.goto(address_of(shown, "#clip=b-0000-000&frame=99999999"))
    assert "frame" in page.get_by_role("dialog", name="Clip").inner_text()


def test_broken_picks_in_the_browser_are_passed_over(watched: Watched, shown: Dataset) -> None:
    page = watched.page
    page.goto(address_of(shown))
    for stored in ("{", "[1, null, {}]", '[{"clip":"x","pick":"keep"}]', '"text"', "null"):
        page.evaluate("text => localStorage.setItem('longtake.picks.small', text)", stored)
        page.reload()
        page.locator(".tile:visible").first.wait_for()
        assert page.get_by_text("none yet").is_visible()
