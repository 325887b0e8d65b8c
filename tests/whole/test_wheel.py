"""The wheel, installed into an environment that has nothing of longtake but its dependencies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.making import footage

ROOT = Path(__file__).parents[2]
RECIPE = """
[[source]]
uri = "file:film.mp4"
[filter]
min_frames = 10
[extract]
size = 64
[encode]
preset = "tiny"
"""
pytest.importorskip("hatchling", reason="hatchling builds the wheel")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`longtake` as the wheel installs it.

    The dependencies are those of the environment the tests run in: the new one lists its folder in
    a .pth file. Such a folder's own .pth files are not read, so an editable longtake in it is not
    seen.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    venv.create(folder / "env", symlinks=True)
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--ignore-installed"]
    subprocess.run([*install, *options, str(wheel)], check=True)
    return folder / "env" / "bin" / "longtake"


def typed(program: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder, with no path to the project's sources."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_is_what_runs(program: Path, tmp_path: Path) -> None:
    script = "import longtake, pipeline, training; print(longtake, pipeline, training)"
    done = typed(program.with_name("python"), tmp_path, "-c", script)
    assert done.stdout.count(str(program.parents[1])) == 3
    assert str(ROOT) not in done.stdout


def test_the_demo_recipe_comes_along(program: Path, tmp_path: Path) -> None:
    done = typed(program, tmp_path, "check", "demo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["sources"] == 5
    assert list(tmp_path.iterdir()) == []


def test_a_film_is_encoded_by_the_tiny_models_of_the_wheel(
    program: Path, tmp_path: Path, film: Callable[..., Path]
) -> None:
    shutil.copyfile(film(footage.plain, 3, size="160x120"), tmp_path / "film.mp4")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "mine.toml").write_text(RECIPE.replace("file:", "file:../"))
    done = typed(program, tmp_path, "build", "mine", "--executor", "inline", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards"]["samples"] == 1
    assert (tmp_path / "data" / "mine" / "shards" / "index.json").is_file()
    assert (tmp_path / "manifests" / "mine.lock.jsonl").is_file()


def test_the_trainer_comes_along(program: Path, tmp_path: Path) -> None:
    done = typed(program, tmp_path, "plan-training", "--preset", "tiny-interp")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_building_the_demo_copies_its_recipe_and_lock_to_where_one_is(
    program: Path, tmp_path: Path
) -> None:
    done = typed(program, tmp_path, "build", "demo", "--until", "expand", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert "comes with longtake: copied to manifests/demo.toml" in done.stdout
    for name in ("demo.toml", "demo.lock.jsonl"):
        copy = tmp_path / "manifests" / name
        assert copy.read_bytes() == (ROOT / "manifests" / name).read_bytes()
    assert json.loads(typed(program, tmp_path, "status", "demo", "--json").stdout)["recipe"] == (
        "manifests/demo.toml"
    )
