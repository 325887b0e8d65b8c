import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core import canonical, manifest
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.manifest import Manifest
from pipeline.core.records import (
    Blob,
    Clip,
    Crop,
    Member,
    Pack,
    Record,
    Rejection,
    Sample,
    Scene,
    Shard,
    Source,
    Video,
)


@pytest.fixture
def scenes(new_scene: Callable[..., Scene]) -> tuple[Scene, ...]:
    return tuple(
        new_scene(index * 100, index * 100 + 100, key=f"film-{index:04d}") for index in range(20)
    )


@pytest.fixture
def rejections() -> tuple[Rejection, ...]:
    short = [
        Rejection("film-0003", "filter", "bad", "too-few-frames", f"{count} frames")
        for count in (99, 98, 97)
    ]
    return (*short, Rejection("other", "filter", "unavailable", "gone", "404"))


def manifest_of(
    scenes: tuple[Scene, ...], rejections: tuple[Rejection, ...] = (), **changes: Any
) -> Manifest:
    made = Manifest(
        "filter", 1, {"fps": "10/1"}, 5, len(scenes) + len(rejections) - 5, scenes, rejections
    )
    return replace(made, **changes)


def test_the_order_of_records_and_rejections_does_not_change_the_bytes(
    scenes: tuple[Scene, ...], rejections: tuple[Rejection, ...]
) -> None:
    wanted = manifest_of(scenes, rejections).encode()
    for seed in range(8):
        shuffle = random.Random(seed)
        mixed = (
            tuple(shuffle.sample(scenes, len(scenes))),
            tuple(shuffle.sample(rejections, len(rejections))),
        )
        assert manifest_of(*mixed).encode() == wanted


def test_a_manifest_comes_back_as_it_was_written(
    tmp_path: Path, scenes: tuple[Scene, ...], rejections: tuple[Rejection, ...]
) -> None:
    written = manifest_of(
        scenes, tuple(sorted(rejections, key=lambda each: (each.key, each.detail)))
    )
    written.write(tmp_path / "deep" / "filter.jsonl")
    found = manifest.read(tmp_path / "deep" / "filter.jsonl", Scene)
    assert found.encode() == written.encode()
    assert found.records == scenes
    assert set(found.rejections) == set(rejections)
    assert (found.num_in, found.num_split, found.params) == (5, written.num_split, {"fps": "10/1"})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["filter.jsonl"]


@pytest.mark.parametrize(
    "caption",
    ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r\n", '"quoted"', "é", "日本", "\x00"],
    ids=lambda text: "".join(f"U+{ord(c):04X}" for c in text),
)
def test_a_caption_may_hold_any_character(tmp_path: Path, caption: str) -> None:
    source = Source("film", "file:film.mp4", captions=(f"a{caption}b",))
    written = Manifest("expand", 1, {}, 1, 0, (source,), ())
    written.write(tmp_path / "expand.jsonl")
    assert manifest.read(tmp_path / "expand.jsonl", Source).records == (source,)


def test_an_unchanged_manifest_leaves_its_file_alone(
    tmp_path: Path, scenes: tuple[Scene, ...]
) -> None:
    path = tmp_path / "filter.jsonl"
    manifest_of(scenes).write(path)
    before = path.stat()
    manifest_of(scenes[::-1]).write(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    manifest_of(scenes, version=2).write(path)
    assert manifest.read(path, Scene).version == 2


@pytest.mark.parametrize(("num_in", "num_split"), [(19, 0), (21, 0), (19, 2), (20, -1)])
def test_a_manifest_that_lost_or_gained_a_record_cannot_be_made(
    scenes: tuple[Scene, ...], num_in: int, num_split: int
) -> None:
    with pytest.raises(AssertionError, match="stage 'filter' lost records"):
        Manifest("filter", 1, {}, num_in, num_split, scenes, ())


def test_a_manifest_with_the_same_key_twice_cannot_be_made(scenes: tuple[Scene, ...]) -> None:
    with pytest.raises(
        RecipeError,
        match="the key 'film-0001' would stand for two records: give one of their sources "
        "another id",
    ):
        manifest_of((*scenes, scenes[1]))


def test_reasons_are_counted(scenes: tuple[Scene, ...], rejections: tuple[Rejection, ...]) -> None:
    assert manifest_of(scenes, rejections).reasons == {"too-few-frames": 3, "gone": 1}


def every_kind(scene: Scene) -> list[tuple[Record, Record]]:
    clip = Clip(
        "film-0000",
        scene,
        Blob("2" * 64, 5),
        100,
        Fraction(30000, 1001),
        64,
        Crop(40, 0, 240, 240),
        "3" * 64,
    )
    sample = Sample(
        "film-0000",
        clip,
        Blob("3" * 64, 7),
        None,
        Blob("4" * 64, 8),
        None,
        31.25,
        "cpu",
    )
    pack = Pack(
        "train-00000", "train", (sample, replace(sample, key="film-0001", round_trip_psnr_db=None))
    )
    member = Member("film-0000.json", 512, 10, "6" * 64)
    shard = Shard(
        "train-00000",
        "train",
        ("film-0000",),
        Fraction(100, 3),
        Blob("7" * 64, 10),
        ((member, member), (member,)),
    )
    source = scene.video.source
    return [
        (source, source),
        (scene.video, source),
        (scene, scene.video),
        (clip, scene),
        (sample, clip),
        (pack, pack),
        (shard, pack),
    ]


@pytest.mark.parametrize(
    "index", range(7), ids=["source", "video", "scene", "clip", "sample", "pack", "shard"]
)
def test_a_record_is_its_facts_its_key_and_its_parent(
    new_scene: Callable[..., Scene], index: int
) -> None:
    record, parent = every_kind(new_scene(0, 10_000))[index]
    found = manifest.restore(type(record), manifest.facts(record), record.key, parent)
    assert found == record
    assert type(found) is type(record)


def test_a_memo_of_facts_does_not_repeat_the_parent(new_scene: Callable[..., Scene]) -> None:
    scene = new_scene(3, 400)
    assert manifest.facts(scene) == {
        "start_pts": 3,
        "end_pts": 400,
        "distinct": None,
        "picture": None,
        "covers": None,
    }
    assert set(manifest.facts(scene.video)) == {"blob", "fetched_as", "container"}
    assert isinstance(
        manifest.restore(Video, manifest.facts(scene.video), "film", scene.video.source), Video
    )


def test_manifests_and_memos_of_before_with_a_field_that_has_gone_are_read(
    new_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    video = new_scene(3, 400).video
    facts = manifest.facts(video)
    facts["container"]["variable_fps"] = True
    assert manifest.restore(Video, facts, video.key, video.source) == video
    lines = Manifest("download", 1, {}, 1, 0, (video,), ()).encode().splitlines()
    record = canonical.unseal(lines[1])
    record["record"]["container"]["variable_fps"] = True
    path = tmp_path / "1-download.jsonl"
    path.write_bytes(lines[0] + b"\n" + canonical.seal(record) + b"\n")
    assert manifest.read(path, Video).records == (video,)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
SOURCES = st.builds(
    Source,
    key=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,12}\Z"),
    uri=TEXTS,
    captions=st.lists(TEXTS, max_size=3).map(tuple),
    license=st.none() | TEXTS,
    start_s=st.none() | st.fractions(0, 10**5),
    end_s=st.none() | st.fractions(0, 10**5),
)
REJECTIONS = st.builds(
    Rejection,
    st.text(max_size=8),
    st.just("expand"),
    st.sampled_from(["bad", "unavailable"]),
    TEXTS,
    TEXTS,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(SOURCES, max_size=5, unique_by=lambda source: source.key),
    st.lists(REJECTIONS, max_size=3),
    st.data(),
)
def test_any_manifest_comes_back_and_no_flipped_bit_does(
    tmp_path: Path, sources: list[Source], rejections: list[Rejection], data: st.DataObject
) -> None:
    written = Manifest(
        "expand",
        1,
        {"x": Fraction(1, 3)},
        len(sources),
        len(rejections),
        tuple(sources),
        tuple(rejections),
    )
    path = tmp_path / "expand.jsonl"
    path.write_bytes(written.encode())
    found = manifest.read(path, Source)
    assert found.encode() == written.encode()
    assert set(found.records) == set(sources)
    content = bytearray(written.encode())
    content[data.draw(st.integers(0, len(content) - 2))] ^= 1 << data.draw(
        st.integers(0, 7)
    )  # the last byte ends the last line
    path.write_bytes(content)
    with pytest.raises(Damaged):
        manifest.read(path, Source)
