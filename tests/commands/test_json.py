"""`--json`: one object on standard output, nothing else, and the exit code as without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making.command import Output, longtake
from tests.making.dataset import Dataset

STAGES = ["download", "cut", "filter", "extract", "score", "keep", "caption", "encode", "shard"]


@pytest.fixture(scope="module")
def dataset(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset.copy(tmp_path_factory.mktemp("json"))


def facts(output: Output, code: int = 0) -> dict[str, Any]:
    assert (output.returncode, output.stderr) == (code, "")
    [line] = output.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result


def test_a_local_file_that_is_no_longer_there_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "moved.toml"
    recipe.write_text('[[source]]\nuri = "file:a.mp4"\n')
    for command in ("status", "plan"):
        words = (command, recipe, "--data", tmp_path)
        said = facts(longtake(*words, "--json"))
        assert said["absent_files"] == ["file:a.mp4"]
        assert "1 local file is not where the recipe says: file:a.mp4;" in longtake(*words).stdout
    (tmp_path / "a.mp4").touch()
    assert facts(longtake(*words, "--json"))["absent_files"] == []


def test_build_and_status_tell_the_funnel(dataset: Dataset) -> None:
    words = (dataset.recipe, "--data", dataset.data, "--json")
    build = facts(longtake("build", *words, "--executor", "inline", "--device", "cpu"))
    status = facts(longtake("status", *words))
    assert [row["stage"] for row in build["stages"]][-len(STAGES) :] == STAGES
    assert [row["out"] for row in status["stages"]] == [row["out"] for row in build["stages"]]
    assert status["dataset"] == build["dataset"] == "small"
    filtered = next(row for row in status["stages"] if row["stage"] == "filter")
    assert filtered["rejected"] == {"too-few-frames": 3}
    assert build["shards"]["root_digest"] == dataset.index["root_digest"]
    assert build["psnr"]["clips"] == build["shards"]["samples"]
    assert build["unavailable"] == []
    assert build["lock"]["path"] == str(dataset.lock)


def test_rejections_are_rows_with_class_and_time(dataset: Dataset) -> None:
    words = ("rejections", dataset.recipe, "--data", dataset.data, "--json")
    rows = facts(longtake(*words))["rejections"]
    assert [(row["stage"], row["class"]) for row in rows] == [("filter", "too-few-frames")] * 3
    [row, *_] = rows
    assert row.keys() == {"stage", "key", "class", "detail", "first", "last", "tries"}


def test_plan_of_what_is_built_has_nothing_to_do(dataset: Dataset) -> None:
    plan = facts(longtake("plan", dataset.recipe, "--data", dataset.data, "--json"))
    assert plan["dataset"] == "small"
    assert all(not row["to_do"] for row in plan["stages"].values())


def test_check_tells_what_a_recipe_asks_for(dataset: Dataset) -> None:
    terms = facts(longtake("check", dataset.recipe, "--json"))
    assert (terms["sources"], terms["kinds"]) == (5, {"file": 5})
    assert (terms["preset"], terms["size"], terms["min_frames"]) == ("tiny", 64, 20)


def test_captions_beyond_what_clip_reads_are_counted(dataset: Dataset, tmp_path: Path) -> None:
    dataset = dataset.copy(tmp_path)
    text = dataset.recipe.read_text()
    assert facts(longtake("check", dataset.recipe, "--json"))["long_captions"] == 0
    dataset.recipe.write_text(text.replace('"the film b"', f'["{"fish " * 80}", "short"]'))
    terms = facts(longtake("check", dataset.recipe, "--json"))
    assert (terms["captions"], terms["long_captions"]) == (6, 1)
    status = facts(longtake("status", dataset.recipe, "--data", dataset.data, "--json"))
    assert (status["captions"], status["long_captions"]) == (6, 1)
    line = "1 of 6 different captions are longer than the 77 tokens that CLIP reads: "
    for words in (("check", dataset.recipe), ("status", dataset.recipe, "--data", dataset.data)):
        output = " ".join(longtake(*words).stdout.split())
        assert line + 'CLIP does not see their ends (long_captions = "cut"' in output
    strict = dataset.recipe.read_text().replace("[encode]", '[encode]\nlong_captions = "reject"')
    dataset.recipe.write_text(strict)
    assert line + "their clips are rejected" in longtake("check", dataset.recipe).stdout


def test_gc_counts_what_would_go(dataset: Dataset) -> None:
    swept = facts(longtake("gc", "--data", dataset.data, "--dry-run", "--json"))
    assert swept["dry_run"] is True
    assert (swept["kinds"], swept["unfinished"]) == ({}, [])


def test_verify_tells_findings_and_exits_as_without_json(dataset: Dataset, tmp_path: Path) -> None:
    whole = facts(longtake("verify", dataset.recipe, "--data", dataset.data, "--json"))
    assert whole["findings"] == []
    assert whole["files"] > 0
    damaged = dataset.copy(tmp_path)
    [tar, *_] = sorted((damaged.folder / "shards").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.unlink()
    tar.write_bytes(content)
    words = ("verify", damaged.recipe, "--data", damaged.data, "--json")
    assert facts(longtake(*words), 7)["findings"] != []


def test_reproduce_tells_the_verdict_and_remove_what_went(dataset: Dataset, tmp_path: Path) -> None:
    clone = dataset.published(tmp_path)
    words = (clone.recipe, "--data", clone.data, "--json")
    judgement = facts(longtake("reproduce", *words, "--executor", "inline", "--device", "cpu"))
    assert judgement["verdict"] == "identical"
    removal = facts(longtake("remove", clone.recipe, "a", "--data", clone.data, "--json"))
    assert removal["source"] == "a"
    assert removal["deleted"]["kinds"]["clips"]["count"] > 0
    assert removal["root_digest"]["before"] == judgement["root"]["locked"]


def test_an_error_is_a_message_on_standard_error_and_no_object(tmp_path: Path) -> None:
    output = longtake("status", tmp_path / "none.toml", "--json")
    assert (output.returncode, output.stdout) == (2, "")
    assert "there is no recipe" in output.stderr
