"""What many tests need: a store, records, and small videos that are made once a session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline import build, canonical, video
from pipeline import recipe as recipes
from pipeline.build import Step
from pipeline.executors import Inline
from pipeline.records import Blob, Container, Scene, Source, Video
from pipeline.stage import Progress
from pipeline.store import Store
from tests import footage


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`film(footage.plain, 2, suffix=".mkv")`: the video that function makes, made once a session. Not to be changed."""
    folder = tmp_path_factory.mktemp("footage")

    def get(make: Callable[..., Path], *args: Any, suffix: str = ".mp4", **options: Any) -> Path:
        path = folder / f"{make.__name__}-{canonical.digest([args, options])[:12]}{suffix}"
        return path if path.exists() else make(path, *args, **options)

    return get


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def video_of(store: Store) -> Callable[..., Video]:
    """`video_of(path)`: a file taken into the store and probed, with a time range if wanted."""

    def take_in(path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None) -> Video:
        source = Source(key=path.stem, uri=f"file:{path.name}", start_s=start_s, end_s=end_s)
        return Video(source.key, source, store.link(path), "file", video.probe(path))

    return take_in


@pytest.fixture
def new_scene() -> Callable[..., Scene]:
    """`new_scene(0, 400, Fraction(1, 25))`: a scene of a video that need not exist."""

    def make(start_pts: int, end_pts: int, time_base: Fraction = Fraction(1, 1000), key: str = "film-0000") -> Scene:
        source = Source("film", "file:film.mp4", captions=("a street", "une rue"), license="CC0-1.0", start_s=Fraction(1, 3))
        container = Container(
            format="mov,mp4",
            codec="h264",
            pix_fmt="yuv420p",
            width=320,
            height=240,
            mirrored=False,
            rotation=0,
            pixel_aspect=Fraction(1),
            color_matrix="bt709",
            color_range="tv",
            color_primaries="bt709",
            color_transfer="bt709",
            time_base=time_base,
            average_fps=Fraction(25),
            num_frames=max(1, end_pts),
            start_pts=0,
            end_pts=end_pts,
            variable_fps=False,
        )
        return Scene(key, Video("film", source, Blob("0" * 64, 1), "file", container), start_pts, end_pts)

    return make


@dataclass(frozen=True)
class Dataset:
    """A recipe and what was built of it, in a folder of its own."""

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


SMALL_RECIPE = """
[filter]
min_frames = 20
max_frames = 60
[extract]
size = 64
[encode]
preset = "tiny"
psnr_share = 1.0
[shard]
max_samples = 2
"""


@pytest.fixture(scope="session")
def small_dataset(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six clips of four videos, in three shards; one more video is too short. Built once a session, not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("small")
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
        text += f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = "the film {key}"\nlicense = "CC0-1.0"\n'
    (folder / "recipe" / "small.toml").write_text(text + SMALL_RECIPE)
    made = Dataset(folder / "recipe" / "small.toml", folder / "data")
    made.build()
    return made
