"""`refresh`: a channel is asked again, and its new videos come in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.media import fetch
from tests.making.command import longtake
from tests.making.serving import serving


class Channel:
    """A list on the web, and how often it was asked for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.names = ["a"]
        self.num_asked = 0

    def entries(self, uri: str, *_: object) -> list[tuple[str, str]] | None:
        self.num_asked += 1
        return [(name, f"{self.address}/{name}.mp4") for name in self.names]


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    with serving({}) as (address, _):
        channel = Channel(address)
        monkeypatch.setattr(fetch, "entries", channel.entries)
        yield channel


@pytest.fixture
def recipe(tmp_path: Path, channel: Channel) -> Path:
    """A channel, and a local file."""
    path = tmp_path / "films.toml"
    path.write_text(
        f'[[source]]\nid = "channel"\nuri = "{channel.address}/list"\n'
        '[[source]]\nid = "file"\nuri = "file:x.mp4"\n'
        "[download]\nattempts = 1\n"
    )
    return path


def built_keys(recipe: Path) -> set[str]:
    """Build as far as downloads, none of which is there; returns the keys of the videos asked
    for.
    """
    data = recipe.parent / "data"
    loaded = recipes.load(recipe)
    *_, step = build.build(loaded, data, Inline(), "cpu", "download", Progress())
    return {rejection.key for rejection in step.manifest.rejections}


def test_after_a_refresh_the_next_build_asks_the_channel_again(
    recipe: Path, channel: Channel
) -> None:
    assert built_keys(recipe) == {"channel-a", "file"}
    channel.names.append("b")
    assert built_keys(recipe) == {"channel-a", "file"}
    assert channel.num_asked == 1
    output = longtake("refresh", recipe, "--data", recipe.parent / "data")
    assert output.stdout == "forgotten: the lists of channel; the next build asks again\n"
    assert built_keys(recipe) == {"channel-a", "channel-b", "file"}
    assert channel.num_asked == 2


def test_one_source_is_refreshed_by_its_id(recipe: Path, channel: Channel) -> None:
    built_keys(recipe)
    words = ("refresh", recipe, "channel", "--data", recipe.parent / "data", "--json")
    assert json.loads(longtake(*words).stdout)["forgotten"] == ["channel"]
    assert json.loads(longtake(*words).stdout)["forgotten"] == []
    built_keys(recipe)
    assert channel.num_asked == 2


def test_a_source_that_is_no_list_from_the_web_is_refused(recipe: Path) -> None:
    words = ("--data", recipe.parent / "data")
    output = longtake("refresh", recipe, "file", *words)
    assert output.returncode == 2
    assert "'file' (file:x.mp4) is no list from the web" in output.stderr
    output = longtake("refresh", recipe, "chanel", *words)
    assert output.returncode == 2
    assert "no source is called 'chanel'" in output.stderr
    assert "near it: channel" in output.stderr
