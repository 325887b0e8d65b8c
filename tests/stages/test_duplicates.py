"""Near-duplicates: what ties clips together, which of them stays, what it costs to ask again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.executors import Inline, Processes
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.picks import Pick
from pipeline.core.records import Clip, Crop, Scene, Source, Video, source_of
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import duplicates, frame_hashes, matching, reel, scorers, video
from pipeline.media.duplicates import Params
from pipeline.media.frame_hashes import NONE, Hashes
from pipeline.media.matching import Limits
from pipeline.stages import extract, keep, score
from tests.making import properties
from tests.making.films import changed, walk

LIMITS = Limits(12, mirrored=True)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A film of five seconds, copies of it, and others."""
    folder = tmp_path_factory.mktemp("films")
    film = walk(folder / "film.mp4", 1, 0, 50)
    logo = {"x": 215, "y": 8, "w": 32, "h": 24, "color": "white", "t": "fill"}
    still = properties.film(folder / "still.mp4", properties.still()[:30])
    return {
        "film": film,
        "small": changed(folder / "small.mp4", film, ("scale", {"w": 96, "h": 96})),
        "part": walk(folder / "part.mp4", 1, 13, 30),
        "mirror": changed(folder / "mirror.mp4", film, ("hflip", {}), ("drawbox", logo)),
        "later": walk(folder / "later.mp4", 1, 70, 40),
        "other": walk(folder / "other.mp4", 2, 0, 50),
        "still": still,
        "still-again": changed(folder / "still-again.mp4", still),
        "black": properties.film(folder / "black.mp4", properties.black()[:30]),
        "black-again": properties.film(folder / "black-again.mp4", properties.black()[:34]),
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("shared") / "store")
    store.prepare()
    return store


@pytest.fixture(scope="module")
def clips(films: dict[str, Path], shared: Store) -> list[Clip]:
    """A clip of each film, at 64 x 64, hashed. Their files are in the shared store."""
    clips = []
    for key, path in films.items():
        source = Source(key, f"file:{path.name}")
        film = Video(key, source, shared.link(path), "file", video.probe(path))
        scene = Scene(f"{key}-0000", film, 0, film.container.end_pts)
        clips.append(next(extract.process(scene, shared, reel.Params(size=64))))
    return hashed(clips, shared)


def hashed(clips: Sequence[Clip], store: Store, *names: str) -> list[Clip]:
    stage = score.stage(Setup((scorers.Params(scorers=names), Params())))
    manifest, _ = run_stage(stage, clips, store, Inline(), Progress())
    return [clip for clip in manifest.records if isinstance(clip, Clip)]


def kept(
    clips: Sequence[Clip], store: Store, params: Params | None = None, folder: Path | None = None
) -> Manifest:
    """What `keep` makes of clips without a rule; with a folder, also of its file of picks."""
    table = keep.Params() if folder is None else keep.Params(picks="picks.jsonl")
    tables = (scorers.Params(scorers=()), table, params or Params())
    stage = keep.stage(Setup(tables, folder or Path()))
    return run_stage(stage, clips, store, Inline(), Progress())[0]


def dropped(manifest: Manifest) -> dict[str, str]:
    return {rejection.key: rejection.detail for rejection in manifest.rejections}


def hashes(clips: Sequence[Clip], name: str) -> Hashes:
    [clip] = [clip for clip in clips if clip.key == f"{name}-0000"]
    return frame_hashes.from_text(clip.hashes)


def test_copies_go_and_the_best_stays_with_what_is_like_nothing(
    clips: list[Clip], store: Store
) -> None:
    manifest = kept(clips, store)
    assert manifest.reasons == {"duplicate": 3}
    details = dropped(manifest)
    assert details.keys() == {"small-0000", "part-0000", "mirror-0000"}
    assert details["small-0000"].startswith("'film-0000' shows the same (")
    # the film is hashed at even frames, so 1.3 s are between two moments
    assert details["part-0000"][:38] in (
        "'film-0000' shows the same, 1.2 s late",
        "'film-0000' shows the same, 1.4 s late",
    )
    assert details["mirror-0000"].startswith("'film-0000' shows the same, mirrored (")


def test_without_mirrored_a_mirrored_copy_stays(clips: list[Clip], store: Store) -> None:
    assert dropped(kept(clips, store, Params(mirrored=False))).keys() == {
        "small-0000",
        "part-0000",
    }


def test_no_option_decodes_anything(
    clips: list[Clip], shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "some_frames", lambda *_: pytest.fail("a clip was decoded"))
    assert hashed(clips_of_before(clips), shared) == clips
    assert dropped(kept(clips, shared, Params(max_bits=0))) == {}


def clips_of_before(clips: Sequence[Clip]) -> list[Clip]:
    """As `score` got them."""
    return [replace(clip, hashes="") for clip in clips]


def test_frames_are_hashed_in_the_decode_of_the_scorers_and_remembered_apart(
    clips: list[Clip], store: Store, shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes = []
    some_frames = video.some_frames

    def counting(path: Path, indexes: Sequence[int], most: int) -> Any:
        decodes.append(len(indexes))
        return some_frames(path, indexes, most)

    monkeypatch.setattr(video, "some_frames", counting)
    film = [clip for clip in clips_of_before(clips) if clip.key == "film-0000"]
    store.link(shared.path(film[0].blob.sha256))
    assert hashed(film, store, "distinct")[0].hashes == hashed(film, store)[0].hashes
    assert len(decodes) == 1
    hashed(film, store, "distinct", "motion")
    assert len(decodes) == 2  # for the new scorer alone


def test_the_order_of_clips_changes_nothing(clips: list[Clip], store: Store) -> None:
    expected = kept(clips, store).encode()
    for seed in range(3):
        mixed = random.Random(seed).sample(clips, len(clips))
        assert kept(mixed, store).encode() == expected


def test_what_was_picked_stays_whatever_it_is_like(
    clips: list[Clip], store: Store, tmp_path: Path
) -> None:
    digests = {clip.key: clip.blob.sha256 for clip in clips}
    picks = [
        Pick(clip=digests["part-0000"], pick="keep", time="2026-01-01T00:00:00Z", note=""),
        Pick(clip=digests["film-0000"], pick="reject", time="2026-01-01T00:00:00Z", note=""),
    ]
    lines = [pick.model_dump_json() + "\n" for pick in picks]
    (tmp_path / "picks.jsonl").write_text("".join(lines))
    manifest = kept(clips, store, folder=tmp_path)
    details = dropped(manifest)
    # what was rejected by hand is nobody's better copy
    assert details.keys() == {"film-0000", "small-0000", "mirror-0000"}
    assert details["small-0000"].startswith("'part-0000' shows the same")


def test_videos_that_share_a_picture_are_split_together(clips: list[Clip], store: Store) -> None:
    groups = {
        source_of(clip).key: clip.split_group
        for clip in kept(clips, store).records
        if isinstance(clip, Clip)
    }
    alike = {
        clip.scene.video.blob.sha256
        for clip in clips
        if source_of(clip).key in ("film", "small", "part", "mirror")
    }
    assert groups.pop("film") == min(alike)
    assert set(groups.values()) == {None}


def test_what_stays_carries_no_hashes_on(clips: list[Clip], store: Store) -> None:
    assert {clip.hashes for clip in kept(clips, store).records if isinstance(clip, Clip)} == {""}


def test_black_and_blank_pictures_and_gradients_have_no_hash(clips: list[Clip]) -> None:
    assert set(hashes(clips, "black").tolist()) == {NONE}
    ramp = np.tile(np.arange(32), (32, 1)) * 16 * 4
    planes = [np.full((32, 32), 2048), ramp, ramp.T]
    assert frame_hashes.hashes_of(np.array(planes, np.int64)).tolist() == [NONE] * 3


def test_a_still_is_like_nothing_not_even_a_copy(clips: list[Clip]) -> None:
    first, second = hashes(clips, "still"), hashes(clips, "still-again")
    assert NONE not in first
    assert int(np.bitwise_count(first ^ second).max()) <= 2
    assert matching.pairs_of([first, second], LIMITS) == []


def test_the_very_same_pictures_are_duplicates_even_of_a_still(
    clips: list[Clip], store: Store
) -> None:
    [still] = [clip for clip in clips if clip.key == "still-0000"]
    again = [replace(still, key=key) for key in ("a-0000", "z-0000")]
    assert dropped(kept([*clips, *again], store)).keys() >= {"still-0000", "z-0000"}


def test_another_part_of_the_same_walk_is_no_duplicate(clips: list[Clip]) -> None:
    agreement = matching.best_agreement(hashes(clips, "film"), hashes(clips, "later"))
    assert agreement is not None
    assert not agreement.is_match(LIMITS.max_bits)


def test_the_hash_of_a_mirrored_picture_follows_from_the_hash() -> None:
    pictures = np.array([thumbnail_of(seed) for seed in range(20)])
    plain = frame_hashes.hashes_of(pictures)
    mirrored = frame_hashes.hashes_of(pictures[:, :, ::-1])
    assert (frame_hashes.mirrored(plain) == mirrored).all()
    assert (frame_hashes.mirrored(mirrored) == plain).all()


def thumbnail_of(seed: int) -> NDArray[np.int64]:
    patches = np.random.default_rng(seed).integers(0, 255 * frame_hashes.LEVELS, (8, 8))
    return np.kron(patches, np.ones((4, 4), np.int64))


def test_hashes_are_written_as_they_are_read() -> None:
    values = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    text = frame_hashes.text_of(values)
    assert len(text) == 4 * frame_hashes.DIGITS
    assert (frame_hashes.from_text(text) == values).all()
    assert len(frame_hashes.from_text("")) == 0


def test_the_hash_of_a_picture_is_always_the_same() -> None:
    """It is stored, and decides what is in a dataset: another one takes another VERSION."""
    hashes = frame_hashes.hashes_of(np.array([thumbnail_of(0), thumbnail_of(1)]))
    assert (frame_hashes.VERSION, frame_hashes.text_of(hashes)) == (
        1,
        "7d037f8536fe22084d78244ebd58aad5",
    )


def drift(seed: int, count: int = 50) -> Hashes:
    """Hashes of a clip in which some bits change from moment to moment."""
    random_bits = np.random.default_rng(seed)
    steps = np.zeros(count, np.uint64)
    steps[0] = random_bits.integers(1, 2**63)
    for step in range(1, count):
        for bit in random_bits.integers(0, 64, 2):
            steps[step] ^= np.uint64(1 << int(bit))
    return np.bitwise_xor.accumulate(steps)


def test_of_a_chain_what_the_best_does_not_show_stays(new_scene: Callable[..., Scene]) -> None:
    """The second shows a half of the first, the third a half of the second."""
    long = drift(0, 120)
    parts = {"a": long[:60], "b": long[30:85], "c": long[58:100]}
    clips = [clip_of(key, part, new_scene) for key, part in parts.items()]
    overview = duplicates.overview_of(clips, (), Params())
    assert [like.other for like in overview.likes["b"]] == ["a", "c"]
    assert {key: like.other for key, like in overview.losers.items()} == {"b": "a"}
    assert overview.losers["b"].later_s == 6.0


def clip_of(key: str, part: Hashes, new_scene: Callable[..., Scene]) -> Clip:
    blob = replace(new_scene(0, 400).video.blob, sha256=canonical.digest(key))
    scene = new_scene(0, 400)
    scene = replace(scene, video=replace(scene.video, blob=blob))
    count = 2 * len(part)
    text = frame_hashes.text_of(part)
    crop = Crop(0, 0, 64, 64)
    return Clip(key, scene, blob, count, Fraction(10), 64, crop, blob.sha256, hashes=text)


def test_of_many_copies_one_stays_although_no_index_names_every_pair(
    new_scene: Callable[..., Scene],
) -> None:
    hashes = drift(0)
    clips = [clip_of(f"{index:04d}", hashes, new_scene) for index in range(300)]
    overview = duplicates.overview_of(clips, (), Params())
    assert {like.other for like in overview.losers.values()} == {"0000"}
    assert len(overview.losers) == 299


def test_an_index_of_nothing_is_empty() -> None:
    assert matching.pairs_of([], LIMITS) == []
    assert matching.pairs_of([np.zeros(0, np.uint64)] * 2, LIMITS) == []
    assert matching.pairs_of([np.zeros(50, np.uint64)] * 2, LIMITS) == []


def test_diagonals_are_compared_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = drift(1, 70), drift(1, 70)[10:60]
    expected = matching.best_agreement(first, second)
    assert expected is not None
    assert (expected.shift, expected.bits) == (-10, 0.0)
    monkeypatch.setattr(matching, "ROWS", 7)
    assert matching.best_agreement(first, second) == expected


def test_a_random_copy_is_found_among_others(clips: list[Clip]) -> None:
    others = [drift(seed) for seed in range(100)]
    noise = np.uint64(0b1011 << 20)
    copies = [frame_hashes.mirrored(others[3][5:]) ^ noise, others[7][:30] ^ noise]
    pairs = matching.pairs_of([*others, *copies], LIMITS)
    assert [(pair.first, pair.second, pair.is_mirrored) for pair in pairs] == [
        (3, 100, True),
        (7, 101, False),
    ]
    assert [pair.shift for pair in pairs] == [-5, 0]


def test_workers_hash_as_this_process_does(clips: list[Clip], store: Store, shared: Store) -> None:
    stage = score.stage(Setup((scorers.Params(scorers=()), Params())))
    for clip in clips:
        store.link(shared.path(clip.blob.sha256))
    manifest, _ = run_stage(stage, clips_of_before(clips), store, Processes(2), Progress())
    assert list(manifest.records) == sorted(clips, key=lambda clip: clip.key)
