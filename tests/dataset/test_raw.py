"""Raw videos that are let go once their clips are verified: the same dataset, less disk, and
fetched again when they are needed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from pipeline.core.errors import Stopped
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Shard, Source, Video
from pipeline.core.stage import Batch, Job, Lost, Progress, Troubles
from pipeline.core.store import Store, blobs_in
from pipeline.dataset import build, passage
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import Step
from pipeline.dataset.passage import RawVideos
from pipeline.media import detectors, fetch, reel, video
from pipeline.plan import text
from pipeline.plan.plan import plan
from pipeline.publish import sweep, takedown
from pipeline.stages import extract, shard
from pipeline.stages import filter as filter_stage
from tests.making import footage
from tests.making.command import longtake
from tests.making.dataset import kinds_in
from tests.making.steps import step_of

OPTIONS = """
[filter]
min_frames = 10
max_frames = 30
[extract]
size = 64
[encode]
preset = "tiny"
image_frames = 0
[shard]
max_samples = 2
"""
BIGGER = OPTIONS.replace("size = 64", "size = 72")


@dataclass
class World:
    """Three videos on a server (in memory), one in a wheel, one in a folder; a recipe of them all;
    how often each was fetched.
    """

    folder: Path
    server: fsspec.AbstractFileSystem
    fetched: list[str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def store(self) -> Store:
        return Store(self.data / "store")

    def recipe(self, options: str = OPTIONS, name: str = "tiny") -> Path:
        addresses = {
            "a": "memory://a.mp4",
            "b": "memory://b.mp4",
            "c": "memory://c.mp4",
            "p": "pypi:some==1.0/p.mp4",
            "l": "file:l.mp4",
        }
        tables = [
            f'[[source]]\nid = "{key}"\nuri = "{uri}"\ncaption = "{key}"\n'
            for key, uri in addresses.items()
        ]
        path = self.folder / f"{name}.toml"
        path.write_text(
            "".join(tables)
            + '[[source]]\nid = "part"\nuri = "memory://a.mp4"\nend = "1.1"\n'
            + options
        )
        return path

    def build(
        self,
        options: str = OPTIONS,
        data: Path | None = None,
        raws: RawVideos | None = None,
        until: str = "shard",
    ) -> list[Step]:
        data = data or self.data
        held = Store(data / "store")
        held.prepare()
        held.once(["wheel", "some==1.0"], lambda: held.adopt(Path(self.wheel())))
        loaded = recipes.load(self.recipe(options))
        self.fetched.clear()
        return list(build.build(loaded, data, Inline(), "cpu", until, Progress(), None, raws))

    def wheel(self) -> Path:
        path = self.folder / "some.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.write(self.folder / "p" / "p.mp4", "p.mp4")
        return path

    def raw_videos(self, steps: list[Step]) -> dict[str, bool]:
        """Which are in the store, by key."""
        return {
            video.key: self.store.has(video.blob)
            for video in step_of("download", steps).manifest.records
            if isinstance(video, Video)
        }


@pytest.fixture
def world(
    film: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    server = fsspec.filesystem("memory")
    server.store.clear()
    for key, size in (("a", "160x120"), ("b", "120x160"), ("c", "144x144")):
        server.pipe(f"/{key}.mp4", film(footage.plain, 1.2, size=size).read_bytes())
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "p.mp4").write_bytes(film(footage.numbered, 12, 10).read_bytes())
    (tmp_path / "l.mp4").write_bytes(film(footage.plain, 1.2).read_bytes())
    made = World(tmp_path, server, [])
    for name in ("from_filesystem", "from_wheel"):
        real = getattr(fetch, name)

        def noted(uri: str, *args: object, _real: Callable[..., Blob] = real) -> Blob:
            made.fetched.append(uri)
            return _real(uri, *args)

        monkeypatch.setattr(fetch, name, noted)
    yield made
    server.store.clear()


def root(steps: list[Step]) -> str:
    shards = [record for record in steps[-1].manifest.records if isinstance(record, Shard)]
    return shard.root_digest(shards)


def test_without_raw_videos_the_dataset_is_the_same_and_the_disk_holds_a_few_at_a_time(
    world: World, tmp_path: Path
) -> None:
    with_them = world.build(data=tmp_path / "whole")
    raws = RawVideos(2)
    without = world.build(raws=raws)
    assert root(without) == root(with_them)
    assert [step.manifest for step in without] == [step.manifest for step in with_them]
    assert [(step.num_run, step.num_cached) for step in without] == [
        (step.num_run, step.num_cached) for step in with_them
    ]
    assert sorted(world.fetched) == [
        "memory://a.mp4",
        "memory://b.mp4",
        "memory://c.mp4",
        "pypi:some==1.0/p.mp4",
    ]
    assert not any(world.raw_videos(without).values())
    assert (
        tmp_path / "l.mp4"
    ).stat().st_nlink == 2  # the user's own file, and the other data folder's name of it
    sizes = {
        video.key: video.blob.num_bytes
        for video in step_of("download", without).manifest.records
        if isinstance(video, Video)
    }
    wheel = (tmp_path / "p" / "p.mp4").stat().st_size + 1000
    assert 0 < raws.peak_bytes < raws.all_bytes <= sum(sizes[key] for key in "abcp") + wheel
    kinds = kinds_in(world.store)
    assert not [
        sha256 for sha256 in world.store.blobs() if kinds[sha256] in ("raw videos", "wheels")
    ]
    assert step_of("download", without).num_bytes == 0


def test_a_second_build_without_raw_videos_does_no_work_and_verifies_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.build(raws=RawVideos(2), until="extract")
    monkeypatch.setattr(video, "frames", None)
    again = world.build(raws=RawVideos(2), until="extract")
    assert not any(step.num_run for step in again)
    assert world.fetched == []
    assert [step.manifest for step in again] == [step.manifest for step in first]


def test_another_size_fetches_raw_videos_again_and_other_scenes_do_not(
    world: World, tmp_path: Path
) -> None:
    world.build(raws=RawVideos(2))
    world.build(
        OPTIONS.replace("min_frames = 10\nmax_frames = 30", "min_frames = 6\nmax_frames = 11"),
        until="extract",
    )
    assert world.fetched == []
    planned = plan(recipes.load(world.recipe(BIGGER)), world.data, "cpu")
    assert sorted(planned.lines["extract"].refetched + planned.lines["cut"].refetched) == [
        "a",
        "b",
        "c",
        "p",
    ]
    in_wheel = (world.folder / "p" / "p.mp4").stat().st_size
    assert (
        planned.num_bytes["raw videos"]
        == sum(world.server.size(f"/{key}.mp4") for key in "abc") + in_wheel
    )
    assert "extract: 4 raw videos were let go and are fetched again (" in "\n".join(
        text.sentences(planned)
    )
    bigger = world.build(BIGGER)
    assert sorted(world.fetched) == [
        "memory://a.mp4",
        "memory://b.mp4",
        "memory://c.mp4",
        "pypi:some==1.0/p.mp4",
    ]
    assert all(world.raw_videos(bigger).values())
    assert root(bigger) == root(world.build(BIGGER, data=tmp_path / "fresh"))


def test_another_size_without_raw_videos_fetches_a_few_at_a_time_too(world: World) -> None:
    world.build(raws=RawVideos(2), until="extract")
    for options in (BIGGER, OPTIONS.replace("size = 64", "size = 80")):
        raws = RawVideos(2)
        steps = world.build(options, raws=raws, until="extract")
        assert len(world.fetched) == 4
        assert not any(world.raw_videos(steps).values())
        assert 0 < raws.peak_bytes < raws.all_bytes


def test_another_detector_fetches_raw_videos_again(world: World) -> None:
    world.build(raws=RawVideos(8), until="extract")
    other = OPTIONS + '[cut]\ndetector = "none"\n'
    assert sorted(
        plan(recipes.load(world.recipe(other)), world.data, "cpu").lines["cut"].refetched
    ) == ["a", "b", "c", "p"]
    world.build(other, until="cut")
    assert len(world.fetched) == 4
    assert not any(
        line.refetched
        for line in plan(recipes.load(world.recipe(other)), world.data, "cpu").lines.values()
    )


def test_a_raw_video_stays_noted_as_let_go_until_it_is_there_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.build(raws=RawVideos(8), until="extract")
    videos = [path.name for path in (world.store.root / "released").iterdir()]
    seen: list[bool] = []
    real = fetch.from_filesystem

    def looking(*args: Any) -> Blob:
        seen.append(all(world.store.released(Blob(sha256, 0)) for sha256 in videos))
        if len(seen) == 1:
            return real(*args)
        raise KeyboardInterrupt  # the build is killed while it asks for the second one

    monkeypatch.setattr(fetch, "from_filesystem", looking)
    with pytest.raises(KeyboardInterrupt):
        world.build(BIGGER, until="extract")
    assert seen == [True, True]


@pytest.mark.parametrize("wave", [None, 2])
def test_bytes_that_have_changed_meanwhile_are_refused_and_the_build_goes_on(
    world: World, film: Callable[..., Path], wave: int | None
) -> None:
    world.build(raws=RawVideos(2), until="extract")
    world.server.pipe("/b.mp4", film(footage.plain, 1.3, size="160x120").read_bytes())
    world.server.rm("/c.mp4")
    for _ in range(2):  # it is unavailable, so the next build tries again
        steps = world.build(BIGGER, raws=RawVideos(wave) if wave else None, until="extract")
        refused = {
            one.key: (one.stage, one.fate, one.reason) for one in steps[-1].manifest.rejections
        }
        assert refused == {
            "b-0000": ("extract", "unavailable", "checksum"),
            "c-0000": ("extract", "unavailable", "not-found"),
        }
        assert {record.key for record in steps[-1].manifest.records} == {
            "a-0000",
            "l-0000",
            "p-0000",
            "part-0000",
        }
        assert [world.fetched.count(uri) for uri in ("memory://b.mp4", "memory://c.mp4")] == [1, 1]
    looked = build.look(recipes.load(world.recipe(BIGGER)), world.data, "cpu")
    assert {failed.rejection.reason for failed in step_of("extract", looked).failures} == {
        "checksum",
        "not-found",
    }
    assert (
        len(world.build(until="extract")[-1].manifest.records) == 6
    )  # what was made of the first bytes is still good


@pytest.mark.parametrize("raws", [RawVideos(2), None], ids=["released", "kept"])
def test_bytes_that_were_refused_do_not_stay(world: World, raws: RawVideos | None) -> None:
    world.server.pipe("/b.mp4", b"no video at all")
    other_bytes = f'"memory://c.mp4"\nsha256 = "{"0" * 64}"'
    pinned = world.recipe().read_text().replace('"memory://c.mp4"', other_bytes)
    path = world.folder / "pinned.toml"
    path.write_text(pinned)
    refused = {hashlib.sha256(world.server.cat(f"/{key}.mp4")).hexdigest() for key in "bc"}
    loaded = recipes.load(path)
    build_all = build.build(loaded, world.data, Inline(), "cpu", "extract", Progress(), None, raws)
    rejections = step_of("download", build_all).manifest.rejections
    list(build_all)
    reasons = {rejection.key: rejection.reason for rejection in rejections}
    assert (reasons["b"], reasons["c"]) == ("unreadable", "checksum")
    blobs = world.store.blobs().keys()
    assert not refused & blobs
    memos = list(sweep.memos_of(world.store))
    assert blobs <= {blob.sha256 for memo in memos for blob in blobs_in(memo.outputs)}


def test_a_clip_that_is_not_as_it_was_written_stops_the_build_before_its_raw_video_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = extract.process

    def spoiling(scene: object, store: Store, params: object) -> Iterator[object]:
        for clip in real(scene, store, params):  # type: ignore[arg-type]
            path = store.path(clip.blob.sha256)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
            yield clip

    with monkeypatch.context() as patched:
        patched.setattr(extract, "process", spoiling)
        with pytest.raises(
            Stopped,
            match=r"the clip 'a-0000' is not on disk as it was written; .*The raw videos stay",
        ):
            world.build(raws=RawVideos(8), until="extract")
    kinds = kinds_in(world.store)
    assert [kinds.get(sha256) for sha256 in world.store.blobs()].count("raw videos") == 1
    again = world.build(raws=RawVideos(8), until="extract")
    assert again[-1].num_run == 6
    assert not any(world.raw_videos(again).values())


def test_a_clip_of_too_few_frames_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(*args: Any) -> Iterator[object]:
        return itertools.islice(video.frames(*args), 1, None)

    monkeypatch.setattr(passage, "video", SimpleNamespace(probe=video.probe, frames=fewer))
    with pytest.raises(Stopped, match="the clip 'a-0000' has 11 frames instead of 12"):
        world.build(raws=RawVideos(1), until="extract")


def test_raw_videos_that_another_dataset_has_stay(world: World) -> None:
    other = recipes.load(world.recipe(name="other"))
    world.build(until="download")
    list(build.build(other, world.data, Inline(), "cpu", "download", Progress()))
    raws = RawVideos(8)
    steps = world.build(raws=raws, until="extract")
    assert all(world.raw_videos(steps).values())
    assert raws.kept_for == {"other"}


def test_sources_of_one_address_and_files_of_one_wheel_travel_together(
    store: Store, tmp_path: Path
) -> None:
    addresses = ["file:1", "pypi:x==1/a", "file:2", "file:1", "pypi:x==1/b", "file:3"]
    sources = [Source(f"s{index}", uri) for index, uri in enumerate(addresses)]
    batches: list[Batch] = []

    class Watching(Inline):
        def map(self, work: Job, given: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
            batches.extend(given)
            yield from ()

    setup = Setup(
        (fetch.Params(), detectors.DEFAULT, filter_stage.Params(), reel.Params()), tmp_path
    )
    passage.take_through(setup, sources, store, Watching(), Progress(), (), {})
    keys = [[record.key for _, record in batch.tasks] for batch in batches]
    assert keys == [["s0", "s3"], ["s1", "s4"], ["s2"], ["s5"]]


def test_the_command_says_what_raw_videos_will_take_and_took(world: World) -> None:
    world.build(until="download")
    words = ("--data", world.data, "--executor", "inline", "--workers", "1", "--until")
    early = longtake("build", world.recipe(), *words, "cut", "--keep-raw", "no")
    assert "raw videos stay: `--until cut` makes no clips of them" in early.stdout
    said = longtake("build", world.recipe(), *words, "extract", "--keep-raw", "no")
    assert said.returncode == 0, said.stderr
    assert "raw videos of at most 1 address at a time" in said.stdout
    assert re.search(
        r"raw videos took at most [\d.]+ kB at a time, [\d.]+ kB in all; let go\n", said.stdout
    )
    assert longtake("status", world.recipe(), "--data", world.data).returncode == 0


def test_a_removed_source_s_note_of_being_let_go_goes_too(world: World) -> None:
    steps = world.build(raws=RawVideos(8), until="extract")
    gone = next(
        video.blob
        for video in step_of("download", steps).manifest.records
        if isinstance(video, Video) and video.key == "b"
    )
    assert world.store.released(gone)
    takedown.remove(recipes.load(world.recipe()), world.data, "b", "", "cpu")
    assert not world.store.released(gone)
