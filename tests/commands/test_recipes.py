"""RECIPE on the command line: a path, a name of `manifests/`, or the demo that comes with
longtake.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands import recipes
from pipeline.core.errors import RecipeError
from pipeline.dataset.naming import name_of
from tests.making.command import longtake


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a recipe in it, and an empty folder to work in."""
    folder = tmp_path / "site-packages" / "pipeline" / "manifests"
    folder.mkdir(parents=True)
    (folder / "demo.toml").write_text('[[source]]\nuri = "file:a.mp4"\n')
    (folder / "demo.lock.jsonl").write_text("{}\n")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(recipes, "SHIPPED", (folder, tmp_path / "no-checkout"))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_name_is_the_recipe_in_manifests_before_the_one_that_comes_with_longtake(
    package: Path,
) -> None:
    assert recipes.find("demo") == package / "demo.toml"
    Path("manifests").mkdir()
    Path("manifests/demo.toml").touch()
    assert recipes.find("demo") == Path("manifests/demo.toml")


def test_a_name_nobody_has_is_looked_for_in_manifests_so_that_the_error_says_so(
    package: Path,
) -> None:
    assert recipes.find("dmo") == Path("manifests/dmo.toml")


def test_a_path_stays_a_path(package: Path) -> None:
    Path("films").touch()
    for path in ("there/demo.toml", "demo.toml", "films"):
        assert recipes.find(path) == Path(path)


def test_a_recipe_of_the_package_is_copied_with_its_lock_before_anything_is_written(
    package: Path,
) -> None:
    path, line = recipes.own(package / "demo.toml")
    assert path == Path("manifests/demo.toml")
    assert path.read_text() == (package / "demo.toml").read_text()
    assert Path("manifests/demo.lock.jsonl").read_text() == "{}\n"
    assert line == "the recipe 'demo' comes with longtake: copied to manifests/demo.toml"


def test_a_recipe_of_one_s_own_is_used_where_it_is(package: Path) -> None:
    assert recipes.own(Path("mine.toml")) == (Path("mine.toml"), "")
    assert list(Path().iterdir()) == []


def test_a_shell_completes_the_names_of_recipes(package: Path) -> None:
    assert recipes.names("de") == ["demo"]
    assert recipes.names("x") == []


def test_the_demo_is_checked_by_its_name() -> None:
    assert longtake("check", "demo").stdout.startswith("manifests/demo.toml is fine: 5 sources")


@pytest.mark.parametrize(
    ("text", "name"),
    [('name = "mine"\n', "mine"), ("", "other"), ("[[source]]\nname = 'x'\n", "other")],
)
def test_a_dataset_is_called_as_its_recipe_says(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(text)
    assert name_of(tmp_path / "other.toml") == name
    assert longtake("name", tmp_path / "other.toml").stdout == f"{name}\n"


@pytest.mark.parametrize("text", ['name = "../x"', 'name = "Store"', "name = 5", 'name = "a'])
def test_a_name_that_is_no_folder_of_a_dataset_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"other\.toml"):
        name_of(tmp_path / "other.toml")
