"""Files and their folders are on disk before anything is deleted because of them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import canonical
from pipeline.core.errors import Unavailable
from pipeline.core.executors import Inline
from pipeline.core.files import replace_file
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock, removals
from pipeline.dataset import recipe as recipes
from pipeline.dataset.passage import RawVideos
from pipeline.publish import sweep, takedown
from tests.making.dataset import Dataset, kinds_in
from tests.making.order import watched

TASK = "ab" + "0" * 62
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")


def test_a_file_is_on_disk_with_all_folders_that_were_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = watched(monkeypatch)
    replace_file(tmp_path / "one" / "two" / "a.jsonl", b"{}")
    folders = {tmp_path, tmp_path / "one", tmp_path / "one" / "two"}
    assert folders <= order.synced_before(len(order.events))


def test_a_data_folder_is_on_disk_with_the_folder_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = watched(monkeypatch)
    with build.opened(tmp_path / "new" / "data"):
        pass
    assert {tmp_path, tmp_path / "new"} <= order.synced_before(len(order.events))


def test_a_blob_and_a_memo_are_on_disk_with_their_folders_when_they_are_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = watched(monkeypatch)
    blob = store.put(b"latents")
    store.remember(TASK, blob)
    for path in (store.path(blob.sha256), store.memo_path(TASK)):
        number = order.first("rename", lambda renamed, path=path: renamed == path)
        assert order.events[number - 1][0] == "sync"  # the content, before it has its name
        assert order.events[number + 1] == ("sync", path.parent)
        assert ("sync", path.parent.parent) in order.events


def test_a_blob_goes_only_when_the_note_of_it_is_on_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.put(b"a raw video")
    order = watched(monkeypatch)
    store.release(blob)
    gone = order.first("unlink", lambda path: path.name == blob.sha256)
    assert store.root / "released" in order.synced_before(gone)


def test_a_raw_video_goes_only_when_its_clips_and_what_is_remembered_of_them_are_on_disk(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset.published(tmp_path)
    loaded = recipes.load(dataset.recipe)

    def built(raws: RawVideos | None) -> None:
        list(build.build(loaded, dataset.data, Inline(), "cpu", "extract", Progress(), None, raws))

    built(None)  # by a build that was killed, for all we know: nothing of it need be on disk
    store = Store(dataset.data / "store")
    kinds = kinds_in(store)
    raws = [sha256 for sha256, kind in kinds.items() if kind == "raw videos"]
    memos = {
        memo.key: {sha256 for sha256, kind in sweep.kinds_in(memo) if kind == "clips"}
        for memo in sweep.memos_of(store)
    }
    order = watched(monkeypatch)
    built(RawVideos(1))
    first_gone = order.first("unlink", lambda path: path.name in raws)
    on_disk = {path.name for path in order.synced_before(first_gone)}
    assert [clips for key, clips in memos.items() if clips and {key, *clips} <= on_disk]


def test_the_old_form_of_a_lock_goes_only_when_the_new_one_is_on_disk(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, plain = lock.read(small_dataset.recipe), tmp_path / "small.lock.jsonl"
    lock.write_file(locked, plain)
    old = lock.packed_form(plain)
    old.write_bytes(b"of a build that was killed before it removed this one")
    order = watched(monkeypatch)
    lock.write_file(locked, plain)
    gone = order.first("unlink", lambda path: path == old)
    assert {plain, tmp_path} <= order.synced_before(gone)
    assert order.events[-1] == ("sync", tmp_path)


def test_gc_has_blobs_off_the_disk_before_the_first_memo_goes(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset.copy(tmp_path)
    manifests = set(os.listdir(dataset.folder))
    dataset.recipe.write_text(dataset.recipe.read_text().replace("size = 64", "size = 72"))
    dataset.build()
    order = watched(monkeypatch)
    sweep.gc(dataset.data, dry=False)
    first_blob = order.first("unlink", lambda path: "blobs" in path.parts)
    on_disk = {path.name for path in order.synced_before(first_blob)}
    assert {name for name in manifests if name[0].isdigit()} <= on_disk
    first_memo = order.first("unlink", lambda path: "memos" in path.parts)
    gone = {path for verb, path in order.events[:first_memo] if verb == "unlink"}
    folders = {path.parent for path in gone if "blobs" in path.parts}
    assert folders
    assert folders <= order.synced_before(first_memo)


def test_a_removal_is_on_disk_before_anything_goes_also_where_it_was_noted_before(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset.copy(tmp_path)
    dataset.build()
    removals_file = removals.path_of(dataset.recipe)
    for _ in range(2):
        with monkeypatch.context() as patched:
            order = watched(patched)
            takedown.remove(recipes.load(dataset.recipe), dataset.data, "a", "asked", "cpu")
        blobs = [path for verb, path in order.events if verb == "unlink" and "blobs" in path.parts]
        if blobs:
            gone = order.first("unlink", lambda path, blob=blobs[0]: path == blob)
            assert removals_file in order.synced_before(gone)
        else:  # nothing was left to delete, and still the line is brought to disk
            assert removals_file in order.synced_before(len(order.events))


def test_an_index_goes_before_its_tars_change_and_comes_when_they_are_on_disk(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset.copy(tmp_path)
    dataset.recipe.write_text(dataset.recipe.read_text().replace("the film a", "another film"))
    order = watched(monkeypatch)
    dataset.build()
    shards = dataset.folder / "shards"
    gone = order.first("unlink", lambda path: path == shards / "index.json")
    assert order.events[gone + 1] == ("sync", shards)
    come = order.first("rename", lambda path: path == shards / "index.json")
    last_tar = max(
        index
        for index, (verb, path) in enumerate(order.events)
        if verb == "rename" and path.parent == shards and path.suffix == ".tar"
    )
    assert gone < last_tar < come
    assert ("sync", shards) in order.events[last_tar:come]


def test_a_local_file_that_grows_while_it_is_taken_in_is_refused_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"the first half")
    real: Callable[[Path], str] = canonical.file_digest

    def and_meanwhile(path: Path) -> str:
        digest = real(path)
        with film.open("ab") as file:
            file.write(b", the second")
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(canonical, "file_digest", and_meanwhile)
        with pytest.raises(Unavailable, match="is being written to"):
            store.link(film)
        with pytest.raises(Unavailable, match="is being written to"):
            store.link(film, "0" * 64)
    assert store.blobs() == {}
    blob = store.link(film)
    assert real(store.path(blob.sha256)) == blob.sha256


def test_a_local_file_of_another_length_after_the_copy_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(18, "cross-device link")

    film = tmp_path / "film.mp4"
    film.write_bytes(b"the first half")
    real = shutil.copyfile

    def growing(source: Path, target: Path) -> None:
        with film.open("ab") as file:
            file.write(b", the second")
        real(source, target)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfile", growing)
    with pytest.raises(Unavailable, match="is being written to"):
        store.link(film)
    assert store.blobs() == {}


def test_a_damaged_blob_of_the_right_size_is_written_again(store: Store) -> None:
    blob = store.put(b"embedding")
    store.path(blob.sha256).write_bytes(b"embeddinG")
    assert store.put(b"embedding") == blob
    assert store.path(blob.sha256).read_bytes() == b"embedding"
