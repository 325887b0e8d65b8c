"""What `make` would do: the commands it prints with -n. Nothing is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def dry(*words: str) -> subprocess.CompletedProcess[str]:
    """`make -n`, with the environment as if it were set up."""
    return subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "setup", *words],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose file is called otherwise than its dataset."""
    path = tmp_path / "other.toml"
    path.write_text('name = "mine"\n[[source]]\nuri = "file:a.mp4"\n')
    return path


@pytest.mark.parametrize("target", ["train-keyframe", "train-interp", "evaluate"])
def test_training_takes_the_shards_of_the_recipe_that_was_given(target: str, recipe: Path) -> None:
    build, train, *others = dry(target, f"MANIFEST={recipe}", "DATA=there").stdout.splitlines()
    assert build.startswith('test -f "there/mine/shards/index.json" || ')
    assert f'pipeline build "{recipe}"' in build
    assert '--shards "there/mine/shards"' in train
    assert "demo" not in train
    run = "runs/mine-keyframe" if target == "train-keyframe" else "runs/mine-interp"
    assert f'--run "{run}"' in train
    for line in others:  # keyframes are evaluated too, where there are some
        assert target == "evaluate"
        assert 'test -f "runs/mine-keyframe/run.json"' in line
        assert '--shards "there/mine/shards"' in line


def test_a_sample_is_made_by_the_runs_of_the_recipe_that_was_given(recipe: Path) -> None:
    words = dry("sample", f"MANIFEST={recipe}").stdout
    assert '--keyframe "runs/mine-keyframe" --interp "runs/mine-interp"' in words
    assert '--out "runs/mine.mp4"' in words


def test_without_a_name_in_the_recipe_the_dataset_is_called_as_its_file(recipe: Path) -> None:
    recipe.write_text('[[source]]\nuri = "file:a.mp4"\n')
    assert '--run "runs/other-keyframe"' in dry("train-keyframe", f"MANIFEST={recipe}").stdout


def test_dataset_alone_means_the_recipe_of_that_name() -> None:
    build, train = dry("train-keyframe", "DATASET=demo").stdout.splitlines()
    assert '-m pipeline build "manifests/demo.toml"' in build
    assert '--shards "data/demo/shards"' in train


def test_shards_that_are_elsewhere_are_not_built(recipe: Path) -> None:
    words = dry("train-keyframe", f"MANIFEST={recipe}", "SHARDS=https://example.org/shards").stdout
    assert "pipeline build" not in words
    assert '--shards "https://example.org/shards"' in words


def test_without_a_recipe_nothing_is_trained() -> None:
    result = dry("train-keyframe", "MANIFEST=nowhere/x.toml")
    assert result.returncode == 2
    assert "there is no recipe nowhere/x.toml" in result.stderr
    assert result.stdout == ""


def test_help_and_a_build_do_not_ask_the_recipe_for_its_name() -> None:
    result = dry("help", "shards", "MANIFEST=nowhere/x.toml")
    assert (result.returncode, result.stderr) == (0, "")
    assert "runs/NAME-keyframe" in result.stdout


def test_clean_is_about_one_dataset_and_leaves_the_store_to_the_command(recipe: Path) -> None:
    words = dry("clean", f"MANIFEST={recipe}", "DATA=there").stdout
    assert words == f'.venv/bin/python -m pipeline clean "{recipe}" --data "there"\n'
