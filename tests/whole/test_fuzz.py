"""Two hundred damaged videos in one build: each a clip or a counted rejection, and nothing crashes,
hangs or is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.core.errors import BadData
from pipeline.core.records import Video
from pipeline.core.store import Store
from pipeline.media import reel
from pipeline.media.detectors import whole
from pipeline.stages import cut
from tests import fuzz
from tests.making import footage

COUNT = 210
PARAMS = reel.Params(size=64)
KNOWN = {
    "unreadable",
    "no-video-stream",
    "no-timestamps",
    "truncated",
    "decode-error",
    "damaged",
    "gap",
    "outside-span",
    "too-few-frames",
    "too-large",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def codecs(folder: Path) -> dict[str, str]:
    return fuzz.corpus(folder, COUNT, seed=0)


@pytest.fixture(scope="module")
def built(folder: Path, codecs: dict[str, str]) -> fuzz.Built:
    return fuzz.build(fuzz.recipe(folder))


def test_the_build_goes_on_to_its_end(built: fuzz.Built) -> None:
    assert built.code == 0, built.said
    assert "Traceback" not in built.said


def test_every_damaged_video_is_a_clip_or_a_rejection(
    built: fuzz.Built, codecs: dict[str, str]
) -> None:
    assert len(codecs) == COUNT
    assert built.fates.keys() == codecs.keys()


def test_a_rejection_blames_the_bytes_and_not_the_worker(built: fuzz.Built) -> None:
    assert {fate for fates in built.fates.values() for fate in fates} <= KNOWN | {"clip"}


@pytest.mark.parametrize("codec", fuzz.CODECS)
def test_of_each_codec_some_damage_is_harmless_and_some_is_not(
    built: fuzz.Built, codecs: dict[str, str], codec: str
) -> None:
    fates = [built.fates[name] for name, its_codec in codecs.items() if its_codec == codec]
    assert any("clip" in each for each in fates)
    assert any("clip" not in each for each in fates)


def test_every_damage_is_done_to_every_kind_of_video(codecs: dict[str, str]) -> None:
    done = {tuple(name.split("-")[:3]) for name in codecs}
    assert done == {
        (codec, container, damage.__name__)
        for codec, container, _ in fuzz.KINDS
        for damage in fuzz.DAMAGES
    }


def test_a_second_build_has_nothing_to_do(built: fuzz.Built, folder: Path) -> None:
    again = fuzz.build(folder / "fuzz.toml")
    assert again.code == 0
    assert "nothing to do" in again.said
    assert again.fates == built.fates


def test_the_same_seed_gives_the_same_videos(
    folder: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    assert fuzz.corpus(tmp_path, len(fuzz.KINDS) * 2, seed=0).items() <= codecs.items()
    some = [path for path in tmp_path.iterdir() if path.is_file()]
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in some)


def test_a_video_that_touches_no_point_of_the_grid_is_a_rejection(
    film: Callable[..., Path], video_of: Callable[..., Video], store: Store
) -> None:
    between = video_of(
        film(footage.numbered), Fraction(1, 25), Fraction(2, 25)
    )  # 10 frames a second: at 0 and at 0.1
    for act in (
        lambda: list(cut.process(between, store, whole.Whole(), PARAMS)),
        lambda: reel.reel_of(between, PARAMS, store),
    ):
        with pytest.raises(BadData, match=r"^too-few-frames: no frame lies on the grid"):
            act()
