"""What many tests need: a store, records, and small videos that are made once a session."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import canonical
from pipeline.core.records import Blob, Scene, Source, Video
from pipeline.core.store import Store
from pipeline.media import video
from tests.making.dataset import Dataset, small
from tests.making.records import container


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`film(footage.plain, 2, suffix=".mkv")`: the video that function makes, made once a session.
    Not to be changed.
    """
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

    def take_in(
        path: Path, start_s: Fraction | None = None, end_s: Fraction | None = None
    ) -> Video:
        source = Source(key=path.stem, uri=f"file:{path.name}", start_s=start_s, end_s=end_s)
        return Video(source.key, source, store.link(path), "file", video.probe(path))

    return take_in


@pytest.fixture
def new_scene() -> Callable[..., Scene]:
    """`new_scene(0, 400, Fraction(1, 25))`: a scene of a video that need not exist."""

    def make(
        start_pts: int,
        end_pts: int,
        time_base: Fraction = Fraction(1, 1000),
        key: str = "film-0000",
    ) -> Scene:
        source = Source(
            "film",
            "file:film.mp4",
            captions=("a street", "une rue"),
            license="CC0-1.0",
            start_s=Fraction(1, 3),
        )
        facts = container(max(1, end_pts), end_pts, time_base)
        return Scene(
            key, Video("film", source, Blob("0" * 64, 1), "file", facts), start_pts, end_pts
        )

    return make


@pytest.fixture(scope="session")
def small_dataset(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Built once a session, not to be changed: copy it, or publish it."""
    return small(tmp_path_factory.mktemp("small"), film)
