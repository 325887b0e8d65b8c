"""A dataset with scores and rules, from recipe to lock, rebuild and table."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from pipeline.core import picks
from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock, relock
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import Step
from pipeline.dataset.likeness import are_near, compare_locks
from pipeline.media import encoders, scorers, video
from pipeline.media.scorers.exposure import Exposure
from pipeline.plan import plan as planning
from pipeline.publish import compare, reproduce, verify
from tests.making import footage
from tests.making.command import longtake
from tests.making.dataset import OPTIONS, Dataset

SCORED = """
[score]
scorers = ["motion", "distinct", "exposure", "compression"]
"""
RULES = """
[keep]
dim = "luma > 20"
"""
NAMES = [
    "motion",
    "distinct",
    "luma",
    "contrast",
    "black",
    "clipped",
    "bits_per_pixel",
    "source_fps",
]


@pytest.fixture(scope="module")
def scored(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three clips of three films."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "recipe").mkdir()
    films = {
        "a": film(footage.plain, 3, size="160x120"),
        "b": film(footage.plain, 3, size="240x320"),
        "c": film(footage.joined, (), 3, size="160x120"),
    }
    text = ""
    for key, path in films.items():
        shutil.copyfile(path, folder / "recipe" / f"{key}.mp4")
        text += f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = "{key}"\n'
    text += '[cut]\ndetector = "none"\n'
    (folder / "recipe" / "scored.toml").write_text(text + OPTIONS + SCORED + RULES)
    dataset = Dataset(folder / "recipe" / "scored.toml", folder / "data")
    dataset.build()
    return dataset


@pytest.fixture
def own(scored: Dataset, tmp_path: Path) -> Dataset:
    return scored.copy(tmp_path)


def edit(dataset: Dataset, old: str, new: str) -> None:
    text = dataset.recipe.read_text()
    assert old in text
    dataset.recipe.write_text(text.replace(old, new))


def by_stage(steps: list[Step]) -> dict[str, Step]:
    return {step.manifest.stage: step for step in steps}


def metadata(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """What the shards say of every sample."""
    for path in sorted((dataset.folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield json.loads(content.read())


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be decoded, measured or encoded."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work that was done before")

    for module, name in (
        (video, "frames"),
        (video, "some_frames"),
        (video, "read_clip"),
        (encoders, "latents"),
        (encoders, "images"),
        (encoders, "text"),
    ):
        monkeypatch.setattr(module, name, never)
    for kind in scorers.SCORERS.values():
        monkeypatch.setattr(kind, "measure", never)


def test_every_sample_has_the_same_scores_in_its_metadata(scored: Dataset) -> None:
    rows = [row["scores"] for row in metadata(scored)]
    assert len(rows) == 3
    assert all(list(row) == sorted([*NAMES, "round_trip_psnr_db"]) for row in rows)
    assert all(float(row["motion"]) > 0 for row in rows)


@pytest.mark.usefixtures("no_work")
def test_another_rule_does_no_work_and_counts_by_its_name(own: Dataset) -> None:
    before = own.index["root_digest"]
    brightest = max(metadata(own), key=lambda row: float(row["scores"]["luma"]))
    limit = float(brightest["scores"]["luma"]) - 1
    edit(own, RULES, RULES + f'bright = "luma < {limit}"\n')
    steps = by_stage(own.build())
    assert steps["keep"].manifest.reasons == {"bright": 1}
    assert [steps[name].num_run for name in ("cut", "extract", "score", "encode")] == [0, 0, 0, 0]
    assert sorted(row["key"] for row in metadata(own)) == sorted(
        {"a-0000", "b-0000", "c-0000"} - {brightest["key"]}
    )
    assert sorted(lock.read(own.recipe).clips) == sorted(row["key"] for row in metadata(own))
    edit(own, f'bright = "luma < {limit}"\n', "")
    own.build()
    assert own.index["root_digest"] == before


def test_another_scorer_decodes_no_video_and_encodes_nothing(
    own: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.build()  # the files have moved: they are taken in again
    for module, name in ((video, "frames"), (encoders, "latents"), (encoders, "text")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work done before"))
    edit(own, '"motion", ', '"motion", "sharpness", ')
    plan = planning.plan(recipes.load(own.recipe), own.data, "cpu")
    assert plan.lines["score"].to_do == 3
    assert plan.lines["encode"].to_do == 0
    steps = by_stage(own.build())
    assert (steps["score"].num_run, steps["encode"].num_run) == (3, 0)
    assert all("sharpness" in row["scores"] for row in metadata(own))


def test_without_score_and_keep_a_recipe_builds_what_it_built_before(
    own: Dataset, no_work: None
) -> None:
    edit(own, SCORED + RULES, "")
    steps = by_stage(own.build())
    assert steps["score"].manifest.params == {}
    assert steps["keep"].manifest.params == {}
    assert all(set(row["scores"]) == {"round_trip_psnr_db"} for row in metadata(own))
    assert all(clip.scores == () for clip in lock.read(own.recipe).clips.values())


def test_the_lock_holds_scores_and_reads_back(scored: Dataset) -> None:
    locked = lock.read(scored.recipe)
    for clip in locked.clips.values():
        assert [name for name, _ in clip.scores] == NAMES
    assert locked.header["stages"]["keep"]["params"] == {"dim": "luma > 20"}


def rebuilt(clone: Dataset) -> dict[str, Any]:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    edits = reproduce.edits(loaded, locked)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    return compare.judge(locked, steps, edits, Store(clone.data.absolute() / "store"))


def test_a_rebuild_scores_again_takes_the_choice_from_the_lock_and_is_identical(
    scored: Dataset, tmp_path: Path
) -> None:
    clone = scored.published(tmp_path)
    edit(clone, "luma > 20", "luma > 250")
    report = rebuilt(clone)
    assert report["verdict"] == "identical"
    assert report["samples"]["scores"] == {"clips": 3, "identical": 3, "near": 0, "largest": {}}
    [line] = [line for line in report["edits"] if line["source"] == "[keep]"]
    assert (line["field"], line["locked"], line["found"]) == ("dim", "luma > 20", "luma > 250")
    assert "scores: 3 of 3 clips as in the lock" in compare.lines(report)
    checked = verify.verify(recipes.load(clone.recipe), clone.data, "cpu", Progress())
    assert checked.findings == []


@pytest.mark.parametrize(
    ("factor", "verdict", "line"),
    [
        (1.01, "equivalent", "scores: 0 of 3 clips as in the lock, 3 within tolerance; "),
        (1.3, "different", "scores: 0 of 3 clips as in the lock, 0 within tolerance; "),
    ],
)
def test_a_rebuild_says_how_far_scores_are_off(
    scored: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    verdict: str,
    line: str,
) -> None:
    measure = Exposure.measure

    def brighter(self: Exposure, *args: Any) -> Any:
        luma, *others = measure(self, *args)
        assert luma is not None
        return [luma * factor, *others]

    monkeypatch.setattr(Exposure, "measure", brighter)
    clone = scored.published(tmp_path)
    report = rebuilt(clone)
    assert report["verdict"] == verdict
    assert any(text.startswith(line) for text in compare.lines(report))
    checked = verify.verify(recipes.load(clone.recipe), clone.data, "cpu", Progress())
    assert checked.grade == verdict


@pytest.mark.parametrize(
    ("factor", "line"),
    [
        (1.0, "3 clips scored again: as they were"),
        (1.01, "3 clips scored again: luma is off by up to 0."),
        (1.3, "measured again, luma is "),
    ],
)
def test_verify_measures_some_clips_again_and_says_how_far_off_they_are(
    own: Dataset, monkeypatch: pytest.MonkeyPatch, factor: float, line: str
) -> None:
    own.build()  # of the copied videos
    memos = list(Store(own.data / "store").memos())
    measure = Exposure.measure

    def brighter(self: Exposure, *args: Any) -> Any:
        luma, *others = measure(self, *args)
        assert luma is not None
        return [luma * factor, *others]

    monkeypatch.setattr(Exposure, "measure", brighter)
    done = longtake("verify", own.recipe, "--data", own.data, "--device", "cpu")
    assert line in done.stdout
    assert done.returncode == (7 if factor > 1.05 else 0)
    assert list(Store(own.data / "store").memos()) == memos


def test_two_locks_that_differ_in_scores_are_compared_by_them(
    scored: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Exposure.measure
    monkeypatch.setattr(
        Exposure, "measure", lambda self, *args: [measure(self, *args)[0] + 0.5, 0.0, 0.0, 0.0]
    )
    clone = scored.published(tmp_path)
    clone.build()
    here = relock.own_lock(clone.folder)
    assert here is not None
    assert compare_locks(lock.read(clone.recipe), here).grade == "different"


def test_scores_are_near_within_a_twentieth() -> None:
    assert are_near((("a", 1.0), ("b", None)), (("a", 1.04), ("b", None)))
    assert are_near((("a", 0.001),), (("a", 0.004),))
    assert not are_near((("a", 1.0),), (("a", 1.1),))
    assert not are_near((("a", None),), (("a", 0.0),))
    assert not are_near((("a", 1.0),), (("b", 1.0),))


def test_a_rebuild_refuses_other_scorers(scored: Dataset, tmp_path: Path) -> None:
    clone = scored.published(tmp_path)
    edit(clone, '"motion", ', "")
    done = longtake("reproduce", clone.recipe, "--data", clone.data, "--executor", "inline")
    assert done.returncode == 2
    assert "[score] motion: the recipe gives nothing" in done.stdout + done.stderr


def test_an_older_lock_without_scores_is_read_and_rebuilt(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    clone = small_dataset.published(tmp_path)
    locked = lock.read(clone.recipe)
    for name in ("score", "keep", "caption"):
        del locked.header["stages"][name]
    lock.write(locked, clone.recipe)
    assert rebuilt(clone)["verdict"] == "identical"


def test_the_table_shows_quantiles_and_what_rules_drop(own: Dataset, no_work: None) -> None:
    edit(own, RULES, RULES + 'bright = "luma < 20"\nsharp = "motion / black > 1"\n')
    files = ("--csv", own.data / "s.csv", "--parquet", own.data / "s.parquet")
    done = longtake("scores", own.recipe, "--data", own.data, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bits_per_pixel" in done.stdout + done.stderr
    assert "0 clips stay" in done.stdout + done.stderr
    rows = list(csv.DictReader((own.data / "s.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == ["a-0000", "b-0000", "c-0000"]
    table = parquet.read_table(own.data / "s.parquet").to_pylist()
    assert [row["luma"] for row in table] == [float(row["luma"]) for row in rows]
    facts = json.loads(longtake("scores", own.recipe, "--data", own.data, "--json").stdout)
    counts = {rule["rule"]: (rule["drops"], rule["unknown"]) for rule in facts["rules"]}
    assert counts == {"dim": (0, 0), "bright": (3, 0), "sharp": (0, 3)}
    assert (facts["dropped"], facts["kept"]) == (3, 0)


def test_the_table_says_what_is_missing(own: Dataset, tmp_path: Path) -> None:
    done = longtake("scores", own.recipe, "--data", tmp_path / "none")
    assert (done.returncode, "build the dataset first" in done.stdout + done.stderr) == (2, True)
    edit(own, '"motion", ', '"motion", "sharpness", ')
    edit(own, RULES, RULES + 'sharp = "sharpness > 1"\n')
    done = longtake("scores", own.recipe, "--data", own.data)
    assert (done.returncode, "was not measured yet" in done.stdout + done.stderr) == (2, True)
    edit(own, SCORED.replace('"motion", ', '"motion", "sharpness", '), "")
    edit(own, RULES + 'sharp = "sharpness > 1"\n', "")
    own.build()
    done = longtake("scores", own.recipe, "--data", own.data)
    assert (done.returncode, "write a [score] table" in done.stdout + done.stderr) == (2, True)


def test_show_writes_the_scores_of_a_clip(scored: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = longtake(
        "show", scored.recipe, "a-0000", "--data", scored.data, "--out", out, "--device", "cpu"
    )
    assert "luma " in done.stdout + done.stderr
    assert out.is_file()


def test_shards_of_the_same_recipe_are_the_same_in_any_executor(
    scored: Dataset, tmp_path: Path
) -> None:
    clone = scored.published(tmp_path)
    shutil.copytree(clone.recipe.parent, tmp_path / "fresh")
    done = longtake(
        "build", tmp_path / "fresh" / "scored.toml", "--data", tmp_path / "data", "--workers", "2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((tmp_path / "data" / "scored" / "shards" / "index.json").read_text())
    assert index["root_digest"] == scored.index["root_digest"]


def test_a_pick_made_while_a_build_runs_is_for_the_next_build_and_its_lock(own: Dataset) -> None:
    path = picks.path_of(own.recipe)
    path.touch()
    edit(own, RULES, RULES + f'picks = "{path.name}"\n')
    own.build()
    before = lock.read(own.recipe)
    [first, *_] = sorted(before.clips.values(), key=lambda clip: clip.key)
    pick = picks.Pick(clip=first.sha256, pick="reject", time="2026-11-29T16:40:12Z")
    edit(own, "luma > 20", "luma > 21")  # another recipe, so that another lock is written

    loaded = recipes.load(own.recipe)
    for step in build.build(loaded, own.data, Inline(), "cpu", "shard", Progress()):
        if step.manifest.stage in ("expand", "keep"):
            picks.append(path, [pick])
    locked = lock.read(own.recipe)
    assert locked.clips.keys() == before.clips.keys()
    assert locked.params("keep")["picks"] == before.params("keep")["picks"]
    now = recipes.load(own.recipe)
    assert locked.header["recipe"] == loaded.digest != now.digest

    own.build()
    picked = lock.read(own.recipe)
    assert picked.clips.keys() == before.clips.keys() - {first.key}
    assert picked.header["recipe"] == now.digest
