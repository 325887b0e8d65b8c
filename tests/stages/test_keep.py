"""keep: the recipe's rules over scores, and what a recipe may not say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.core import picks
from pipeline.core.errors import CAUSES, REASONS, RecipeError, Unchosen
from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Crop, Scene
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import recipe as recipes
from pipeline.media import scorers
from pipeline.stages import keep

BLOB = Blob("0" * 64, 1)
SCORES = {"motion": 0.1, "distinct": 1.0, "black": 0.0, "luma": 120.0, "camera": None}


@pytest.fixture
def clip(new_scene: Callable[..., Scene]) -> Clip:
    crop = Crop(0, 0, 64, 64)
    scene = new_scene(0, 400)
    scores = tuple(SCORES.items())
    return Clip("film-0000", scene, BLOB, 10, Fraction(10), 64, crop, "0" * 64, scores)


def judged(clip: Clip, store: Store, rules: dict[str, str] | None, **scores: float) -> Manifest:
    table = keep.WITHOUT if rules is None else keep.Params.model_validate(rules)
    clip = replace(clip, scores=tuple({**dict(clip.scores), **scores}.items()))
    stage = keep.stage(Setup((scorers.Params(), table)))
    return run_stage(stage, [clip], store, Inline(), Progress())[0]


def test_a_rule_that_is_false_drops_the_clip_under_its_own_name(clip: Clip, store: Store) -> None:
    manifest = judged(clip, store, {"calm": "motion < 0.05", "lit": "luma > 200 or motion > 9"})
    [rejection] = manifest.rejections
    assert (rejection.stage, rejection.fate, rejection.reason) == ("keep", "bad", "calm")
    assert rejection.detail == "motion 0.1; the rule: motion < 0.05"
    assert manifest.reasons == {"calm": 1}


def test_the_first_broken_rule_in_the_recipes_order_counts(clip: Clip, store: Store) -> None:
    rules = {"z": "luma > 200 or motion > 9", "a": "motion < 0.05"}
    assert judged(clip, store, rules).reasons == {"z": 1}
    assert judged(clip, store, dict(reversed(rules.items()))).reasons == {"a": 1}


def test_true_rules_and_rules_that_are_not_known_keep_the_clip_as_it_is(
    clip: Clip, store: Store
) -> None:
    rules = {"moving": "motion > 0.05", "steady": "camera < 0.01", "odd": "motion / black > 3"}
    assert judged(clip, store, rules).records == (clip,)


def test_nothing_is_remembered(clip: Clip, store: Store) -> None:
    judged(clip, store, {"moving": "motion > 0.05"})
    assert list(store.memos()) == []


def test_without_keep_black_and_still_clips_are_dropped_and_an_empty_table_drops_none(
    clip: Clip, store: Store
) -> None:
    black, still = {"black": 1.0}, {"motion": 0.0, "distinct": 0.0}
    assert judged(clip, store, None).reasons == {}
    assert judged(clip, store, None, **black).reasons == {"black": 1}
    assert judged(clip, store, None, **still).reasons == {"still": 1}
    assert judged(clip, store, {}, **black, **still).reasons == {}


def test_default_rules_need_the_scores_they_name() -> None:
    def rules(*names: str) -> set[str]:
        return set(keep.rules_of(Setup((scorers.Params(scorers=names), keep.WITHOUT))))

    assert rules() == set()
    assert rules("exposure") == {"black"}
    assert rules(*scorers.DEFAULT) == {"black", "still"}


@pytest.mark.parametrize("name", sorted(REASONS | CAUSES))
def test_no_rule_may_be_called_as_other_rejections_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"a rule cannot be called '{name}'"):
        keep.Params.model_validate({name: "motion > 1"})
    with pytest.raises(ValueError, match="a reason of its own"):
        Unchosen(name, "")


RECIPE = '[[source]]\nuri = "file:a.mp4"\n'


def complaint(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(RECIPE + text)
    with pytest.raises(RecipeError) as raised:
        recipes.load(path)
    message = str(raised.value)
    assert message.startswith(str(folder))
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            '[score]\n[keep]\nstill = "moton > 1"\n',
            ["mine.toml:5: keep.still: no score is called 'moton'; did you mean 'motion'? "],
        ),
        (
            '[score]\n[keep]\na = "text < 1"\nb = "nothing_like > 1"\n',
            [
                "mine.toml:5: keep.a: 'text' is not measured: add \"text\" to scorers",
                "mine.toml:6: keep.b: no score is called 'nothing_like'; measured are motion, ",
            ],
        ),
        (
            '[keep]\nstill = "motion > 1"\n',
            ["mine.toml:4: keep.still: 'motion' is not measured: add \"motion\""],
        ),
        (
            '[score]\n[keep]\nstill = "abs(motion) > 1"\n',
            ["mine.toml:5: keep.still: got 'abs(motion) > 1', 'abs(motion)' is not allowed"],
        ),
        ("[score]\n[keep]\nstill = 3\n", ["mine.toml:5: keep.still: got 3, "]),
        ('[score]\n[keep]\ncrashed = "motion > 1"\n', ["mine.toml:4: keep: got "]),
        ('[score]\n[keep]\n"A b" = "motion > 1"\n', ["mine.toml:4: keep: got "]),
        (
            '[score]\nscorers = ["motoin"]\n',
            ["mine.toml:4: score.scorers[0]: got 'motoin', input should be 'motion', 'camera'"],
        ),
        (
            '[score]\nscorers = ["motion", "motion"]\n',
            ["mine.toml:4: score.scorers: got ['motion', 'motion'], a scorer is there twice"],
        ),
        ("[score]\ntext = { side = 33 }\n", ["mine.toml:3: score.text.side: got 33, "]),
        ("[score]\nmotion = { side = 33 }\n", ["mine.toml:4: score.motion: unknown key; "]),
    ],
)
def test_wrong_tables_are_named_with_line_and_rule(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    complaints = complaint(tmp_path, text).replace(f"\n{tmp_path}/", "\n").split("\n")
    assert len(complaints) == len(lines)
    for line, start in zip(complaints, lines, strict=True):
        assert line.startswith(start), line


def test_a_recipe_says_whether_it_has_the_tables(tmp_path: Path) -> None:
    def loaded(text: str) -> recipes.Loaded:
        path = tmp_path / "mine.toml"
        path.write_text(RECIPE + text)
        return recipes.load(path)

    texts = ("", "[score]\n", "[score]\n[keep]\n", '[score]\n[keep]\nstill = "motion > 1"\n')
    digests = [loaded(text).digest for text in texts]
    assert len(set(digests)) == len(texts)
    assert loaded("[score]\nscorers = []\n").digest == digests[0]
    names = loaded("").setup("auto").table(scorers.Params).score_names
    assert names == ()
    assert "motion" in loaded("[score]\n").setup("auto").table(scorers.Params).score_names


def picked(folder: Path, choice: str, note: str = "") -> Setup:
    line = {"clip": BLOB.sha256, "pick": choice, "time": "2026-11-29T16:40:12Z", "note": note}
    picks.append(folder / "film.picks.jsonl", [picks.pick_of(line, "a test")])
    table = keep.Params.model_validate({"calm": "motion < 0.05", "picks": "film.picks.jsonl"})
    return Setup((scorers.Params(), table), folder)


def test_a_pick_counts_whatever_the_rules_say(clip: Clip, store: Store, tmp_path: Path) -> None:
    def run(setup: Setup) -> Manifest:
        return run_stage(keep.stage(setup), [clip], store, Inline(), Progress())[0]

    kept = picked(tmp_path, "keep")
    assert run(kept).records == (clip,)  # though it is not calm
    rejected = picked(tmp_path, "reject", "shaky")
    [rejection] = run(rejected).rejections
    assert (rejection.reason, rejection.fate) == ("picked", "bad")
    assert rejection.detail == "by hand, 2026-11-29T16:40:12Z: shaky"
    assert keep.stage(rejected).params["calm"] == "motion < 0.05"


def test_what_was_picked_is_an_input_of_the_stage_and_the_words_beside_it_are_not(
    tmp_path: Path,
) -> None:
    def digest(setup: Setup) -> object:
        return keep.stage(setup).params["picks"]

    first = digest(picked(tmp_path, "keep"))
    assert digest(picked(tmp_path, "keep", "a note")) == first
    assert digest(picked(tmp_path, "reject")) != first


def test_a_file_of_picks_that_is_not_there_stops_a_build_before_any_work(tmp_path: Path) -> None:
    setup = picked(tmp_path, "keep")
    keep.check_picks(setup)
    (tmp_path / "film.picks.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"keep.picks: there is no file .*film.picks.jsonl"):
        keep.check_picks(setup)
    assert keep.stage(setup).name == "keep"  # a rebuild needs none


def test_no_rule_is_called_as_a_pick_is() -> None:
    with pytest.raises(ValueError, match="cannot be called 'picked'"):
        keep.Params.model_validate({"picked": "motion > 1"})
