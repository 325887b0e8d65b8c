"""Which file RECIPE means: a path, or the name of a recipe in `manifests/` or of one that comes
with longtake.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pipeline

FOLDER = Path("manifests")
PACKAGE = Path(pipeline.__file__).parent
SHIPPED = (PACKAGE / "manifests", PACKAGE.parent / "manifests")  # in a wheel, in a checkout


def find(value: str) -> Path:
    """The recipe's file. A name is looked for in `manifests/` here, then among those that come with
    longtake. What is nowhere is taken as a path, so that whoever reads it says what is missing.
    """
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value) is not None
    here = FOLDER / f"{value}.toml"
    if is_name and here.is_file():
        return here
    if not is_name or Path(value).exists():
        return Path(value)
    shipped = [folder / here.name for folder in SHIPPED if (folder / here.name).is_file()]
    return shipped[0] if shipped else here


def names(incomplete: str) -> list[str]:
    """Names of recipes that begin like this, for a shell that completes words."""
    paths = [path for folder in (FOLDER, *SHIPPED) for path in folder.glob("*.toml")]
    return sorted({path.stem for path in paths if path.stem.startswith(incomplete)})


def own(recipe: Path) -> tuple[Path, str]:
    """A recipe that a command may write beside, and a word about it.

    One that lies in the installed package is copied to `manifests/` here first, with its lock: what
    a build writes belongs to whoever builds.
    """
    if recipe.parent != SHIPPED[0]:
        return recipe, ""
    FOLDER.mkdir(exist_ok=True)
    for path in sorted(recipe.parent.glob(f"{recipe.stem}.*")):
        shutil.copyfile(path, FOLDER / path.name)
    copy = FOLDER / recipe.name
    return copy, f"the recipe '{recipe.stem}' comes with longtake: copied to {copy}"
