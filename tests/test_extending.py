"""The examples of docs/extending.md, put into a copy of the code and run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.making import footage
from tests.making.command import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
EXAMPLE = re.compile(
    r"^`(?P<path>[\w/.]+)`\n\n```(?P<kind>python|diff)\n(?P<body>.*?)^```", re.M | re.S
)
MAX_LINES = 40
RECIPE = """
[[source]]
id = "film"
uri = "file:film.mp4"
caption = "a test card"
[cut]
detector = "brightness"
jump = 5
[filter]
min_frames = 10
[extract]
size = 64
[edges]
every = 4
[score]
scorers = ["red", "distinct"]
[keep]
coloured = "red > 0.1"
[encode]
preset = "tiny-penultimate"
"""


def put_examples_into(folder: Path) -> None:
    """A copy of the pipeline, with every file of the page written and every line changed."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline")
    for example in EXAMPLE.finditer(PAGE):
        path = folder / example["path"]
        if example["kind"] == "python":
            assert not path.exists(), f"{example['path']} is there already"
            path.write_text(example["body"])
            continue
        lines = example["body"].splitlines()
        before = [line[1:] for line in lines if not line.startswith("+")]
        after = [line[1:] for line in lines if not line.startswith("-")]
        text, old = path.read_text(), "\n".join(before) + "\n"
        assert text.count(old) == 1, f"{example['path']} does not hold this once: {old}"
        path.write_text(text.replace(old, "\n".join(after) + "\n"))


@pytest.fixture(scope="module")
def extended(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    put_examples_into(folder)
    (folder / "film.mp4").write_bytes(film(footage.joined, (2.0,), 4.0).read_bytes())
    (folder / "mine.toml").write_text(RECIPE)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What a command of the copy prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    command = [sys.executable, "-m", "pipeline", *arguments]
    completed = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_every_example_is_short() -> None:
    bodies = [example["body"].splitlines() for example in EXAMPLE.finditer(PAGE)]
    code = [[line for line in body if line.strip()] for body in bodies]
    assert len(code) == 9
    assert max(map(len, code)) < MAX_LINES


def test_the_examples_work_as_written(extended: Path) -> None:
    local = ("--data", "data", "--executor", "inline", "--device", "cpu")
    funnel = run(extended, "build", "mine.toml", *local)
    rows = [line.split() for line in funnel.splitlines() if line.startswith(" ")]
    assert ["edges", "2", "2", "0"] in [row[:4] for row in rows]  # the detector found the cut
    samples = (extended / "data" / "mine" / "9-encode.jsonl").read_text().splitlines()[1:]
    scores = [dict(json.loads(line)["record"]["clip"]["scores"]) for line in samples]
    assert all(0 < score["edges"] < 1 for score in scores)
    assert all(0 < score["red"] < 1 for score in scores)
    tar = (extended / "data" / "mine" / "shards" / "00000.tar").read_bytes()
    assert b'"edges":"0.' in tar
    sheet = run(extended, "show", "mine.toml", "film-0000", "--data", "data", "--device", "cpu")
    assert "its latents decoded" in sheet
    assert "2 clips, 4.0 s" in run(extended, "clips", "mine.toml", "--data", "data")


def test_another_option_of_the_stage_runs_that_stage_and_encodes_nothing(extended: Path) -> None:
    (extended / "mine.toml").write_text(RECIPE.replace("every = 4", "every = 2"))
    planned = json.loads(run(extended, "plan", "mine.toml", "--data", "data", "--json"))["stages"]
    assert (planned["edges"]["to_do"], planned["encode"]["to_do"]) == (2, 0)
    local = ("--data", "data", "--executor", "inline", "--device", "cpu")
    output = json.loads(run(extended, "build", "mine.toml", *local, "--json"))
    ran = {row["stage"]: row["cached"] for row in output["stages"]}
    assert (ran["extract"], ran["edges"], ran["encode"]) == (2, 0, 2)


def test_a_command_before_any_build_says_what_to_do(extended: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "clips", "mine.toml", "--data", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    completed = subprocess.run(
        command, cwd=extended, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 2
    assert "build the dataset first, as far as 'extract'" in completed.stderr
