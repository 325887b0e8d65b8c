"""Rules and scores: the page chooses what `[keep]` chooses."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import expression
from pipeline.core.executors import Inline
from pipeline.core.records import Clip
from pipeline.core.stage import Progress
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import read_manifest
from pipeline.publish.page import bundle, report
from pipeline.publish.page.rules import threshold_of, tree_of
from tests.making.browser import Watched
from tests.making.dataset import Dataset
from tests.page.conftest import address_of, drag, staying

SCORE = """
[score]
scorers = ["exposure", "motion", "distinct"]
[keep]
bright = "luma > 60"
lively = "motion > 0.001 or distinct >= 0.2"
"""


@pytest.fixture(scope="module")
def scored(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = small_dataset.copy(tmp_path_factory.mktemp("scored"))
    text = re.sub(r"\[score\].*?(?=\n\[|\Z)", "", dataset.recipe.read_text(), flags=re.DOTALL)
    dataset.recipe.write_text(text + SCORE)
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    return dataset


def keys(dataset: Dataset, stage: str) -> set[str]:
    return {record.key for record in read_manifest(dataset.folder, stage).records}


def test_at_first_what_stays_is_what_the_recipe_keeps(watched: Watched, scored: Dataset) -> None:
    page = watched.page
    page.goto(address_of(scored))
    assert staying(page) == len(keys(scored, "keep"))
    assert page.locator(".tile:visible").count() == len(keys(scored, "score"))
    assert page.locator('[data-measure="luma"] .readout').inner_text() == "more than 60"
    assert page.get_by_label("lively").is_checked()


def test_copied_rules_build_that_very_selection(
    watched: Watched, scored: Dataset, tmp_path: Path
) -> None:
    page = watched.page
    page.goto(address_of(scored))
    drag(page, "contrast", "low", 0.4)
    drag(page, "luma", "high", 0.9)
    page.get_by_label("lively").uncheck()
    page.wait_for_timeout(200)
    page.locator(".recipe-box summary").click()
    lines = page.locator("textarea.recipe").input_value()
    assert "lively" not in lines
    kept = set(page.locator(".tile:visible:not(.goes) .name").all_inner_texts())
    assert 0 < len(kept) < len(keys(scored, "score"))
    dataset = scored.copy(tmp_path)
    text = dataset.recipe.read_text()
    dataset.recipe.write_text(text[: text.index("[keep]")] + lines)
    loaded = recipes.load(dataset.recipe)
    list(build.build(loaded, dataset.data, Inline(), "cpu", "keep", Progress()))
    assert keys(dataset, "keep") == kept


def test_a_picks_file_in_a_folder_keeps_its_name(
    watched: Watched, scored: Dataset, tmp_path: Path
) -> None:
    dataset, page = scored.copy(tmp_path), watched.page
    (dataset.recipe.parent / "people").mkdir()
    (dataset.recipe.parent / "people" / "anna.jsonl").touch()
    dataset.recipe.write_text(dataset.recipe.read_text() + 'picks = "people/anna.jsonl"\n')
    dataset.build()
    report.write(recipes.load(dataset.recipe), dataset.data, "cpu", 0, Progress())
    page.goto(address_of(dataset))
    page.keyboard.press("x")
    assert 'picks = "people/anna.jsonl"' in page.locator("textarea.recipe").input_value()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picks").click()
    assert download.value.suggested_filename == "anna.jsonl"


def test_what_a_rule_dropped_can_be_brought_back_and_is_shown(
    watched: Watched, scored: Dataset
) -> None:
    page = watched.page
    dropped = read_manifest(scored.folder, "keep").rejections
    assert dropped
    page.goto(address_of(scored, f"#view=funnel&class=keep:{dropped[0].reason}"))
    page.locator(".rejected-tile:visible").first.click()
    assert page.get_by_role("dialog", name="Clip").is_visible()
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    assert staying(page) == len(keys(scored, "keep")) + 1


def test_scores_have_their_unit_and_meaning(watched: Watched, scored: Dataset) -> None:
    page = watched.page
    page.goto(address_of(scored))
    title = page.locator('[data-measure="luma"] .title')
    assert "brightness" in title.get_attribute("title")
    clip = next(c for c in read_manifest(scored.folder, "score").records if isinstance(c, Clip))
    page.goto(address_of(scored, f"#clip={clip.key}"))
    table = page.locator("table.scores").inner_text()
    assert f"{dict(clip.scores)['luma']:.4g}" in table


def random_rule(draw: random.Random, depth: int = 0) -> str:
    """A rule of the language, of scores a, b and c."""
    if depth < 3 and draw.random() < 0.6:
        if draw.random() < 0.2:
            return f"not ({random_rule(draw, depth + 1)})"
        word = draw.choice(["and", "or"])
        return f"({random_rule(draw, depth + 1)} {word} {random_rule(draw, depth + 1)})"
    operators = ["<", "<=", ">", ">=", "==", "!="]
    parts = [random_number(draw) for _ in range(draw.choice([2, 2, 3]))]
    parts[0] = draw.choice("abc")
    return "".join(f"{part} {draw.choice(operators)} " for part in parts[:-1]) + parts[-1]


def random_number(draw: random.Random) -> str:
    one = draw.choice(["a", "b", "c", "0.5", "0.1", "2", "0"])
    if draw.random() < 0.4:
        return f"({one} {draw.choice('+-*/')} {draw.choice(['a', 'b', '0.3', '-c'])})"
    return one


def test_javascript_judges_as_python_does(watched: Watched) -> None:
    script = bundle.script().rpartition("// main.js")[0]
    watched.page.set_content(f"<script>{script}\nwindow.truth = truth;</script>")
    draw = random.Random(7)
    rules = [expression.parse(random_rule(draw)) for _ in range(400)]
    pool = [None, 0.0, 0.1, 0.5, 0.3, 2.0, -1.0, 0.2]
    values = [{name: draw.choice(pool) for name in "abc"} for _ in range(50)]
    ask = """([trees, values]) => trees.map((tree) =>
        values.map((of) => truth(tree, (name) => of[name] ?? NaN)))"""
    answers = watched.page.evaluate(ask, [[tree_of(rule.tree) for rule in rules], values])
    for rule, row in zip(rules, answers, strict=True):
        assert row == [rule.holds(value) for value in values], rule.text


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("a > 0.1", (0.1, None, True, False)),
        ("0.1 <= a", (0.1, None, False, False)),
        ("0.1 < a <= 5", (0.1, 5, True, False)),
        ("9 >= a > 1", (1, 9, True, False)),
        ("a == 1", None),
        ("a > 1 or a < 0", None),
        ("1 < a > 2", None),
        ("a > b", None),
        ("a * 2 > 1", None),
        ("a > -1", None),
        ("a > 0.123456789", None),
        ("a < 1 < 2", None),
        ("a < 1 < a", None),
    ],
)
def test_a_rule_that_only_limits_one_score_is_a_threshold(
    text: str, limits: tuple[Any, ...] | None
) -> None:
    threshold = threshold_of(expression.parse(text))
    if limits is None:
        assert threshold is None
    else:
        assert threshold is not None
        names = ("low", "high", "strictLow", "strictHigh")
        assert tuple(threshold[name] for name in names) == limits
        json.dumps(threshold)
