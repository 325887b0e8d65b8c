"""A small dataset, as a recipe and what was built of it: to copy, publish, damage and rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import Step
from pipeline.publish import sweep
from tests.making import footage

OPTIONS = """
[filter]
min_frames = 20
max_frames = 60
min_distinct = 0  # some scenes of the films are test cards
[extract]
size = 64
[encode]
preset = "tiny"
psnr_share = 1.0
[shard]
max_samples = 2
"""


@dataclass(frozen=True)
class Dataset:
    """A recipe and its data folder."""

    recipe: Path
    data: Path

    @property
    def folder(self) -> Path:
        return self.data / self.recipe.stem

    @property
    def lock(self) -> Path:
        return self.recipe.with_suffix(".lock.jsonl")

    @property
    def index(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "shards" / "index.json").read_text())
        return found

    def copy(self, folder: Path) -> Dataset:
        """All of it again elsewhere, with nothing linked between the two."""
        shutil.copytree(self.recipe.parent, folder / "recipe")
        shutil.copytree(self.data, folder / "data")
        return Dataset(folder / "recipe" / self.recipe.name, folder / "data")

    def published(self, folder: Path) -> Dataset:
        """What somebody else gets: recipe, lock and access to the videos; nothing is built."""
        shutil.copytree(self.recipe.parent, folder / "clone")
        return Dataset(folder / "clone" / self.recipe.name, folder / "elsewhere")

    def build(self) -> list[Step]:
        loaded = recipes.load(self.recipe)
        return list(build.build(loaded, self.data, Inline(), "cpu", "shard", Progress()))


def small(folder: Path, film: Callable[..., Path]) -> Dataset:
    """Clips of four videos in four shards; a fifth video is too short. Built, in this process."""
    (folder / "recipe").mkdir()
    videos = {
        "a": film(footage.joined, (4.0, 5.0), 12),
        "b": film(footage.plain, 8, size="240x320"),
        "c": film(footage.plain, 3, size="160x120"),
        "d": film(footage.joined, (1.0,), 5, size="160x120"),
        "short": film(footage.plain, 1, size="160x120"),
    }
    text = ""
    for key, path in videos.items():
        shutil.copyfile(path, folder / "recipe" / f"{key}.mp4")
        text += (
            f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\n'
            f'caption = "the film {key}"\nlicense = "CC0-1.0"\n'
        )
    (folder / "recipe" / "small.toml").write_text(text + OPTIONS)
    made = Dataset(folder / "recipe" / "small.toml", folder / "data")
    made.build()
    return made


def kinds_in(store: Store) -> dict[str, str]:
    """What each blob is, by digest, as the memos know it."""
    return {sha256: kind for memo in sweep.memos_of(store) for sha256, kind in sweep.kinds_in(memo)}
