"""A hiccup of this machine is never remembered as a property of a file."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from av.error import MemoryError

from pipeline.core.errors import Stopped
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Record, Video
from pipeline.core.stage import Progress, Stage, run_stage, survey
from pipeline.core.store import Store
from pipeline.media import reel, video
from pipeline.media.detectors.whole import Whole
from pipeline.stages import cut, encode, extract
from tests.making import footage

SMALL = reel.Params(size=64)
TABLES = (Whole(), SMALL, encode.Params(preset="tiny", image_frames=0))
VideoOf = Callable[..., Video]


def stage(name: str) -> Stage:
    module = {"cut": cut, "extract": extract, "encode": encode}[name]
    return module.stage(Setup(TABLES, device="cpu"))


def run(name: str, record: Record, store: Store) -> Record:
    manifest, _ = run_stage(stage(name), [record], store, Inline(), Progress())
    [output] = manifest.records
    return output


@pytest.fixture
def film_in_store(film: Callable[..., Path], video_of: VideoOf) -> Video:
    return video_of(film(footage.plain, 2, size="160x120"))


def is_remembered(name: str, record: Record, store: Store) -> bool:
    return survey(stage(name), [record], store).num_cached == 1


@pytest.mark.parametrize("name", ["cut", "extract", "encode"])
@pytest.mark.parametrize("harm", ["gone", "changed", "cut short"])
def test_a_blob_that_is_not_as_it_was_written_stops_the_build_and_rejects_nothing(
    film_in_store: Video, store: Store, name: str, harm: str
) -> None:
    record: Record = film_in_store
    blob = film_in_store.blob
    if name != "cut":
        record = run("cut", film_in_store, store)
        memo = store.recall(reel.memo_key(film_in_store.identity(), reel.stage_params(SMALL)))
        blob = type(blob)(**memo["reel"])
    if name == "encode":
        record = run("extract", record, store)
        assert isinstance(record, Clip)
        blob = record.blob
    path = store.path(blob.sha256)
    content = path.read_bytes()
    path.unlink()
    if harm == "changed":
        path.write_bytes(bytes(len(content)))
    elif harm == "cut short":
        path.write_bytes(content[: len(content) // 2])
    if name == "extract" and harm != "changed":
        assert run(name, record, store).key == record.key  # the reel is made again
        return
    with pytest.raises(Stopped):
        run(name, record, store)
    assert not is_remembered(name, record, store)
    path.write_bytes(content)
    assert run(name, record, store).key.startswith(record.key)


def test_a_read_error_is_the_disk_s_and_not_the_video_s(
    film_in_store: Video, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(video.av, "open", refuse)
        with pytest.raises(Stopped, match="Input/output error"):
            run("cut", film_in_store, store)
    assert not is_remembered("cut", film_in_store, store)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EACCES])
def test_a_read_that_fails_once_while_ffmpeg_reads_rejects_nothing(
    film_in_store: Video, store: Store, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    real, numbers = video.Reading.read, itertools.count(1)

    def failing(file: video.Reading, size: int) -> bytes:
        if next(numbers) == number:
            raise OSError(code, os.strerror(code))
        return real(file, size)

    with monkeypatch.context() as patched:
        patched.setattr(video.Reading, "read", failing)
        with pytest.raises(Stopped, match=os.strerror(code)):
            run("cut", film_in_store, store)
    assert not is_remembered("cut", film_in_store, store)
    assert run("cut", film_in_store, store).key.startswith(film_in_store.key)


def test_a_clip_that_cannot_be_written_stops_the_build_and_is_no_bug(
    film_in_store: Video, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = run("cut", film_in_store, store)
    real = reel.av.open

    def refuse(path: object, mode: str = "r", **options: object) -> object:
        if mode == "w":
            raise MemoryError(errno.ENOMEM, "Cannot allocate memory")
        return real(path, mode, **options)

    with monkeypatch.context() as patched:
        patched.setattr(reel.av, "open", refuse)
        with pytest.raises(Stopped, match="Cannot allocate memory"):
            run("extract", scene, store)
    assert not is_remembered("extract", scene, store)
    assert run("extract", scene, store).key.startswith(scene.key)


def test_a_video_that_is_bad_is_remembered_as_bad(
    store: Store, tmp_path: Path, video_of: VideoOf
) -> None:
    path = footage.plain(tmp_path / "film.mp4", 2, size="160x120")
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    good = video_of(path)
    blank = tmp_path / "blank.mp4"
    blank.write_bytes(content[:start] + bytes(len(content) - start))
    record = replace(good, blob=store.link(blank))
    manifest, _ = run_stage(stage("cut"), [record], store, Inline(), Progress())
    assert [rejection.reason for rejection in manifest.rejections] == ["unreadable"]
    assert is_remembered("cut", record, store)
